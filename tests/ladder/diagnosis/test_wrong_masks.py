"""How a mask is wrong, in words: what the softmax lets a query see counts, and not the number that is added."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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


class Adds(Split):
    """Hides what it should, by a large number that it adds."""

    hidden = 1

    def pattern(self, scores: Tensor) -> Tensor:
        return self.softmax(scores + torch.ones_like(scores[0, 0]).triu(self.hidden) * -1e9)

    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


class AddsThePresentToo(Adds):
    hidden = 0


class AddsOffByOne(Adds):
    hidden = 2


class AddsOverHeads(Adds):
    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)


class AddsOverBatch(Adds):
    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(0)


class AddsOverQueries(Adds):
    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(-2)


class TakesAwayThePast(Adds):
    def pattern(self, scores: Tensor) -> Tensor:
        return self.softmax(scores - 1e9 * torch.ones_like(scores[0, 0]).tril())


class TakesAwayOverHeads(AddsOverHeads):
    def pattern(self, scores: Tensor) -> Tensor:
        return self.softmax(scores - 1e9 * torch.ones_like(scores[0, 0]).triu(1))


class AddsBeforeTheScale(AddsThePresentToo):
    def pattern(self, scores: Tensor) -> Tensor:
        unscaled = scores * math.sqrt(self.d_head)
        return self.softmax((unscaled + torch.full(scores.shape[-2:], -1e9).to(scores).triu()) / math.sqrt(self.d_head))


@pytest.mark.parametrize(
    ("layer", "mistakes"),
    [
        (AddsEverywhere, ("no causal mask",)),
        (AddsThePresentToo, ("mask blocks the present",)),
        (AddsOffByOne, ("causal mask off by one",)),
        (AddsOverHeads, ("softmax over the heads",)),
        (AddsOverBatch, ("softmax over the batch",)),
        (AddsOverQueries, ("softmax over the queries",)),
        (TakesAwayThePast, ("mask inverted",)),
        (TakesAwayOverHeads, ("softmax over the heads",)),
        (AddsBeforeTheScale, ("mask blocks the present",)),
    ],
)
def test_an_added_mask_has_the_names_of_one_that_fills(layer: type[Split], mistakes: tuple[str, ...]) -> None:
    assert tried(attention=layer).mistakes == mistakes


class Around(nn.Module):
    """A block around attention whose softmax runs over the heads."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attn = AddsOverHeads(d_model, n_heads)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU("tanh"), nn.Linear(4 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


def test_an_added_mask_is_named_inside_a_block_too() -> None:
    assert tried(block=Around).mistakes == ("the block's attention: softmax over the heads",)


@pytest.mark.parametrize("layer", [AddsEverywhere, AddsOnTheDiagonalToo, FillsOnTheDiagonalToo])
def test_what_a_query_sees_is_what_the_softmax_lets_it_see(layer: type[Split]) -> None:
    found = tried(attention=layer)
    finding = found.diagnosis.finding if found.diagnosis else None
    assert finding is not None
    assert found.at == finding.at
    assert str(finding.at).endswith(f":{line_of(layer)}"), found.text()
    assert ("Query 0 sees key 1, a later position." in finding.detail) == layer.__name__.startswith("Adds")
    assert ("Query 0 does not see its own position." in finding.detail) == layer.__name__.startswith("Fills")


class Buffered(Split):
    """Keeps the mask of all positions that it may be given."""

    mask: Tensor

    def __init__(self, d_model: int, n_heads: int, n_ctx: int) -> None:
        super().__init__(d_model, n_heads)
        self.register(n_ctx)

    def register(self, n_ctx: int) -> None:
        raise NotImplementedError

    def pattern(self, scores: Tensor) -> Tensor:
        seq = scores.shape[-1]
        return scores.masked_fill(self.mask[..., :seq, :seq] == 0, -torch.inf).softmax(-1)


class OverLines(Buffered):
    def register(self, n_ctx: int) -> None:
        self.register_buffer(
            "mask",
            torch.tril(torch.ones(n_ctx, n_ctx), diagonal=1).view(1, 1, n_ctx, n_ctx),  # here: OverLines
            persistent=False,
        )


class BeforeItIsRegistered(Buffered):
    def register(self, n_ctx: int) -> None:
        later = torch.ones(n_ctx, n_ctx).triu(2) > 0  # here: BeforeItIsRegistered
        visible = ~later
        self.register_buffer("mask", visible[None, None])


class ComparedOverLines(Buffered):
    def register(self, n_ctx: int) -> None:
        rows, columns = torch.arange(n_ctx)[:, None], torch.arange(n_ctx)
        self.register_buffer(
            "mask",
            columns < rows,  # here: ComparedOverLines
        )


class NoBuffer(Buffered):
    def register(self, n_ctx: int) -> None:
        visible = torch.ones(n_ctx, n_ctx, dtype=torch.bool).tril(-1)  # here: NoBuffer
        self.mask = visible.view(1, 1, n_ctx, n_ctx)


class MadeInverted(Buffered):
    def register(self, n_ctx: int) -> None:
        visible = torch.ones(n_ctx, n_ctx).tril()  # here: MadeInverted
        self.register_buffer("mask", visible)

    def pattern(self, scores: Tensor) -> Tensor:
        seq = scores.shape[-1]
        hidden = self.mask.bool()[:seq, :seq]
        return scores.masked_fill(hidden, -1e9).softmax(-1)


class AddedInverted(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        hidden = torch.ones_like(scores[0, 0]).tril() > 0  # here: AddedInverted
        added = torch.zeros_like(scores).masked_fill(hidden, -1e9)
        return (scores + added).softmax(-1)


class BothWays(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        hidden = torch.ones_like(scores[0, 0]).tril()  # here: BothWays
        shown = 1 - hidden
        return (scores * shown - 1e10 * hidden).softmax(-1)


class TurnedRound(Buffered):
    def register(self, n_ctx: int) -> None:
        self.register_buffer("mask", torch.ones(n_ctx, n_ctx).triu(1))

    def pattern(self, scores: Tensor) -> Tensor:
        seq = scores.shape[-1]
        shown = self.mask[:seq, :seq] == 0  # here: TurnedRound
        return scores.masked_fill(shown, -1e9).softmax(-1)


class EqualsOne(Buffered):
    def register(self, n_ctx: int) -> None:
        self.register_buffer("mask", torch.ones(n_ctx, n_ctx).tril())

    def pattern(self, scores: Tensor) -> Tensor:
        seq = scores.shape[-1]
        return scores.masked_fill(self.mask[:seq, :seq] == 1, -1e9).softmax(-1)  # here: EqualsOne


@pytest.mark.parametrize(
    "layer",
    [
        OverLines,
        BeforeItIsRegistered,
        ComparedOverLines,
        NoBuffer,
        MadeInverted,
        AddedInverted,
        BothWays,
        TurnedRound,
        EqualsOne,
    ],
)
def test_the_line_of_a_wrong_mask_is_the_one_that_makes_it(layer: type[Split]) -> None:
    found = tried(attention=layer)
    assert str(found.at).endswith(f":{line_of(layer)}"), found.text()
