"""The pure decisions of a run: the learning rate, what ends it, what is due at a step, and which evaluation is best."""

import math
from collections.abc import Sequence
from typing import Literal

from .metrics import Metrics
from .presets import OptimConfig

Ending = Literal["max_steps", "max_epochs", "target_loss", "patience", "interrupted"]

# Rises of the validation loss that are smaller than this share of the best are noise.
_CLEAR_RISE = 0.01


def learning_rate(optim: OptimConfig, step: int, last_step: int | None) -> float:
    """Return the learning rate of a step, for a configuration.

    Args:
        optim: the configuration.
        step: updates made before this one, from 0.
        last_step: updates that the run will make, if that is known; the decay ends there (default of ``decay_steps``).
    """
    return warmup_decay(
        step,
        lr=optim.lr,
        min_lr=optim.lr if optim.min_lr is None else optim.min_lr,
        warmup_steps=optim.warmup_steps,
        decay_steps=optim.decay_steps or last_step or 0,
        decay=optim.decay,
    )


def warmup_decay(
    step: int,
    *,
    lr: float,
    min_lr: float,
    warmup_steps: int,
    decay_steps: int,
    decay: Literal["cosine", "linear"] = "cosine",
) -> float:
    """Return the learning rate of a step: linear warm-up to ``lr``, then a decay to ``min_lr``.

    ``cosine`` is half a cosine (Loshchilov & Hutter 2017; nanoGPT). ``linear`` is a straight line, which ends lower if
    it goes to 0 (Defazio et al. 2023).

    Args:
        step: updates made before this one, from 0.
        lr: the highest learning rate; the first update after the warm-up has it.
        min_lr: the learning rate from ``decay_steps`` on. If it equals ``lr``, the rate is constant after warm-up.
        warmup_steps: updates with a smaller rate at the beginning; none of them has 0.
        decay_steps: the step, counted from the first, where ``min_lr`` is reached.
        decay: the shape of the decay.
    """
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    if step >= decay_steps:
        return min_lr
    progress = (step - warmup_steps) / (decay_steps - warmup_steps)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if decay == "cosine" else 1 - progress
    return min_lr + (lr - min_lr) * remaining


def last_step(optim: OptimConfig, windows_per_epoch: int) -> int | None:
    """Return the number of updates at which a run ends at the latest (None: only its loss ends it).

    Raises:
        ValueError: The learning rate falls until the end, and there is no end.
    """
    by_epochs = None
    if optim.max_epochs is not None:
        by_epochs = math.ceil(optim.max_epochs * windows_per_epoch / optim.batch)
    last = min((end for end in (optim.max_steps, by_epochs) if end is not None), default=None)
    if optim.min_lr is not None and (optim.decay_steps or last) is None:
        raise ValueError(
            "--min-lr is the end of a cosine, and this run has no end: give --decay-steps, --max-steps or --max-epochs"
        )
    return last


def why_it_ends(optim: OptimConfig, *, step: int, last_step: int | None, loss: float | None) -> Ending | None:
    """Return what ends a run after ``step`` updates, the last of which had ``loss`` (None: nothing does)."""
    if optim.target_loss is not None and loss is not None and loss <= optim.target_loss:
        return "target_loss"
    if optim.max_steps is not None and step >= optim.max_steps:
        return "max_steps"
    return "max_epochs" if last_step is not None and step >= last_step else None


def is_due(every: int | Literal["epoch"], *, step: int, epoch: float, batch: int, windows_per_epoch: int) -> bool:
    """Return whether something that happens every so many updates, or each epoch, is due after ``step`` updates."""
    if every != "epoch":
        return step % every == 0
    # Whether an epoch has ended within the last batch.
    position = round(epoch * windows_per_epoch)
    return position // windows_per_epoch > (position - batch) // windows_per_epoch


def evaluations(rows: Sequence[Metrics]) -> list[tuple[int, float]]:
    """Return step and validation loss of each evaluation after the first update."""
    return [(row.step, row.val_loss) for row in rows if row.step and row.val_loss is not None]


def without_improvement(rows: Sequence[Metrics]) -> int:
    """Return how many evaluations have been made since the one with the lowest validation loss."""
    losses = [loss for _, loss in evaluations(rows)]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def learns_by_heart(rows: Sequence[Metrics]) -> bool:
    """Return whether validation has become clearly worse at the last two evaluations while training became better."""
    judged = evaluations(rows)
    if len(judged) < 3:
        return False
    best_step, best = min(judged, key=lambda one: one[1])
    if best_step >= judged[-2][0] or min(loss for _, loss in judged[-2:]) < best * (1 + _CLEAR_RISE):
        return False
    before = [row.loss for row in rows if row.loss is not None and row.step <= best_step]
    since = [row.loss for row in rows if row.loss is not None and row.step > best_step]
    # As many of the last steps before the best as there are after it: a loss falls fastest at the beginning.
    before = before[-len(since) :]
    return bool(before and since) and sum(since) / len(since) < sum(before) / len(before)
