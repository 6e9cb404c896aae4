"""Layers that can be built for even widths only, as those with sines and cosines in turn: all of GPT-2's are even."""

import random
from collections.abc import Callable
from typing import Any

from .cases import Draw
from .rungs import Case

# Cases that are drawn to find odd and even widths, and how many of each are tried.
_DRAWN, _TRIED = 40, 3


def of_even_widths(draw: Draw) -> Draw:
    """Return what draws only cases whose model and heads have even widths."""

    def draw_even(*how: Any) -> Case:
        while _odd_widths(case := draw(*how)):
            pass
        return case

    return draw_even


def needs_even_widths(draw: Draw, seed: int, raises: Callable[[Case], bool]) -> bool:
    """Return whether a layer raises for some odd width, and for no even one."""
    source = random.Random(seed)
    cases = [draw(source) for _ in range(_DRAWN)]
    odd = sorted(filter(_odd_widths, cases), key=_odd_widths, reverse=True)[:_TRIED]
    even = [case for case in cases if not _odd_widths(case)][:_TRIED]
    return bool(even) and any(map(raises, odd)) and not any(map(raises, even))


def _odd_widths(case: Case) -> int:
    """Return how many of the model's width and a head's are odd."""
    return case.config.d_model % 2 + case.config.d_head % 2
