"""The training loop: batches in, updates, and at every boundary between two updates what is due there.

What is due after ``step`` updates comes in one order: the snapshot first, so that a failure in what follows loses
nothing; then the evaluation, the row of metrics, the sample. A run that resumes from a snapshot cuts its files back to
what they were at that moment and goes on right behind it, at the same boundary; so it writes the same bytes as a run
that was never interrupted.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..assembly.model import GPT2
from ..tokenizer import Tokenizer
from ..weights.sources import config_to_ours
from .data.batches import Batch, Batches
from .display import Display
from .loss import IGNORE_INDEX, NextTokenLoss, TokenLoss
from .metrics import Metrics, RunFiles, perplexity
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
from .schedule import learning_rate
from .snapshots import check_same_model, list_snapshots, prune_snapshots, save_snapshot

Ending = Literal["max_steps", "max_epochs", "target_loss", "interrupted"]

SAMPLING_SEED = 42


class Sampler(Protocol):
    """Draws one continuation of a prompt. Training is handed one, since it knows nothing of sampling."""

    def __call__(self, model: GPT2, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int, seed: int) -> str:
        """The prompt and what follows it."""
        ...


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
    """One run of training, at some step of it.

    Args:
        config: what to do.
        model: fresh, or with weights to start from, on ``device``.
        tokenizer: of the data.
        train: the batches to learn from, whole; each process takes its share of them.
        val: gives the batches to be judged by, from the first on, whole too.
        folder: the run's; it must exist.
        device: where it runs.
        processes: those that train together.
        display: what is told how it goes.
        sample: draws samples; without it there are none.

    Raises:
        ValueError: a cosine without an end.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: GPT2,
        tokenizer: Tokenizer,
        train: Batches,
        val: Callable[[], Iterable[Batch]],
        *,
        folder: Path,
        device: torch.device,
        processes: Processes | None = None,
        display: Display | None = None,
        sample: Sampler | None = None,
    ) -> None:
        self.config, self.tokenizer, self.train_batches, self.val_batches = config, tokenizer, train, val
        self.folder, self.device, self.sample = folder, device, sample
        self.processes = processes or Processes()
        self.display = display or Display()
        self.files = RunFiles(folder)
        optim = config.optim
        epochs = optim.max_epochs
        ends = [optim.max_steps, epochs and math.ceil(epochs * train.windows_per_epoch / optim.batch)]
        self.last_step = min((end for end in ends if end is not None), default=None)
        if optim.min_lr is not None and (optim.decay_steps or self.last_step) is None:
            raise ValueError(
                "min_lr is the end of a cosine, and this run has no end: give decay_steps, max_steps or max_epochs"
            )

        self.loss = NextTokenLoss(model).train()
        self.module = self.processes.wrap(self.loss)
        self.optimizer = make_optimizer(self.loss, optim)
        if optim.compile:
            self.module.compile()
        torch.manual_seed(optim.seed + self.processes.rank)  # dropout differs among the processes

        self.row = Metrics(step=0, epoch=0.0, tokens=0)  # of the last update
        self._resumed = False
        self._asked_to_end = False  # this process; whether the run ends is agreed among all
        self._interrupted = False
        self._speed = _Speed()

    @property
    def step(self) -> int:
        """Updates made."""
        return self.row.step

    def resume(self, path: Path, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot, as if nothing had happened since.

        Raises:
            SnapshotError: it is of a model of other sizes, or of another vocabulary.
            ValueError: it is of other data or another order of it; the run's files are shorter than they were.
        """
        check_same_model(snapshot, self.loss.model, self.tokenizer.fingerprint, path)
        self.train_batches.load_state_dict(snapshot["data"])
        load_whole_state(self.loss, self.optimizer, snapshot["model_state_dict"], snapshot["optimizer_state_dict"])
        self.row = Metrics(**snapshot["metrics"])
        if len(snapshot["rng"]) == self.processes.world:
            set_rng_state(snapshot["rng"][self.processes.rank], self.device)
        elif any(getattr(self.config.model, name) for name in DROPOUTS):
            self.display.say(
                f"{path.name} is of {len(snapshot['rng'])} processes, and here are {self.processes.world}: "
                "dropout is drawn anew from here on"
            )
        if self.processes.first:
            self.files.cut_back(snapshot["files"])
        self._resumed = True

    def run(self) -> Ending:
        """Train until something ends it.

        Raises:
            NonFiniteError: a loss or a gradient that is not finite.
            SnapshotError: a snapshot cannot be written.
        """
        with self._interruptible():
            while True:
                ending = self._ending()
                due = self.step > 0 and (ending is not None or self.step % self.config.run.snapshot_every == 0)
                if due and not self._resumed:
                    self.save_snapshot()
                self._resumed = False
                if ending == "interrupted":
                    return ending
                self._write_down(last=ending is not None)
                if ending:
                    return ending
                self._update()

    def save_snapshot(self) -> None:
        """Write a snapshot of this step, and delete those that need not be kept."""
        model_state = whole_model_state(self.loss)
        optimizer_state = whole_optimizer_state(self.loss, self.optimizer)
        rng = self.processes.gather(rng_state(self.device))
        if self.processes.first:
            contents = {
                "model_state_dict": model_state,
                "optimizer_state_dict": optimizer_state,
                "step": self.step,
                "loss": self.row.loss,
                "metrics": asdict(self.row),
                "rng": rng,
                "data": self.train_batches.state_dict(),
                "config": self.config.recorded(),
                "model_config": config_to_ours(self.loss.model.config),
                "tokenizer": self.tokenizer.fingerprint,
                "files": self.files.sizes(),
            }
            path = save_snapshot(self.folder / "snapshots", contents)
            prune_snapshots(path.parent, self.config.run.keep)

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Judge the model by the validation data, as it is: without dropout.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        self.module.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in self.val_batches():
            result = self._forward(*self._share(*batch))
            sums += torch.stack([value.cpu().double() for value in result])
        self.module.train()
        loss, correct, tokens = self.processes.sum(*sums.tolist(), device=self.device)
        if not math.isfinite(loss):
            raise NonFiniteError(f"the validation loss after step {self.step} is {loss}; {self._way_back()}")
        return Evaluation(loss / tokens, correct / tokens)

    @torch.no_grad()
    def draw_samples(self, count: int) -> list[str]:
        """Continuations of the run's prompt, each with a seed of its own; none without a sampler, or on other
        processes.

        Training's random numbers are the same whether or not samples are drawn. Every process must call it.
        """
        model = self.whole_model()
        if self.sample is None or model is None:
            return []
        run = self.config.run
        before = rng_state(self.device)
        training = model.training
        model.eval()
        samples = [
            self.sample(model, self.tokenizer, run.prompt, max_new_tokens=run.sample_tokens, seed=SAMPLING_SEED + i)
            for i in range(count)
        ]
        model.train(training)
        set_rng_state(before, self.device)
        return samples

    def whole_model(self) -> GPT2 | None:
        """The model, none of it sharded, on the first process; None on the others. Every process must call it."""
        if not self.processes.sharded:
            return self.loss.model if self.processes.first else None
        state = whole_model_state(self.loss)
        if not self.processes.first:
            return None
        model = GPT2(self.loss.model.config)
        model.load_state_dict(state)
        return model

    def _update(self) -> None:
        """One step of the optimizer, on one batch: the gradient is that of the mean over all of its tokens."""
        optim = self.config.optim
        lr = learning_rate(optim, self.step, self.last_step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * (group["initial_lr"] / optim.lr)
        began = self.train_batches.epochs
        tokens, targets = self._share(*next(self.train_batches))
        (counted,) = self.processes.sum(int((targets != IGNORE_INDEX).sum()), device=self.device)
        micro = optim.micro_batch or len(tokens)
        parts = list(zip(tokens.split(micro), targets.split(micro), strict=True))
        losses, corrects = [], []
        for i, part in enumerate(parts):
            with gradients_joined(self.module, join=i == len(parts) - 1):
                result = self._forward(*part)
                # The processes' gradients are averaged, and so multiplied by their number first.
                (result.loss * (self.processes.world / counted)).backward()
            losses.append(result.loss.detach())
            corrects.append(result.correct)
        norm = float(clip_gradient_norm(list(self.loss.parameters()), optim.grad_clip))
        loss, correct, asked_to_end = self.processes.sum(
            float(torch.stack(losses).sum()), int(torch.stack(corrects).sum()), self._asked_to_end, device=self.device
        )
        self._interrupted = asked_to_end > 0
        mean = loss / counted
        for what, value in (("loss", mean), ("gradient's norm", norm)):
            if not math.isfinite(value):
                window = round(began % 1 * self.train_batches.windows_per_epoch)
                raise NonFiniteError(
                    f"the {what} of step {self.step + 1} is {value} (its batch begins at window {window} of epoch "
                    f"{int(began)}); {self._way_back()}"
                )
        self.optimizer.step()
        self.optimizer.zero_grad()
        step = self.step + 1
        self.row = Metrics(
            step=step,
            epoch=self.train_batches.epochs,
            tokens=self.row.tokens + int(counted),
            lr=lr,
            loss=mean,
            accuracy=correct / counted,
            grad_norm=norm,
        )
        self._speed.count(int(counted))
        self.display.progress(step, self.last_step, mean, self._speed.tokens_per_second)

    def _forward(self, tokens: Tensor, targets: Tensor) -> TokenLoss:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.optim.precision == "bf16"):
            return self.module(tokens, targets)

    def _share(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """This process's sequences of a batch, on its device.

        All processes get as many, since they wait for each other: what is missing is filled up with targets that do
        not count.
        """
        rank, world = self.processes.rank, self.processes.world
        if missing := -len(tokens) % world:
            tokens = torch.cat([tokens, tokens[:1].expand(missing, -1)])
            targets = torch.cat([targets, torch.full_like(targets[:1], IGNORE_INDEX).expand(missing, -1)])
        return (
            tokens[rank::world].to(self.device, non_blocking=True),
            targets[rank::world].to(self.device, non_blocking=True),
        )

    def _ending(self) -> Ending | None:
        optim, loss = self.config.optim, self.row.loss
        if optim.target_loss is not None and loss is not None and loss <= optim.target_loss:
            return "target_loss"
        if optim.max_steps is not None and self.step >= optim.max_steps:
            return "max_steps"
        if self.last_step is not None and self.step >= self.last_step:
            return "max_epochs"
        return "interrupted" if self._interrupted else None

    def _due(self, every: int | Literal["epoch"]) -> bool:
        if every != "epoch":
            return self.step % every == 0
        # Whether an epoch has ended within the last batch.
        windows = self.train_batches.windows_per_epoch
        position = round(self.row.epoch * windows)
        return position // windows > (position - self.config.optim.batch) // windows

    def _write_down(self, *, last: bool) -> None:
        """Evaluate, add the row of metrics, draw a sample: whatever of these is due at this step."""
        run = self.config.run
        row = self.row
        evaluates = last or self._due(run.eval_every)
        if evaluates:
            judged = self.evaluate()
            row = dataclasses.replace(
                row, val_loss=judged.loss, val_accuracy=judged.accuracy, val_perplexity=perplexity(judged.loss)
            )
        if self.processes.first and (evaluates or self._due(run.log_every)):
            self.files.append_metrics(row)
            self.display.metrics(row)
            if self.step:
                speed = {"step": self.step, "tokens_per_second": round(self._speed.tokens_per_second, 1)}
                # Not one of the files that a snapshot knows: it may differ from run to run.
                with open(self.folder / "speed.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(speed) + "\n")
        if not last and (self._due(run.sample_every) if run.sample_every else evaluates):
            self._write_samples(f"Step {self.step}", 1)
        if last:
            self._write_samples(f"After training, step {self.step}", run.final_samples)
        self._speed.restart()

    def _write_samples(self, heading: str, count: int) -> None:
        for i, text in enumerate(self.draw_samples(count)):
            title = f"{heading}, sample {i + 1} of {count}" if count > 1 else heading
            quoted = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
            self.files.append("samples.md", f"## {title}\n\n{quoted}\n\n")
            self.display.sample(title, text)

    def _way_back(self) -> str:
        """What to do about a number that is not finite."""
        saved = list_snapshots(self.folder / "snapshots")
        if not saved:
            return "there is no snapshot yet: begin again with a smaller lr, or a longer warm-up"
        return f"the last good snapshot is {saved[-1]}: resume from it with a smaller lr"

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """For the block, the first Ctrl-C (or SIGTERM) asks for an end after the step; the second ends at once."""

        def ask(number: int, _: FrameType | None) -> None:
            if self._asked_to_end:
                raise KeyboardInterrupt
            self._asked_to_end = True
            # Printing is not safe here: the signal may have come in the middle of it.
            os.write(2, b"\nending after this step, with a snapshot; once more ends now\n")

        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            yield
            return
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Speed:
    """Tokens per second since the last restart."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0
        self.restart()

    def restart(self) -> None:
        self._since, self._tokens = time.perf_counter(), 0

    def count(self, tokens: int) -> None:
        self._tokens += tokens
        self.tokens_per_second = self._tokens / (time.perf_counter() - self._since)
