"""Sums in parts: what a loop over heads, or over parts of the hidden layer, goes through on the way to its output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..results import listed
from ..rungs import Trial
from .quantities import Quantity

Matrix = npt.NDArray[np.float64]

_ROWS = 3000  # of a large output: these show how it is made, and all of it is checked


@dataclass(frozen=True)
class Sum:
    """A sum of the formula: of each head's output and b_O, or of each hidden unit's and b_out.

    Args:
        of: what its terms are: ``head`` or ``hidden unit``.
        bias: the name of the last term.
        terms: the numbers of each term, a column each.
        inverse: of the first rows of that.
    """

    of: str
    bias: str
    terms: Matrix
    inverse: Matrix

    def counts(self, value: Tensor) -> list[float] | None:
        """Return how many times each term is in a tensor; None if it is no sum of them."""
        found = value.detach().double().flatten().numpy()
        if found.size != len(self.terms) or not np.isfinite(found).all():
            return None
        counts = self.inverse @ found[:_ROWS]
        off = np.abs(self.terms @ counts - found).max()
        return np.round(counts, 6).tolist() if off <= 1e-8 * (1 + np.abs(found).max()) else None

    def words(self, counts: Sequence[float]) -> str:
        """Return which terms are in a sum that lacks some, and has others once; empty if it is none of these."""
        *own, bias = counts
        there = [str(term) for term, count in enumerate(own) if count]
        if not 0 < len(there) < len(own) or any(count not in (0, 1) for count in counts):
            return ""
        if self.of == "hidden unit":
            what = f"the sum over {len(there)} of {len(own)} hidden units"
        elif there[1:]:
            what = f"the sum of the outputs of heads {listed(there)}"
        else:
            what = f"the output of head {there[0]}"
        return f"{what}, with {self.bias}" if bias else what


def sums(trial: Trial, steps: Sequence[Quantity]) -> Iterator[Sum]:
    """Yield the sums of the formula that have several terms, as far as their terms can be distinguished."""
    for quantity in steps:
        of, key = quantity.key[: quantity.key.rfind(".") + 1], quantity.key.rpartition(".")[2]
        if key == "z W_O":
            each, bias, name = quantity.value.movedim(2, -1), "b_O", "head"
        elif key == "post":
            each, bias = (quantity.value[..., None] * trial.parameters[f"{of}W_out"]).mT, "b_out"
            name = "hidden unit"
        else:
            continue
        last = trial.parameters[of + bias].expand(each.shape[:-1])[..., None]
        terms = np.concatenate([part.double().flatten(0, -2).numpy() for part in (each, last)], axis=1)
        if not last.any():  # a layer without this bias
            terms = terms[:, :-1]
        first = terms[:_ROWS]
        if terms.shape[1] > 2 and np.linalg.matrix_rank(first) == terms.shape[1]:
            inverse = np.linalg.pinv(first)
            if not last.any():
                terms, inverse = np.pad(terms, ((0, 0), (0, 1))), np.pad(inverse, ((0, 1), (0, 0)))
            yield Sum(name, bias, terms, inverse)
