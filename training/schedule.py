"""The learning rate of each step: a warm-up, and then a decay to its end."""

import math
from typing import Literal

from .presets import OptimConfig


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
