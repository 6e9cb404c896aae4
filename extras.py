"""Import packages that are optional: what is missing, or too new or old, is named in one line with what to install."""

import importlib
import importlib.metadata
from types import ModuleType
from typing import NamedTuple

__all__ = ["EXTRAS", "import_extra"]


class Extra(NamedTuple):
    """An optional package: its name on PyPI, the extra that installs it, and the versions that fit."""

    package: str
    extra: str
    least: str
    below: str | None = None


EXTRAS: dict[str, Extra] = {
    "transformer_lens": Extra("transformer-lens", "reference", "3.9", "4"),
    "transformers": Extra("transformers", "reference", "4.57"),
    "matplotlib": Extra("matplotlib", "plot", "3.8"),
    "tensorboard": Extra("tensorboard", "tensorboard", "2.16"),
    "tensorflow": Extra("tensorflow", "tensorflow", "2.21"),
    "pyarrow": Extra("pyarrow", "parquet", "15"),
    "gguf": Extra("gguf", "gguf", "0.10"),
    "wandb": Extra("wandb", "wandb", "0.17"),
}
"""By the name of the module. The ranges are those of pyproject.toml."""


def import_extra(module: str) -> ModuleType:
    """Import an optional package, or one of its modules.

    >>> import_extra("no_such_package")
    Traceback (most recent call last):
    ImportError: no_such_package is not installed: pip install no_such_package

    Raises:
        ImportError: The package is not installed, or its version is outside the range; the message has the remedy.
    """
    name = module.partition(".")[0]
    extra = EXTRAS.get(name)
    if extra is None:
        advice, fits = f"pip install {name}", True
    else:
        advice = f"pip install 'gptladder[{extra.extra}]'"
        fits = _fits(extra)
    if not fits:
        assert extra is not None
        wanted = f">={extra.least}" + (f",<{extra.below}" if extra.below else "")
        raise ImportError(
            f"{extra.package} {importlib.metadata.version(extra.package)} is installed, and {extra.package}{wanted} is "
            f"needed: {advice}"
        )
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            raise
        raise ImportError(f"{name} is not installed: {advice}") from error


def _fits(extra: Extra) -> bool:
    """Return whether the installed version is in the range. A package that is not installed fails when imported."""
    try:
        version = importlib.metadata.version(extra.package)
    except importlib.metadata.PackageNotFoundError:
        return True
    found = _release(version)
    return found >= _release(extra.least) and (extra.below is None or found < _release(extra.below))


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: (4, 57, 1) of "4.57.1rc2"."""
    numbers: list[int] = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
