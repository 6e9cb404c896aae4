"""Check the types of what callers pass: a wrong one gets a sentence that names it and what to pass instead."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from .params import SamplingParams
from .transforms import LogitsTransform

__all__ = ["check_model", "checked_params", "checked_transforms"]

_METHODS = ("final_residual", "unembed", "new_cache")  # what is called here; wrappers, as of torch.compile, have it too


def check_model(model: object, name: str = "model", instead: str = "a GPT2") -> None:
    """Raise ValueError if an argument is not a model of ours.

    >>> check_model("gpt2")
    Traceback (most recent call last):
    ValueError: model must be a GPT2, not 'gpt2': GPT2.from_pretrained loads one by its name or folder

    Args:
        model: the argument.
        name: its name, for the message.
        instead: what it can be, for the message.
    """
    if isinstance(model, nn.Module) and all(hasattr(model, method) for method in _METHODS):
        return
    shown, advice = f"{model!r:.60}", "GPT2.from_pretrained loads one by its name or folder"
    if isinstance(model, nn.Module):
        shown = f"a {type(model).__name__}"
        advice = "gptladder.weights converts models of transformers (from_hf) and TransformerLens"
    raise ValueError(f"{name} must be {instead}, not {shown}: {advice}")


def checked_params(params: Any, default: SamplingParams) -> SamplingParams:
    """Return the settings that the user passed (None: the default), or raise ValueError for anything else.

    >>> checked_params({"top_k": 5}, SamplingParams())
    Traceback (most recent call last):
    ValueError: params must be SamplingParams, not {'top_k': 5}: give SamplingParams(**settings)
    """
    if params is None or isinstance(params, SamplingParams):
        return default if params is None else params
    how = "SamplingParams(**settings)" if isinstance(params, Mapping) else "SamplingParams(temperature=…, top_k=…)"
    raise ValueError(f"params must be SamplingParams, not {params!r:.60}: give {how}")


def checked_transforms(transforms: Any) -> Sequence[LogitsTransform]:
    """Return the user's transforms, or raise ValueError if they are not functions in a list.

    >>> checked_transforms(max)
    Traceback (most recent call last):
    ValueError: transforms must be a list of functions (history, logits) -> logits, not one function: give [...]
    """
    wanted = "transforms must be a list of functions (history, logits) -> logits"
    if isinstance(transforms, Callable):
        raise ValueError(f"{wanted}, not one function: give [...]")
    if not isinstance(transforms, Iterable) or isinstance(transforms, str | Mapping):
        raise ValueError(f"{wanted}, not {transforms!r:.60}")
    found = tuple(transforms)
    for transform in found:
        if not callable(transform):
            raise ValueError(f"{wanted}, and one is {transform!r:.60}")
    return found
