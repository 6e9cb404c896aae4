"""Pure functions that decide whether a run ends, and what its losses show: no improvement, overfitting, divergence."""

import math
from collections.abc import Sequence
from typing import Literal

from .metrics import Metrics
from .presets import OptimConfig

Ending = Literal["max_steps", "max_epochs", "target_loss", "patience", "interrupted"]

# A rise of the validation loss by less than this share of the best loss counts as noise.
_CLEAR_RISE = 0.01
# If the loss is this much above the first loss and above that of equal probabilities, the model has diverged.
_DIVERGED = 1.0


def why_it_ends(optim: OptimConfig, *, step: int, last_step: int | None, loss: float | None) -> Ending | None:
    """Return why a run ends after ``step`` updates, the last of which had ``loss`` (None: it does not end)."""
    if optim.target_loss is not None and loss is not None and loss <= optim.target_loss:
        return "target_loss"
    if optim.max_steps is not None and step >= optim.max_steps:
        return "max_steps"
    return "max_epochs" if last_step is not None and step >= last_step else None


def evaluations(rows: Sequence[Metrics]) -> list[tuple[int, float]]:
    """Return the step and the validation loss of each evaluation after the first update."""
    return [(row.step, row.val_loss) for row in rows if row.step and row.val_loss is not None]


def without_improvement(rows: Sequence[Metrics]) -> int:
    """Return the number of evaluations since the one with the lowest validation loss."""
    losses = [loss for _, loss in evaluations(rows)]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def learns_by_heart(rows: Sequence[Metrics]) -> bool:
    """Return whether the last two validation losses are clearly above the best, while the training loss has fallen."""
    judged = evaluations(rows)
    if len(judged) < 3:
        return False
    best_step, best = min(judged, key=lambda one: one[1])
    if best_step >= judged[-2][0] or min(loss for _, loss in judged[-2:]) < best * (1 + _CLEAR_RISE):
        return False
    before = [row.loss for row in rows if row.loss is not None and row.step <= best_step]
    since = [row.loss for row in rows if row.loss is not None and row.step > best_step]
    # Compare with as many rows just before the best evaluation, because the loss falls fastest at the beginning.
    before = before[-len(since) :]
    return bool(before and since) and sum(since) / len(since) < sum(before) / len(before)


def divergence_limit(rows: Sequence[Metrics], d_vocab: int) -> float:
    """Return the loss above which a model counts as diverged, by the first row of metrics and the vocabulary's size."""
    first = [row.val_loss for row in rows[:1] if row.val_loss is not None]
    return max([math.log(d_vocab), *first]) + _DIVERGED
