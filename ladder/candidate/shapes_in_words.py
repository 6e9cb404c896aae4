"""Shapes in words: axes by the names of their sizes, GPT-2's parameters beside the layer's."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...assembly.config import GPT2Config
from .aliases import SIZES


def size_names(config: GPT2Config, given: Tensor) -> dict[int, str]:
    """Return the name of each length. The sizes of a case are different; where they are not, the first name counts."""
    batch, seq = given.shape[:2]
    named = {"batch": batch, "seq": seq} | {name: getattr(config, name) for name in SIZES if name != "n_layers"}
    names: dict[int, str] = {}
    for factor in (1, 3):
        for name, size in named.items():
            names.setdefault(factor * size, name if factor == 1 else f"3*{name}")
    return names


def axes(shape: Sequence[int], sizes: Mapping[int, str]) -> str:
    """Return a shape with the names of its lengths."""
    return f"[{' '.join(sizes.get(length, str(length)) for length in shape)}]"


def both_sides(
    given: Mapping[str, Sequence[int]],
    own: Mapping[str, Sequence[int]],
    sizes: Mapping[int, str],
    wrong: Sequence[str] = (),
) -> str:
    """Return GPT-2's parameters beside the layer's: those of one name in one line, the ``wrong`` ones marked.

    If no name is the same, the two are lists beside each other.
    """
    left = {name: f"{name} {axes(shape, sizes)}" for name, shape in given.items()}
    right = {name: f"{name} {axes(shape, sizes)}" for name, shape in own.items()}
    if left.keys() & right.keys():
        rows = [(left.get(name, ""), right.get(name, ""), name in wrong) for name in dict.fromkeys((*left, *right))]
    else:
        rows = [(*pair, False) for pair in itertools.zip_longest(left.values(), right.values(), fillvalue="")]
    lines = [f"    {'GPT-2':<36} yours"]
    lines += [f"  {'x' if marked else ' '} {one:<36} {other}".rstrip() for one, other, marked in rows[:24]]
    if len(rows) > 24:
        lines.append(f"    … and {len(rows) - 24} more")
    return "\n".join(lines)


def kind_of(value: Any) -> str:
    """Return what a value is, in a word."""
    return "None" if value is None else type(value).__name__


def mismatch(wrong: Sequence[str], empty: Sequence[str], unknown: Sequence[str]) -> str:
    """Return what does not match between a state dict and a layer, as clauses."""
    found = [f"{', '.join(wrong)} of another shape"] if wrong else []
    found += [f"{', '.join(unknown)} not in the layer"] if unknown else []
    found += [f"nothing for {', '.join(empty)}"] if empty else []
    return "; ".join(found)
