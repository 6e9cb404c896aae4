"""The folder of a run: recognise it, create it, replace it, and branch it, without losing or mixing results.

A folder that is to be replaced is first renamed to ``.NAME.replaced``, and deleted only when the new run has a snapshot
or a model to continue from. When a run returns to an earlier snapshot, its later results are moved to ``branches/``.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..files import FileError, listed, read_json, sync_folder, user_path, write_whole
from ..weights.sources import RUN_FORMAT
from .lock import RunFolderError, RunLock
from .metrics import RunFiles
from .model_folders import written_model
from .record import VERSION
from .snapshots import list_snapshots, snapshot_path

_PARTS_OF_0_1 = {"preset", "data", "model", "optim", "run", "facts"}
_FILES = {"config.json", "speed.jsonl", "loss.png", *RunFiles.NAMES}
_FOLDERS = {"snapshots", "final", "last", "tokenizer", "tensorboard", "wandb", "branches"}
_MODEL_FILE = re.compile(
    r"config\.json|generation_config\.json|README\.md|step\.json|model.*\.safetensors(\.index\.json)?"
    r"|pytorch_model.*\.bin|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|bpe|txt)"
    r"|encoder\.json|merges\.txt|chat_template\.\w+"
)
_SNAPSHOT_FILE = re.compile(r"snapshot_step_\d+\.pt")
# Hidden files that may be deleted with a run: unfinished ones of killed processes, and those that systems write.
_LITTER = re.compile(
    r"\.[\w.-]+\.(json|jsonl|csv|md|pt|png|safetensors|txt)\.(\d+|part)|\.(final|last)\.partial"
    r"|\.DS_Store|\.ipynb_checkpoints|\.directory|\._.*|\.nfs\w+"
)


def is_run(folder: Path) -> bool:
    """Return whether a folder is one that a run has written, by its ``config.json``: ours, or version 0.1.0's."""
    try:
        record = read_json(folder / "config.json")
    except FileError:
        return False
    if record.get("format") == RUN_FORMAT:
        return True
    return record.keys() == _PARTS_OF_0_1 and all(isinstance(record[part], dict) for part in ("model", "optim", "run"))


def foreign_files(folder: Path) -> list[str]:
    """Return the names in a run's folder that no run writes."""
    foreign = []
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            known = path.name in _FOLDERS
            foreign += [] if known else [path.name]
            inside = {"snapshots": _SNAPSHOT_FILE, "final": _MODEL_FILE, "last": _MODEL_FILE, "tokenizer": _MODEL_FILE}
            if pattern := inside.get(path.name):
                foreign += [f"{path.name}/{file.name}" for file in _entries(path) if not pattern.fullmatch(file.name)]
        elif path.name not in _FILES:
            foreign.append(path.name)
    return sorted(foreign)


class RunFolder:
    """A run's folder, locked for a ``with`` block.

    Until `keep` is called, leaving the block undoes what `begin` has done: it restores a replaced run, and deletes a
    folder that did not exist before.

    Args:
        path: The folder.

    Attributes:
        lines: Messages for the user about an earlier start that was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._lock = RunLock(path)
        real = Path(os.path.realpath(path))
        self._real = real
        self._replaced = real.with_name(f".{real.name}.replaced")
        self._removed = real.with_name(f".{real.name}.removed")
        self._undo: str | None = None

    def __enter__(self) -> Self:
        self._lock.__enter__()
        try:
            self._recover()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        if self._lock.unavailable:
            self.lines.append(
                f"{self.path}: the file system has no locks ({self._lock.unavailable}); start no second run in it"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._undo is not None:
                self._take_back()
        finally:
            self._lock.__exit__(kind, error, trace)

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Check that a run can be written here, and change nothing.

        Raises:
            RunFolderError: The folder cannot be written to; it holds a run, and neither ``resume`` nor ``overwrite`` is
                given; it holds something else, or more than a run.
        """
        try:
            holds = [path.name for path in _entries(self.path)]
            where = self.path
        except FileNotFoundError:
            holds, where = [], self.path.parent
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            with tempfile.TemporaryFile(dir=where):
                pass
        except OSError as error:
            raise self._unwritable(error) from None
        if not holds:
            return
        if not is_run(self.path):
            raise RunFolderError(
                f"{self.path} is not the folder of a run, and is not touched: it holds {listed(sorted(holds))}; give "
                "another --name or --runs-dir"
            )
        if overwrite:
            if foreign := foreign_files(self.path):
                raise RunFolderError(
                    f"{self.path} holds more than a run, and is not replaced: {listed(foreign)}; move that elsewhere, "
                    "or give another --name"
                )
        elif not resume:
            raise RunFolderError(
                f"{self.path} holds a run already: continue it with --resume auto, replace it with --overwrite, or "
                "give another --name"
            )

    def refuse_input(self, option: str, value: str | None) -> None:
        """Check that an input of a new run is not inside the folder that the run replaces.

        Args:
            option: The option that names the input.
            value: A path, or a name that is not a path, or None.

        Raises:
            RunFolderError: The input is inside the folder.
        """
        if value is None or not os.path.lexists(user_path(value)):
            return
        if Path(os.path.realpath(user_path(value))).is_relative_to(self._real):
            raise RunFolderError(
                f"--overwrite would replace {self.path}, and {option} {value} is in it: give another --name"
            )

    def begin(self, *, replace: bool) -> None:
        """Create the folder, empty; with ``replace``, first rename the run that it holds."""
        try:
            if not self._real.exists() or not any(self._real.iterdir()):
                self._undo = "new"
            elif replace:
                self._undo = "replaced"
                os.rename(self._real, self._replaced)
                sync_folder(self._real.parent)
            self._real.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    @property
    def replaces(self) -> bool:
        """Whether another run has been renamed, and would be restored if this one failed now."""
        return self._undo == "replaced"

    def keep(self) -> None:
        """Keep the new run, and delete the run that it replaces."""
        # First: an interruption of what follows must not restore the earlier run, which may be incomplete by then.
        undo, self._undo = self._undo, None
        if undo == "replaced":
            os.rename(self._replaced, self._removed)
            shutil.rmtree(self._removed, ignore_errors=True)

    def write_record(self, values: Mapping[str, Any]) -> None:
        """Write ``config.json``, by which `is_run` recognises the folder."""
        record = {"format": RUN_FORMAT, "version": VERSION, **values}
        write_whole(self.path / "config.json", json.dumps(record, indent=2) + "\n")

    def set_aside(self, step: int, name: str) -> Path | None:
        """Move the snapshots and models of later steps to ``branches/NAME``, with a copy of the metrics.

        If this is interrupted at any point, the folder still contains the run as it was, or at an earlier step.

        Args:
            step: The step that the run goes back to; -1 sets everything aside.
            name: Name of the branch; a number is added if there is one already.

        Returns:
            The folder of the branch, or None if there was nothing to set aside.
        """
        later = [path for path in list_snapshots(self.path / "snapshots") if _step(path) > step]
        everything = step < 0 and (self.path / "metrics.jsonl").exists()  # the snapshots may have been deleted
        if not later and not everything:
            return None
        number, branch = 1, self.path / "branches" / name
        while branch.exists():
            number += 1
            branch = self.path / "branches" / f"{name}-{number}"
        (branch / "snapshots").mkdir(parents=True)
        for file in ("config.json", "loss.png", *RunFiles.NAMES):
            if (self.path / file).exists():
                shutil.copyfile(self.path / file, branch / file)
        if (self.path / "tokenizer").is_dir():
            shutil.copytree(self.path / "tokenizer", branch / "tokenizer")
        for model in ("final", "last"):
            written = written_model(self.path / model)
            if written is None or written.step > step:
                _move_if_there(self.path / model, branch / model)
        for path in reversed(later):  # the newest first, so that the snapshots left are always those of a shorter run
            os.rename(path, branch / "snapshots" / path.name)
        sync_folder(branch / "snapshots")
        if later:
            sync_folder(self.path / "snapshots")
        return branch

    def copy_from(self, snapshot: Path, step: int, sizes: Mapping[str, int]) -> dict[str, int]:
        """Copy the snapshot of a step here from another run, with that run's metrics up to it.

        Returns:
            The lengths that the run's files had at the snapshot; 0 for a file that is not beside the snapshot.
        """
        source = snapshot.parent.parent if snapshot.parent.name == "snapshots" else None
        kept: dict[str, int] = {}
        for name in RunFiles.NAMES:
            file = source / name if source else None
            if file is not None and file.is_file() and file.stat().st_size >= sizes.get(name, 0):
                with open(file, "rb") as content:
                    write_whole(self.path / name, content.read(sizes.get(name, 0)))
                kept[name] = sizes.get(name, 0)
            else:
                write_whole(self.path / name, b"")
                kept[name] = 0
        (self.path / "snapshots").mkdir(exist_ok=True)
        with open(snapshot, "rb") as content:
            write_whole(snapshot_path(self.path / "snapshots", step), lambda file: shutil.copyfileobj(content, file))
        return kept

    def _recover(self) -> None:
        """Finish or undo a replacement whose process was killed."""
        shutil.rmtree(self._removed, ignore_errors=True)
        if not self._replaced.exists():
            return
        if list_snapshots(self._real / "snapshots") or written_model(self._real / "final"):
            self._undo = "replaced"
            self.keep()
            return
        self._undo = "replaced"
        self._take_back()
        if not (list_snapshots(self._real / "snapshots") or written_model(self._real / "final")):
            return  # the earlier run had not come so far either: there is nothing to lose
        raise RunFolderError(
            f"{self.path}: a start with --overwrite was killed before its first snapshot, and the earlier run is back; "
            "repeat the command with --overwrite to replace it, or with --resume auto to continue it"
        )

    def _take_back(self) -> None:
        undo, self._undo = self._undo, None
        if undo == "replaced" and not self._replaced.exists():
            return  # an error or an interruption came before the run was renamed
        shutil.rmtree(self._real, ignore_errors=True)
        if undo == "replaced":
            os.rename(self._replaced, self._real)
            sync_folder(self._real.parent)

    def _unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"the run's folder {self.path} cannot be written to ({error.strerror}): choose another --runs-dir"
        )


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds, without hidden files that may be deleted with a run."""
    return [path for path in folder.iterdir() if not _LITTER.fullmatch(path.name)]


def _move_if_there(source: Path, target: Path) -> None:
    if source.exists():
        os.rename(source, target)


def _step(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])
