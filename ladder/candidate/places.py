"""Places in the user's source: the line that is being run, the loop around it, and the line that called it."""

import ast
import contextlib
import linecache
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from .calling import call

# ``file:line``, and that line.
Place = tuple[str, str]

# Python's own modules and gptladder: files in a home folder may have them beside them.
_LIBRARIES = (Path(__file__).resolve().parents[2], Path(os.__file__).resolve().parent)
_INSTALLED = {"site-packages", "dist-packages"}


class Code:
    """The user's own source, as against libraries: the files named, and those in the same folders and packages.

    Args:
        files: the files.
        cells: what Python calls code that was typed: ``<ipython-input-3-…>``.
    """

    def __init__(self, *files: Path, cells: Iterable[str] = ()) -> None:
        self.files = {file.resolve() for file in files}
        self._owned = dict.fromkeys(cells, True)
        self._loops: dict[str, dict[int, int]] = {}

    def first(self, frames: Iterable[tuple[str, int | None]]) -> tuple[str, str] | None:
        """Return ``file:line`` and that line, of the first frame (a file and a line's number) in the user's code."""
        for name, line in frames:
            if line is not None and self.owns(name):
                linecache.checkcache(name)  # the user may have edited the file since it was last read
                return f"{shown(name)}:{line}", linecache.getline(name, line).strip()
        return None

    def raised(self, error: BaseException) -> tuple[str, str] | None:
        """Return the place in the user's source at which an exception was raised."""
        if isinstance(error, SyntaxError) and error.filename and error.lineno:
            return self.first([(error.filename, error.lineno)])
        frames = traceback.extract_tb(error.__traceback__)
        return self.first((frame.filename, frame.lineno) for frame in reversed(frames))

    def running(self) -> tuple[str, str] | None:
        """Return the line of the user's source that is being run."""
        frame = sys._getframe(1)
        while frame is not None:
            if self.owns(frame.f_code.co_filename):
                return self.first([(frame.f_code.co_filename, frame.f_lineno)])
            frame = frame.f_back
        return None

    def around(self) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
        """Return the loop around the running line of the user's source, and the line that called its function."""
        frame, loop = sys._getframe(1), None
        while frame is not None and not self.owns(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None:
            return None, None
        name, function = frame.f_code.co_filename, frame.f_code
        if (line := self._loops_of(name).get(frame.f_lineno)) is not None:
            loop = self.first([(name, line)])
        while frame is not None and (frame.f_code is function or not self.owns(frame.f_code.co_filename)):
            if frame.f_code is call.__code__:
                return loop, None
            frame = frame.f_back
        return loop, self.first([(frame.f_code.co_filename, frame.f_lineno)]) if frame else None

    def calls(self) -> list[FrameType]:
        """Return the calls of the user's functions that are running, from the outermost."""
        frame, found = sys._getframe(1), list[FrameType]()
        while frame is not None and frame.f_code is not call.__code__:
            found += [frame] if self.owns(frame.f_code.co_filename) else []
            frame = frame.f_back
        return found[::-1]

    def decorated(self, pattern: str) -> tuple[str, str] | None:
        """Return the innermost decorator that a pattern is found in, of the user's functions that are being run."""
        frame = sys._getframe(1)
        while frame is not None:
            name, function = frame.f_code.co_filename, frame.f_code
            if self.owns(name):
                # Python counts a function from its first decorator on.
                for line in range(function.co_firstlineno, frame.f_lineno):
                    code = linecache.getline(name, line).strip()
                    if code.startswith(("def ", "async def ", "class ")) or not code:
                        break
                    if code.startswith("@") and re.search(pattern, code):
                        return self.first([(name, line)])
            frame = frame.f_back
        return None

    def _loops_of(self, name: str) -> dict[int, int]:
        """Return the line of the innermost loop around each line of a file."""
        if name not in self._loops:
            found: dict[int, int] = {}
            with contextlib.suppress(SyntaxError):
                for node in ast.walk(ast.parse("".join(linecache.getlines(name)))):  # an inner loop after an outer one
                    if isinstance(node, ast.For | ast.While):
                        for each in node.body:
                            found |= dict.fromkeys(
                                range(each.lineno, (each.end_lineno or each.lineno) + 1), node.lineno
                            )
            self._loops[name] = found
        return self._loops[name]

    def outermost(self) -> tuple[str, int] | None:
        """Return file and number of the line that is being run in the method that the ladder called itself."""
        frame, found = sys._getframe(1), None
        while frame is not None and frame.f_code is not call.__code__:
            if self.owns(frame.f_code.co_filename):
                found = frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return found

    def owns(self, name: str) -> bool:
        """Return whether a file is the user's."""
        if name not in self._owned:
            path = Path(re.sub(r"\[cell \d+\]$", "", name))
            path = path.resolve() if path.is_absolute() else path  # not "<string>", which is in no folder
            beside = any(path.is_relative_to(_package(file.parent)) for file in self.files)
            library = not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(folder) for folder in _LIBRARIES)
            self._owned[name] = path in self.files or (beside and not library)
        return self._owned[name]


def _package(folder: Path) -> Path:
    """Return the folder of the whole package that a folder is in; the folder itself if it is in none."""
    while (folder / "__init__.py").exists() and (folder.parent / "__init__.py").exists():
        folder = folder.parent
    return folder


def shown(name: str) -> str:
    """Return how a file is named in reports: from the current folder, or as a notebook's cell."""
    typed = re.match(r"<ipython-input-(\d+)-|.*\Wipykernel_\d+\W", name)
    if typed:
        return f"cell {typed[1]}" if typed[1] else "cell"
    return name.removeprefix(os.path.join(os.getcwd(), ""))
