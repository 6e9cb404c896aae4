"""Training in memory: updates, evaluation, and the state that a snapshot stores.

This module writes no files and prints nothing; `loop` does both.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..assembly.model import GPT2
from ..weights.sources import config_to_ours
from .data.batches import Batch, Batches
from .loss import IGNORE_INDEX, NextTokenLoss, TokenLoss
from .metrics import Metrics, metrics_row
from .optim import clip_gradient_norm, make_optimizer
from .parallel import (
    Processes,
    gradients_joined,
    load_whole_state,
    rng_state,
    set_rng_state,
    whole_model_state,
    whole_optimizer_state,
)
from .presets import DROPOUTS, TrainConfig
from .schedule import last_step, learning_rate
from .snapshot_checks import check_fits


class NonFiniteError(ValueError):
    """A loss or a gradient that is infinite or not a number."""


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts some data."""

    loss: float
    """Mean cross-entropy, nats per token."""
    accuracy: float
    """Share of tokens whose own logit was the highest."""


class Trainer:
    """A model, its optimizer and its data, at some step.

    Args:
        config: The configuration of the run.
        model: The model to train, on ``device``.
        train: Training batches of all processes; each process takes its share of them.
        val: Returns the validation batches of all processes, starting with the first.
        device: Where the model is.
        processes: The processes that train together (default: this one alone).

    Attributes:
        row: Metrics of the last update.
        last_step: Largest number of updates (None: only the loss ends the run).
        asked_to_end: Whether a process had been asked to end before the last update.

    Raises:
        ValueError: The learning rate falls until the end of the run, and the run has no end.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: GPT2,
        train: Batches,
        val: Callable[[], Iterable[Batch]],
        *,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.train_batches, self.val_batches, self.device = config, train, val, device
        self.processes = processes or Processes()
        optim = config.optim
        self.last_step = last_step(optim, train.windows_per_epoch)
        model.checkpoint_blocks = optim.gradient_checkpointing
        self.loss = NextTokenLoss(model).train()
        self.module = self.processes.wrap(self.loss)
        self.optimizer = make_optimizer(self.loss, optim)
        if optim.compile:
            self.module.compile()
        torch.manual_seed(optim.seed + self.processes.rank)  # dropout differs among the processes
        self.row = Metrics(step=0, epoch=0.0, tokens=0)
        self.asked_to_end = False

    @property
    def step(self) -> int:
        """Number of updates."""
        return self.row.step

    def update(self, *, asked_to_end: bool = False) -> Metrics:
        """Update the weights once, with the gradient of the mean loss over all tokens of one batch.

        Args:
            asked_to_end: Whether this process has been asked to end. If any process has, all of them learn it here.

        Raises:
            NonFiniteError: The loss or the norm of the gradient is not finite. The weights have not changed.
        """
        optim = self.config.optim
        lr = learning_rate(optim, self.step, self.last_step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * (group["initial_lr"] / optim.lr)
        began = self.train_batches.epochs
        tokens, targets = self._share(*next(self.train_batches))
        (counted,) = self.processes.sum(int((targets != IGNORE_INDEX).sum()), device=self.device)

        # Forward and backward pass of each micro-batch; PyTorch adds up the gradients.
        micro = optim.micro_batch or len(tokens)
        parts = list(zip(tokens.split(micro), targets.split(micro), strict=True))
        losses, corrects = [], []
        for i, part in enumerate(parts):
            with gradients_joined(self.module, join=i == len(parts) - 1):
                result = self._forward(*part)
                # PyTorch averages the gradients of the processes; multiplying by their number makes that a sum.
                (result.loss * (self.processes.world / counted)).backward()
            losses.append(result.loss.detach())
            corrects.append(result.correct)
        norm = float(clip_gradient_norm(list(self.loss.parameters()), optim.grad_clip))
        loss, correct, asked = self.processes.sum(
            float(torch.stack(losses).sum()), int(torch.stack(corrects).sum()), asked_to_end, device=self.device
        )
        self.asked_to_end = asked > 0

        # Check the numbers before the weights change.
        mean = loss / counted
        for what, value in (("loss", mean), ("gradient's norm", norm)):
            if not math.isfinite(value):
                window = round(began % 1 * self.train_batches.windows_per_epoch)
                raise NonFiniteError(
                    f"the {what} of step {self.step + 1} is {value} (its batch begins at window {window} of epoch "
                    f"{int(began)})"
                )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.row = Metrics(
            step=self.step + 1,
            epoch=self.train_batches.epochs,
            tokens=self.row.tokens + int(counted),
            lr=lr,
            loss=mean,
            accuracy=correct / counted,
            grad_norm=norm,
        )
        return self.row

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Evaluate the model on the validation data, without dropout.

        Raises:
            NonFiniteError: The loss is not finite.
        """
        return self.judge(self.val_batches())

    @torch.no_grad()
    def judge(self, batches: Iterable[Batch]) -> Evaluation:
        """Evaluate the model on some batches, without dropout.

        Raises:
            NonFiniteError: The loss is not finite.
        """
        self.module.eval()
        try:
            sums = torch.zeros(3, dtype=torch.float64)
            for batch in batches:
                result = self._forward(*self._share(*batch))
                sums += torch.stack([value.cpu().double() for value in result])
        finally:  # an evaluation can be interrupted
            self.module.train()
        loss, correct, tokens = self.processes.sum(*sums.tolist(), device=self.device)
        if not math.isfinite(loss):
            raise NonFiniteError(f"the validation loss after step {self.step} is {loss}")
        return Evaluation(loss / tokens, correct / tokens)

    def whole_model(self) -> GPT2 | None:
        """Return the whole model on the first process, and None on the others. All processes must call it."""
        if not self.processes.sharded:
            return self.loss.model if self.processes.first else None
        state = whole_model_state(self.loss)
        if not self.processes.first:
            return None
        model = GPT2(self.loss.model.config)
        model.load_state_dict(state)
        return model

    def state(self) -> dict[str, Any]:
        """Return what a snapshot stores of the training, on the first process. All processes must call it."""
        return {
            "model_state_dict": whole_model_state(self.loss),
            "optimizer_state_dict": whole_optimizer_state(self.loss, self.optimizer),
            "rng": self.processes.gather(rng_state(self.device)),
            "data": self.train_batches.state_dict(),
            "step": self.step,
            "loss": self.row.loss,
            "metrics": asdict(self.row),
            "config": self.config.recorded(),
            "model_config": config_to_ours(self.loss.model.config),
        }

    def check(self, path: Path, contents: Mapping[str, Any], tokenizer: str) -> None:
        """Check that a snapshot fits this training, and change nothing.

        Raises:
            SnapshotError: The snapshot has a model of other sizes, another optimizer, or another vocabulary.
            ValueError: The snapshot has other data, or another order of the data.
        """
        check_fits(contents, self.loss.model, self.optimizer, tokenizer, path)
        before = self.train_batches.state_dict()
        self.train_batches.load_state_dict(contents["data"])
        self.train_batches.load_state_dict(before)

    def load(self, contents: Mapping[str, Any]) -> str | None:
        """Continue from a snapshot that `check` has accepted. Return a message if something cannot be restored.

        Learning rates, betas and weight decay are those of this run's configuration, not the snapshot's (see
        `make_optimizer`).
        """
        self.train_batches.load_state_dict(contents["data"])
        load_whole_state(self.loss, self.optimizer, contents["model_state_dict"], contents["optimizer_state_dict"])
        self.row = metrics_row(contents["metrics"])
        states = contents["rng"]
        if len(states) == self.processes.world:
            set_rng_state(states[self.processes.rank], self.device)
        elif any(getattr(self.config.model, name) for name in DROPOUTS):
            return (
                f"it has the random states of {len(states)} processes, and this run has {self.processes.world}: "
                "dropout continues with other random numbers"
            )
        return None

    def _forward(self, tokens: Tensor, targets: Tensor) -> TokenLoss:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.optim.precision == "bf16"):
            return self.module(tokens, targets)

    def _share(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's sequences of a batch, on its device.

        All processes must get the same number, because they wait for each other. Missing sequences are filled up with
        targets that do not count.
        """
        rank, world = self.processes.rank, self.processes.world
        if missing := -len(tokens) % world:
            tokens = torch.cat([tokens, tokens[:1].expand(missing, -1)])
            targets = torch.cat([targets, torch.full_like(targets[:1], IGNORE_INDEX).expand(missing, -1)])
        return (
            tokens[rank::world].to(self.device, non_blocking=True),
            targets[rank::world].to(self.device, non_blocking=True),
        )
