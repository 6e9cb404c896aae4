"""Modules by name: the file of ``package.module``, the package of a folder, a name that is free."""

import re
import sys
import types
from pathlib import Path


def module_file(name: str) -> Path | None:
    """Return the file of ``package.module``, found from the current folder without importing it."""
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        return None
    for folder in (Path.cwd(), *map(Path, sys.path)):
        base = folder.joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def make_packages(name: str, folder: Path) -> None:
    """Make the packages above a module, so that it can be imported from them."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        above = ".".join(parts[:depth])
        if above not in sys.modules:
            package = types.ModuleType(above)
            package.__path__ = [str(folder.joinpath(*parts[:depth]))]
            sys.modules[above] = package
        setattr(sys.modules[above], parts[depth], sys.modules.get(".".join(parts[: depth + 1])))


def package_of(folder: Path) -> str:
    """Return the name of the package that a folder is; empty if it is none."""
    parts = []
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


def free_name(stem: str) -> str:
    """Return the module's own name if it is free: another file can then import it, and pickle finds its classes."""
    name = re.sub(r"\W", "_", stem)
    while name in sys.modules or name in sys.stdlib_module_names:
        name += "_"
    return name
