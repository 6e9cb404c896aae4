"""Labelled numbers: shapes that must fit, where the largest stands, and the heat maps that they draw."""

import io
import re
from pathlib import Path

import pytest
import torch

from gptladder.lens import Labelled

VALUES = torch.tensor([[[0.0, 1.0], [-2.0, 0.5]], [[0.25, 3.0], [0.0, -0.02]]])
AXES = {"layer": ["0", "1"], "head": ["0", "1"], "position": ["0 <b>", "1 \n"]}


def test_the_labels_must_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \[2, 2, 2\] and the labels \[2, 2\]"):
        Labelled(VALUES, {"layer": ["0", "1"], "head": ["0", "1"]}, title="t")


def test_the_largest_value_is_named() -> None:
    labelled = Labelled(VALUES, AXES, title="logits")
    assert labelled.largest() == {"layer": "1", "head": "0", "position": "1 \n"}
    assert "from -2 to 3" in repr(labelled)
    assert len(repr(labelled)) < 150


def test_rows_are_all_axes_but_the_last() -> None:
    labels, rows = Labelled(VALUES, AXES, title="logits").rows()
    assert labels == ["L0 H0", "L0 H1", "L1 H0", "L1 H1"]
    assert torch.equal(rows, VALUES.reshape(4, 2))
    assert Labelled(VALUES[0], {"head": ["0", "1"], "position": ["a", "b"]}, title="t").rows()[0] == [
        "head 0",
        "head 1",
    ]


def test_the_page_is_escaped_and_fetches_nothing(tmp_path: Path) -> None:
    page = Labelled(VALUES, AXES, title="a <script>").html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert "<script" not in page
    assert "&lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_colours_tell_sign_and_size_on_a_square_root_scale() -> None:
    page = Labelled(VALUES, AXES, title="t").html()
    styles = re.findall(r'<td style="background:rgba\(([\d, ]+),([\d.]+)\)', page)
    assert [colour for colour, _ in styles[:3]] == ["0,90,181", "0,90,181", "213,94,0"]
    assert float(styles[1][1]) == pytest.approx((1 / 3) ** 0.5, abs=1e-3)
    assert float(styles[-1][1]) == pytest.approx((0.02 / 3) ** 0.5, abs=1e-3)


def test_the_page_brings_its_background() -> None:
    """A frame without one is transparent: dark letters on the dark page of a notebook whose system is light."""
    page = Labelled(torch.eye(2), {"a": ["0", "1"], "b": ["0", "1"]}, title="t").html()
    assert "background:Canvas;color:CanvasText" in page


def test_a_notebook_shows_it_in_a_sandboxed_frame() -> None:
    frame = Labelled(VALUES, AXES, title="t")._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert 'sandbox=""' in frame


def test_the_figure_has_labels_and_a_legend() -> None:
    pytest.importorskip("matplotlib")
    figure = Labelled(VALUES, AXES, title="logits").figure()
    plot, legend = figure.axes
    assert plot.get_title() == "logits"
    assert plot.get_xlabel() == "position"
    assert plot.get_ylabel() == "layer, head"
    assert [tick.get_text() for tick in plot.get_yticklabels()] == ["L0 H0", "L0 H1", "L1 H0", "L1 H1"]
    assert legend.get_ylim() == (-3, 3)


def test_a_figure_has_the_colours_of_the_page() -> None:
    pytest.importorskip("matplotlib")
    (plot, _) = Labelled(VALUES, AXES, title="logits").figure().axes
    (image,) = plot.images
    assert [round(255 * part) for part in image.cmap(1.0)[:3]] == [0, 90, 181]  # positive: blue
    assert [round(255 * part) for part in image.cmap(0.0)[:3]] == [213, 94, 0]  # negative: orange


def test_of_a_large_vocabulary_the_largest_values_are_drawn() -> None:
    values = torch.zeros(500, 5000)
    values[3, 4321], values[499, 7] = 5.0, 4.0
    axes = {"position": [str(i) for i in range(500)], "token": [f"t{i}" for i in range(5000)]}
    labelled = Labelled(values, axes, title="logits")
    frame = labelled._repr_html_()
    assert len(frame) < 5_000_000
    page = labelled.html()
    assert "logits; 64 of 5,000 columns, those with the largest values; the first 400 of 500 rows" in page
    assert "<th>t4321</th>" in page
    assert page.index("<th>t7</th>") < page.index("<th>t4321</th>")  # in the order of the axis
    assert len(re.findall("<td", page)) == 64 * 400
    pytest.importorskip("matplotlib")
    labelled.figure().savefig(io.BytesIO())


def test_text_with_dollars_is_no_formula() -> None:
    pytest.importorskip("matplotlib")
    axes = {"layer": ["$$", "a$\\frac$"], "head": ["$$", "$x_$"], "position": ["$$ <b>", "1 $\\frac$"]}
    figure = Labelled(VALUES, axes, title="added to the logit of '$$'").figure()
    figure.savefig(io.BytesIO())  # matplotlib would raise an error about the formula here
    assert figure.axes[0].get_title() == "added to the logit of '$$'"
