"""The training loop: updates, and between them snapshots, evaluations, metrics and samples.

After an update, the work that is due is done in a fixed order: first the snapshot, so that no later failure loses an
update; then the evaluation, the row of metrics, the folder of the best model, the plot, and the sample. A run that
resumes from a snapshot truncates its files to their length at that snapshot, and continues with the work that came next
in this order. So it writes the same bytes as a run that was never interrupted.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..tokenizer import Tokenizer
from .display import Display
from .ending import Ending, divergence_limit, evaluations, learns_by_heart, why_it_ends, without_improvement
from .interruption import Interrupted, Interruption
from .metrics import perplexity
from .model_folders import RunModels
from .recovery import last_good_snapshot
from .runlog import RunLog
from .samples import Sampler, draw_samples
from .schedule import is_due
from .snapshot_checks import health
from .snapshots import prune_snapshots, save_snapshot
from .timing import Timing
from .trainer import NonFiniteError, Trainer

_BY_HEART = (
    "the validation loss rises while the training loss falls (best: {best:.4f} at step {step}, kept in final/): the "
    "model learns the text by heart. Stop here, or use more text, --dropout 0.2 or a smaller model; --patience 3 would "
    "stop by itself"
)


class TrainingRun:
    """A training run: calls the trainer, and writes the files of the run.

    Args:
        trainer: The trainer.
        tokenizer: The tokenizer of the data.
        folder: The folder of the run, which must exist.
        display: Shows the progress (default: shows nothing).
        sample: Draws the samples (default: there are no samples).
        interruption: Handles Ctrl-C (default: a new one, active during `run`).
        facts: Facts for the model cards.
        text: Checksum of the text, for the snapshots.
        on_saved: Called when a snapshot or a model has been written.
        timing: Measures how the time is divided (default: a new one, from here on).
    """

    def __init__(
        self,
        trainer: Trainer,
        tokenizer: Tokenizer,
        *,
        folder: Path,
        display: Display | None = None,
        sample: Sampler | None = None,
        interruption: Interruption | None = None,
        facts: Mapping[str, Any] | None = None,
        text: str | None = None,
        on_saved: Callable[[], None] = lambda: None,
        timing: Timing | None = None,
    ) -> None:
        self.trainer, self.tokenizer, self.folder, self.sample = trainer, tokenizer, folder, sample
        self.config, self.processes = trainer.config, trainer.processes
        self.display = display or Display()
        self.interruption = interruption or Interruption()
        self.timing = timing or Timing()
        self.log = RunLog(folder, title=self.config.name, display=self.display, writes=self.processes.first)
        self.models = RunModels(folder, trainer, tokenizer, facts or {})
        self._text, self._on_saved = text, on_saved
        self._resumed = False
        self._has_snapshot = False
        self._warned_at: int | None = None

    @property
    def step(self) -> int:
        """Number of updates."""
        return self.trainer.step

    def resume(self, contents: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """Continue from a snapshot that `Trainer.check` has accepted.

        Args:
            contents: Contents of the snapshot.
            sizes: Lengths that the run's files had at the snapshot.

        Raises:
            ValueError: A file of the run is shorter than it was.
        """
        if self.processes.first:
            self.log.cut_back(dict(sizes))
        self.log.rows = self.processes.share(self.log.rows)
        if lost := self.trainer.load(contents):
            self.display.say(f"the snapshot of step {self.step}: {lost}")
        self.models.find(self.log.rows)
        self._resumed = self._has_snapshot = True

    def run(self) -> Ending:
        """Train until the run ends, and return why it ended.

        Raises:
            NonFiniteError: A loss or a gradient is not finite; the message names the last good snapshot.
            SnapshotError: A snapshot cannot be written.
        """
        try:
            with self.interruption, self.interruption.between_steps(), self.timing.part("training"):
                while (ending := self._boundary()) is None:
                    before = self.trainer.row.tokens
                    row = self.trainer.update(asked_to_end=self.interruption.asked)
                    self.log.count(row, row.tokens - before, self.trainer.last_step)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {last_good_snapshot(self.trainer, self.folder, self._limit())}") from None
        if ending != "interrupted":
            self._finish()
        return ending

    def save_snapshot(self, sizes: Mapping[str, int]) -> None:
        """Write a snapshot of this step, and delete the oldest ones beyond ``keep``.

        Args:
            sizes: Lengths of the run's files before anything was written at this step.

        Raises:
            NonFiniteError: The weights or the optimizer's state are not finite.
            SnapshotError: The snapshot cannot be written.
        """
        state = self.trainer.state()
        self._has_snapshot = True
        if not self.processes.first:
            return
        wrong = health(state)
        if wrong and "not finite" in wrong:
            raise NonFiniteError(f"after step {self.step}, {wrong}")
        self.log.files.sync()
        contents = {
            **state,
            "tokenizer": self.tokenizer.fingerprint,
            **({"text": self._text} if self._text is not None else {}),
            "files": dict(sizes),
        }
        path = save_snapshot(self.folder / "snapshots", contents)
        # If training may be diverging, keep the older snapshots: the run may have to return to one of them.
        loss = self.trainer.row.loss
        if not wrong and loss is not None and loss <= self._limit():
            prune_snapshots(path.parent, self.config.run.keep)
        self._on_saved()

    def _boundary(self) -> Ending | None:
        """Do the work that is due after this step, and return why the run ends here (None: it does not)."""
        # Decide whether the run ends here, and what is due.
        ending = why_it_ends(
            self.config.optim, step=self.step, last_step=self.trainer.last_step, loss=self.trainer.row.loss
        )
        if ending is None and self.trainer.asked_to_end:
            ending = "interrupted"
        run, evaluates = self.config.run, ending is not None or self._due(self.config.run.eval_every)
        samples = self._due(run.sample_every) if run.sample_every else evaluates
        # When the first model is written to final/, write a snapshot too, so that the run can be resumed.
        saves = ending is not None or self.step % run.snapshot_every == 0 or (evaluates and not self._has_snapshot)
        if not (evaluates or samples or saves):  # almost every step comes here, so do as little as possible
            if self.step == 1 or self._due(run.log_every):
                self.log.record(self.trainer.row)
            self._resumed = False
            return None

        # First the snapshot, so that no later failure loses an update.
        sizes = self.log.files.sizes() if self.processes.first else {}
        saved, self._resumed = self._resumed, False
        if saves and self.step > 0 and not saved:
            with self.timing.part("files"):
                self.save_snapshot(sizes)
            saved = True
        if ending == "interrupted":
            return ending

        # Then the evaluation, the metrics and the samples, which a run that is interrupted here repeats.
        try:
            self._record(evaluates=evaluates)
            if evaluates and ending is None and self._patience_is_over():
                ending = "patience"
            if ending is not None:
                self._sample(f"After training, step {self.step}", run.final_samples)
            elif samples:
                self._sample(f"Step {self.step}", 1)
        except Interrupted:
            ending = "interrupted"

        # A run that ends by patience, or is interrupted in an evaluation, needs a snapshot of this step.
        if ending is not None and self.step and not saved:
            with self.timing.part("files"):
                self.save_snapshot(sizes)
        self.log.restart_clock()
        return ending

    def _due(self, every: int | Literal["epoch"]) -> bool:
        return is_due(
            every,
            step=self.step,
            epoch=self.trainer.row.epoch,
            batch=self.config.optim.batch,
            windows_per_epoch=self.trainer.train_batches.windows_per_epoch,
        )

    def _record(self, *, evaluates: bool) -> None:
        """Evaluate and write the row of metrics, if they are due."""
        row = self.trainer.row
        if evaluates:
            with self.interruption.at_once(alone=self.processes.world == 1), self.timing.part("evaluation"):
                judged = self.trainer.evaluate()
            row = dataclasses.replace(
                row, val_loss=judged.loss, val_accuracy=judged.accuracy, val_perplexity=perplexity(judged.loss)
            )
        if evaluates or self.step == 1 or self._due(self.config.run.log_every):
            self.log.record(row)
        if evaluates:
            with self.timing.part("files"):
                if self.models.keep_best(row):
                    self._on_saved()
                self._warn()
                self.log.draw()

    def _warn(self) -> None:
        """Warn, once for each best model, that the validation loss rises while the training loss falls."""
        best = self.models.best
        if best is None or self._warned_at == best.step or not learns_by_heart(self.log.rows):
            return
        self._warned_at = best.step
        self.display.say(_BY_HEART.format(best=best.val_loss, step=best.step))

    def _patience_is_over(self) -> bool:
        patience = self.config.optim.patience
        return patience is not None and without_improvement(self.log.rows) >= patience

    def _sample(self, heading: str, count: int) -> None:
        """Write continuations of the run's prompt, and put them into the card of the model that wrote them."""
        model = self.trainer.whole_model()
        if self.sample is None or model is None:
            return
        with self.interruption.at_once(alone=self.processes.world == 1), self.timing.part("samples"):
            texts = draw_samples(
                self.sample, model, self.tokenizer, self.config.run, count=count, device=self.trainer.device
            )
        for i, text in enumerate(texts):
            self.log.sample(f"{heading}, sample {i + 1} of {count}" if count > 1 else heading, text)
        self.models.add_samples(self.step, texts)

    def _finish(self) -> None:
        """Write the last model, and print where each model is. All processes must call it."""
        row = self.log.rows[-1]
        with self.timing.part("files"):
            best = self.models.finish(row)
        lower = [step for step, loss in evaluations(self.log.rows) if loss < best.val_loss]
        which = f"the best since step {lower[-1]}" if lower else "the best"  # the run went back to a snapshot after it
        self.display.say(
            f"final/ is the model of step {best.step}, {which} (validation loss {best.val_loss:.4f}); "
            f"last/ is that of step {row.step} ({row.val_loss:.4f}); both are in {self.folder}"
        )
        self.display.say(self.timing.line())

    def _limit(self) -> float:
        return divergence_limit(self.log.rows, self.trainer.loss.model.config.d_vocab)
