"""What a classic mistake is: a layer's formula, a step at a time, with one step replaced by a wrong one."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..rungs import Build

Steps = Mapping[str, Any]

_SENTENCE = re.compile(r"(?<=[.]) (?=[A-Z(])")


@dataclass(frozen=True, eq=False)
class Mistake:
    """A wrong layer.

    Args:
        name: what is wrong, in a few words.
        hint: the same in plain sentences, with the fix.
        rung: the name of the rung that must fail it.
        base: the right layer, made with ``(config, dtype)``; its methods are the steps of the formula.
        spellings: the wrong steps. There are several where one mistake is made in ways that give different numbers (a
            query that may look nowhere gets NaN if the mask fills -inf, and the mean of everything if it fills -1e5).
        rare: is not looked for together with a second mistake, which would take too long for all of them.
    """

    name: str
    hint: str
    rung: str
    base: type[nn.Module]
    spellings: tuple[Steps, ...]
    rare: bool = False

    @property
    def what(self) -> str:
        """The hint's first sentence: what is wrong."""
        return _SENTENCE.split(self.hint, maxsplit=1)[0]

    @property
    def fix(self) -> str:
        """The rest of the hint: how to fix it."""
        return "".join(_SENTENCE.split(self.hint, maxsplit=1)[1:])

    @property
    def builds(self) -> tuple[Build, ...]:
        """The wrong layer, for a configuration, in a dtype; once for each spelling."""
        return tuple(with_steps(self.base, steps) for steps in self.spellings)

    @property
    def build(self) -> Build:
        """The first spelling."""
        return self.builds[0]


def entries(rung: str, base: type[nn.Module]) -> Callable[..., Mistake]:
    """Return what writes an entry of the catalogue: ``entry(name, hint, step=…)``; ``also`` are more spellings."""

    def entry(name: str, hint: str, *, also: Sequence[Steps] = (), rare: bool = False, **steps: Any) -> Mistake:
        return Mistake(name, hint, rung, base, (steps, *also), rare)

    return entry


def placed(mistake: Mistake, where: str) -> Mistake:
    """Return a mistake with the place where a larger layer makes it; as it is if that needs no name."""
    if not where:
        return mistake
    return replace(mistake, name=f"{where}: {mistake.name}", hint=f"In {where}: {mistake.hint}")


def with_steps(base: type[nn.Module], steps: Steps) -> Build:
    """The build of a layer with some of its steps replaced."""
    return cast(Build, type(f"Wrong{base.__name__}", (base,), dict(steps)))


def together(one: Steps, other: Steps) -> Steps | None:
    """Return the steps of two mistakes that are made together; None if they replace a step by different ones."""
    if any(one[name] is not other[name] for name in one.keys() & other.keys()):
        return None
    return {**one, **other}


def empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """Return an uninitialised parameter."""
    return nn.Parameter(torch.empty(shape, dtype=dtype))


def other_way(matrix: Tensor) -> Tensor:
    """A matrix of the transpose's shape with the same numbers in memory: ``view`` where ``.T`` was meant."""
    return matrix.reshape(matrix.shape[::-1])
