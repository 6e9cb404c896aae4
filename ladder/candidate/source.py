"""Read the user's source: a file, a notebook or a module. Its script part is not run."""

import __future__

import ast
import difflib
import inspect
import itertools
import json
import linecache
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import nn

from ...files import user_path
from .modules import free_name, make_packages, module_file, package_of
from .places import Code
from .slicing import binds, is_docstring, is_main, keeps, parts, reachable
from .standins import StandIn

_PACKAGE = Path(__file__).resolve().parents[2]
_FLAGS = __future__.annotations.compiler_flag


class CandidateError(ValueError):
    """A layer that cannot be tried: its file, its name, or its constructor's arguments are not usable.

    ``kind`` is that of the `Fault` if reading the file ended the sandbox (``hang``, ``died``, ``limit``); ``no layer``
    if the file was read and holds none; and otherwise empty. ``at`` is the ``file:line`` where that happened.

    Example:
        >>> split("no_such_file.py")
        Traceback (most recent call last):
        gptladder.ladder.candidate.source.CandidateError: there is no file no_such_file.py: ...
    """

    def __init__(self, message: str, kind: str = "", at: str | None = None) -> None:
        super().__init__(message)
        self.kind, self.at = kind, at


def split(source: str) -> tuple[Path, str]:
    """Return the file and the name (or ``""``) in ``FILE.py``, ``FILE.py:NAME`` or ``package.module:NAME``.

    Raises:
        CandidateError: there is no such file or module.
    """
    file, name = source, ""
    if not Path(source).is_file():
        file, _, name = source.rpartition(":")
        file = file or source
    path = user_path(file)
    if not path.is_file():
        found = module_file(file)
        if found is None:
            expected = "FILE.py, FILE.py:CLASS, FILE.ipynb or package.module:CLASS"
            raise CandidateError(f"there is no file {file}: write {expected}")
        path = found
    if name and not name.isidentifier():
        raise CandidateError(f"{source!r} names no class: write FILE.py:CLASS, or the file alone")
    return path.resolve(), name


class Loaded:
    """A source that was read. Statements of its script part were left out; imports that failed became stand-ins.

    Args:
        path: its file.
        wanted: the names that are asked for; if empty, every class is.
        name: by which another file imports it, which may need anything of it.

    Attributes:
        module: its namespace.
        code: its files.
        notes: what was left out or replaced, as sentences.
    """

    def __init__(self, path: Path, wanted: set[str], name: str = "") -> None:
        self.path, self.wanted, self.imported = path, wanted, bool(name)
        self.code = Code(path)
        self.notes: list[str] = []
        # Another file may import this one by its own name, and must not get a part of it.
        self.module = types.ModuleType(name or free_name(f"part of {path.stem}" if wanted else path.stem))
        StandIn.reading += 1
        arguments = sys.argv
        sys.argv = [str(path)]  # a file that parses its command line gets its defaults
        try:
            self._load()
        finally:
            StandIn.reading -= 1
            sys.argv = arguments
        self.notes = list(dict.fromkeys(self.notes))

    @property
    def classes(self) -> dict[str, type[nn.Module]]:
        """The ``nn.Module`` classes that the source defines or imports from beside it, by name."""
        return {
            name: value
            for name, value in vars(self.module).items()
            if inspect.isclass(value) and issubclass(value, nn.Module) and self._own(value)
        }

    def _own(self, value: Any) -> bool:
        if value.__module__ == self.module.__name__:
            return True
        file = getattr(sys.modules.get(value.__module__), "__file__", None)
        return bool(file) and self.code.owns(str(file))

    def get(self, name: str, source: str) -> Callable[..., Any]:
        """Return the class or function of a name.

        Raises:
            CandidateError: the source has none; the message lists those that it has.
        """
        found = vars(self.module).get(name)
        if isinstance(found, StandIn):
            raise CandidateError(f"{source}: {found.reason}")
        if found is None:
            has = [each for each, value in vars(self.module).items() if _defined_in(self.module, value)]
            close = difflib.get_close_matches(name, has, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            left_out = "".join(f" ({note})" for note in self.notes if "parse" in note)
            raise CandidateError(
                f"{source}: the file has no {name}; it has {', '.join(has) or 'no class'}{hint}{left_out}"
            )
        return found

    def _load(self) -> None:
        namespace = vars(self.module)
        # Relative imports resolve from the package that the file lies in.
        root = self.path.parent
        while (root / "__init__.py").exists():
            root = root.parent
        namespace |= {"__file__": str(self.path), "__package__": ".".join(self.path.parent.relative_to(root).parts)}
        for folder in (str(root), str(self.path.parent)):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        sys.modules[self.module.__name__] = self.module

        # Which statements the wanted classes need.
        statements = list(self._statements())
        bound = set().union(*(binds(node) for _, node in statements))
        # If a name that is asked for is not there, all are read, to list them.
        wanted = self.wanted if self.wanted <= bound else set()
        needed = bound if self.imported else reachable([node for _, node in statements], wanted)
        # Run those; what fails, and what is left out, becomes a stand-in that raises if it is used.
        left_out, failed = [], []
        for file, node in statements:
            names = binds(node)
            if not keeps(node):
                left_out.append((file, node, names))
                continue
            for part in parts(node, needed):
                error = self._run(part, file, namespace)
                if error is None:
                    continue
                place = self.code.raised(error) or (f"{file}:{part.lineno}", ast.unparse(part).splitlines()[0])
                reason = f"{place[0]}: {one_line(error)}"
                if isinstance(part, ast.ClassDef | ast.FunctionDef) and part.name in self.wanted:
                    raise CandidateError(f"{place[0]}: reading it raises {one_line(error)}: {place[1]}") from error
                for name in binds(part):
                    namespace[name] = StandIn(name, reason)
                    if isinstance(part, ast.Import | ast.ImportFrom):
                        failed.append(name)
        for file, node, names in left_out:
            for name in names & needed:
                if name not in namespace:
                    namespace[name] = StandIn(
                        name, f"{Path(file).name}:{node.lineno} was not run: it is part of the script"
                    )
        self._tell(left_out, failed)

    def _tell(self, left_out: list[Any], failed: list[str]) -> None:
        script = [(file, node.lineno) for file, node, _ in left_out if not is_docstring(node) and not is_main(node)]
        if script:
            of_cells = itertools.groupby(script[:4], key=itemgetter(0))
            shown = "; ".join(_in_cell(file) + _lines([number for _, number in numbers]) for file, numbers in of_cells)
            self.notes.append(f"the file's script part was not run ({shown}{', …' * (len(script) > 4)})")
        if failed:
            self.notes.append(
                f"could not be imported: {', '.join(dict.fromkeys(failed))} (an error only if it is used)"
            )

    def _statements(self) -> Iterator[tuple[str, ast.stmt]]:
        """Yield each top-level statement with the name of its file or cell."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
            if self.path.suffix == ".ipynb":
                cells = [cell for cell in json.loads(text)["cells"] if cell.get("cell_type") == "code"]
                pieces = [(f"{self.path}[cell {i}]", "".join(cell["source"])) for i, cell in enumerate(cells, start=1)]
            else:
                pieces = [(str(self.path), text)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CandidateError(f"{self.path.name} cannot be read: {one_line(error)}") from error
        for file, piece in pieces:
            if re.match(r"\s*%%(?!climb|time\b)", piece):
                self.notes.append(f"{Path(file).name} was left out: it begins with {piece.split()[0]}")
                continue
            tree, lines = self._parse(file, piece)
            if "[cell " in file:
                linecache.cache[file] = (len(piece), None, [line + "\n" for line in lines], file)
            yield from ((file, node) for node in tree.body)

    def _parse(self, file: str, text: str) -> tuple[ast.Module, list[str]]:
        """Parse a file; blank out notebook magics, and top-level pieces that do not parse."""
        shown = text.split("\n")
        lines = list(shown)
        magics = False
        while True:
            try:
                tree = ast.parse("\n".join(lines), file)
                break
            except SyntaxError as error:
                at = min((error.lineno or 1) - 1, len(lines) - 1)
                if re.match(r"\s*[!%?]", lines[at]) or lines[at].rstrip().endswith("?"):
                    lines[at] = re.match(r"\s*", lines[at]).group() + "pass"  # pyright: ignore[reportOptionalMemberAccess]
                    magics = True
                    continue
                tops = [i for i, line in enumerate(lines) if line.strip() and line[0] not in " \t#)]}"]
                begin = max((i for i in tops if i <= at), default=0)
                end = min((i for i in tops if i > at), default=len(lines))
                if not any(line.strip() for line in lines[begin:end]):
                    raise CandidateError(
                        f"{Path(file).name}:{at + 1}: {one_line(error)}: {shown[at].strip()}"
                    ) from error
                self.notes.append(
                    f"{_in_cell(file)}line {at + 1} does not parse ({error.msg}), "
                    f"so lines {begin + 1} to {end} were left out"
                )
                lines[begin:end] = [""] * (end - begin)
        if magics:
            self.notes.append("notebook magics were left out")
        return tree, shown

    def _run(self, node: ast.stmt, file: str, namespace: dict[str, Any]) -> BaseException | None:
        """Run a statement; look for a module that cannot be imported in the folders above. Return the error."""

        def run(node: ast.stmt) -> None:
            exec(compile(ast.Module([node], []), file, "exec", flags=_FLAGS, dont_inherit=True), namespace)

        try:
            run(node)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                return error
            try:
                found = self._found_beside(node)
                if found is None:
                    return error
                run(found)
            except BaseException as again:  # also a file beside it that must not be read
                return again
        return None

    def _found_beside(self, node: ast.Import | ast.ImportFrom) -> ast.stmt | None:
        """Read a module that lies beside or above the file in the same way, if importing it failed; return its import.

        A relative import becomes an absolute one: a folder without ``__init__.py`` is no package that it could be
        relative to.
        """
        if isinstance(node, ast.ImportFrom) and node.level:
            base = self.path.parents[node.level - 1]
            name = node.module or node.names[0].name
            path = base.joinpath(*name.split(".")).with_suffix(".py")
            if not path.is_file():
                return None
            package = package_of(base)
            full = ".".join(part for part in (package, name) if part)
            self.code.files |= Loaded(path, set(), full).code.files
            make_packages(full, base.parents[package.count(".")] if package else base)
            alias = ast.alias(full, node.names[0].asname or node.names[0].name)
            absolute = ast.ImportFrom(full, node.names, 0) if node.module else ast.Import([alias])
            return ast.fix_missing_locations(ast.copy_location(absolute, node))
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            for folder in list(self.path.parents)[:5]:
                path = folder.joinpath(*name.split(".")).with_suffix(".py")
                if path.is_file() and path != self.path:
                    self.code.files |= Loaded(path, set(), name).code.files
                    make_packages(name, folder)  # to import it from, if there are any
                    return node
        return None


def load(path: Path, wanted: Iterable[str] = ()) -> Loaded:
    """Read a source, and run what its classes need: imports, classes, functions, constants.

    Args:
        path: a ``.py`` file or a notebook.
        wanted: the names that are asked for; if empty, every class is.

    Raises:
        CandidateError: it is no Python, or a statement that a class needs raises.
    """
    return Loaded(path.resolve(), set(wanted))


def _defined_in(module: types.ModuleType, value: Any) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__


def _in_cell(file: str) -> str:
    cell = re.search(r"\[(cell \d+)\]$", file)
    return f"{cell[1]}, " if cell else ""


def _lines(numbers: Sequence[int]) -> str:
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def one_line(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    text = text.removesuffix(".")  # it stands inside a sentence
    text = text if len(text) <= 300 else text[:299] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
