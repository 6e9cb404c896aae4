"""Large numbers: what a trained GPT-2 has, and the ladder's own cases have not."""

import pytest
import torch
from torch import Tensor, nn

from gptladder.components import MLP, LayerNorm, PosEmbed, Unembed
from gptladder.ladder import climb
from gptladder.ladder.results import Tried


class ClampedMLP(MLP):
    def forward(self, normalized_resid_mid: Tensor) -> Tensor:
        hidden = (normalized_resid_mid @ self.W_in + self.b_in).clamp(-10, 10)  # HERE
        return nn.functional.gelu(hidden, approximate="tanh") @ self.W_out + self.b_out


def tried(rung: str, layer: type[nn.Module]) -> Tried:
    return climb(**{rung: layer}, cases=2).rungs[0]  # pyright: ignore[reportArgumentType]


class ByHand(MLP):
    """Its tanh is written with exp, which overflows for large numbers."""

    def forward(self, normalized_resid_mid: Tensor) -> Tensor:
        x = normalized_resid_mid @ self.W_in + self.b_in
        twice = torch.exp(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
        return (0.5 * x * (1 + (twice - 1) / (twice + 1))) @ self.W_out + self.b_out


class InFloat32(ByHand):
    def forward(self, normalized_resid_mid: Tensor) -> Tensor:
        return super().forward(normalized_resid_mid.float().to(normalized_resid_mid.dtype))


@pytest.mark.parametrize(
    ("rung", "layer"),
    [("pos_embed", PosEmbed), ("layer_norm", LayerNorm), ("mlp", ByHand), ("mlp", InFloat32), ("unembed", Unembed)],
)
def test_right_layers_are_right_for_large_numbers(rung: str, layer: type[nn.Module]) -> None:
    found = tried(rung, layer)
    assert found.passed, found.text()


class ClampedInFloat32(ClampedMLP):
    def forward(self, normalized_resid_mid: Tensor) -> Tensor:
        hidden = (normalized_resid_mid @ self.W_in + self.b_in).float().clamp(-6, 6).to(self.W_in.dtype)
        return nn.functional.gelu(hidden, approximate="tanh") @ self.W_out + self.b_out


def test_a_wrong_layer_is_not_called_right_in_float32_beside_it() -> None:
    found = tried("mlp", ClampedInFloat32)
    assert found.fault is not None
    assert found.fault.kind == "large"
    assert "Right in float32" not in found.note
