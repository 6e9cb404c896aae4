"""How a mask is wrong, in words: what the softmax lets a query see counts, and not the number that is added."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from layers import Split, line_of, tried


class AddsEverywhere(Split):
    """The same number is added to every score of a row: its softmax is what it would be without."""

    def pattern(self, scores: Tensor) -> Tensor:
        return (scores + torch.full_like(scores, -1e9)).softmax(-1)  # here: AddsEverywhere


class AddsOnTheDiagonalToo(Split):
    """So it is in the first row, which then sees every key."""

    def pattern(self, scores: Tensor) -> Tensor:
        return (scores + torch.full_like(scores, -1e9).triu()).softmax(-1)  # here: AddsOnTheDiagonalToo


class FillsOnTheDiagonalToo(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.ones_like(scores).triu() > 0, -1e9).softmax(-1)  # here: FillsOnTheDiagonalToo


@pytest.mark.parametrize("layer", [AddsEverywhere, AddsOnTheDiagonalToo, FillsOnTheDiagonalToo])
def test_what_a_query_sees_is_what_the_softmax_lets_it_see(layer: type[Split]) -> None:
    found = tried(attention=layer)
    finding = found.diagnosis.finding if found.diagnosis else None
    assert finding is not None
    assert found.at == finding.at
    assert str(finding.at).endswith(f":{line_of(layer)}"), found.text()
    assert ("Query 0 sees key 1, a later position." in finding.detail) == layer.__name__.startswith("Adds")
    assert ("Query 0 does not see its own position." in finding.detail) == layer.__name__.startswith("Fills")
