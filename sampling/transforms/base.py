"""The base of all transforms of logits: the type, the shape check, the chain, and the checks of their settings."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from ...components.shapes import shape_checked

__all__ = ["PADDING", "Chain", "LogitsTransform", "Transform", "check_in_vocabulary", "number", "token_ids", "whole"]

PADDING = -1
"""The value in ``history`` to the left of a prompt that is shorter than the longest one of the batch."""


class LogitsTransform(Protocol):
    """The type of a chain's steps: any function of history and logits that returns the new logits.

    >>> import torch
    >>> chain = Chain((lambda history, logits: logits + 1,))
    >>> chain(torch.tensor([[0]]), torch.tensor([[1.0, 2.0]]))
    tensor([[2., 3.]])
    """

    def __call__(self, history: Tensor, logits: Tensor, /) -> Tensor:
        """Return new logits, or the same tensor if there is nothing to change."""
        ...


class Transform(ABC):
    """Base of the transforms of this package: checks the shapes, then applies the formula."""

    @shape_checked
    def __call__(
        self, history: Int[Tensor, "batch seq"], logits: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Return new logits, or the same tensor if there is nothing to change.

        Args:
            history: The tokens so far of each row, padded on the left with `PADDING`.
            logits: Logits of the next token, float32 or float64.

        Raises:
            TypeCheckError: A wrong shape or dtype.
        """
        return self._apply(history, logits)

    @abstractmethod
    def _apply(self, history: Tensor, logits: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Chain(Transform):
    """Transforms one after another; itself a transform.

    >>> import torch
    >>> halve = lambda history, logits: logits / 2
    >>> Chain((halve, halve))(torch.tensor([[0]]), torch.tensor([[4.0, 8.0]]))
    tensor([[1., 2.]])

    Raises:
        ValueError: A step is not callable.
    """

    transforms: Sequence[LogitsTransform] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.transforms, Iterable) or isinstance(self.transforms, str):
            raise ValueError(f"transforms must be a list of functions, not {self.transforms!r:.60}: give Chain([...])")
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for transform in self.transforms:
            if not callable(transform):
                raise ValueError(
                    f"a step of the chain must be a callable (history, logits) -> logits, not {transform!r}"
                )

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        for transform in self.transforms:
            logits = transform(history, logits)
        return logits


def whole(name: str, value: Any, *, least: int) -> int:
    """Return a setting as an int, or raise ValueError if it is not a whole number of at least ``least``.

    >>> whole("top_k", 3, least=1)
    3
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or found < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return found


def number(
    name: str, value: Any, low: float, high: float, *, ends: Literal["both", "high", "none"] = "both", meaning: str = ""
) -> float:
    """Return a setting as a float, or raise ValueError if it is not a number between two limits.

    Settings are limited so that no sum or product of them with logits leaves the range of float32.

    >>> number("top_p", 2, 0, 1, ends="high", meaning=" (which keeps all)")
    Traceback (most recent call last):
    ValueError: top_p must be above 0 and at most 1 (which keeps all), not 2

    Args:
        name: Name of the setting, for the message.
        value: The setting.
        low: The lower limit.
        high: The upper limit.
        ends: Which of the limits are allowed values themselves.
        meaning: The meaning of a limit, in brackets, for the message.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    allowed = is_number and _in_range(value, low, high, ends)
    if not allowed:
        start, middle = {"both": ("from", "to"), "high": ("above", "and at most"), "none": ("between", "and")}[ends]
        raise ValueError(f"{name} must be {start} {low:g} {middle} {high:g}{meaning}, not {value!r}")
    return float(value)


def _in_range(value: Any, low: float, high: float, ends: str) -> bool:
    return low <= value <= high and (ends == "both" or value != low) and (ends != "none" or value != high)


def token_ids(name: str, ids: Iterable[Any]) -> tuple[int, ...]:
    """Return token ids as a tuple of ints, or raise ValueError if there are none, or one cannot be an id.

    >>> token_ids("eos_token_ids", [3, 4])
    (3, 4)
    """
    if isinstance(ids, bytes) or not hasattr(ids, "__iter__"):
        raise ValueError(f"{name} must be a list of token ids, not {ids!r}")
    ids = tuple(ids)
    if not ids:
        raise ValueError(f"{name} must name at least one token")
    return tuple(whole(f"each token of {name}", token, least=0) for token in ids)


def check_in_vocabulary(name: str, ids: Tensor, logits: Tensor) -> None:
    """Raise ValueError if an id is not in the vocabulary of the logits."""
    largest, d_vocab = int(ids.max()), logits.shape[1]
    if largest >= d_vocab:
        raise ValueError(f"{name} names token {largest}, but the vocabulary ends at {d_vocab - 1}")
