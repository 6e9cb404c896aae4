"""One head, a list of heads, no output projection, two parameters that share their numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb


class OneHead(nn.Module):
    """One head that has an output projection."""

    def __init__(self, d_k: int, d_model: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(d_model, 3 * d_k), nn.Linear(d_k, d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class KnowsOfMoreHeads(OneHead):
    """It is given the number of heads, and does not read it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.d_head, config.d_model)


def test_a_layer_that_cannot_know_of_more_heads_is_judged_as_one() -> None:
    tried = climb(attention=OneHead, cases=6).rungs[0]
    assert tried.passed, tried.text()
    assert tried.note == "It reads no number of heads, and was judged as one head."
    assert climb(attention=KnowsOfMoreHeads, cases=2).rungs[0].status == "refused"


class Head(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(d_in, d_out) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Heads(nn.Module):
    """Its ``d_out`` is one head's width, as Raschka's wrapper has it."""

    def __init__(self, d_in: int, d_out: int, num_heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(d_in, d_out) for _ in range(num_heads))
        self.out_proj = nn.Linear(d_out * num_heads, d_out * num_heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(torch.cat([head(x) for head in self.heads], -1))


def test_the_width_of_a_head_may_be_called_that_of_the_output() -> None:
    tried = climb(attention=Heads, cases=6).rungs[0]
    assert tried.passed, tried.text()


class Unprojected(nn.Module):
    scale = 1.0

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.heads, self.qkv = n_head, nn.Linear(n_embd, 3 * n_embd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale / q.shape[-1] ** 0.5)
        return z.transpose(1, 2).flatten(2)


class UnprojectedAndSharp(Unprojected):
    scale = 2.0


class UnprojectedHeads(nn.Module):
    """It reads the width of a head, which has to be the model's over the number of heads."""

    sharp = 1.0

    def __init__(self, d_in: int, d_out: int, num_heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(d_in, d_out) for _ in range(num_heads))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(self.sharp * x) for head in self.heads], -1)


class UnprojectedSharpHeads(UnprojectedHeads):
    sharp = 2.0


@pytest.mark.parametrize(
    ("right", "wrong"), [(Unprojected, UnprojectedAndSharp), (UnprojectedHeads, UnprojectedSharpHeads)]
)
def test_a_missing_output_projection_is_a_verdict(right: type[nn.Module], wrong: type[nn.Module]) -> None:
    tried = climb(attention=right, cases=4).rungs[0]
    assert (tried.status, tried.mistakes) == ("failed", ("W_O, b_O missing",))
    assert "W_O, b_O are missing (GPT-2 has them); all else is right" in tried.text()
    other = climb(attention=wrong, cases=2).rungs[0]
    assert other.status == "failed"
    assert "all else is right" not in other.text()
    assert "W_O, b_O are missing" in other.text()


def test_one_head_without_an_output_projection_is_refused() -> None:
    tried = climb(attention=Head, cases=1).rungs[0]
    assert "nothing that could be W_O, as one head of attention has none" in tried.text()


class Model(nn.Module):
    def __init__(self, vocab_size: int, n_ctx: int, d_model: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, d_model), nn.Embedding(n_ctx, d_model)
        self.ln_f, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, vocab_size, bias=False)
        layer = nn.TransformerEncoderLayer(
            d_model, n_heads, 4 * d_model, 0.0, lambda x: nn.functional.gelu(x, approximate="tanh"), norm_first=True
        )
        layer.self_attn.batch_first = True
        self.h = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.share()

    def share(self) -> None:
        self.head.weight.data = self.wte.weight.data

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.ln_f(self.h(x, mask=later)))


class SharesNothing(Model):
    """Its parameters begin with the same numbers, each in a place of its own."""

    def share(self) -> None:
        self.head.weight.data = self.wte.weight.data.clone()


@pytest.mark.parametrize(("layer", "shares"), [(Model, True), (SharesNothing, False)])
def test_parameters_that_share_their_numbers_count_as_one(layer: type[nn.Module], shares: bool) -> None:
    tried = climb(model=layer, cases=4).rungs[0]
    assert tried.passed, tried.text()
    note = "Two parameters have the same numbers, wte.weight and head.weight, so that an optimizer changes them twice"
    assert (note in tried.note) == shares
    assert ("tied to W_E" in tried.note) == shares


class OfSomeHeads(nn.Module):
    """Its second argument is its number of heads, of the width that is left."""

    turned = False

    def __init__(self, d_model: int, num_heads: int = 4) -> None:
        super().__init__()
        self.heads = num_heads
        self.qkv, self.proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        v = v.flip(-1) if self.turned else v
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(z.transpose(1, 2).flatten(2))


class OfSomeHeadsTurned(OfSomeHeads):
    turned = True


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_number_of_heads_that_the_user_sets_is_what_is_judged(heads: int) -> None:
    tried = climb(attention=OfSomeHeads, chosen={"num_heads": heads}, cases=5).rungs[0]
    assert tried.passed, tried.text()
    assert f"It has n_heads={heads} whatever it is built for, and was judged with that" in tried.note
    assert not climb(attention=OfSomeHeadsTurned, chosen={"num_heads": heads}, cases=2).passed
