"""The steps of a softmax that is written by hand: GPT-2's scores and weights, up to one number for each row."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .quantities import Quantity
from .same_numbers import Numbers, equal, sorted_numbers, varied, within

# What is subtracted from each row of scores, or what each row of weights is divided by.
ROW_NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda rows: rows.amax(-1),
    "max": lambda rows: rows.amax(-1),
    "sum": lambda rows: rows.sum(-1),
    "logsumexp": lambda rows: rows.logsumexp(-1),
}
# After these a row is complete: a factor for each of them is no longer free.
_COMPLETE = (
    "div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__", "softmax", "log_softmax", "normalize",
)  # fmt: skip


class SoftmaxSteps:
    """What a tensor may be between scores and pattern: scores less a number a row, weights times a factor a row.

    Args:
        steps: the quantities of the formula.
    """

    def __init__(self, steps: Sequence[Quantity]) -> None:
        # What hides a score is lower than any score less the largest of its row.
        largest = max((each.value.abs().max().item() for each in steps if each.key.endswith("raw")), default=0.0)
        self.hidden = min(-1e3, -2.5 * largest)
        # With each, the share of the numbers that are visible.
        self.scores: list[tuple[Numbers, float]] = []
        self.weights: list[tuple[Numbers, float]] = []
        for step in steps:
            if not step.key.endswith(("raw", "scores", "masked")):
                continue
            rows = step.value if step.visible is None else step.value.masked_fill(~step.visible, -torch.inf)
            numbers = sorted_numbers(_centred(rows))
            self.scores.append((numbers, numbers.size / rows.numel()))
            if not step.key.endswith("raw"):
                self.weights.append((sorted_numbers(rows.softmax(-1)), 1.0))

    def is_step(self, function: str, value: Tensor) -> bool:
        """Return whether what a function gave is such a step, of all heads or of some."""
        value = value.double()
        if not self.scores or value.ndim < 2 or value.shape[-1] < 2 or function in _COMPLETE:
            return False
        if bool(value.isnan().any() or value.isposinf().any()):
            return False
        options = [(_centred(value.masked_fill(value < self.hidden, -torch.inf)), self.scores)]
        if bool((value >= 0).all()):
            options.append((value / value.sum(-1, keepdim=True), self.weights))
        for rows, known in options:
            numbers = sorted_numbers(rows)
            if varied(numbers) and any(_is_part(rows, numbers, *each) for each in known):
                return True
        return False


def _is_part(rows: Tensor, numbers: Numbers, known: Numbers, share: float) -> bool:
    """Return whether rows are those of all heads or of some, as large a share of them visible, or none hidden."""
    own = numbers.size / rows.numel()
    part = numbers.size < known.size and within(numbers, known)  # as many, and not the same: some are repeated
    return (own == 1 or math.isclose(own, share)) and (part or equal(numbers, known))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.amax(-1, keepdim=True)
