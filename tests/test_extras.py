"""Optional packages: the ranges are those of pyproject.toml, and what does not fit is named in one line."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from gptladder import extras

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", sorted(extras.EXTRAS))
def test_the_ranges_are_those_of_pyproject(module: str) -> None:
    extra = extras.EXTRAS[module]
    wanted = f">={extra.least}" + (f",<{extra.below}" if extra.below else "")
    listed = PROJECT["project"]["optional-dependencies"][extra.extra]
    assert any(re.sub(r"-cpu| *;.*", "", line) == f"{extra.package}{wanted}" for line in listed), listed


@pytest.mark.parametrize(
    ("module", "version", "message"),
    [
        ("transformer_lens", "4.3.0",
         "transformer-lens 4.3.0 is installed, and transformer-lens>=3.9,<4 is needed: "
         "pip install 'gptladder[reference]'"),
        ("transformer_lens.components", "2.1.0",
         "transformer-lens 2.1.0 is installed, and transformer-lens>=3.9,<4 is needed"),
        ("transformers", "4.56.2", "transformers 4.56.2 is installed, and transformers>=4.57 is needed"),
    ],
)  # fmt: skip
def test_a_version_that_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, version: str, message: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version)
    with pytest.raises(ImportError) as caught:
        extras.import_extra(module)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["3.9", "3.9.0", "3.10.0rc1", "3.99"])
def test_a_version_in_the_range_is_imported(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version)
    assert extras._fits(extras.EXTRAS["transformer_lens"])


def test_a_package_that_is_absent_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "no_such_package", extras.Extra("no-such-package", "reference", "1"))
    with pytest.raises(ImportError, match=r"^no_such_package is not installed: pip install 'gptladder\[reference\]'$"):
        extras.import_extra("no_such_package")


def test_a_fault_inside_a_package_is_not_taken_for_its_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_package.py").write_text("import one_more_that_is_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="one_more_that_is_absent"):
        extras.import_extra("faulty_package")
