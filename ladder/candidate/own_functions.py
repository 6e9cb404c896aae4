"""Derivatives that the user wrote (``torch.autograd.Function``): are they those of what is computed?"""

import contextlib
import inspect
import linecache
import re
import sys
from collections.abc import Sequence
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
        """Return the line of a ``backward`` that does not give the derivative of its ``forward``; None if all do.

        It is the line that made the wrong one of several derivatives, if they have names.
        """
        for cls, args in self._calls:
            with contextlib.suppress(Exception):  # then nothing is known of it
                written = inspect.unwrap(cls.backward).__code__
                lines = _Lines(written)
                own = [i for i, each in enumerate(args) if isinstance(each, Tensor) and each.requires_grad]
                if code.owns(written.co_filename) and not _is_derivative(cls, args, own, lines):
                    wrong = [i for i in own if not _is_derivative(cls, args, [i], lines)]
                    line = lines.of_derivative(wrong[0]) if len(wrong) == 1 else lines.ran[-1]
                    return code.first([(written.co_filename, line)])
        return None


def _is_derivative(cls: Any, args: tuple[Any, ...], of: Sequence[int], lines: "_Lines") -> bool:
    """Return whether a function changes along a random direction by as much as its derivatives of these arguments."""
    generator = torch.Generator().manual_seed(0)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    varied = [i in of for i, _ in enumerate(args)]
    leaves = [each.detach() if isinstance(each, Tensor) else each for each in args]
    leaves = [each.clone().requires_grad_() if vary else each for each, vary in zip(leaves, varied, strict=True)]
    watched = [leaf for leaf, vary in zip(leaves, varied, strict=True) if vary]
    output = cls.apply(*leaves)
    if not watched or not output.requires_grad:
        return True
    cotangent, directions = drawn(output), [drawn(leaf) for leaf in watched]
    with lines:
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


class _Lines:
    """Notes the lines of a function that run in its context."""

    def __init__(self, code: CodeType) -> None:
        self._code = code
        self.ran = [code.co_firstlineno]

    def __enter__(self) -> None:
        """Begin to note lines."""
        self._before = sys.gettrace()
        sys.settrace(lambda frame, *_: self._noted if frame.f_code is self._code else None)

    def __exit__(self, *_: object) -> None:
        """End it."""
        sys.settrace(self._before)

    def _noted(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            self.ran.append(frame.f_lineno)
        return self._noted

    def of_derivative(self, number: int) -> int:
        """Return the line that made one of several derivatives that are returned by their names; else the last line."""
        sources = [linecache.getline(self._code.co_filename, line).strip() for line in self.ran]
        returned = sources[-1].removeprefix("return ").split(",")
        name = returned[number].strip() if number < len(returned) else ""
        made = [i for i, source in enumerate(sources) if re.match(rf"{re.escape(name)} *[-+*/@]?=[^=]", source)]
        return self.ran[made[-1]] if name.isidentifier() and made else self.ran[-1]
