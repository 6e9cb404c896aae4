"""The notebooks run from top to bottom, and what they store is small, complete, and names no machine."""

import importlib.util
import itertools
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def store() -> ModuleType:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    spec = importlib.util.spec_from_file_location("notebooks_store", FOLDER / "store.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(name: str) -> list[Any]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]


def kinds(cell: Any) -> list[str]:
    """What a cell shows: text, a picture, or another kind of data. A kernel may send one text in several parts."""
    shown = [output.get("name") or sorted(output["data"])[0] for output in cell.get("outputs", [])]
    return [kind for kind, _ in itertools.groupby(shown)]


def test_there_is_one_for_each_user() -> None:
    assert NAMES == ["engineer.ipynb", "own_text.ipynb", "researcher.ipynb", "student.ipynb"]


# Steps of training, and how many are enough to run what comes after them.
STEPS = {"researcher.ipynb": ("range(800)", "range(20)"), "own_text.ipynb": ("--max-steps 200", "--max-steps 50")}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_what_it_stores(store: ModuleType, name: str, tmp_path: Path) -> None:
    long, short = STEPS.get(name, ("", ""))
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text.count(long) == 1 or not long
    (tmp_path / name).write_text(text.replace(long, short) if long else text, encoding="utf-8")
    shown = store.run(tmp_path / name, tmp_path)
    assert [kinds(cell) for cell in shown.cells] == [kinds(cell) for cell in cells(name)]


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_notebook_runs_with_all_its_steps(store: ModuleType, name: str, tmp_path: Path) -> None:
    shown = store.run(FOLDER / name, tmp_path)
    assert [kinds(cell) for cell in shown.cells] == [kinds(cell) for cell in cells(name)]


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_can_be_looked_at_without_running(name: str) -> None:
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = [kind for cell in code for kind in kinds(cell)]
    assert shown.count("image/png") >= 2  # GitHub shows pictures and text, and no frames
    assert set(shown) <= {"image/png", "stdout"}
    assert (FOLDER / name).stat().st_size < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_name_no_machine_and_fetch_nothing(name: str) -> None:
    text = json.dumps([cell.get("outputs") for cell in cells(name)])
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.findall(r"(?:/home|/tmp|/root|/Users|/work|/usr|[A-Z]:\\\\)[\w/.\\-]*| at 0x\w+|https?://\S+", text)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_notebook_links_is_there(name: str) -> None:
    text = "".join("".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        assert (FOLDER / link).exists(), link


def test_a_cell_that_raises_fails_the_run(store: ModuleType, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    cell = {"cell_type": "code", "id": "a", "source": "1 / 0", "outputs": [], "metadata": {}, "execution_count": None}
    book = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "wrong.ipynb").write_text(json.dumps(book))
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ZeroDivisionError"):
        store.run(tmp_path / "wrong.ipynb", tmp_path)
