"""How every function here computes: without gradients and dropout, on a model that it leaves as it was."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from ..assembly.arguments import check_model
from ..components.dropout import no_dropout

F = TypeVar("F", bound=Callable[..., Any])


def observing(function: F) -> F:
    """Return a function of a model that computes without gradients and dropout, whatever mode the model is in.

    Raises (when the function is called):
        ValueError: the first argument is no model of ours.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=4, resid_dropout=0.5))
        >>> logits = observing(lambda model: model(torch.tensor([[1, 2]])))
        >>> torch.equal(logits(model), logits(model)), model.training
        (True, True)
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        model = args[0] if args else kwargs.get("model")
        check_model(model)
        with torch.no_grad(), no_dropout(cast(torch.nn.Module, model)):
            return function(*args, **kwargs)

    return cast(F, wrapper)


def check_head(model: Any, layer: int, head: int) -> None:
    """Raise ValueError if a model has no such head.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> check_head(GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=4)), 0, 2)
        Traceback (most recent call last):
        ValueError: head is 2; the model's heads are 0 to 1
    """
    for name, value, number in (("layer", layer, model.config.n_layers), ("head", head, model.config.n_heads)):
        if not isinstance(value, int) or not 0 <= value < number:
            raise ValueError(f"{name} is {value!r}; the model's {name}s are 0 to {number - 1}")
