"""The learning rate, step by step."""

import math


def warmup_cosine(step: int, *, lr: float, min_lr: float, warmup_steps: int, decay_steps: int) -> float:
    """Linear warm-up to ``lr``, then half a cosine down to ``min_lr`` (Loshchilov & Hutter 2017; nanoGPT).

    Args:
        step: updates made before this one, from 0.
        lr: the highest learning rate; the first update after the warm-up has it.
        min_lr: the learning rate from ``decay_steps`` on. Equal to ``lr``, it makes the rate constant after warm-up.
        warmup_steps: updates with a smaller rate at the beginning; none of them has 0.
        decay_steps: the step, counted from the first, where ``min_lr`` is reached.
    """
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    if step >= decay_steps:
        return min_lr
    progress = (step - warmup_steps) / (decay_steps - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
