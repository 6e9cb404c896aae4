"""Attention over blocks of keys (an online softmax): the line of the running sum, or of the mask, that is wrong."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb

sys.path.insert(0, str(Path(__file__).parent))
from layers import line_of, tried


class Online(nn.Module):
    """Right attention, over two keys at a time."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.block = n_heads, 2
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def keys(self, start: int, size: int) -> Tensor:
        return torch.arange(start, start + size)[None]

    def weights(self, scores: Tensor, most: Tensor) -> Tensor:
        return torch.exp(scores - most)

    def rescaled(self, before: Tensor, now: Tensor) -> Tensor:
        return torch.exp(before - now)

    def total(self, total: Tensor, factor: Tensor, weights: Tensor) -> Tensor:
        return total * factor + weights.sum(-1, keepdim=True)

    def gathered(self, gathered: Tensor, factor: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return gathered * factor + weights @ values

    def mean(self, gathered: Tensor, total: Tensor) -> Tensor:
        return gathered / total

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, d_model = x.shape
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        q = q / q.shape[-1] ** 0.5
        queries = torch.arange(seq)[:, None]
        most = q.new_full((batch, self.n_heads, seq, 1), -torch.inf)
        total, gathered = torch.zeros_like(most), torch.zeros_like(q)
        for start in range(0, seq, self.block):
            some, values = k[:, :, start : start + self.block], v[:, :, start : start + self.block]
            later = self.keys(start, some.shape[2]) > queries
            scores = (q @ some.mT).masked_fill(later, -torch.inf)  # here: EveryKey
            now = torch.maximum(most, scores.amax(-1, keepdim=True))
            weights = self.weights(scores, now)
            factor = self.rescaled(most, now)
            total = self.total(total, factor, weights)
            gathered = self.gathered(gathered, factor, weights, values)
            most = now
        return self.out(self.mean(gathered, total).transpose(1, 2).reshape(batch, seq, d_model))


class ValuesNotRescaled(Online):
    def gathered(self, gathered: Tensor, factor: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return gathered + weights @ values  # here: ValuesNotRescaled


class TotalNotRescaled(Online):
    def total(self, total: Tensor, factor: Tensor, weights: Tensor) -> Tensor:
        return total + weights.sum(-1, keepdim=True)  # here: TotalNotRescaled


class RescaledTheOtherWay(Online):
    def rescaled(self, before: Tensor, now: Tensor) -> Tensor:
        return torch.exp(now - before).nan_to_num(0, 0, 0)  # here: RescaledTheOtherWay


class CountedAnew(Online):
    def keys(self, start: int, size: int) -> Tensor:
        return torch.arange(size)[None]  # here: CountedAnew


class EveryKey(Online):
    def keys(self, start: int, size: int) -> Tensor:
        return torch.arange(start, start + size)[None] - 1


class NotDivided(Online):
    def mean(self, gathered: Tensor, total: Tensor) -> Tensor:
        return gathered * total  # here: NotDivided


def test_the_attention_that_the_mistakes_are_made_in_is_right() -> None:
    assert climb(attention=Online, cases=3).passed


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (ValuesNotRescaled, "First wrong: the sum of the weights times the values for keys 0 to 3"),
        (TotalNotRescaled, "First wrong: the sum of the weights for keys 0 to 3"),
        (RescaledTheOtherWay, "multiplies that by what line"),
        (CountedAnew, "counts them from 0."),
        (EveryKey, "First wrong: which keys each query sees"),
        (NotDivided, "The sums over the keys before it are right"),
    ],
)
def test_the_line_of_a_wrong_running_sum_or_mask_is_found(layer: type[nn.Module], words: str) -> None:
    found = tried(attention=layer)
    assert words in found.text().replace("\n", " "), found.text()
    assert found.at is not None
    assert found.at.rpartition(":")[2] == line_of(layer), found.text()
