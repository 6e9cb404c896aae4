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
    each, mean, validation, best = axes.lines
    assert each.get_xydata().tolist() == [[row.step - 1, row.loss] for row in ROWS if row.loss is not None]
    assert len(mean.get_xdata()) == 50
    assert mean.get_ydata()[0] == pytest.approx(sum(4 / s for s in range(1, 7)) / 6)
    assert validation.get_xdata().tolist() == [0, 50, 100, 150, 200, 250, 300]
    assert best.get_xydata().tolist() == [[300, 5 / 300]]
    assert axes.get_yscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[1:] == ["train, mean of 6: 0.013", "validation: 0.017", "best: 0.017 at step 300"]
    (second,) = axes.child_axes
    assert second.get_ylabel() == "perplexity"


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
