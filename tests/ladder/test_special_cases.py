"""Large numbers: what a trained GPT-2 has, and the ladder's own cases have not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptladder.components import MLP, Attention, Block, Embed, LayerNorm, PosEmbed, Unembed
from gptladder.ladder import climb
from gptladder.ladder.results import Tried


class ClampedMLP(MLP):
    def forward(self, normalized_resid_mid: Tensor) -> Tensor:
        hidden = (normalized_resid_mid @ self.W_in + self.b_in).clamp(-10, 10)  # HERE
        return nn.functional.gelu(hidden, approximate="tanh") @ self.W_out + self.b_out


class ClampedLayerNorm(LayerNorm):
    def forward(self, residual: Tensor) -> Tensor:
        variance = residual.var(-1, keepdim=True, unbiased=False).clamp(max=100)  # HERE
        return (residual - residual.mean(-1, keepdim=True)) / (variance + self.layer_norm_eps).sqrt() * self.w + self.b


class ClampedUnembed(Unembed):
    def forward(self, normalized_resid_final: Tensor) -> Tensor:
        return super().forward(normalized_resid_final).clamp(-30, 30)  # HERE


class ClampedBlock(Block):
    def forward(self, resid_pre: Tensor, **_: object) -> Tensor:
        return super().forward(resid_pre).clamp(-100, 100)  # HERE


class ClampedEmbed(Embed):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).clamp(-20, 20)  # HERE


class ClampedAttention(Attention):
    def forward(self, normalized_resid_pre: Tensor, **_: object) -> Tensor:
        return super().forward(normalized_resid_pre).clamp(-20, 20)  # HERE


def tried(rung: str, layer: type[nn.Module]) -> Tried:
    return climb(**{rung: layer}, cases=2).rungs[0]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("rung", "layer", "where"),
    [
        ("embed", ClampedEmbed, "numbers of the embedding reach 100, off by"),
        ("layer_norm", ClampedLayerNorm, "numbers of the input reach 1000, off by"),
        ("attention", ClampedAttention, "numbers of the values reach 100, off by"),
        ("mlp", ClampedMLP, "numbers of the hidden layer reach 20, off by"),
        ("block", ClampedBlock, "numbers of the "),
        ("unembed", ClampedUnembed, "numbers of the logits reach 300, off by"),
    ],
)
def test_a_clamp_that_small_numbers_never_reach_is_found(rung: str, layer: type[nn.Module], where: str) -> None:
    found = tried(rung, layer)
    assert found.fault is not None
    assert found.fault.kind == "large"
    assert f"right for small numbers; where {where}" in found.fault.message
    assert found.verdict is not None
    assert found.verdict.passed, "on the cases alone it is right"


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


class ByExp(Attention):
    """Its softmax is written out, and subtracts nothing."""

    def weights(self, scores: Tensor) -> Tensor:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf).exp()  # ByExp overflows here

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        weights = self.weights(q @ k.mT / self.d_head**0.5)
        pattern = weights / weights.sum(-1, keepdim=True)  # LargestOfAll overflows here
        return self.output((pattern @ v).transpose(1, 2))


class LargestOfAll(ByExp):
    """It subtracts the largest score, also if that is hidden: all that a query sees may then be 0."""

    def weights(self, scores: Tensor) -> Tensor:
        return (scores - scores.amax(-1, keepdim=True)).exp().tril()


class FillsMinus200(ByExp):
    def weights(self, scores: Tensor) -> Tensor:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -200.0).exp()


@pytest.mark.parametrize("layer", [ByExp, LargestOfAll])
def test_a_right_formula_that_overflows_passes_with_the_line(layer: type[nn.Module]) -> None:
    found = tried("attention", layer)
    assert found.passed, found.text()
    lines = Path(__file__).read_text().splitlines()
    line = next(i for i, line in enumerate(lines, 1) if line.endswith(f"# {layer.__name__} overflows here"))
    assert "NaN or infinity; `softmax` of the masked scores does not. It begins at " in found.note
    assert f"{Path(__file__).name}:{line}: " in found.note


def test_a_finite_mask_is_wrong_also_where_larger_numbers_overflow() -> None:
    found = tried("attention", FillsMinus200)
    assert found.fault is not None
    assert "where all are -600, off by" in found.fault.message
