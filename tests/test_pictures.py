"""The pictures that are drawn from stored results: axes have names, marks a legend, and texts their own place."""

import importlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gptladder import GPT2Config
from gptladder.ladder.parity import Parity, WholeModel
from gptladder.ladder.report import picture
from gptladder.ladder.results import Verdict

figure_module = pytest.importorskip("matplotlib.figure")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu"


@pytest.fixture
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A benchmark, which is a script, as a module."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    yield importlib.import_module(request.param)
    sys.modules.pop(request.param)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []
    real = figure_module.Figure
    monkeypatch.setattr(figure_module, "Figure", lambda **options: made.append(real(**options)) or made[-1])
    return made


def boxes(texts: list[Any]) -> list[Any]:
    return [text.get_window_extent() for text in texts if text.get_text()]


def overlap(first: Any, second: Any) -> bool:
    return first.overlaps(second)


@pytest.mark.parametrize("benchmark", ["growth"], indirect=True)
def test_growth_names_every_axis_and_every_curve(benchmark: ModuleType, figures: list[Any], tmp_path: Path) -> None:
    benchmark.draw(json.loads((RESULTS / "growth.json").read_text())["growth"], tmp_path / "growth.png")
    axes = figures[0].axes
    assert [each.get_xlabel() != "" for each in axes] == [False] * 4 + [True] * 4  # the rows share them
    assert [each.get_ylabel() != "" for each in axes] == [True, False, False, False] * 2
    assert [each.get_legend() is not None for each in axes] == [True, False, False, False] * 2
    for each in axes:
        (exponents,) = each.texts
        assert exponents.get_text().startswith("exponents:")
        legend = [each.get_legend().get_window_extent()] if each.get_legend() else []
        points = [each.transData.transform(point) for line in each.lines for point in line.get_xydata()]
        for box in [exponents.get_window_extent(), *legend]:
            assert not any(box.contains(x, y) for x, y in points), each.get_title()
            assert box.x0 >= each.bbox.x0  # it stays within its panel
            assert box.x1 <= each.bbox.x1
    ticks = [label.get_window_extent() for label in axes[4].get_xticklabels()]
    assert not any(overlap(a, b) for a, b in itertools.pairwise(ticks))


@pytest.mark.parametrize("benchmark", ["training"], indirect=True)
def test_training_numbers_lie_on_no_edge(benchmark: ModuleType, figures: list[Any], tmp_path: Path) -> None:
    stored = json.loads((RESULTS / "training.json").read_text())
    benchmark.draw(stored, tmp_path / "training.png")
    figure = figures[0]
    assert figure.axes[0].get_ylabel()
    assert len(figure.legends[0].get_texts()) == 4
    for panel in figure.axes:
        assert panel.get_title()
        numbers = boxes([text for text in panel.texts if text.get_text().endswith("×")])
        far = boxes([text for text in panel.texts if "bound" in text.get_text()])
        ends = [panel.transData.transform(line.get_segments()[0]) for line in panel.collections]
        assert len(numbers) == len(panel.patches) == len(far) + len(ends)  # each bar has a bound, drawn or in words
        for box, bar in zip(numbers, panel.patches, strict=True):
            assert not box.y0 < bar.get_window_extent().y1 < box.y1
            assert not any(box.y0 < y < box.y1 and box.x0 < right and left < box.x1 for (left, y), (right, _) in ends)
        assert not any(overlap(a, b) for a, b in itertools.combinations([*numbers, *far], 2))


def test_parity_has_a_legend_in_both_panels(figures: list[Any], tmp_path: Path) -> None:
    layers = [
        Verdict(rung, reference, 3, 1e-15, 1e-7, 1e-15, 1e-12, 1e-6, 0)
        for rung in ("embed", "attention")
        for reference in ("TransformerLens", "transformers")
    ]
    whole = [
        WholeModel(reference, dtype, logits, logits, [logits / 2] * 5, tolerance)
        for reference in ("TransformerLens", "transformers")
        for dtype, logits, tolerance in (("float64", 1e-14, 1e-12), ("float32", 3e-6, 5e-5))
    ]
    parity = Parity("random", GPT2Config(n_layers=4), layers, whole)
    picture.draw(parity, tmp_path / "parity.png")
    left, right = figures[0].axes
    for axes in (left, right):
        assert axes.get_legend() is not None
        assert axes.get_xlabel()
    assert left.get_ylabel()
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == [
        "TransformerLens, float64",
        "TransformerLens, float32",
        "transformers, float64",
        "transformers, float32",
        "allowed, float64",
        "allowed, float32",
    ]
