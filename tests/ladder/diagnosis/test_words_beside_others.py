"""Sentences that stay true beside other mistakes, in layers that lack parts, and where only some blocks were seen."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptladder.ladder.candidate.trace import Trace
from gptladder.ladder.diagnosis.norm_places import norms_after_addition
from gptladder.ladder.diagnosis.which_mistake import place_of
from gptladder.ladder.results import Diagnosis

sys.path.insert(0, str(Path(__file__).parent))
from layers import Split, line_of, tried


class SoftmaxOverBatch(Split):
    """The softmax takes away what the mask, which is multiplied, does wrong."""

    def pattern(self, scores: Tensor) -> Tensor:
        scores = scores * torch.ones_like(scores).tril()
        return scores.softmax(0)


class KeysForQueries(Split):
    """Rows of the scores are keys, and so is what the softmax runs over."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = torch.einsum("bhqd,bhkd->bhqk", k, q) / math.sqrt(self.d_head)
        pattern = scores.masked_fill(later, -1e9).softmax(-2)
        return self.out((pattern @ v).transpose(1, 2).flatten(2))


class Rotary(Split):
    """Queries and keys are turned, and something else is wrong as well."""

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] / 100 ** (torch.arange(half) / half)
        one, other = x.chunk(2, dim=-1)
        both = [one * angles.cos() - other * angles.sin(), one * angles.sin() + other * angles.cos()]
        return torch.cat(both, dim=-1)  # here: Rotary

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.turned(q), self.turned(k), v * 1.5


class UnusedActivation(nn.Module):
    """An activation by hand, in several steps."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        inner = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
        act = 0.5 * h * (1 + torch.tanh(inner))  # noqa: F841  # here: UnusedActivation
        return self.down(h)


class CubeAlone(UnusedActivation):
    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.down(h * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (0.044715 * h**3))))


class MinusCube(UnusedActivation):
    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.down(h * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h - 0.044715 * h**3))))


class NormOfSequence(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        off = x - x.mean((0, 1), keepdim=True)
        return off / (off.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.w + self.b


class BiasAfterActivation(UnusedActivation):
    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.up.weight)
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**2)))
        return self.down(h + self.up.bias)


class NoBiases(Split):
    """No bias of queries, keys and values, and a mistake that has no name."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)

    def gathered(self, pattern: Tensor, v: Tensor) -> Tensor:
        return (pattern**3 + 0.1 * pattern) @ v


class CentredEmbed(nn.Module):
    def __init__(self, d_vocab: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(d_vocab, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens) - self.table.weight.mean(0)


class Model(nn.Module):
    """A model without blocks' mistakes, whose positions run along the batch."""

    def __init__(self, d_vocab: int, d_model: int, n_ctx: int, n_layers: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.h = nn.ModuleList([Block(d_model, n_heads, d_mlp) for _ in range(n_layers)])
        self.ln_f, self.lm_head = nn.LayerNorm(d_model), nn.Linear(d_model, d_vocab)

    def positions(self, tokens: Tensor) -> Tensor:
        rows = self.wpe.weight[: tokens.shape[0]]  # here: Model
        return rows[:, None].expand(-1, tokens.shape[1], -1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.positions(tokens)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(d_model), Split(d_model, n_heads), nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, d_mlp), nn.GELU("tanh"), nn.Linear(d_mlp, d_model))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PostNorm(Block):
    """The norms come after the additions, and the MLP has an activation that has no name."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__(d_model, n_heads, d_mlp)
        self.mlp[1] = nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_1(x + self.attn(x))
        return self.ln_2(x + self.mlp(x))


class Headless(Model):
    def positions(self, tokens: Tensor) -> Tensor:
        return self.wpe.weight[: tokens.shape[1]]

    def __init__(self, d_vocab: int, d_model: int, n_ctx: int, n_layers: int, n_heads: int, d_mlp: int) -> None:
        super().__init__(d_vocab, d_model, n_ctx, n_layers, n_heads, d_mlp)
        del self.lm_head

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.positions(tokens)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


@pytest.mark.parametrize(
    ("rung", "layer", "words"),
    [
        ("attention", SoftmaxOverBatch, "): a mistake of its own, which the wrong softmax hides."),
        ("attention", KeysForQueries, "The softmax makes the weights of each key sum to 1, not those of each query.\n"),
        ("attention", Rotary, "First wrong: the queries, which are turned by an angle that depends on the position."),
        ("mlp", UnusedActivation, "W_out multiplies the hidden layer without an activation."),
        ("mlp", UnusedActivation, ": that result is not used."),
        ("mlp", CubeAlone, "0.044715 x³ in GELU times a factor (GPT-2 has x + 0.044715 x³ in GELU next)."),
        ("mlp", MinusCube, "what `-` gives (GPT-2 has x + 0.044715 x³ in GELU next)."),
        ("layer_norm", NormOfSequence, "what `mean` gives (GPT-2 has the mean over d_model next).\nA small case"),
        ("mlp", BiasAfterActivation, "takes: the hidden layer before b_in (GPT-2 has the hidden layer before the act"),
        ("attention", NoBiases, "\nOne mistake of several: b_Q, b_K, b_V missing.\n"),
        ("embed", CentredEmbed, "First wrong: what `-` gives.\nThe output is complete before it, on line "),
        ("model", Model, "First wrong: the rows of the table of positions."),
        ("block", PostNorm, "ln1 and ln2 come after the additions (post-norm): each is given a layer's input plus "),
        ("model", Headless, "it must return [batch seq d_vocab], the logits: W_U is not applied to what it returns."),
    ],
)
def test_each_sentence_is_true_of_a_layer_with_several_mistakes(rung: str, layer: type[nn.Module], words: str) -> None:
    found = tried(**{rung: layer})
    assert found.status == "failed"
    assert words in found.text(), found.text()
    if "# here: " + layer.__name__ in Path(__file__).read_text():
        assert found.at is not None
        assert found.at.rpartition(":")[2] == line_of(layer), found.text()


def test_a_model_without_a_head_is_not_said_to_be_tied() -> None:
    assert not [note for note in tried(model=Headless).notes if "tied" in note]


def test_a_summary_does_not_blame_missing_biases_for_wrong_output() -> None:
    summary = tried(attention=NoBiases).summary()
    assert "is wrong: the output is off by " in summary


class HeadsMixed(Block):
    """A softmax over the heads: with -inf above, NaN in the output of the first block hides the others."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__(d_model, n_heads, d_mlp)
        self.attn = OverHeads(d_model, n_heads)


class OverHeads(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(1)


class OverHeadsModel(Headless):
    def __init__(self, d_vocab: int, d_model: int, n_ctx: int, n_layers: int, n_heads: int, d_mlp: int) -> None:
        super().__init__(d_vocab, d_model, n_ctx, n_layers, n_heads, d_mlp)
        self.h = nn.ModuleList([HeadsMixed(d_model, n_heads, d_mlp) for _ in range(n_layers)])
        self.lm_head = nn.Linear(d_model, d_vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(super().forward(tokens))


def test_of_blocks_that_run_on_nan_nothing_is_reported() -> None:
    found = tried(model=OverHeadsModel)
    assert found.mistakes == ("attention: softmax over the heads",)


def test_a_small_case_of_nan_has_nan_in_it() -> None:
    assert tried(attention=OverHeads).smallest["seq"] == 2  # with one position, its output is wrong, and not NaN


@pytest.mark.parametrize(
    ("paths", "compared", "words"),
    [
        (["blocks.0.attn", "blocks.1.attn"], (0, 1), "attention"),
        (["blocks.0.attn"], (0,), "attention"),
        (["blocks.0.attn"], (0, 1, 2), "block 0's attention"),
        ([f"blocks.{i}.mlp" for i in range(3)], (0, 1, 2), "every block's MLP"),
    ],
)
def test_a_place_names_no_block_if_all_that_ran_are_alike(paths: list[str], compared: Any, words: str) -> None:
    assert place_of(paths, 3, compared) == words


def test_norms_before_their_layers_are_not_called_late() -> None:
    x, out = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    before = Trace(parts=[("ln1", x, out), ("attn", out, x * 2), ("ln2", x + x * 2, out)])
    assert not norms_after_addition(before)
    late = norms_after_addition(Trace(parts=[("attn", x, out), ("ln1", x + out, out)]))
    assert late.startswith("ln1 comes after the addition (post-norm): it is given the input of attention plus its out")


def test_names_of_three_mistakes_are_parted_by_semicolons() -> None:
    names = "queries and keys exchanged", "no causal mask", "b_O missing"
    assert ("mistake", f"The 3 mistakes: {'; '.join(names)}.") in Diagnosis(mistakes=names).lines("what")
    assert Diagnosis(mistakes=names[:2]).named == "queries and keys exchanged and no causal mask"
