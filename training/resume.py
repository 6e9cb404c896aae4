"""Find the snapshot that a run continues from, check it, and prepare the run's folder for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import user_path
from .folder import RunFolder, is_run
from .lock import RunFolderError
from .snapshot_checks import SnapshotError, health
from .snapshots import list_snapshots, load_snapshot, newest_snapshot


@dataclass(frozen=True)
class Resumption:
    """A snapshot to continue from.

    Attributes:
        path: The file.
        contents: The contents of the file.
        here: Whether the file is one of the snapshots in the run's own folder.
    """

    path: Path
    contents: Mapping[str, Any]
    here: bool

    @property
    def step(self) -> int:
        """Updates made."""
        return self.contents["step"]


def find_snapshot(resume: str | None, folder: Path, say: Callable[[str], None]) -> Resumption | None:
    """Return the snapshot that ``--resume`` names, or None if there is none and the run starts from the beginning.

    Args:
        resume: ``auto``, the path of a snapshot or of a run, or None.
        folder: The folder of the run.
        say: Called with a message for each snapshot that cannot be read.

    Raises:
        RunFolderError: The run has results, but none of its snapshots can be read.
        SnapshotError: The snapshot cannot be read.
    """
    if resume is None:
        return None
    path = folder if resume == "auto" else user_path(resume)
    if resume != "auto" and not path.is_dir():
        return Resumption(path, load_snapshot(path), _is_in(path, folder / "snapshots"))
    if resume == "auto" and not is_run(folder):
        return None
    snapshots = path / "snapshots" if (path / "snapshots").is_dir() else path
    found = newest_snapshot(snapshots, say)
    if found is not None:
        return Resumption(*found, _is_in(found[0], folder / "snapshots"))
    if damaged := list_snapshots(snapshots):
        raise RunFolderError(
            f"none of the {len(damaged)} snapshots in {snapshots} can be read: bring one back from a copy, or begin "
            "again with --overwrite or another --name"
        )
    if resume != "auto":
        raise SnapshotError(f"there is no snapshot in {path}")
    if any((folder / model).exists() for model in ("final", "last")):
        raise RunFolderError(
            f"{folder} has a trained model and no snapshot to continue from: begin again with --overwrite or another "
            f"--name, or start from the model with --init-from {folder} and another --name"
        )
    return None


def check_health(found: Resumption) -> None:
    """Check that training can continue from a snapshot.

    Raises:
        SnapshotError: The weights or the optimizer's state are not finite, or have exploded.
    """
    if wrong := health(found.contents):
        raise SnapshotError(
            f"{found.path} comes from a training that diverged ({wrong}): resume from an earlier snapshot, with a "
            "smaller --lr"
        )


def check_text(found: Resumption, facts: Mapping[str, Any], folder: Path) -> None:
    """Check that a run continues with the text that it began with.

    Raises:
        SnapshotError: The text is a different one, even if it has the same length.
    """
    was, now = found.contents.get("text"), facts.get("text_sha256")
    if was is not None and now is not None and was != now:
        raise SnapshotError(
            f"the text has changed since {found.path} was written: bring the old text back, or begin another run with "
            f"--init-from {folder} and another --name"
        )


def settle_folder(folder: RunFolder, found: Resumption) -> tuple[dict[str, int], str]:
    """Return the run's folder to its state at the snapshot. Later results are moved to ``branches/``, not deleted.

    Returns:
        The lengths of the files that the run appends to, and a message about the later results.
    """
    sizes = dict(found.contents["files"])
    if found.here:
        branch = folder.set_aside(found.step, f"after-step-{found.step}")
        return sizes, f"; what came after it is in {branch}" if branch else ""
    # The snapshot is from a branch of this run, or from another run: all present results become a branch.
    branch = folder.set_aside(-1, "before-return")
    kept = folder.copy_from(found.path, found.step, sizes)
    lost = "" if any(kept.values()) else "; its metrics are not beside it, so they begin here"
    return kept, lost + (f"; what was here is in {branch}" if branch else "")


def _is_in(path: Path, folder: Path) -> bool:
    return path.resolve().parent == folder.resolve()
