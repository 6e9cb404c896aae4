"""After training has diverged: find the newest good snapshot, and move the later ones to ``branches/``."""

import math
import os
from itertools import islice
from pathlib import Path

from .snapshot_checks import SnapshotError, check_fits, health
from .snapshots import list_snapshots, load_snapshot
from .trainer import NonFiniteError, Trainer


def last_good_snapshot(trainer: Trainer, folder: Path, limit: float) -> str:
    """Return a message that names the newest good snapshot; later snapshots are moved to ``branches/``.

    A snapshot is good if it can be read, its numbers are finite and have not exploded, and its model's loss on some
    validation data is at most ``limit``. The weights of ``trainer`` are overwritten.
    """
    if not trainer.processes.first:
        return "the first process names the last good snapshot"
    bad: list[Path] = []
    good = None
    for path in reversed(list_snapshots(folder / "snapshots")):
        if _is_good(trainer, path, limit):
            good = path
            break
        bad.append(path)
    if bad:
        aside = _set_aside(bad, folder / "branches" / f"diverged-at-step-{trainer.step}")
        moved = f" ({len(bad)} later ones have diverged and are in {aside})"
    else:
        moved = ""
    if good is None:
        return f"there is no snapshot from before it{moved}: begin again with a smaller --lr or more --warmup-steps"
    return (
        f"the last good snapshot is {good}{moved}: continue from it with --resume auto and a smaller --lr, such as "
        f"--lr {trainer.config.optim.lr / 3:.1g}"
    )


def _is_good(trainer: Trainer, path: Path, limit: float) -> bool:
    try:
        contents = load_snapshot(path)
        if health(contents):
            return False
        if trainer.processes.world > 1:  # a forward pass would need all of them
            return contents["loss"] is None or contents["loss"] <= limit
        check_fits(contents, trainer.loss.model, trainer.optimizer, contents["tokenizer"], path)
        trainer.loss.model.load_state_dict(contents["model_state_dict"])
        loss = trainer.judge(islice(trainer.val_batches(), 4)).loss
    except (SnapshotError, NonFiniteError):
        return False
    return math.isfinite(loss) and loss <= limit


def _set_aside(paths: list[Path], branch: Path) -> Path:
    (branch / "snapshots").mkdir(parents=True, exist_ok=True)
    for path in paths:
        os.replace(path, branch / "snapshots" / path.name)
    return branch
