"""Functions that TorchScript compiles: the verdict is on these, and the line is one of their Python."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.candidate.as_written import AsWritten

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

_MLP = """
import torch
from torch import nn

{gelu}

class MLP(nn.Module):
    def __init__(self, d_model, d_mlp):
        super().__init__()
        self.first, self.second = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)
        self.act = {act}

    def forward(self, x):
        return self.second(self.act(self.first(x)))
"""
_GELU = """
def gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
"""
_TWO = f"""
@torch.jit.script{_GELU.replace("gelu", "inner")}

@torch.jit.script
def gelu(x):
    return inner(x)
"""
_MODULE = """
class Act(nn.Module):
    def forward(self, x):
        return gelu(x)
"""
# TorchScript leaves out what stands under `is_scripting`, or beside it.
_OTHER = """
@torch.jit.script
def gelu(x):
    if torch.jit.is_scripting():
        return torch.relu(x)
    return torch.nn.functional.gelu(x, approximate="tanh")
"""


def _file(folder: Path, gelu: str, act: str = "gelu") -> str:
    path = folder / "mlp.py"
    path.write_text(_MLP.format(gelu=gelu, act=act))
    return str(path)


@pytest.mark.parametrize(
    ("gelu", "act"),
    [
        ("@torch.jit.script" + _GELU, "gelu"),
        (_TWO, "gelu"),
        (_GELU, "torch.jit.script(gelu)"),
        (_GELU + _MODULE, "torch.jit.script(Act())"),
    ],
)
def test_the_line_is_the_one_in_a_compiled_function(tmp_path: Path, gelu: str, act: str) -> None:
    assert climb(mlp=_file(tmp_path, gelu, act), cases=3).passed
    wrong = gelu.replace("0.5 * x", "0.05 * x")
    found = climb(mlp=_file(tmp_path, wrong, act), cases=3).rungs[-1]
    assert found.at is not None
    assert Path(found.at.partition(":")[0]).name == "mlp.py"
    assert ": return 0.05 * x" in found.text()


def test_python_that_computes_something_else_is_not_what_is_judged(tmp_path: Path) -> None:
    found = climb(mlp=_file(tmp_path, _OTHER), cases=3).rungs[-1]
    assert found.status == "failed"
    assert "return self.second" in str(found.diagnosis)
    assert "approximate" not in found.text()


def test_afterwards_functions_run_compiled_again() -> None:
    @torch.jit.script
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    before = torch.jit.script
    with AsWritten() as written:
        assert torch.equal(twice(torch.ones(2)), torch.full((2,), 2.0))
        assert isinstance(torch.jit.script(nn.ReLU()), nn.ReLU)
    assert written.used
    assert torch.jit.script is before
    assert not isinstance(torch.jit.script(nn.ReLU()), nn.ReLU)
    with AsWritten() as unused:
        nn.ReLU()(torch.ones(2))
    assert not unused.used
