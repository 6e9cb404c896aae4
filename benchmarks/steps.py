"""Functions that the benchmarks of whole trainings share: some training steps, and the loss on a whole text."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gptladder.training.data.batches import evaluation_batches
from gptladder.training.optim import clip_gradient_norm
from gptladder.training.presets import OptimConfig
from gptladder.training.schedule import learning_rate

Loss = Callable[[Tensor, Tensor], Tensor]
"""A function from tokens and targets to the mean loss per token."""


def train_steps(
    loss_of: Loss,
    optimizer: Optimizer,
    parameters: Sequence[nn.Parameter],
    batches: Iterator[tuple[Tensor, Tensor]],
    optim: OptimConfig,
    steps: range,
) -> None:
    """Make some updates with the schedule and the clipping of a configuration, as `gptladder train` does."""
    rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    for step in steps:
        factor = learning_rate(optim, step, optim.max_steps) / optim.lr
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=optim.precision == "bf16"):
            loss = loss_of(*next(batches))
        loss.backward()
        clip_gradient_norm(list(parameters), optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def whole_loss(loss_of: Loss, tokens: np.ndarray, seq: int, *, bf16: bool, eot_id: int | None = None) -> float:
    """Return the mean loss of a token of a whole text, in adjacent windows.

    With ``eot_id``, the documents that this token ends are divided separately, each from its beginning.
    """
    total = count = 0
    windows = evaluation_batches(tokens, seq=seq, batch_size=max(1, 4096 // seq), order="documents", eot_id=eot_id)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for inputs, targets in windows:
            total += loss_of(inputs, targets).item() * targets.numel()
            count += targets.numel()
    return total / count
