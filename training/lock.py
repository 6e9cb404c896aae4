"""Lock the folder of a run, so that two processes cannot write to it; a killed process does not leave it locked."""

import contextlib
import errno
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class RunFolderError(ValueError):
    """A run's folder that cannot be used."""


class RunLock:
    """Hold the lock of a run for a ``with`` block.

    The operating system locks the open file ``.NAME.lock`` beside the folder, and releases the lock when the process
    ends, even if it is killed. The file is beside the folder because the folder itself may be renamed and replaced.

    Args:
        folder: The run's folder, which need not exist.

    Attributes:
        unavailable: Why the file system has no locks, if it has none: then nothing is locked.

    Raises:
        RunFolderError: Another process holds the lock; the folder's parent cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        # Different paths of one folder (through a link, or with "..") must lead to the same lock.
        real = Path(os.path.realpath(folder))
        self._folder = folder
        self._path = real.with_name(f".{real.name}.lock")
        self._file: int | None = None
        self._made: list[Path] = []
        self.unavailable: str | None = None

    def __enter__(self) -> Self:
        try:
            self._make_parent()
            while self._file is None:
                self._file = self._open()
        except OSError as error:
            raise RunFolderError(
                f"the run's folder {self._folder} cannot be written to ({error.strerror}): choose another --runs-dir"
            ) from None
        _in_children.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if os.name != "nt":  # Windows cannot delete an open file; the empty file may stay
            self._path.unlink(missing_ok=True)
        self.close()
        with contextlib.suppress(OSError):  # a folder is not empty by now
            for folder in self._made:
                folder.rmdir()

    def close(self) -> None:
        """Close this process's handle of the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        _in_children.discard(self)

    def _make_parent(self) -> None:
        parent = self._path.parent
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)

    def _open(self) -> int | None:
        """Return the locked file, or None if it was removed in the meantime, by a process that released it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            holder = _holder(file)
            os.close(file)
            raise RunFolderError(
                f"another process{holder} is training in {self._folder}: wait until it ends, stop it, or give another "
                "--name"
            ) from None
        except OSError as error:  # some network file systems have no locks
            self.unavailable = error.strerror
        try:
            present = self._path.stat()
        except FileNotFoundError:
            present = None
        here = os.fstat(file)
        if present is None or (present.st_dev, present.st_ino) != (here.st_dev, here.st_ino):
            os.close(file)
            return None
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        return file


def _holder(file: int) -> str:
    """Return the id of the process that holds the lock, as it wrote it to the file, for a message."""
    try:
        text = os.read(file, 20).decode("ascii", "ignore").strip()
    except OSError:  # Windows locks the bytes against reading too
        return ""
    return f" ({text})" if text.isdigit() else ""


_in_children: set[RunLock] = set()


def _close_in_child() -> None:
    # A forked child shares its parent's lock, and would keep it after the parent is killed.
    for lock in list(_in_children):
        lock.close()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    os.register_at_fork(after_in_child=_close_in_child)
