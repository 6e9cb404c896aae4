"""The picture of a run's losses."""

import sys
from pathlib import Path

import pytest

from gptladder.training.metrics import Metrics
from gptladder.training.plots import draw_losses

ROWS = [
    Metrics(step=0, epoch=0.0, tokens=0, val_loss=4.0),
    *(
        Metrics(step=s, epoch=s / 100, tokens=s, loss=4 / s, val_loss=5 / s if s % 50 == 0 else None)
        for s in range(1, 301)
    ),
]


def test_draws_the_losses_and_their_perplexity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    real = figure_module.Figure
    monkeypatch.setattr(figure_module, "Figure", lambda **options: figures.append(real(**options)) or figures[-1])
    draw_losses(ROWS, tmp_path / "loss.png", title="a run")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    (axes,) = figures[0].axes
    each, mean, untrained, validation, best = axes.lines
    assert each.get_xydata().tolist() == [[row.step - 1, row.loss] for row in ROWS if row.loss is not None]
    # Windows that look equally wide on the logarithmic axis: single rows at first, many at the end.
    assert mean.get_xydata()[:2].tolist() == [[0, 4.0], [1, 2.0]]
    assert mean.get_xydata()[-1].tolist() == pytest.approx([287, sum(4 / s for s in range(277, 301)) / 24], rel=0.05)
    # No line is drawn from the first evaluation to the next: the loss did not fall along it.
    assert untrained.get_xydata().tolist() == [[0, 4.0]]
    assert validation.get_xdata().tolist() == [50, 100, 150, 200, 250, 300]
    assert best.get_xydata().tolist() == [[300, 5 / 300]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "log")
    assert axes.get_xlim()[0] < 0
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[1:] == [
        "train, smoothed: 0.013",
        "validation at step 0: 4.000",
        "validation: 0.017",
        "best: 0.017 at step 300",
    ]
    (second,) = axes.child_axes
    assert second.get_ylabel() == "perplexity"


def test_a_loss_that_falls_steadily_has_a_linear_axis_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    real = figure_module.Figure
    monkeypatch.setattr(figure_module, "Figure", lambda **options: figures.append(real(**options)) or figures[-1])
    rows = [Metrics(step=s, epoch=0, tokens=0, loss=4 - s / 100) for s in range(1, 301)]
    draw_losses(rows, tmp_path / "loss.png", title="a run")
    (axes,) = figures[0].axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert len(axes.lines[1].get_xdata()) == 50
    assert axes.lines[1].get_ydata()[0] == pytest.approx(4 - 3.5 / 100)


def test_losses_of_one_size_are_drawn_on_a_linear_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    real = figure_module.Figure
    monkeypatch.setattr(figure_module, "Figure", lambda **options: figures.append(real(**options)) or figures[-1])
    rows = [Metrics(step=s, epoch=0, tokens=0, loss=4 - s / 3, val_loss=4.0) for s in range(1, 5)]
    draw_losses(rows, tmp_path / "loss.png", title="a run")
    assert figures[0].axes[0].get_yscale() == "linear"
    assert figures[0].axes[0].lines[0].get_xdata()[0] == 0


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[1:2]])
def test_draws_a_run_that_has_hardly_begun(tmp_path: Path, rows: list[Metrics]) -> None:
    pytest.importorskip("matplotlib")
    draw_losses(rows, tmp_path / "loss.png", title="a run")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gptladder\[plot\]"'):
        draw_losses(ROWS, tmp_path / "loss.png", title="a run")
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_run_is_no_formula(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_losses(ROWS, tmp_path / "loss.png", title="a$\\frac$b 文本")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
