"""The examples in docstrings run, and their output is what they show; a warning fails them."""

import doctest
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

# Packages whose public classes and functions each have an example. Others are listed here once theirs have.
COMPLETE = ("components", "assembly", "weights", "sampling", "sampling.transforms", "ladder", "lens")
# Packages and modules whose examples run, as far as there are any.
PACKAGES = (*COMPLETE, "ladder.candidate", "ladder.grading", "ladder.sandbox", "training", "training.data")
MODULES = (
    "files",
    "device",
    "extras",
    "gguf_file",
    "options",
    "weights.files.torch_files",
    "weights.files.hub",
)


def modules() -> Iterator[str]:
    """Yield the names of all modules whose examples run, without the package's own."""
    for package in PACKAGES:
        yield package
        path = importlib.import_module(f"gptladder.{package}").__path__
        yield from (f"{package}.{module.name}" for module in pkgutil.iter_modules(path))
    yield from MODULES


def imported(name: str) -> ModuleType:
    return importlib.import_module(f"gptladder.{name}")


@pytest.mark.parametrize("name", list(modules()))
def test_examples_run(name: str) -> None:
    torch.manual_seed(0)
    module = imported(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    names = {"torch": torch, **vars(module)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for example in doctest.DocTestFinder(exclude_empty=True).find(module, f"gptladder.{name}", globs=names):
            report: list[str] = []
            runner.run(example, out=report.append)
            assert not report, "".join(report)


@pytest.mark.parametrize("package", COMPLETE)
def test_every_public_class_and_function_has_an_example(package: str) -> None:
    module = imported(package)
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)) or not thing.__module__.startswith("gptladder"):
            continue  # a constant, or a library's
        text = inspect.getdoc(thing) or ""
        assert ">>>" in text or "Example: see" in text, f"{package}.{name} has no example"
