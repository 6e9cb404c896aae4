"""Which of the ways to read a layer's parameters are tried, and which is chosen."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.candidate.layer import Candidate
from gptladder.ladder.candidate.places import Code
from gptladder.ladder.candidate.requests import Reply, Request
from gptladder.ladder.rungs import rung
from gptladder.ladder.under_test import UnderTest


class Fused(nn.Module):
    """Attention of one matrix, in which the numbers lie as ``parts`` reads them, with its scores scaled by a factor."""

    order = "qkv"
    factor = 2.0

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).unbind(-3)

    def forward(self, x: Tensor) -> Tensor:
        made = dict(zip(self.order, self.parts(x), strict=True))
        q, k, v = (made[letter].transpose(1, 2) for letter in "qkv")
        scores = self.factor * (q @ k.mT) / math.sqrt(q.shape[-1])
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return self.out((scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Interleaved(Fused):
    order = "kqv"

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (-1, self.n_heads, 3)).transpose(-3, -2).unbind(-1)


@pytest.mark.parametrize(("layer", "split"), [(Fused, "(c n h) m 2"), (Interleaved, "(h n c) m 2")])
def test_right_scores_rule_out_ways_to_read_that_split_heads_otherwise(layer: type[nn.Module], split: str) -> None:
    candidate = Candidate(layer, layer.__name__, Code(Path(__file__)))
    asked: list[int] = []

    def ask(requests: Iterable[Request]) -> Iterator[Reply]:
        for request in requests:
            asked.append(request.layout)
            yield candidate.respond(request)

    under_test = UnderTest(rung("attention"), ask)
    under_test.begin()
    ways = under_test.first.ways
    assert len(ways) == 72
    assert ways[under_test.layout] == split
    # All ways up to the right split, and after that only its own.
    first = next(i for i, each in enumerate(ways) if each == split)
    after = [i for i in asked if i > first]
    assert all(ways[i] == split for i in after)
    assert len(after) <= 4


def test_a_right_layer_is_right_however_its_numbers_lie() -> None:
    class Right(Interleaved):
        factor = 1.0

    under_test = UnderTest(rung("attention"), lambda requests: map(Candidate(Right, "Right", Code()).respond, requests))
    under_test.begin()
    assert under_test.first.ways[under_test.layout] == "(h n c) m 2"
    assert "the order is k, q, v" in under_test.first.oddity


class TakesTrue(Fused):
    """It hides where its mask is true, and mixes heads with positions, so that the future shows with every mask."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = (each.transpose(1, 2) for each in self.parts(x))
        scores = q @ k.mT - 1e4 * mask.to(q.dtype)
        return self.out((scores.softmax(-1) @ v).reshape(x.shape))


def test_a_mask_that_makes_nothing_but_nan_is_not_chosen() -> None:
    respond = Candidate(TakesTrue, "TakesTrue", Code(Path(__file__))).respond
    under_test = UnderTest(rung("attention"), lambda requests: map(respond, requests))
    under_test.begin()
    assert any("True where a query may not look" in note for note in under_test.first.notes), under_test.first.notes


class OneTensor(nn.Module):
    """Attention of one tensor of four matrices. Its mask is on the wrong side, its softmax written out."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.W = nn.Parameter(torch.empty(4, d_model, d_model))
        self.b = nn.Parameter(torch.empty(4, d_model))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = ((x @ self.W[i] + self.b[i]).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for i in range(3))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-1), -torch.inf)  # wrong
        scores = scores - scores.max(-1, keepdim=True).values
        pattern = scores.exp() / scores.exp().sum(-1, keepdim=True)
        return (pattern @ v).transpose(1, 2).flatten(2) @ self.W[3] + self.b[3]


def test_matrices_without_names_are_read_with_as_few_mistakes_as_there_are() -> None:
    found = climb(attention=OneTensor, cases=3).rungs[0]
    assert found.mistakes == ("mask on the wrong side",), found.text()
    line = next(i for i, each in enumerate(Path(__file__).read_text().splitlines(), 1) if each.endswith("# wrong"))
    assert found.at is not None
    assert found.at.endswith(f":{line}"), found.text()
