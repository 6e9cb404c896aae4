"""The ways to read a layer's parameters and to make a mask for it, numbered once for all cases."""

import itertools
from collections.abc import Sequence

from .layouts import Layout


class Ways:
    """The ways of the first case that a layer was read in, the likeliest first.

    Other sizes fit other layouts (one head lies in more ways than several), so each way is found by its key, not by
    its place.

    Args:
        reading: the layouts that fit the layer's parameters.
        masks: the ways to call its forward.

    Attributes:
        splits: of each way, the ``split`` of its layout.
        masks: of each way, how the mask is made.
    """

    def __init__(self, reading: Sequence[Layout], masks: Sequence[str]) -> None:
        every = itertools.product(range(len(reading)), range(len(masks)))
        # Of a wrong layer only the first are looked into: among them are both every mask and the likely layouts.
        order = sorted(every, key=lambda way: way[0] + 2 * way[1]) if len(masks) > 1 else list(every)
        layouts = list(reading)
        self._ways = [(which, layouts[which].key, masks[mask]) for which, mask in order]
        self.splits = tuple(layouts[which].split for which, _ in order)
        self.masks = tuple(masks[mask] for _, mask in order)

    def find(self, number: int, reading: Sequence[Layout], masks: Sequence[str]) -> tuple[Layout, str]:
        """Return the layout and the mask of a way in another case."""
        which, key, mask = self._ways[min(number, len(self._ways) - 1)]
        layout = reading[min(which, len(reading) - 1)]
        if layout.key != key:
            layout = next((each for each in reading if each.key == key), layout)
        return layout, mask if mask in masks else masks[0]
