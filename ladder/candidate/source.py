"""Somebody's source file: what is in it, and which line of it something happened at."""

import difflib
import importlib.util
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[2]


class CandidateError(ValueError):
    """A layer that cannot be tried at all: its file, its name, or how it wants to be built."""


class Code:
    """A user's own source, as against that of libraries: the files named, and what lies beside them."""

    def __init__(self, *files: Path) -> None:
        self.files = {file.resolve() for file in files}

    def first(self, frames: Iterable[tuple[str, int | None]]) -> tuple[str, str] | None:
        """``file:line`` and that line, of the first frame (a file's name and a line's number) that is the user's."""
        for name, line in frames:
            path = Path(name)
            if line is not None and self._owns(path):
                shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
                linecache.checkcache(name)  # it may have been mended since it was last read
                return f"{shown}:{line}", linecache.getline(name, line).strip()
        return None

    def raised(self, error: BaseException) -> tuple[str, str] | None:
        """Where in the user's source an exception came from."""
        if isinstance(error, SyntaxError) and error.filename and error.lineno:
            return self.first([(error.filename, error.lineno)])
        frames = traceback.extract_tb(error.__traceback__)
        return self.first((frame.filename, frame.lineno) for frame in reversed(frames))

    def running(self) -> tuple[str, str] | None:
        """Which line of the user's source is being run."""
        return self.first((frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(None))

    def _owns(self, path: Path) -> bool:
        if path in self.files:
            return True
        beside = any(path.is_relative_to(file.parent) for file in self.files)
        return beside and not path.is_relative_to(_PACKAGE) and "site-packages" not in path.parts


def split(source: str) -> tuple[Path, str]:
    """The file and the name in ``FILE.py:NAME``.

    Raises:
        CandidateError: it is written otherwise, or there is no such file.
    """
    file, _, name = source.rpartition(":")
    if not file or not name.isidentifier():
        raise CandidateError(f"{source!r} does not say which class of which file: write FILE.py:CLASS")
    path = Path(file)
    if not path.is_file():
        raise CandidateError(f"there is no file {file}")
    return path.resolve(), name


def find(source: str) -> tuple[Callable[..., Any], Code]:
    """The class or function that ``FILE.py:NAME`` names, and its source.

    Raises:
        CandidateError: no such file, a file that cannot be imported, nothing of that name in it.
    """
    path, name = split(source)
    code = Code(path)
    module = sys.modules.get(path.stem)
    if module is None or getattr(module, "__file__", None) != str(path):
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Under its own name where that is free: a class of it can then be pickled, and another file can import it.
        if path.stem not in sys.modules:
            sys.modules[path.stem] = module
        try:
            spec.loader.exec_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            at, line = code.raised(error) or (source, "")
            raise CandidateError(f"{at}: importing it raises {said(error)}" + (f": {line}" if line else "")) from error
    if not hasattr(module, name):
        classes = [each for each, value in vars(module).items() if _defined_in(module, value)]
        close = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise CandidateError(
            f"{source}: the file has no {name}; it has {', '.join(classes) or 'no class at all'}{hint}"
        )
    return getattr(module, name), code


def _defined_in(module: Any, value: Any) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__


def said(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:299] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
