"""Which files a folder holds for which student."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = (".py", ".ipynb")
_LEFT_OUT = {"__pycache__", "__MACOSX", "node_modules", "site-packages"}


@dataclass(frozen=True)
class Submission:
    """What one student handed in.

    Args:
        student: name of the student's folder, or of the file without its suffix.
        files: the Python files and notebooks, in the order of their paths.
        sha256: of their names and contents.
    """

    student: str
    files: tuple[Path, ...]
    sha256: str


def find_submissions(folder: Path, *, single: bool = False) -> list[Submission]:
    """Return the submissions in a folder, in the order of the students' names.

    Each folder in it is one student's, with all Python files and notebooks below it, and so is each such file. Hidden
    files, caches and virtual environments are left out. A student without such a file has a submission without files.

    Args:
        folder: the class's folder.
        single: the folder is one submission, named after it.

    Raises:
        ValueError: there is no such folder, or it holds no submission, or two have one student's name.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder that holds the submissions")
    if single:
        return [_submission(folder.resolve().name, folder)]
    found = [
        _submission(path.name if path.is_dir() else path.stem, path)
        for path in sorted(folder.iterdir())
        if _counts(path) and (path.is_dir() or path.suffix in _SUFFIXES)
    ]
    if not found:
        raise ValueError(f"{folder} holds no submission: a folder, a .py file or an .ipynb file for each student")
    names = [each.student for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{folder} holds two submissions of {', '.join(twice)}: keep one of each name")
    return found


def _counts(path: Path) -> bool:
    return not path.name.startswith((".", "._")) and path.name not in _LEFT_OUT and not (path / "pyvenv.cfg").exists()


def _submission(student: str, path: Path) -> Submission:
    files = [path] if path.is_file() else _files_below(path)
    digest = hashlib.sha256()
    for file in files:
        name = file.name if path.is_file() else str(file.relative_to(path))
        digest.update(f"{name}\0{file.stat().st_size}\0".encode(errors="surrogateescape") + file.read_bytes())
    return Submission(student, tuple(files), digest.hexdigest())


def _files_below(folder: Path) -> list[Path]:
    """The Python files and notebooks below a folder. Links are left out: they may lead to another student's work."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not _counts(path):
            continue
        if path.is_dir():
            files += _files_below(path)
        elif path.suffix in _SUFFIXES and path.is_file():
            files.append(path)
    return files
