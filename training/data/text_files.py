"""Find the text files that a path names: one file, or those of a folder.

A folder usually contains other files too: hidden files, a virtual environment, notebook checkpoints, earlier runs. They
are left out, counted, and reported in one line.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files import FileError, unreadable, user_path
from .readers import TextFile, kind_of

__all__ = ["FoundFiles", "find_text_files", "named", "shown"]

_CACHES = {"__pycache__", "node_modules", "__MACOSX"}
_KINDS = ".txt, .md, .jsonl, these with .gz, and .parquet"


@dataclass(frozen=True)
class FoundFiles:
    """The files to read, in order, and a line about what was left out (empty if nothing was)."""

    files: list[TextFile]
    left_out: str


def find_text_files(paths: Sequence[str | os.PathLike[str]], *, encoding: str | None = None) -> FoundFiles:
    """Return the text files that some paths name, each of them once.

    A file that is named directly is read with any suffix. In a folder and its sub-folders, files with known suffixes
    are read in the order of their paths; links are followed.

    Args:
        paths: files and folders.
        encoding: encoding of files that are not UTF-8 (default: such a file is refused).

    Raises:
        FileError: a path does not exist, a file cannot be read, or there is no text.
    """
    left_out: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    files: list[TextFile] = []
    for path in paths:
        if "://" in str(path):
            raise FileError(f"{path} is an address, not a file: fetch it first, and give the file")
        path = user_path(path)
        status = _status(path, missing=f"there is no file or folder {shown(path)}")
        folder = stat.S_ISDIR(status.st_mode)
        if not folder and not stat.S_ISREG(status.st_mode):
            raise FileError(f"{shown(path)} is a pipe or device, and a text is read twice: save it in a file first")
        for file in _below(path, left_out, seen) if folder else [path]:
            kind = kind_of(file)
            if folder and kind is None:
                left_out["of other kinds"] += 1
                endings[file.suffix or "without ending"] += 1
                continue
            status = _status(file)
            if not stat.S_ISREG(status.st_mode):
                left_out["pipes or devices"] += 1
            elif _again(status, seen):
                left_out["found twice"] += 1
            else:
                text = TextFile(file, kind or "text", status.st_size, encoding)
                if status.st_size and text.has_text():
                    files.append(text)
                elif folder:
                    left_out["empty"] += 1
                else:
                    raise FileError(f"{shown(file)} is empty, or holds nothing but white space")
    line = _line(left_out, endings)
    if not files:
        raise FileError(
            f"there is no text in {named(paths)}: files that end in {_KINDS} are read" + (f"; {line}" if line else "")
        )
    return FoundFiles(files, line)


def shown(path: Path) -> str:
    """Return a path for a message; bytes of it that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def _below(top: Path, left_out: Counter[str], seen: set[tuple[int, int]]) -> list[Path]:
    """Return the files of a folder and its sub-folders, sorted by path, without hidden ones and those of programs."""
    found: list[Path] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            if _again(folder.stat(), seen):
                left_out["folders found twice"] += 1  # such as a link to a folder above
                continue
            entries = list(os.scandir(folder))
        except OSError as error:
            raise unreadable(folder, error) from error
        names = {entry.name for entry in entries}
        if folder != top and (reason := _of_a_program(folder, names)):
            left_out[reason] += 1
            continue
        for entry in entries:
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif entry.is_dir():
                waiting.append(folder / entry.name)
            else:
                found.append(folder / entry.name)
    return sorted(found)


def _of_a_program(folder: Path, names: set[str]) -> str:
    """Return the kind of a folder that a program has written and whose files are not meant as text, or else ""."""
    if names & {"pyvenv.cfg", "conda-meta"}:
        return "virtual environments"
    if folder.name in _CACHES:
        return "caches"
    if "prepared.json" in names or ("config.json" in names and names & {"metrics.jsonl", "snapshots"}):
        return "runs or prepared data"
    return ""


def _again(status: os.stat_result, seen: set[tuple[int, int]]) -> bool:
    """Return whether a file or folder was found before, through another link or path."""
    key = (status.st_dev, status.st_ino)
    if key in seen and status.st_ino:
        return True
    seen.add(key)
    return False


def _status(path: Path, missing: str = "") -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise FileError(missing) from None
        raise unreadable(path, error) from error


def _line(left_out: Counter[str], endings: Counter[str]) -> str:
    parts = [f"{count:,} {reason}" for reason, count in left_out.items()]
    if endings:
        common = ", ".join(ending for ending, _ in endings.most_common(3))
        others = f" and {len(endings) - 3} more" if len(endings) > 3 else ""
        parts = [part + (f" ({common}{others})" if part.endswith("of other kinds") else "") for part in parts]
    return f"left out: {', '.join(parts)}" if parts else ""


def named(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Return up to three paths for a record."""
    names = [shown(Path(path)) for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
