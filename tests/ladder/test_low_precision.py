"""In float16 and bfloat16: right layers of every style pass, and what only shows there is found, with its line."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from gptladder import components
from gptladder.ladder import climb


class Nano(nn.Module):
    """Attention written out: each step rounds."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        later = torch.ones(scores.shape[-2:]).triu(1).bool()
        return self.c_proj((self.pattern(scores, later) @ v).transpose(1, 2).flatten(2))

    def pattern(self, scores: Tensor, later: Tensor) -> Tensor:
        return scores.masked_fill(later, -torch.inf).softmax(dim=-1)


class MaskedByLeast(Nano):
    def pattern(self, scores: Tensor, later: Tensor) -> Tensor:
        return scores.masked_fill(later, torch.finfo(scores.dtype).min).softmax(dim=-1)


class MaskedByTenThousand(Nano):
    def pattern(self, scores: Tensor, later: Tensor) -> Tensor:
        hidden = scores.masked_fill(later, -1e4)  # HERE
        return hidden.softmax(dim=-1)


class MaskedByABillion(Nano):
    def pattern(self, scores: Tensor, later: Tensor) -> Tensor:
        hidden = scores.masked_fill(later, -1e9)  # HERE
        return hidden.softmax(dim=-1)


class Norm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (self.variance(x) + 1e-5).sqrt() * self.w + self.b

    def variance(self, x: Tensor) -> Tensor:
        return x.var(-1, keepdim=True, unbiased=False)


class Overflows(Norm):
    def variance(self, x: Tensor) -> Tensor:
        y = 400 * (x - x.mean(-1, keepdim=True))
        return y.pow(2).mean(-1, keepdim=True) / 400**2  # HERE


class Feeds(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))))


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(n_embd), Nano(n_embd, n_head)
        self.ln_2, self.mlp = nn.LayerNorm(n_embd), Feeds(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


RIGHT = [
    ("attention", components.Attention),
    ("attention", Nano),
    ("attention", MaskedByLeast),
    ("layer_norm", Norm),
    ("layer_norm", nn.LayerNorm),
    ("mlp", Feeds),
    ("block", Block),
    ("block", components.Block),
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_right_layers_pass_written_out_or_fused(dtype: str) -> None:
    for rung, layer in RIGHT:
        found = climb(**{rung: layer}, cases=6, dtype=dtype).rungs[0]
        assert found.passed, (layer, found.text())
        assert f"In {dtype} it is off by" in found.note


def line_of(layer: type) -> int:
    lines, first = inspect.getsourcelines(layer)
    return next(first + index for index, line in enumerate(lines) if "# HERE" in line)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_mask_of_minus_ten_thousand_is_found_at_its_line(dtype: str) -> None:
    assert climb(attention=MaskedByTenThousand, cases=3).passed
    found = climb(attention=MaskedByTenThousand, cases=3, dtype=dtype).rungs[0]
    assert found.fault is not None
    assert found.fault.kind == "low"
    assert f"right in float64; in {dtype}, where all attention scores are -2e+04, off by" in found.text()
    assert "hidden keys still get weight" in found.text()
    assert found.at is not None
    assert found.at.endswith(f":{line_of(MaskedByTenThousand)}")


def test_a_mask_that_float16_cannot_hold_is_found_at_its_line() -> None:
    found = climb(attention=MaskedByABillion, cases=3, dtype="float16").rungs[0]
    assert found.fault is not None
    assert found.fault.message.startswith("right in float64; in float16 forward raises RuntimeError: value cannot be")
    assert found.at is not None
    assert found.at.endswith(f":{line_of(MaskedByABillion)}")
    assert climb(attention=MaskedByABillion, cases=3, dtype="bfloat16").passed


def test_numbers_that_float16_cannot_hold_are_found_at_their_line() -> None:
    assert climb(layer_norm=Overflows, cases=3, dtype="bfloat16").passed
    found = climb(layer_norm=Overflows, cases=6, dtype="float16").rungs[0]
    assert found.fault is not None
    assert found.fault.kind == "low"
    assert "where rounding explains" in found.fault.message
    assert "numbers too large for it" in found.text()
    assert found.at is not None
    assert found.at.endswith(f":{line_of(Overflows)}")


def test_a_dtype_that_is_not_lower_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype is 'float32'; it can be float16 or bfloat16"):
        climb(mlp=Feeds, dtype="float32")
