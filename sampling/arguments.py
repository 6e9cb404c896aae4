"""Check the types of what callers pass: a wrong one gets a sentence that names it and what to pass instead."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .params import SamplingParams
from .transforms import LogitsTransform

__all__ = ["checked_params", "checked_transforms"]


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
