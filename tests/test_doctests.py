"""The examples in docstrings run, and public names of sampling, options and extras have one."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "options.py", ROOT / "extras.py", *sorted((ROOT / "sampling").rglob("*.py"))]
# What users type on the command line has its examples in the README; `packed` is examined by its own tests.
WITHOUT = {"packed.py", "evaluate_command.py", "generate_command.py", "predict_command.py", "model_options.py"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["gptladder", *(part for part in parts if part != "__init__")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(path: Path) -> None:
    failed, _ = doctest.testmod(importlib.import_module(module_name(path)), optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_have_an_example(path: Path) -> None:
    if path.name in WITHOUT:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exported = {
        name
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
        for name in ast.literal_eval(node.value)
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in exported:
            documented = ast.get_docstring(node) or ""
            assert ">>>" in documented or node.name in {"EXTRAS", "Transform", "check_in_vocabulary"}, node.name
