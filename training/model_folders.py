"""The models that a run writes: ``final/``, the best by validation loss, and ``last/``, the last one.

``final/`` is there from the first evaluation on, and each better model takes its place while others may be reading it.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..assembly.model import GPT2
from ..files import FileError, read_json, sync_folder, write_whole
from ..tokenizer import Tokenizer
from ..weights.card import CARD_FILE
from .ending import evaluations
from .metrics import Metrics
from .model_card import model_card, with_samples
from .presets import TrainConfig
from .trainer import Trainer

_WEIGHTS = "model.safetensors"
_STEP = "step.json"
_ONE_FILE = 2**62  # bytes; weights in one file can be exchanged in one step


@dataclass(frozen=True)
class Judged:
    """A model that has been written, by the step that it is of."""

    step: int
    val_loss: float


class RunModels:
    """The models in the folder of a run. All processes must call its methods; the first one writes.

    Args:
        folder: The run's folder.
        trainer: Has the model of the present step.
        tokenizer: The tokenizer of the model.
        facts: What the model cards list.

    Attributes:
        best: The model in ``final/``, or None.
    """

    def __init__(self, folder: Path, trainer: Trainer, tokenizer: Tokenizer, facts: Mapping[str, Any]) -> None:
        self.best: Judged | None = None
        self._folder, self._trainer, self._tokenizer, self._facts = folder, trainer, tokenizer, facts
        self._samples: tuple[int, Sequence[str]] = (-1, ())  # the newest, and the step of the model that wrote them

    def find(self, rows: Sequence[Metrics]) -> None:
        """Find the model in ``final/`` when a run resumes. One that these rows do not know is replaced later."""
        processes = self._trainer.processes
        found = processes.share(written_model(self._folder / "final") if processes.first else None)
        self.best = found if found and (found.step, found.val_loss) in evaluations(rows) else None

    def keep_best(self, row: Metrics) -> bool:
        """Write ``final/`` if the validation loss is the lowest so far. Return whether it was."""
        if not row.step or row.val_loss is None or (self.best and self.best.val_loss <= row.val_loss):
            return False
        self._write("final", row)
        self.best = Judged(row.step, row.val_loss)
        return True

    def finish(self, row: Metrics) -> Judged:
        """Write ``last/``, and ``final/`` if there is no better model. Return which model is in ``final/``."""
        if self.best is None:  # the run has ended where it resumed, or before its first update
            self.best = Judged(row.step, math.nan if row.val_loss is None else row.val_loss)
            self._write("final", row)
        self._write("last", row)
        return self.best

    def add_samples(self, step: int, samples: Sequence[str]) -> None:
        """Put what the model of a step wrote into its card. Only the first process may call this."""
        self._samples = step, samples
        add_samples(self._folder / "final", step, samples)

    def _write(self, name: str, row: Metrics) -> None:
        model = self._trainer.whole_model()
        if model is not None:
            step, samples = self._samples
            write_model(
                self._folder / name,
                model,
                self._tokenizer,
                row,
                config=self._trainer.config,
                facts=self._facts,
                samples=samples if step == row.step else (),
            )


def write_model(
    folder: Path,
    model: GPT2,
    tokenizer: Tokenizer,
    row: Metrics,
    *,
    config: TrainConfig,
    facts: Mapping[str, Any],
    samples: Sequence[str] = (),
) -> Judged:
    """Write a model's folder, or replace the model in it. A program that reads it at any moment gets one whole model.

    Args:
        folder: Where; it does not exist, or holds an earlier model of the same run.
        row: Metrics of the step, with its evaluation.
        config: What the run was started with, for the model card.
        facts: What the model card lists.
        samples: What the model wrote, for the model card.

    Raises:
        OSError: The disk is full; an earlier model is still there.
    """
    if row.val_loss is None:
        raise ValueError(f"step {row.step} has no evaluation")
    judged = Judged(row.step, row.val_loss)
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model.tokenizer = tokenizer  # the run's: a model to start from may have had another one
        staging.mkdir()  # so that what a kill leaves of the writing is inside, and the next write removes it
        model.save_pretrained(staging, max_shard_size=_ONE_FILE)
        card = model_card(row, config, facts)
        write_whole(staging / CARD_FILE, with_samples(card, samples) if samples else card)
        write_whole(staging / _STEP, json.dumps({"step": judged.step, "val_loss": judged.val_loss}) + "\n")
        if folder.exists():
            _exchange(staging, folder)
        else:
            os.replace(staging, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return judged


def add_samples(folder: Path, step: int, samples: Sequence[str]) -> None:
    """Put what a model wrote into its card, if the folder holds the model of that step."""
    written = written_model(folder)
    if written is None or written.step != step or not samples:
        return
    with contextlib.suppress(FileNotFoundError):  # the user may have removed the card
        text = (folder / CARD_FILE).read_text(encoding="utf-8")
        write_whole(folder / CARD_FILE, with_samples(text, samples))


def _exchange(staging: Path, folder: Path) -> None:
    # Remove the step first: without it, the folder's step is unknown, and the next evaluation writes the folder again.
    # So even if this is interrupted, the step is never that of other weights.
    (folder / _STEP).unlink(missing_ok=True)
    names = sorted(path.name for path in staging.iterdir())
    for name in sorted(names, key=lambda name: (name == _STEP, name != _WEIGHTS)):
        os.replace(staging / name, folder / name)
    sync_folder(folder)


def written_model(folder: Path) -> Judged | None:
    """Return the step and validation loss of the model in a folder; None if there is none, or of an unknown step."""
    with contextlib.suppress(FileError):
        values = read_json(folder / _STEP, limit=1000)
        step, val_loss = values.get("step"), values.get("val_loss")
        if type(step) is int and type(val_loss) is float and (folder / _WEIGHTS).exists():
            return Judged(step, val_loss)
    return None
