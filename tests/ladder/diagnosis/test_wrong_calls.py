"""A wrong step whose cause is a call, a dropped result, a step made again, or a decorator: that line is named."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder.diagnosis.which_mistake import MistakeSearch

sys.path.insert(0, str(Path(__file__).parent))
from layers import Split, line_of, tried


class Plain(nn.Module):
    """A right MLP, whose positions are computed at once."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(x), approximate="tanh"))


class MaskDropped(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores.masked_fill(later, -torch.inf)  # here: MaskDropped
        return scores.softmax(-1)


class HelperOfHelper(Split):
    """The helper that has no mask makes its scores by another one: its own call is right."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / math.sqrt(self.d_head)

    def from_both(self, q: Tensor, k: Tensor) -> Tensor:
        scores = self.scores(q, k)
        return scores.softmax(-1)  # here: HelperOfHelper

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.out(self.gathered(self.from_both(q, k), v).transpose(1, 2).flatten(2))


class KeysGathered(Split):
    def gathered(self, pattern: Tensor, v: Tensor) -> Tensor:
        return pattern @ self.keys  # here: KeysGathered

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, self.keys, v = super().heads(x)
        return q, self.keys, v


class MaskTimesZero(Split):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.flatten(0, 1) for each in self.heads(x))
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1).expand(len(q), -1, -1)
        scores = torch.baddbmm(mask, q, k.mT, beta=0, alpha=self.d_head**-0.5)  # here: MaskTimesZero
        z = (scores.softmax(-1) @ v).unflatten(0, (x.shape[0], -1))
        return self.out(z.transpose(1, 2).flatten(2))


class ScaledTwice(Split):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        q = q / math.sqrt(self.d_head)
        k = k / math.sqrt(self.d_head)  # here: ScaledTwice
        return self.out((self.pattern(q @ k.mT) @ v).transpose(1, 2).flatten(2))


class KeysOfHeadZero(Split):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        z = []
        for h in range(self.n_heads):
            own = q[:, h]
            keys = k[:, 0]  # here: KeysOfHeadZero
            z.append(self.pattern(own @ keys.mT / math.sqrt(self.d_head)) @ v[:, h])
        return self.out(torch.cat(z, -1))


class StreamReplaced(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attn, self.mlp = Split(d_model, n_heads), Plain(d_model, d_mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.ln1(x))  # here: StreamReplaced
        return x + self.mlp(self.ln2(x))


class MidReturned(StreamReplaced):
    def forward(self, x: Tensor) -> Tensor:
        mid = x + self.attn(self.ln1(x))
        self.last = mid + self.mlp(self.ln2(mid))  # here: MidReturned
        return mid


class InputOfMlpAlone(StreamReplaced):
    def forward(self, x: Tensor) -> Tensor:
        out = self.attn(self.ln1(x))
        return x + out + self.mlp(self.ln2(out))  # here: InputOfMlpAlone


class Whole(nn.Module):
    """A right model."""

    def __init__(self, d_vocab: int, n_ctx: int, d_model: int, n_heads: int, d_mlp: int, n_layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.blocks = nn.ModuleList(RightBlock(d_model, n_heads, d_mlp) for _ in range(n_layers))
        self.ln, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, d_vocab)

    def embedded(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.ln(self.run(self.embedded(tokens))))


class RightBlock(StreamReplaced):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class BlockDropped(Whole):
    def run(self, x: Tensor) -> Tensor:
        self.blocks[0](x)  # here: BlockDropped
        return x


class HelperInside(RightBlock):
    """A block whose MLP calls a right function wrongly."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__(d_model, n_heads, d_mlp)
        self.mlp = HelperTwice(d_model, d_mlp)


class LastNormOfEachBlock(Whole):
    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.ln(block(x))  # here: LastNormOfEachBlock
        return x


class LastPlace(Whole):
    def embedded(self, tokens: Tensor) -> Tensor:
        last = torch.arange(tokens.shape[1])[-1:]
        places = self.places(last)  # here: LastPlace
        return self.tokens(tokens) + places


class FirstBlockOnly(Whole):
    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)  # here: FirstBlockOnly
            break
        return x


class WithHelper(Plain):
    def activation(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))


class HelperWithoutBias(WithHelper):
    def forward(self, x: Tensor) -> Tensor:
        hidden = x @ self.first.weight.T  # here: HelperWithoutBias
        return self.second(self.activation(hidden))


class HelperOfInput(WithHelper):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(x)  # here: HelperOfInput
        return self.second(self.first(hidden))


class HelperTwice(WithHelper):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.activation(self.first(x)))  # here: HelperTwice, HelperInside
        return self.second(hidden)


class HelperOfCapped(WithHelper):
    """Where a number is capped, the activation is nearly what it would be."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).clamp(-6, 6)  # here: HelperOfCapped
        return self.second(self.activation(hidden))


class MadeAgain(Plain):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = self.first(x)  # here: MadeAgain
        return self.second(hidden)


class Torchs(nn.Module):
    """Right attention by torch's own module."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d_model, n_heads, batch_first=True)

    def mask(self, seq: int) -> Tensor:
        return torch.ones(seq, seq, dtype=torch.bool).triu(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, attn_mask=self.mask(x.shape[1]), need_weights=False)[0]


class TorchsUnmasked(Torchs):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]  # here: TorchsUnmasked


class TorchsOneHead(Torchs):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.attention = nn.MultiheadAttention(d_model, 1, batch_first=True)  # here: TorchsOneHead


class TorchsOfTwo(nn.Module):
    """A block whose keys and values are made of the stream, before its layer norm."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attn, self.mlp = nn.MultiheadAttention(d_model, n_heads, batch_first=True), Plain(d_model, d_mlp)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        out, _ = self.attn(self.ln1(x), x, x, attn_mask=mask, need_weights=False)  # here: TorchsOfTwo
        x = x + out
        return x + self.mlp(self.ln2(x))


class WithoutGradients(Plain):
    @torch.no_grad()  # here: WithoutGradients
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(nn.functional.gelu(hidden, approximate="tanh"))


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are found by values alone; looking for a name in the catalogue takes most of the time."""
    monkeypatch.setattr(MistakeSearch, "named", lambda _: None)


@pytest.mark.parametrize(
    ("rung", "layer"),
    [("attention", Split), ("attention", Torchs), ("mlp", Plain), ("mlp", WithHelper), ("model", Whole)],
)
def test_layers_that_the_mistakes_are_made_in_are_right(rung: str, layer: type[nn.Module]) -> None:
    assert tried(**{rung: layer}).passed


@pytest.mark.parametrize(
    ("rung", "layer", "words"),
    [
        ("attention", MaskDropped, "that result is not used."),
        ("attention", HelperOfHelper, "First wrong: what `softmax` gives"),
        ("attention", TorchsUnmasked, "Every query sees every key there."),
        ("attention", TorchsOneHead, " takes the input (line "),
        ("block", TorchsOfTwo, "GPT-2 has the output of attention next"),
        ("mlp", HelperWithoutBias, "gives: the hidden layer before b_in."),
        ("mlp", HelperOfInput, "First wrong: the call there, on the layer's input (GPT-2 has the hidden layer before"),
        ("mlp", HelperTwice, "First wrong: the call there, on the hidden layer after the activation"),
        ("block", HelperInside, "First wrong: the call there, on the hidden layer after the activation"),
        ("mlp", HelperOfCapped, "First wrong: what `clamp` gives"),
        ("mlp", MadeAgain, "the hidden layer before the activation again"),
        ("attention", KeysGathered, "First wrong: the values there: they are made of keys."),
        ("attention", MaskTimesZero, "The mask there hides nothing."),
        ("attention", ScaledTwice, "First wrong: the scaled keys, beside the scaled queries"),
        ("attention", KeysOfHeadZero, "the keys there are of head 0, and the queries beside them of head 1."),
        ("block", StreamReplaced, "First wrong: `x`, which becomes the output of attention alone"),
        ("block", MidReturned, "First wrong: the output: it is the stream after attention."),
        ("block", InputOfMlpAlone, "First wrong: the call of ln2 there, on the output of attention"),
        ("model", LastPlace, "counted from 0, alone."),
        ("model", LastNormOfEachBlock, "First wrong: the call of ln_final there, on the stream after block 0"),
        ("model", BlockDropped, "that result is not used."),
        ("model", FirstBlockOnly, "First wrong: the blocks: blocks.0 is the last that runs, of "),
        ("mlp", WithoutGradients, "no gradient reaches"),
    ],
)
def test_the_line_to_look_at_is_named(rung: str, layer: type[nn.Module], words: str) -> None:
    found = tried(**{rung: layer})
    assert found.status == "failed", found.text()
    assert found.at is not None, found.text()
    assert found.at.rpartition(":")[2] == line_of(layer), found.text()
    assert words in found.text()
