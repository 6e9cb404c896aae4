"""Tensors as sets of numbers: equal, contained in, or a constant multiple, whatever the layout."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

TOLERANCE = 1e-9

# A tensor's finite numbers, sorted. (In NumPy: on sets as small as these, each step of torch's takes several times as
# long.)
Numbers = npt.NDArray[np.float64]


def sorted_numbers(value: Tensor) -> Numbers:
    """Return a tensor's finite numbers, sorted."""
    flat: Numbers = value.detach().double().flatten().numpy()
    return np.sort(flat[np.isfinite(flat)])


@np.errstate(all="ignore")
def factor_of(found: Tensor, right: Tensor) -> float | None:
    """Return ``c`` if the numbers are ``c`` times the right ones, each one; None if they are not, or c is 1."""
    a, b = sorted_numbers(right), sorted_numbers(found)
    if a.shape != b.shape or not varied(a):
        return None
    for sign, signed in ((1, b), (-1, -b[::-1])):
        c = float((signed @ a) / (a @ a))
        alike = (np.abs(c * a - signed) <= 1e-8 * (1e-6 + np.abs(signed).max())).all()
        if c > 0 and bool(alike) and (sign < 0 or abs(c - 1) > 1e-9):
            return sign * c
    return None


def within(a: Numbers, b: Numbers) -> bool:
    """Return whether every number of ``a`` is among those of ``b``."""
    if not a.size or not b.size:
        return False
    # Most sets that are not within another show that at their ends, and most others by one number.
    if b[0] - a[0] > TOLERANCE * (1 + abs(a[0])) or a[-1] - b[-1] > TOLERANCE * (1 + abs(a[-1])):
        return False
    middle = float(a[a.size // 2])
    error = TOLERANCE * (1 + abs(middle))
    at = b.searchsorted(middle - error)
    if at == b.size or b[at] > middle + error:
        return False
    return common(a, b) == a.size


def common(a: Numbers, b: Numbers) -> int:
    """Return how many numbers of ``a`` are among those of ``b``, which is not empty."""
    after = np.minimum(b.searchsorted(a), b.size - 1)
    nearest = np.minimum(np.abs(b[after] - a), np.abs(b[np.maximum(after - 1, 0)] - a))
    return int(np.count_nonzero(nearest <= TOLERANCE * (1 + np.abs(a))))


def equal(a: Numbers, b: Numbers) -> bool:
    """Return whether two sets of numbers are the same."""
    if a.shape != b.shape or (a.size and abs(a[0] - b[0]) > TOLERANCE * (1 + abs(b[0]))):
        return False
    return bool((np.abs(a - b) <= TOLERANCE * (1 + np.abs(b))).all())


def varied(value: Numbers) -> bool:
    """Return whether a set of numbers is worth comparing: masks, zeros and ones are found in everything."""
    return value.size >= 3 and np.unique(value[:: max(1, value.size // 50)]).size >= 3
