"""In which order a tensor holds the numbers of a quantity: axes exchanged or merged, one head, or otherwise."""

import itertools
import re
from collections.abc import Sequence

from torch import Tensor

from ..answers import close
from .quantities import Quantity
from .same_numbers import TOLERANCE, sorted_numbers, within

# The axes of what is split into heads.
HEAD_AXES = {
    r"(^|\.)([QKV]0?|z)$": ("batch", "seq", "n_heads", "d_head"),
    r"(^|\.)(raw|scores|pattern)$": ("batch", "n_heads", "query", "key"),
}


def arrangement(value: Tensor, right: Tensor) -> tuple[int, ...] | None:
    """Return the order of the right tensor's axes in which its numbers lie as these do; None if they lie otherwise."""
    shape = [size for size in value.shape if size != 1]
    right = right.squeeze()
    for order in itertools.permutations(range(right.ndim)):
        turned = right.permute(order)
        if _merged(list(turned.shape), shape) and close(turned.flatten().double(), value.double().flatten(), TOLERANCE):
            return order
    return None


def lies_like(value: Tensor, quantity: Quantity) -> bool | None:
    """Return whether numbers lie as those of a quantity, or of one head of it; None if that cannot be told."""
    right = quantity.value
    if quantity.visible is None and not value.isfinite().all():  # what is hidden is none of its numbers
        return None
    if quantity.visible is not None:
        if value.shape != right.shape:
            return None
        return close(value[..., quantity.visible].double(), right[..., quantity.visible].double(), TOLERANCE)
    if value.numel() == right.numel():
        return arrangement(value, right) is not None
    axes = next((axes for keys, axes in HEAD_AXES.items() if re.search(keys, quantity.key)), ())
    if "n_heads" in axes and value.numel() * right.shape[axes.index("n_heads")] == right.numel():
        return any(arrangement(value, head) is not None for head in right.unbind(axes.index("n_heads")))
    if value.numel() > right.numel() and value.shape[:2] == right.shape[:2]:  # queries, keys and values in one
        pairs = zip(right.flatten(0, 1), value.flatten(0, 1), strict=True)
        return all(within(sorted_numbers(own), sorted_numbers(every)) for own, every in pairs)
    return None


def grouped(value: Tensor, right: Tensor, order: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return the name of each of a tensor's axes: of those that were merged, their product."""
    left = [(right.shape[i], names[i]) for i in order]
    found = []
    for size in value.shape:
        product, merged = 1, []
        while left and product < size:
            product *= left[0][0]
            merged.append(left.pop(0)[1])
        found.append("*".join(merged) or "1")
    return found


def _merged(axes: list[int], shape: list[int]) -> bool:
    """Return whether a shape comes from merging neighbouring axes."""
    for size in shape:
        product = 1
        while axes and product < size:
            product *= axes.pop(0)
        if product != size:
            return False
    return not axes
