"""Layers that ask for a GPU are judged on the CPU, and a note reports it."""

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.candidate.finder import rungs_of
from gptladder.ladder.candidate.without_gpu import OnCpu


class LayerNorm(nn.Module):
    """It keeps a number on a GPU, as layers do that were written on a machine that has one."""

    factor = 1.0

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))
        self.register_buffer("one", torch.tensor(1.0, device="cuda"))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self.get_buffer("one")
        return self.factor * centred * scale.cuda() * self.w + self.b


class Doubled(LayerNorm):
    factor = 2.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_layer_that_asks_for_a_gpu_is_judged_on_the_cpu() -> None:
    assert rungs_of(LayerNorm, "LayerNorm", {}, {})[0] == "layer-norm"
    right = climb(layer_norm=LayerNorm, cases=2).rungs[0]
    assert right.passed, right.text()
    assert "It asks for a GPU, and was run on the CPU." in right.note
    wrong = climb(layer_norm=Doubled, cases=2).rungs[0]
    assert wrong.fault is not None
    assert wrong.fault.kind == "output"


def test_other_devices_stay() -> None:
    with OnCpu():
        assert torch.zeros(2, device="meta").device.type == "meta"
        assert torch.zeros(2, device=torch.device("cuda:1")).device.type == "cpu"
