"""A wrong step whose cause is an earlier line: orders, wrong heads, loops, helpers, softmax by hand, cut values."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder.adapters import linear
from gptladder.ladder.diagnosis.which_mistake import MistakeSearch

sys.path.insert(0, str(Path(__file__).parent))
from layers import Split, line_of, tried


class Rolled(Split):
    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        k = k.roll(1, dims=2)  # here: Rolled
        return q, k, v


class RolledInput(Split):
    def parts(self, x: Tensor) -> list[Tensor]:
        x = torch.roll(x, 1, dims=1)  # here: RolledInput
        return super().parts(x)


class Backwards(Split):
    def gathered(self, pattern: Tensor, v: Tensor) -> Tensor:
        z = pattern @ v
        return z.flip(2)  # here: Backwards


class ThereAndBack(Split):
    """Right, though the positions are turned around on the way."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1)).flip(1)

    def pattern(self, scores: Tensor) -> Tensor:
        later = torch.ones_like(scores, dtype=torch.bool).tril(-1)
        return scores.masked_fill(later, -torch.inf).softmax(-1)


class KeysOfQueries(Split):
    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k = q.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # here: KeysOfQueries
        q = q.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        v = v.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return q, k, v


class ByHand(Split):
    """Right: a softmax in steps."""

    def weights(self, scores: Tensor) -> Tensor:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return (scores - scores.amax(-1, keepdim=True)).exp()

    def pattern(self, scores: Tensor) -> Tensor:
        weights = self.weights(scores)
        return weights / weights.sum(-1, keepdim=True)


class SumPlus(ByHand):
    def pattern(self, scores: Tensor) -> Tensor:
        weights = self.weights(scores)
        return weights / (weights.sum(-1, keepdim=True) + 1e-3)  # here: SumPlus


class LastQuery(Split):
    """Every query is the last one."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        scores = (q[:, :, -1:] @ k.mT).expand(-1, -1, x.shape[1], -1)  # here: LastQuery
        z = self.pattern(scores / math.sqrt(self.d_head)) @ v
        return self.out(z.transpose(1, 2).flatten(2))


class LogWeights(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        logs = scores - scores.logsumexp(-1, keepdim=True)
        return logs.nan_to_num(neginf=0.0)  # here: LogWeights


class Rows(Split):
    """Right: one query after another."""

    def shown(self, i: int) -> int:
        return i + 1

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        rows = []
        for i in range(x.shape[1]):
            query = q[:, :, i : i + 1] / math.sqrt(self.d_head)
            scores = (query * k[:, :, : self.shown(i)]).sum(-1)  # here: OneMore, OwnLeftOut
            weights = torch.softmax(scores, dim=-1)
            rows.append((weights[..., None] * v[:, :, : self.shown(i)]).sum(2))
        return self.out(torch.stack(rows, dim=1).flatten(2))


class FirstQueryAgain(Rows):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        rows = []
        for i in range(x.shape[1]):
            scores = (q[:, :, :1] * k[:, :, : i + 1]).sum(-1) / math.sqrt(self.d_head)  # here: FirstQueryAgain
            rows.append((scores.softmax(-1)[..., None] * v[:, :, : i + 1]).sum(2))
        return self.out(torch.stack(rows, dim=1).flatten(2))


class OneMore(Rows):
    def shown(self, i: int) -> int:
        return i + 2


class Buffer(Split):
    """Right: each head's result is put into a tensor; `other` is the head whose keys are taken."""

    def other(self, head: int) -> int:
        return head

    def change(self, scores: Tensor, before: Tensor | None) -> Tensor:
        return scores

    def place(self, head: int) -> int:
        return head

    def divisor(self, head: int) -> float:
        return math.sqrt(self.d_head)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in self.heads(x))
        result, before = torch.zeros_like(q), None
        for head in range(self.n_heads):
            keys = k[:, :, self.other(head)]  # here: OtherHead
            scores = q[:, :, head] @ keys.mT / self.divisor(head)  # here: LastUnscaled
            scores = self.change(scores, before)
            before = scores
            result[:, :, self.place(head)] = self.pattern(scores) @ v[:, :, head]  # here: TwoInOnePlace
        return self.out(result.flatten(2))


class OtherHead(Buffer):
    def other(self, head: int) -> int:
        return head - 1


class FromHeadOneOn(Buffer):
    def change(self, scores: Tensor, before: Tensor | None) -> Tensor:
        return scores if before is None else scores + before  # here: FromHeadOneOn


class TwoInOnePlace(Buffer):
    def place(self, head: int) -> int:
        return head // 2


class LastUnscaled(Buffer):
    def divisor(self, head: int) -> float:
        return super().divisor(head) if head < self.n_heads - 1 else 1.0


class OwnLeftOut(Rows):
    def shown(self, i: int) -> int:
        return max(i, 1)


class Pieces(nn.Module):
    """A right MLP, some positions after others."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)

    def piece(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(x), approximate="tanh"))

    def starts(self, seq: int) -> range:
        return range(0, seq, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for start in self.starts(x.shape[1]):  # here: LastPieceMissing
            out[:, start : start + 2] = self.piece(x[:, start : start + 2])
        return out


class LastPieceMissing(Pieces):
    def starts(self, seq: int) -> range:
        return range(0, seq - 1, 2)


class Helper(Split):
    """Right: one method multiplies by each matrix."""

    def product(self, x: Tensor, name: str) -> Tensor:
        layer = self.qkv if name == "qkv" else self.out
        return x @ layer.weight.T + layer.bias

    def parts(self, x: Tensor) -> list[Tensor]:
        return list(self.product(x, "qkv").chunk(3, dim=-1))


class TwiceOut(Split):
    """The last product is made with the matrix of the values."""

    def product(self, x: Tensor, which: int) -> Tensor:
        size = x.shape[-1]
        weight, bias = self.qkv.weight.view(3, size, -1), self.qkv.bias.view(3, size)
        return x @ weight[which].T + bias[which]

    def parts(self, x: Tensor) -> list[Tensor]:
        return [self.product(x, which) for which in range(3)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        z = self.pattern(q @ k.mT / math.sqrt(self.d_head)) @ v
        z = z.transpose(1, 2).flatten(2)
        return self.out(z) * 0 + self.product(z, 2)  # here: TwiceOut


class WrongBiasOfQueries(Split):
    """One method makes queries, keys and values; it is right for two of them."""

    def product(self, x: Tensor, which: int) -> Tensor:
        size = x.shape[-1]
        made = x @ self.qkv.weight.view(3, size, -1)[which].T
        return made + self.qkv.bias.view(3, size)[max(which, 1)]  # here: WrongBiasOfQueries

    def parts(self, x: Tensor) -> list[Tensor]:
        k, q, v = self.product(x, 1), self.product(x, 0), self.product(x, 2)
        return [q, k, v]


class BiasAgain(Split):
    def parts(self, x: Tensor) -> list[Tensor]:
        q, k, v = super().parts(x)
        q = q + self.qkv.bias[: q.shape[-1]]  # here: BiasAgain
        return [q, k, v]


class NotAssigned(Split):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        z = (self.pattern(q @ k.mT / math.sqrt(self.d_head)) @ v).transpose(1, 2).flatten(2)
        self.out(z)  # here: NotAssigned
        return z


class FirstSequence(Split):
    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        k = k[:1]  # here: FirstSequence
        return q, k, v


class HeadsLast(Split):
    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        every = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_head)).permute(2, 0, 1, 3, 4)  # here: HeadsLast
        q, k, v = every.unbind(0)
        return q, k, v

    def pattern(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


class HeadsLastFused(HeadsLast):
    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        every = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_head))
        q, k, v = every.unbind(2)  # here: HeadsLastFused
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.scaled_dot_product_attention(*self.heads(x), is_causal=True)
        return self.out(z.transpose(1, 2).flatten(2))


class Shared(Split):
    def parts(self, x: Tensor) -> list[Tensor]:
        every = self.qkv(x).unflatten(-1, (self.n_heads, 3, self.d_head))
        return [each.flatten(2) for each in every.unbind(3)]  # here: Shared


class NotDivided(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))  # here: NotDivided
        return nn.functional.dropout(weights, 0.0)


class Short(Split):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.register_buffer("later", torch.ones(20, 20, dtype=torch.bool).triu(1))  # here: Short

    def pattern(self, scores: Tensor) -> Tensor:
        later = self.get_buffer("later")[: scores.shape[-1], : scores.shape[-1]]
        return scores.masked_fill(later, -torch.inf).softmax(-1)


class Undone(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.attn, self.ln1, self.ln2 = Split(d_model, n_heads), nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.first, self.second = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        normalised = self.ln2(x) - self.ln2.bias  # here: Undone
        return x + self.second(nn.functional.gelu(self.first(normalised), approximate="tanh"))


class TopThree(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        least = scores.topk(min(3, scores.shape[-1]), dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)  # here: TopThree
        return scores.softmax(-1)


class TwiceActivated(nn.Module):
    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)
        self.gelu = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gelu(self.first(x))
        hidden = self.gelu(hidden)  # here: TwiceActivated
        return self.second(hidden)


class Norm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return (x - mean) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * self.w + self.b


class MeanOfTheFirst(Norm):
    def mean(self, x: Tensor) -> Tensor:
        return x[:, :1].mean(-1, keepdim=True)  # here: MeanOfTheFirst


class RunningMean(Norm):
    def mean(self, x: Tensor) -> Tensor:
        mean = torch.zeros_like(x[..., 0])
        for i in range(x.shape[-1] - 1):  # here: RunningMean
            difference = x[..., i] - mean
            mean = mean + difference / (i + 1)
        return mean[..., None]


class Clamped(Pieces):
    def piece(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.first(x), approximate="tanh")
        return self.second(hidden.clamp(max=8))  # here: Clamped


class ClampedVariance(Norm):
    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(-1, keepdim=True, correction=0)
        variance = variance.clamp(max=100)  # here: ClampedVariance
        return (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt() * self.w + self.b


class ClampedNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-200, 200))  # here: ClampedNorm


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are found by values alone; looking for a name in the catalogue takes most of the time."""
    monkeypatch.setattr(MistakeSearch, "named", lambda _: None)


@pytest.mark.parametrize("layer", [Split, ThereAndBack, ByHand, Rows, Buffer, Helper])
def test_attention_that_the_mistakes_are_made_in_is_right(layer: type[nn.Module]) -> None:
    assert tried(attention=layer).passed


@pytest.mark.parametrize(("rung", "layer"), [("mlp", Pieces), ("layer_norm", Norm)])
def test_layers_that_the_mistakes_are_made_in_are_right(rung: str, layer: type[nn.Module]) -> None:
    assert tried(**{rung: layer}).passed


@pytest.mark.parametrize(
    ("rung", "layer", "words"),
    [
        ("attention", Rolled, "Position 0 has the numbers of position "),
        ("attention", RolledInput, "First wrong: the order of the input."),
        ("attention", Backwards, "First wrong: the order of the gathered values z."),
        ("attention", KeysOfQueries, "they are made of queries."),
        ("attention", SumPlus, "GPT-2 has the attention pattern next"),
        ("attention", LogWeights, "GPT-2 has the attention pattern next"),
        ("attention", FirstQueryAgain, "They are of query 0, as when that line ran before."),
        ("attention", LastQuery, "First wrong: what `expand` gives"),
        ("attention", OneMore, "First wrong: which keys each query sees"),
        ("attention", OtherHead, "and the queries beside them of head 0."),
        ("attention", FromHeadOneOn, "takes a part of the scaled scores"),
        ("attention", TwoInOnePlace, "counted from 0, stays 0."),
        ("attention", LastUnscaled, "When it ran before, it gave a part of the scaled scores."),
        ("attention", OwnLeftOut, "does not see its own position."),
        ("attention", TwiceOut, "gives what is right when line "),
        ("attention", WrongBiasOfQueries, "First wrong: what `+` gives"),
        ("attention", BiasAgain, "adds b_Q a second time."),
        ("attention", NotAssigned, "The output is made of that on line "),
        ("attention", FirstSequence, "First wrong: the keys: some of the numbers are left out."),
        ("attention", HeadsLast, "Its products are of n_heads, where GPT-2 has a product for each position (seq)."),
        ("attention", HeadsLastFused, "takes the queries as [batch, seq, n_heads, d_head]."),
        ("attention", NotDivided, "it is not divided by its sum over the keys (GPT-2 has the attention pattern next)."),
        ("attention", Short, "A sequence of 20 positions is answered, and one of 21 raises the error."),
        ("attention", TopThree, "First wrong: what `masked_fill` gives (GPT-2 has the attention pattern next)."),
        ("block", Undone, "makes that of the output of ln2, which GPT-2 has after it."),
        ("mlp", TwiceActivated, "First wrong: what `gelu` gives (GPT-2 has the output without b_out next)."),
        ("mlp", LastPieceMissing, ", counted from 0, stays 0."),
        ("mlp", Clamped, "numbers of the hidden layer reach 20, off by"),
        ("layer_norm", MeanOfTheFirst, "First wrong: the mean, of some positions only."),
        ("layer_norm", RunningMean, "First wrong: what this loop makes (GPT-2 has the mean next)."),
        ("layer_norm", ClampedVariance, "numbers of the input reach 1000, off by"),
        ("layer_norm", ClampedNorm, "numbers of the input reach 1000, off by"),
    ],
)
def test_the_line_that_made_a_step_wrong_is_named(rung: str, layer: type[nn.Module], words: str) -> None:
    found = tried(**{rung: layer})
    assert found.status == "failed", found.text()
    assert found.at is not None, found.text()
    assert found.at.rpartition(":")[2] == line_of(layer), found.text()
    assert words in found.text()


def _as_gpt2(config: Any, parameters: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    return Shared(config.d_model, config.n_heads), {
        "qkv.weight": linear(parameters, "W_Q", "W_K", "W_V"),
        "qkv.bias": linear(parameters, "b_Q", "b_K", "b_V"),
        "out.weight": linear(parameters, "W_O"),
        "out.bias": parameters["b_O"],
    }


def test_heads_first_and_queries_keys_values_second_mixes_all_three() -> None:
    found = tried(attention=_as_gpt2)
    assert str(found.at).rpartition(":")[2] == line_of(Shared), found.text()
    assert re.search(r"\d+ are of the queries, \d+ are of the keys and \d+ are of the values", found.text())


def test_a_loop_over_positions_with_steps_of_the_formula_is_not_blamed() -> None:
    text = tried(attention=OneMore).text()
    assert "this loop" not in text
    assert "Query 0 sees key 1, a later position." in text
