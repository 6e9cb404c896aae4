"""The causal masks that a layer may want from outside, given to its forward or to its constructor."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn


def _shaped(mask: Tensor, view: tuple[int, ...]) -> Tensor:
    """Return a mask [seq seq] with axes of length 1 around its own two, which are -1 and 0 in the view."""
    return mask.view([size if size == 1 else len(mask) for size in view])


# Ways to make a causal mask, for a layer that takes one: of four axes, of two, or of three.
MASKS: Mapping[str, Callable[[int, torch.dtype], Tensor]] = {
    f"{words}{shape}": partial(make, view)
    for view, shape in (
        ((1, 1, -1, 0), ""),
        ((-1, 0), ", [seq seq]"),
        ((1, -1, 0), ", [1 seq seq]"),
        ((-1, 0, 1), ", [seq seq 1]"),
    )
    for words, make in {
        "ones where a query may look": lambda view, seq, _: _shaped(torch.ones(seq, seq).bool().tril(), view),
        "True where a query may not look": lambda view, seq, _: _shaped(torch.ones(seq, seq).bool().triu(1), view),
        "-inf where a query may not look": lambda view, seq, dtype: _shaped(
            torch.full((seq, seq), -torch.inf, dtype=dtype).triu(1), view
        ),
    }.items()
}


# What a layer that masks by itself may require beside its input, for texts without padding.
HIDING_NOTHING: Mapping[str, Callable[[Tensor, int, torch.dtype], Tensor | None]] = {
    "None": lambda given, seq, dtype: None,
    "ones for all keys, [batch seq]": lambda given, seq, dtype: torch.ones(len(given), seq, dtype=torch.long),
    "zeros, which are added": lambda given, seq, dtype: torch.zeros(1, 1, 1, seq, dtype=dtype),
}


def is_mask(name: str) -> bool:
    """Return whether an argument's name is that of a mask over keys: what hides heads or padding hides no future."""
    lower = name.lower()
    return "mask" in lower and "head" not in lower and "pad" not in lower


class ConstructorsMask:
    """A mask that a constructor takes, which must be as long as the input of every call.

    Args:
        wanted: a constructor that takes one gets it.

    Attributes:
        name: of the argument; empty if there is none.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.name, self.wanted = "", wanted
        self._tensor = torch.zeros(1, 1)
        self._places: list[tuple[nn.Module, str]] = []

    def give(self, name: str) -> Tensor:
        """Return what the constructor gets: a tensor that is recognised in the layer."""
        self.name = name
        return self._tensor

    def find(self, layer: nn.Module) -> bool:
        """Return whether the layer keeps the mask as it is, so that another can stand in its place; take it out."""
        self._places = [
            (module, name)
            for module in layer.modules()
            for name, value in [*vars(module).items(), *module.named_buffers(recurse=False)]
            if value is self._tensor
        ]
        self.put(None)
        return bool(self._places)

    def put(self, mask: Tensor | None) -> None:
        """Put a mask in its place."""
        for module, name in self._places:
            setattr(module, name, mask)
