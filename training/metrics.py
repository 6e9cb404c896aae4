"""What a run writes down as it goes: ``metrics.jsonl`` and ``metrics.csv``, one row for each step that is logged.

Every number in them follows from the configuration, the seed and the data, so that a run that was interrupted and
resumed ends with the same bytes as one that was not. How fast it went, which differs each time, is kept apart in
``speed.jsonl``.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One row.

    Losses are cross-entropies in nats for each token; accuracies are shares of tokens whose own logit was the highest.
    """

    step: int
    """Updates made."""
    epoch: float
    """How often the training data has been gone through."""
    tokens: int
    """Tokens trained on."""
    lr: float | None = None
    """Learning rate of the last update; None before the first."""
    loss: float | None = None
    """Loss of the last update's batch, before the update."""
    accuracy: float | None = None
    """Accuracy on that batch."""
    grad_norm: float | None = None
    """Norm of its gradient, before clipping."""
    val_loss: float | None = None
    """Validation loss; None where the row has no evaluation."""
    val_accuracy: float | None = None
    """Validation accuracy."""
    val_perplexity: float | None = None
    """exp(val_loss)."""


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class RunFiles:
    """The files of a run that only ever grow, so that a snapshot can say how long each was.

    Args:
        folder: the run's folder, which must exist.
    """

    NAMES = ("metrics.jsonl", "metrics.csv", "samples.md")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, name: str, text: str) -> None:
        """Add to the end of one of them."""
        with open(self.folder / name, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)

    def sizes(self) -> dict[str, int]:
        """The length of each in bytes, once all of that is on the disk."""
        sizes = {}
        for name in self.NAMES:
            with open(self.folder / name, "ab") as file:
                os.fsync(file.fileno())
                sizes[name] = file.tell()
        return sizes

    def cut_back(self, sizes: Mapping[str, int]) -> None:
        """Make each as long as it was; those that are not named are emptied.

        Raises:
            ValueError: one is shorter than it was, or gone.
        """
        for name in self.NAMES:
            path, size = self.folder / name, sizes.get(name, 0)
            actual = path.stat().st_size if path.exists() else 0
            if actual < size:
                raise ValueError(
                    f"{path} has {actual} bytes and had {size} at the snapshot: bring the file back, or resume in the "
                    "folder of the run that the snapshot belongs to"
                )
            if actual > size:
                os.truncate(path, size)

    def append_metrics(self, row: Metrics) -> None:
        """Add a row to ``metrics.jsonl`` and ``metrics.csv``."""
        values = asdict(row)
        self.append("metrics.jsonl", json.dumps(values) + "\n")
        table = self.folder / "metrics.csv"
        if not table.exists() or not table.stat().st_size:
            self.append("metrics.csv", ",".join(values) + "\n")
        self.append("metrics.csv", ",".join("" if value is None else repr(value) for value in values.values()) + "\n")


def read_metrics(folder: Path) -> list[Metrics]:
    """The rows of a run's ``metrics.jsonl``; none where it has not been written."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [Metrics(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
