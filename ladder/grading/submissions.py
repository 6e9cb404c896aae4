"""Which files a folder holds for which student."""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_SUFFIXES = (".py", ".ipynb")
_LEFT_OUT = {"__pycache__", "__MACOSX", "node_modules", "site-packages"}
# What a zip file may unpack to: far more than a layer needs, far less than a disk holds.
_MOST_BYTES, _MOST_FILES = 200 * 2**20, 5000

# Moodle gives each student a folder, or each file a prefix: "Ann Lee_123456_assignsubmission_file_".
_MOODLE = re.compile(r"(?P<student>.+_\d+)_assignsubmission_(?:file|onlinetext)_?(?P<file>.*)")
# Canvas puts all files side by side: "leeann_12345_678910_attention.py", "leeann_LATE_12345_678910_attention-1.py".
_CANVAS = re.compile(r"(?P<name>[^_]+)(?:_LATE)?_(?P<user>\d+)_\d+_(?P<file>.+)")


@dataclass(frozen=True)
class Submission:
    """What one student handed in.

    Args:
        student: name of the student's folder, or of the file without its suffix.
        files: the Python files and notebooks, in the order of their paths.
        sha256: of their names and contents.
        places: the student's own files and folders.
        hidden: folders that hold others' work.
        fault: why it cannot be read; empty if it can.
    """

    student: str
    files: tuple[Path, ...]
    sha256: str
    places: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    fault: str = ""


def find_submissions(
    folder: Path, *, single: bool = False, leave_out: Sequence[Path] = (), unpack_into: Path | None = None
) -> list[Submission]:
    """Return the submissions in a folder, in the order of the students' names.

    Each folder in it is one student's, with all Python files, notebooks and zip files below it, and so is each such
    file. The names that Moodle and Canvas give to folders and files are understood. Hidden files, caches and virtual
    environments are left out. A student without such a file has a submission without files.

    Args:
        folder: the class's folder.
        single: the folder is one submission, named after it.
        leave_out: folders and files in it that are no submissions.
        unpack_into: folder for the contents of zip files (default: a zip file counts as one that cannot be read).

    Raises:
        ValueError: there is no such folder, or it holds no submission, or two have one student's name.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder that holds the submissions")
    folder = _real(folder)
    hidden = (folder, *([_real(unpack_into)] if unpack_into else []), *map(_real, leave_out))
    if single:
        return [_submission(printable(folder.name), [folder], unpack_into, hidden[1:])]
    places: dict[str, list[Path]] = {}
    exported: set[str] = set()
    left_out = set(map(_real, leave_out))
    for path in sorted(folder.iterdir()):
        possible = path.is_dir() or path.suffix.lower() in (*_SUFFIXES, ".zip")
        if not (possible and _counts(path)) or path in left_out or _holds_results(path):
            continue
        student, joined = _student(path)
        exported |= {student} if joined else set()
        places.setdefault(student, []).append(path)
    if not places:
        raise ValueError(f"{folder} holds no submission: a folder, a .py, .ipynb or .zip file for each student")
    twice = {student: paths for student, paths in places.items() if len(paths) > 1 and student not in exported}
    if twice:
        names = ", ".join(path.name for paths in twice.values() for path in paths)
        raise ValueError(f"{folder} holds two submissions of {', '.join(twice)} ({names}): keep one of each name")
    return [_submission(student, paths, unpack_into, hidden) for student, paths in sorted(places.items())]


def printable(name: str) -> str:
    """Return a name with what cannot be printed or encoded escaped: names of files may hold anything.

    Example:
        >>> printable("ann\\x1b[2J")
        'ann\\\\x1b[2J'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


def _real(path: Path) -> Path:
    """Return a path without links; `Path.resolve` raises RuntimeError if links lead in a circle."""
    return Path(os.path.realpath(path))


def _student(path: Path) -> tuple[str, bool]:
    """Return the student's name, and whether a learning platform gave it: then several files can be one student's."""
    if found := _MOODLE.fullmatch(path.name):
        return printable(found["student"]), True
    if path.is_file() and (found := _CANVAS.fullmatch(path.name)):
        return printable(f"{found['name']}_{found['user']}"), True
    return printable(path.name if path.is_dir() else path.stem), False


def _counts(path: Path) -> bool:
    return not path.name.startswith((".", "._")) and path.name not in _LEFT_OUT and not (path / "pyvenv.cfg").exists()


def _holds_results(path: Path) -> bool:
    """Return whether a folder has the results of an earlier grading."""
    return (path / "outcomes").is_dir() and (path / "results.json").is_file()


def _submission(student: str, paths: list[Path], unpack_into: Path | None, hidden: tuple[Path, ...]) -> Submission:
    places, files, faults = list(paths), [], []
    digest = hashlib.sha256()
    for path in paths:
        try:
            if path.is_symlink() and _real(path).is_relative_to(path.parent):
                what = "another submission" if path.exists() else "a file that does not exist"
                raise ValueError(f"{printable(path.name)} is a link to {what}")
            for file, name in _files(path, path.parent if path.is_file() else path, unpack_into, places):
                _hash(digest, file, name)
                files.append(file)
        except (OSError, ValueError, RecursionError) as error:
            fault = "it has too many folders in each other" if isinstance(error, RecursionError) else str(error)
            digest.update(fault.encode(errors="backslashreplace"))
            faults.append(fault)
    return Submission(student, tuple(files), digest.hexdigest(), tuple(places), hidden, "; ".join(faults))


def _hash(digest: Any, file: Path, name: str) -> None:
    digest.update(f"{name}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)


def _files(
    path: Path, root: Path, unpack_into: Path | None, places: list[Path], *, nested: bool = False
) -> Iterator[tuple[Path, str]]:
    """Yield the Python files and notebooks at or below a path, with their names in the submission, in order.

    Links are left out, because they may lead to another student's work; and so are zip files in zip files.
    """
    if path.is_dir():
        for each in sorted(path.iterdir()):
            if not each.is_symlink() and _counts(each):
                yield from _files(each, root, unpack_into, places, nested=nested)
    elif path.suffix.lower() in _SUFFIXES and path.is_file():
        yield path, path.relative_to(root).as_posix()
    elif path.suffix.lower() == ".zip" and path.is_file() and not nested:
        unpacked = _unpacked(path, unpack_into)
        places.append(unpacked)
        name = path.relative_to(root).as_posix()
        found = _files(unpacked, unpacked, unpack_into, places, nested=True)
        yield from ((file, f"{name}/{inner}") for file, inner in found)


def _unpacked(path: Path, unpack_into: Path | None) -> Path:
    """Unpack a zip file into a new folder, and return the folder.

    Raises:
        ValueError: it is damaged, encrypted or too large, or there is no folder to unpack into.
    """
    if unpack_into is None:
        raise ValueError(f"{printable(path.name)} is a zip file: unpack it")
    folder = unpack_into / str(sum(1 for _ in unpack_into.iterdir()))
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(path) as packed:
            entries = [each for each in packed.infolist() if not each.is_dir()]
            if len(entries) > _MOST_FILES or sum(each.file_size for each in entries) > _MOST_BYTES:
                most = f"{_MOST_FILES:,} files and {_MOST_BYTES >> 20} MB"
                raise ValueError(f"it unpacks to more than {most}")
            for entry in entries:
                # The names are the student's: none may lead out of the folder.
                parts = [part for part in PurePosixPath(entry.filename.replace("\\", "/")).parts if part != "/"]
                if ".." in parts or not parts or any(not _counts(Path(part)) for part in parts):
                    continue
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(entry) as source, target.open("wb") as file:
                    # The size in the directory can be a lie: no more than that is read.
                    file.write(source.read(entry.file_size + 1)[: entry.file_size])
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{printable(path.name)} cannot be unpacked: {reason}") from error
    except Exception as error:  # zlib, lzma and bz2 each have an error of their own
        raise ValueError(f"{printable(path.name)} is damaged: {type(error).__name__}") from error
    return folder
