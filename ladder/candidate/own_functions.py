"""Derivatives that the user wrote (``torch.autograd.Function``): are they those of what is computed?"""

import contextlib
import inspect
import sys
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .places import Code

# Of a central difference: its error is far smaller, and a wrong derivative's is far larger.
_STEP, _MOST = 1e-6, 1e-4


class OwnFunctions:
    """Notes the calls in its context of a user's own functions, to check their derivatives later."""

    def __init__(self) -> None:
        self._calls: list[tuple[Any, tuple[Any, ...]]] = []
        self.running = 0
        """How many of them are at work at the moment, one inside another."""

    def __enter__(self) -> "OwnFunctions":
        """Begin to note calls."""
        self._apply = own = vars(Function)["apply"]

        def noting(cls: Any, *args: Any, **kwargs: Any) -> Any:
            self.running += 1
            try:
                output = own.__func__(cls, *args, **kwargs)
            finally:
                self.running -= 1
            if isinstance(output, Tensor) and output.dtype == torch.float64 and not kwargs:
                self._calls.append((cls, args))
            return output

        Function.apply = classmethod(noting)  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        Function.apply = self._apply  # pyright: ignore[reportAttributeAccessIssue]

    def wrong_backward(self, code: Code) -> tuple[str, str] | None:
        """Return the line of a ``backward`` that does not give the derivative of its ``forward``; None if all do."""
        for cls, args in self._calls:
            with contextlib.suppress(Exception):  # then nothing is known of it
                written = inspect.unwrap(cls.backward).__code__
                line = _LastLine(written)
                if code.owns(written.co_filename) and not _is_derivative(cls, args, line):
                    return code.first([(written.co_filename, line.number)])
        return None


def _is_derivative(cls: Any, args: tuple[Any, ...], line: "_LastLine") -> bool:
    """Return whether a function changes along a random direction by as much as its own derivative gives."""
    generator = torch.Generator().manual_seed(0)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    varied = [isinstance(each, Tensor) and each.requires_grad for each in args]
    leaves = [each.detach().clone().requires_grad_() if vary else each for each, vary in zip(args, varied, strict=True)]
    watched = [leaf for leaf, vary in zip(leaves, varied, strict=True) if vary]
    output = cls.apply(*leaves)
    if not watched or not output.requires_grad:
        return True
    cotangent, directions = drawn(output), [drawn(leaf) for leaf in watched]
    with line:
        found = torch.autograd.grad((output * cotangent).sum(), watched, allow_unused=True)
    slope = sum((own * to).sum().item() for own, to in zip(found, directions, strict=True) if own is not None)

    def moved(step: float) -> Tensor:
        moves = iter(directions)
        with torch.no_grad():
            return cls.apply(
                *[leaf + step * next(moves) if vary else leaf for leaf, vary in zip(leaves, varied, strict=True)]
            )

    changed = ((moved(_STEP) - moved(-_STEP)) * cotangent).sum().item() / (2 * _STEP)
    return abs(changed - slope) <= _MOST * (1 + abs(changed))


class _LastLine:
    """Notes the last line of a function that ran in its context; before that, its first line."""

    def __init__(self, code: CodeType) -> None:
        self._code, self.number = code, code.co_firstlineno

    def __enter__(self) -> None:
        """Begin to note lines."""
        self._before = sys.gettrace()
        sys.settrace(lambda frame, *_: self._noted if frame.f_code is self._code else None)

    def __exit__(self, *_: object) -> None:
        """End it."""
        sys.settrace(self._before)

    def _noted(self, frame: FrameType, *_: Any) -> Any:
        self.number = frame.f_lineno
        return self._noted
