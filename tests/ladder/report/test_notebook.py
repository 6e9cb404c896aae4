"""In IPython itself: the cell magic tries the layers of a cell, and a result shows itself."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("IPython")

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from gptladder.ladder import Climb

NORM = """import torch
from torch import nn
class LayerNorm(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))
    def forward(self, x):
        deviation = x.std(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / deviation * self.w + self.b
"""


@pytest.fixture
def shell() -> Iterator[Any]:
    InteractiveShell.clear_instance()
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.run_cell("%load_ext gptladder.ladder").raise_error()
    yield shell
    InteractiveShell.clear_instance()


def test_the_magic_tries_the_layers_of_its_cell(shell: Any) -> None:
    found = shell.run_cell(f"%%climb --hint where --cases 3\n{NORM}").result
    assert isinstance(found, Climb)
    assert found.taken == {"layer-norm": "LayerNorm"}
    assert found.rungs[0].at is not None
    assert found.rungs[0].at.startswith("cell ")
    assert found.rungs[0].at.endswith(":8")
    assert found.hint == "where"
    assert found.rungs[0].verdict is not None
    assert found.rungs[0].verdict.cases == 3
    # The layer is there for the cells below.
    assert "LayerNorm" in shell.user_ns


def test_a_result_shows_itself_as_html_and_as_text(shell: Any) -> None:
    shell.run_cell(NORM).raise_error()
    found = shell.run_cell("from gptladder.ladder import climb\nclimb(LayerNorm, cases=2)").result
    shown, _ = shell.display_formatter.format(found)
    assert "layer-norm: not right yet" in shown["text/html"]
    assert "cell " in shown["text/html"]
    assert "layer         off by" in shown["text/plain"]
    assert repr(found).startswith("<Climb: layer-norm: LayerNorm is wrong: ")


def test_a_cell_that_raises_or_has_no_layer_is_not_tried(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run_cell("%%climb\nraise RuntimeError('mine')").result is None
    assert "RuntimeError: mine" in re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert shell.run_cell("%%climb\nx = 1").result is None
    assert capsys.readouterr().out == "%%climb: the cell defines no layer (no nn.Module class)\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--hints fix", "cannot read --hints; write options and values, of --hint, --cases, --seed, --dtype"),
        ("--hint", "cannot read --hint; "),
        ("--cases few", "--cases takes a whole number, not few"),
        ("--hint all", "hint is 'all'; it can be where, what or fix"),
    ],
)
def test_options_that_cannot_be_read_are_refused(shell: Any, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shell.run_cell(f"%%climb {line}\n{NORM}").raise_error()
