"""Constructors that take what they need out of ``**kwargs``, names made of known words, and classes left out."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.candidate.aliases import canonical
from gptladder.ladder.candidate.arguments_in_kwargs import in_kwargs


class Feeds(nn.Module):
    """A right MLP of some width."""

    def fill(self, d_model: int, d_mlp: int, bias: bool = True) -> None:
        self.first, self.second = nn.Linear(d_model, d_mlp, bias), nn.Linear(d_mlp, d_model, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(x), approximate="tanh"))


class ByConfig(Feeds):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        config = kwargs["config"]
        self.fill(config.emb_dim, 4 * config.emb_dim)


class ByNames(Feeds):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        width = options.pop("n_embd")
        self.fill(width, options.get("d_ff", 7), options.get("bias", False))


class Parent(Feeds):
    def __init__(self, hidden_size: int, unknown: int = 3) -> None:
        super().__init__()
        self.fill(hidden_size, 4 * hidden_size)


class HandsOn(Parent):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class SetsItsParents(Parent):
    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(hidden_size=config.hidden_size, **kwargs)


@pytest.mark.parametrize("layer", [ByConfig, ByNames, HandsOn, SetsItsParents])
def test_a_layer_is_built_by_what_it_takes_from_kwargs(layer: type[nn.Module]) -> None:
    assert climb(mlp=layer, cases=2).passed


def test_what_is_looked_up_in_kwargs_is_found_with_its_default() -> None:
    found = {each.name: each.default for each in in_kwargs(ByNames, has_names=False)}
    assert found == {"n_embd": inspect.Parameter.empty, "d_ff": 7, "bias": False}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("n_transformer_layers", "n_layers"),
        ("num_decoder_blocks", "n_layers"),
        ("n_attention_heads", "n_heads"),
        ("layer_norm_eps_value", "layer_norm_eps"),
        ("num_kv_heads", "n_kv_heads"),
        ("norm_layer", None),
        ("number", None),
    ],
)
def test_names_made_of_known_words_are_known(name: str, ours: str | None) -> None:
    assert canonical(name) == ours


_FILE = """
from torch import nn


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.a, self.b = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.b(nn.functional.gelu(self.a(x), approximate="tanh"))


class SelfAttention(nn.Module):
    def __init__(self, colour):
        super().__init__()
        self.rgb = colour.rgb
"""


def test_a_class_that_cannot_be_tried_is_named_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "layers.py"
    file.write_text(_FILE)
    result = climb(file, cases=1, copy_process=True)
    assert [each.rung for each in result.rungs] == ["mlp"]
    assert any(note.startswith("SelfAttention could not be tried as attention: ") for note in result.left_out)


_POSITIONS = """

class PositionalEncoding(nn.Module):
    def __init__(self, n_ctx, d_model):
        super().__init__()
        self.register_buffer("table", torch.randn(n_ctx, d_model))

    def forward(self, x):
        return x + self.table[: x.shape[1]]


class PositionIds(nn.Module):
    def __init__(self, n_ctx):
        super().__init__()
        self.register_buffer("ids", torch.arange(n_ctx))

    def forward(self, tokens):
        return self.ids[: tokens.shape[1]]
"""
_USE = """

class GPTModel(nn.Module):
    def __init__(self, n_ctx, d_model, colour):
        super().__init__()
        self.positions = PositionalEncoding(n_ctx, d_model)
        self.ids = PositionIds(n_ctx)
"""


def test_positions_that_are_computed_count_if_they_are_used_or_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "layers.py"
    file.write_text("import torch\n" + _FILE + _POSITIONS)
    left_over = climb(file, cases=1, copy_process=True)
    assert [each.rung for each in left_over.rungs] == ["mlp"]
    assert any("learned, W_pos" in note for note in left_over.left_out)
    assert [(each.rung, each.status) for each in climb(file, cases=1, only="pos-embed", copy_process=True).rungs] == [
        ("pos-embed", "failed")
    ]
    file.write_text("import torch\n" + _FILE + _POSITIONS + _USE)
    used = climb(file, cases=1, copy_process=True)
    assert [(each.rung, each.status) for each in used.rungs] == [("pos-embed", "failed")]
    assert used.rungs[0].layer.endswith(":PositionalEncoding")


class Convolved(nn.Module):
    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(d_model, d_mlp, 1), nn.Conv1d(d_mlp, d_model, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = nn.functional.gelu(self.conv1(x.mT), approximate="tanh")
        return {"output": self.conv2(hidden).mT}


class HeadByHead(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__()

        def made(*shape: int) -> nn.ParameterList:
            return nn.ParameterList(torch.zeros(*shape) for _ in range(n_heads))

        self.WQ, self.WK, self.WV = (made(d_model, d_head) for _ in range(3))
        self.bQ, self.bK, self.bV = (made(d_head) for _ in range(3))
        self.WO, self.bO = made(d_head, d_model), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bO
        for i, W in enumerate(self.WQ):
            q, k, v = x @ W + self.bQ[i], x @ self.WK[i] + self.bK[i], x @ self.WV[i] + self.bV[i]
            out = out + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True) @ self.WO[i]
        return out


def test_convolutions_of_one_position_and_dictionaries_are_read() -> None:
    assert climb(mlp=Convolved, cases=2).passed


def test_a_matrix_of_each_head_in_a_list_is_read() -> None:
    assert climb(attention=HeadByHead, cases=2).passed
