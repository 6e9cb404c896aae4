"""The metrics of a run: ``metrics.jsonl`` and ``metrics.csv``, one row for each logged step.

All numbers in them follow from the configuration, the seed and the data. So a run that was interrupted and resumed ends
with the same bytes as one that was not. The speed, which differs each time, is in another file, ``speed.jsonl``.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import FileError, first_sentence, naming, read_bytes

_MAX_BYTES = 2**31
_MAX_COUNT = 2**62


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One row of metrics.

    Losses are cross-entropies in nats per token. Accuracies are shares of tokens whose own logit was the highest.
    """

    step: int
    """Number of updates."""
    epoch: float
    """Passes over the training data."""
    tokens: int
    """Number of training tokens so far."""
    lr: float | None = None
    """Learning rate of the last update; None before the first."""
    loss: float | None = None
    """Loss of the last update's batch, before the update."""
    accuracy: float | None = None
    """Accuracy on that batch."""
    grad_norm: float | None = None
    """Norm of that batch's gradient, before clipping."""
    val_loss: float | None = None
    """Validation loss; None if there was no evaluation at this step."""
    val_accuracy: float | None = None
    """Validation accuracy."""
    val_perplexity: float | None = None
    """exp(val_loss)."""


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity if that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class RunFiles:
    """The files that a run appends to. A snapshot records their lengths.

    Args:
        folder: The run's folder, which must exist.
    """

    NAMES = ("metrics.jsonl", "metrics.csv", "samples.md")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, name: str, text: str) -> None:
        """Append text to a file."""
        path = self.folder / name
        with naming(path), open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)

    def sizes(self) -> dict[str, int]:
        """Return the length of each file in bytes."""
        paths = {name: self.folder / name for name in self.NAMES}
        return {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}

    def sync(self) -> None:
        """Flush all files to the disk."""
        for name in self.NAMES:
            path = self.folder / name
            with naming(path), open(path, "ab") as file:
                os.fsync(file.fileno())

    def check_lengths(self, sizes: Mapping[str, int]) -> None:
        """Check that each file has at least its length in ``sizes`` (default: 0).

        Raises:
            ValueError: A file is shorter than that, or missing.
        """
        actual = self.sizes()
        for name in self.NAMES:
            if actual[name] < sizes.get(name, 0):
                raise ValueError(
                    f"{self.folder / name} has {actual[name]} bytes and had {sizes[name]} at the snapshot: bring the "
                    "file back, or continue the snapshot as a run of its own, with another --name"
                )

    def cut_back(self, sizes: Mapping[str, int]) -> None:
        """Truncate each file to its length in ``sizes`` (default: 0).

        Raises:
            ValueError: A file is shorter than that, or missing. Then no file is changed.
        """
        self.check_lengths(sizes)
        actual = self.sizes()
        for name in self.NAMES:
            if actual[name] > sizes.get(name, 0):
                os.truncate(self.folder / name, sizes.get(name, 0))

    def append_metrics(self, row: Metrics) -> None:
        """Add a row to ``metrics.jsonl`` and ``metrics.csv``."""
        values = asdict(row)
        self.append("metrics.jsonl", json.dumps(values) + "\n")
        table = self.folder / "metrics.csv"
        if not table.exists() or not table.stat().st_size:
            self.append("metrics.csv", ",".join(values) + "\n")
        self.append("metrics.csv", ",".join("" if value is None else repr(value) for value in values.values()) + "\n")


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the rows of a run's ``metrics.jsonl``; none if the file does not exist.

    A last line without a newline is left out: the process that wrote it was killed, or is still writing it.

    Raises:
        FileError: A line is not a row of metrics.
    """
    path = folder / "metrics.jsonl"
    if not path.exists() or not path.stat().st_size:
        return []
    *lines, _ = read_bytes(path, limit=_MAX_BYTES).split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(metrics_row(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise FileError(
                f"{path}: line {number} is not a row of metrics ({first_sentence(error)}); bring the file back from a "
                "copy, or begin another run"
            ) from error
    return rows


def metrics_row(values: object) -> Metrics:
    """Return a row of metrics from the plain values of a file.

    Raises:
        ValueError: A field is missing, unknown, or not a number.
    """
    fields = {field.name: field for field in dataclasses.fields(Metrics)}
    if not isinstance(values, Mapping) or values.keys() != fields.keys():
        raise ValueError(f"its fields are not {', '.join(fields)}")
    for name, value in values.items():
        whole, optional = name in ("step", "tokens"), fields[name].default is None
        fits = type(value) is int if whole else type(value) in (int, float) or (optional and value is None)
        if not fits or (value is not None and not value >= 0) or (whole and int(value or 0) > _MAX_COUNT):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
        if value is not None and name != "val_perplexity" and math.isinf(value):
            raise ValueError(f"{name} is {value}")
    return Metrics(**{str(name): value for name, value in values.items()})
