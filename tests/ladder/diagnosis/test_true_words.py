"""The words of a report: each sentence is true of the layer, and the line is the one to change."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.diagnosis.which_mistake import MistakeSearch, place_of
from gptladder.ladder.mistakes import MISTAKES
from gptladder.ladder.results import Diagnosis, Fault, Finding, Tried
from gptladder.ladder.tolerance import parameters_in_words

sys.path.insert(0, str(Path(__file__).parent))
from layers import line_of


class Split(nn.Module):
    """Right attention, with a method for each step that a mistake is made in below."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.qkv, self.out, self.dropout = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model), nn.Dropout(0.1)

    def heads(self, x: Tensor) -> list[Tensor]:
        return [each.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, dim=-1)]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / math.sqrt(self.d_head)

    def masked(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.dropout(self.masked(self.scores(q, k)).softmax(-1)) @ v

    def merged(self, z: Tensor) -> Tensor:
        return self.out(z.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.merged(self.gathered(q, k, v))


class IdleMask(Split):
    def masked(self, scores: Tensor) -> Tensor:
        return scores + torch.zeros_like(scores).triu(1)  # here: IdleMask


class RunningSoftmax(Split):
    """One head after another, two keys at a time; the sum of the weights is not brought to the new maximum."""

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.stack([self.head(*each) for each in zip(*(x.unbind(1) for x in (q, k, v)), strict=True)], 1)

    def head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = torch.arange(q.shape[-2])[:, None]
        most, weights, z = q.new_full((*q.shape[:-1], 1), -torch.inf), q.new_zeros(*q.shape[:-1], 1), q * 0
        for j in range(0, q.shape[-2], 2):  # here: RunningSoftmax
            keys = torch.arange(j, min(j + 2, q.shape[-2]))
            scores = self.scores(q, k[..., j : j + 2, :]).masked_fill(keys > row, -torch.inf)
            larger = torch.maximum(most, scores.amax(-1, keepdim=True))
            own, old = torch.exp(scores - larger), torch.exp(most - larger)
            weights = weights + own.sum(-1, keepdim=True)
            z, most = z * old + own @ v[..., j : j + 2, :], larger
        return z / weights


class ScaledByHalves(Split):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / self.d_head * 0.5  # here: ScaledByHalves


class MaskedInOne(Split):
    """The product adds the mask, and scales nothing."""

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.full((q.shape[-2], q.shape[-2]), -torch.inf, dtype=q.dtype).triu(1)
        flat = [each.flatten(0, 1) for each in (q, k)]
        scores = torch.baddbmm(mask.expand(len(flat[0]), -1, -1), flat[0], flat[1].mT)  # here: MaskedInOne
        return scores.softmax(-1).view(*q.shape[:-1], -1) @ v


class OneHeadAtATime(Split):
    """The softmax divides by the wrong size, where no step is seen."""

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        each = lambda q, k, v: (self.masked(q @ k.mT / len(q))).softmax(-1) @ v  # noqa: E731
        return torch.func.vmap(torch.func.vmap(each))(q, k, v)


class HiddenLater(Split):
    """What is added hides nothing, and need not: the weights of later keys are made 0."""

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.scores(q, k) + torch.zeros(q.shape[-2], q.shape[-2], dtype=q.dtype).triu(1)
        weights = (scores.exp() + 0.1).tril()
        return weights / weights.sum(-1, keepdim=True) @ v


class FusedWithout(Split):
    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)  # here: FusedWithout


class OnlyInEval(Split):
    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        causal, p = not self.training, 0.2 if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, None, p, causal)  # here: OnlyInEval


class ScaledAway(Split):
    def heads(self, x: Tensor) -> list[Tensor]:
        q, k, v = super().heads(x)
        return [q, k * math.sqrt(self.d_head), v]  # here: ScaledAway


class TwoTemperatures(Split):
    """The factor is applied to one head after another."""

    def masked(self, scores: Tensor) -> Tensor:
        each = [super(TwoTemperatures, self).masked(head) for head in scores.unbind(1)]
        return torch.stack([head * 1.1 for head in each], dim=1)  # here: TwoTemperatures


class OneHeadNought(Split):
    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        z = [
            super(OneHeadNought, self).gathered(*each)
            for each in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True)
        ]
        return torch.stack([*z[:-1], torch.zeros_like(z[-1])], dim=1)  # here: OneHeadNought


class EachHeadTransposed(Split):
    def masked(self, scores: Tensor) -> Tensor:
        earlier = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-1)  # here: EachHeadTransposed
        heads = scores.unbind(1)
        return torch.stack([head.masked_fill(earlier, -torch.inf) for head in heads], dim=1)


class KeysKept(Split):
    kept: Tensor | None = None

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kept is not None and self.kept.shape == k.shape:
            k = self.kept * 0 + k + (self.kept - k).detach()
        self.kept = k.detach()  # here: KeysKept
        return super().gathered(q, k, v)


class Named(Split):
    """Queries, keys and values are made by one method."""

    which = (0, 0, 2)

    def product(self, x: Tensor, part: int, layer: nn.Linear) -> Tensor:
        size = x.shape[-1]
        return x @ layer.weight[part * size : (part + 1) * size].T + layer.bias[part * size : (part + 1) * size]

    def heads(self, x: Tensor) -> list[Tensor]:
        made = [self.product(x, part, self.qkv) for part in self.which]  # here: Named
        return [each.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for each in made]


class AgainByValues(Named):
    which = (0, 1, 2)

    def merged(self, z: Tensor) -> Tensor:
        return self.product(z.transpose(1, 2).flatten(2), 2, self.qkv)  # here: AgainByValues


class ByCaller(Split):
    """Three matrices by name: these cannot be in another order."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        nn.Module.__init__(self)
        self.n_heads, self.d_head, self.dropout = n_heads, d_model // n_heads, nn.Dropout(0.1)
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(4))

    def heads(self, x: Tensor) -> list[Tensor]:
        made = (each(x) for each in (self.query, self.key, self.value))
        return [each.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for each in made]

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().gathered(k, q, v)


class SoftmaxOfHeads(Split):
    """One query after another, so that no mask is needed."""

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = []
        for i in range(q.shape[2]):
            scores = (q[:, :, i : i + 1] * k[:, :, : i + 1]).sum(-1) / math.sqrt(self.d_head)
            weights = torch.softmax(scores, dim=1)  # here: SoftmaxOfHeads
            rows.append((weights[..., None] * v[:, :, : i + 1]).sum(2))
        return torch.stack(rows, dim=2)


class Feed(nn.Module):
    """A right MLP."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)

    def act(self, h: Tensor) -> Tensor:
        return 0.5 * h * (1 + torch.tanh(0.7978845608028654 * (h + 0.044715 * h**3)))

    def hidden(self, x: Tensor) -> Tensor:
        return self.act(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.hidden(x))


class BiasTakenOff(Feed):
    def hidden(self, x: Tensor) -> Tensor:
        return self.act(self.first(x) - self.first.bias) + self.first.bias  # here: BiasTakenOff


class OtherConstant(Feed):
    def act(self, h: Tensor) -> Tensor:
        return 0.5 * h * (1 + torch.tanh(0.7978845608028654 * (h + 0.44715 * h**3)))  # here: OtherConstant


class OtherPower(Feed):
    def act(self, h: Tensor) -> Tensor:
        return 0.5 * h * (1 + torch.tanh(0.7978845608028654 * (h + 0.44715 * h**2)))  # here: OtherPower


class Unseen(Feed):
    def act(self, h: Tensor) -> Tensor:
        return torch.from_numpy(h.detach().numpy() * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.hidden(x))  # here: Unseen


class ReadsItsOutput(Feed):
    def piece(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i in range(x.shape[1]):
            out[:, i] = self.piece((out if i else x)[:, i])  # here: ReadsItsOutput
        return out


class Norm(nn.Module):
    """A layer norm, right up to what each class below changes."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))


class RunningSquares(Norm):
    def forward(self, x: Tensor) -> Tensor:
        mean, squares = torch.zeros_like(x[..., 0]), torch.zeros_like(x[..., 0])
        for i in range(x.shape[-1]):
            delta = x[..., i] - mean
            mean = mean + delta / (i + 1)
            squares = squares + (x[..., i] - mean) * (x[..., i] - mean)  # here: RunningSquares
        scale = (squares / x.shape[-1] + 1e-5).sqrt()
        return (x - mean[..., None]) / scale[..., None] * self.w + self.b


class MeanOfAll(Norm):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2), keepdim=True)  # here: MeanOfAll
        return (x - mean) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * self.w + self.b


class MeanOfFewer(Norm):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.sum(-1, keepdim=True) / (x.shape[-1] - 1)  # here: MeanOfFewer
        return (x - mean) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * self.w + self.b


class Flipped(Norm):
    def forward(self, x: Tensor) -> Tensor:
        normalised = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return normalised * self.w.flip(0) + self.b  # here: Flipped


class Capped(Norm):
    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(-1, keepdim=True, correction=0).clamp(max=100)  # here: Capped
        return (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt() * self.w + self.b


class PreNormBlock(nn.Module):
    """A right block, whose MLP is no module of its own."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(d_model), Split(d_model, n_heads), nn.LayerNorm(d_model)
        self.up, self.down = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))

    def second(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln2(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.attn(self.ln1(x)))


class FirstNormTwice(PreNormBlock):
    def second(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln1(x))  # here: FirstNormTwice


class NormDropped(PreNormBlock):
    def second(self, x: Tensor) -> Tensor:
        self.ln2(x)  # here: NormDropped
        return x + self.mlp(x)


class NoSecondNorm(PreNormBlock):
    def second(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)  # here: NoSecondNorm


class OffsetByRow(nn.Module):
    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_ctx, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, columns = torch.arange(tokens.shape[0])[:, None], torch.arange(tokens.shape[1])
        return self.table((rows + columns) % self.table.num_embeddings)  # here: OffsetByRow


class ShorterOnly(Split):
    def __init__(self, d_model: int, n_heads: int, n_ctx: int) -> None:
        super().__init__(d_model, n_heads)
        self.n_ctx = n_ctx

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] >= self.n_ctx:
            raise ValueError("too long")  # here: ShorterOnly
        return super().forward(x)


class DropoutByHand(Split):
    """Right: what training mode draws at random is no mistake."""

    def merged(self, z: Tensor) -> Tensor:
        z = z * (torch.rand_like(z) > 0.1) / 0.9 if self.training else z
        return super().merged(z)


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are found by values alone; looking for a name in the catalogue takes most of the time."""
    monkeypatch.setattr(MistakeSearch, "named", lambda _: None)


def tried(**layer: Any) -> Tried:
    return climb(**layer, cases=8 if ShorterOnly in layer.values() else 3).rungs[-1]


@pytest.mark.parametrize(
    ("rung", "layer"), [("attention", Split), ("attention", DropoutByHand), ("mlp", Feed), ("block", PreNormBlock)]
)
def test_what_the_mistakes_are_made_in_is_right(rung: str, layer: type[nn.Module]) -> None:
    assert tried(**{rung: layer}).passed


@pytest.mark.parametrize(
    ("rung", "layer", "words"),
    [
        ("attention", IdleMask, "The mask there hides nothing."),
        ("attention", RunningSoftmax, "what this loop adds up (GPT-2 has the gathered values z next)"),
        ("attention", ScaledByHalves, "gives the scores q·k times "),
        ("attention", MaskedInOne, "what `baddbmm` gives: the masked scores, not scaled (GPT-2 has the scaled scores"),
        ("attention", FusedWithout, "Every query sees every key there."),
        ("attention", OnlyInEval, "right in eval mode; in training mode, without dropout, off by"),
        ("attention", ScaledAway, "First wrong: what `*` gives: the keys times a factor"),
        ("attention", TwoTemperatures, "gives the masked scores times 1.1."),
        ("attention", OneHeadNought, "what `stack` gives (GPT-2 has the gathered values z next)"),
        ("attention", EachHeadTransposed, "does not see key 0, an earlier position."),
        ("attention", KeysKept, "First wrong: `self.kept`, which goes from one call into the next."),
        ("attention", Named, "they are made of queries."),
        ("attention", AgainByValues, "multiplies the gathered values z as [batch, seq, n_heads*d_head]"),
        ("attention", SoftmaxOfHeads, "First wrong: what `softmax` gives (GPT-2 has the attention pattern next)."),
        ("mlp", BiasTakenOff, "First wrong: what `-` gives: the hidden layer before b_in."),
        ("mlp", OtherConstant, "gives x³ in GELU times 0.44715. GPT-2 has that times 0.044715."),
        ("mlp", OtherPower, "times 0.44715. GPT-2 adds 0.044715 x³ to x."),
        ("mlp", Unseen, "is given, or what it does with that (GPT-2 has the hidden layer after the activation next)"),
        ("mlp", ReadsItsOutput, "Those here are no step of GPT-2."),
        ("layer_norm", RunningSquares, "adds up in its loop (GPT-2 has the variance next)."),
        ("layer_norm", MeanOfAll, "numbers, and GPT-2 has one for each position: 15 here."),
        ("layer_norm", MeanOfFewer, "what `/` gives: the mean times a factor"),
        ("layer_norm", Flipped, " and numbers of `w` as [28] ("),
        ("layer_norm", Capped, " it makes numbers from 100 to 100."),
        ("block", FirstNormTwice, "the call of ln1 there, on the stream after attention (GPT-2 has ln2 next)."),
        ("block", NormDropped, "the output of ln2, made on line "),
        ("block", NoSecondNorm, "the call there, on the stream after attention"),
        ("pos_embed", OffsetByRow, "Position 0 in sequence 1, counted from 0, gets row 1 of the table, not row 0."),
        ("attention", ShorterOnly, "a sequence of that length raises it; with n_ctx="),
    ],
)
def test_the_line_and_the_words_are_those_of_the_mistake(rung: str, layer: type[nn.Module], words: str) -> None:
    found = tried(**{rung: layer})
    assert found.status == "failed", found.text()
    assert found.at is not None, found.text()
    assert found.at.rpartition(":")[2] == line_of(layer), found.text()
    assert words in found.text(), found.text()


def test_scores_with_keys_along_their_rows_are_not_called_right() -> None:
    finding = getattr(tried(attention=ByCaller).diagnosis, "finding", None)
    assert finding is not None
    assert finding.wrong.startswith("the scores q·k: their rows are keys, and GPT-2's are queries (line ")
    assert "called by line" in finding.wrong
    assert [each.partition(" (")[0] for each in finding.right] == ["the queries", "the keys", "the values"]


def test_a_layer_that_is_missing_whole_stands_for_its_parameters() -> None:
    every = ["ln1.w", "ln1.b", "attn.W_Q", "attn.W_K"]
    assert parameters_in_words(every, every) == "ln1 (all of it) and attn (all of it)"
    assert parameters_in_words(["attn.W_K"], every) == "attn.W_K"


@pytest.mark.parametrize(
    ("detail", "sizes"),
    [
        ("Head 3 is wrong on line 5.", True),
        ("`linear2` on line 5 and lines 6 and 7 takes b1; GPT-2 has 1/sqrt(d_head).", False),
    ],
)
def test_the_sizes_that_sentences_are_of_are_reported_if_they_have_numbers(detail: str, sizes: bool) -> None:
    finding = Finding("mine.py:5", "code", ("the queries (line 4)",), "the keys", (detail,))
    diagnosis = Diagnosis(finding=finding, sizes={"seq": 5})
    text = Tried("attention", "A", None, Fault("output", "off"), diagnosis, smallest={"seq": 2}).text()
    assert text.endswith("\nThe sentences above are of: seq=5" if sizes else "shows it: seq=2")


def test_a_mask_is_not_blamed_if_no_later_position_changes_the_output() -> None:
    found = tried(attention=HiddenLater)
    assert found.status == "failed"
    assert "The mask there hides nothing." not in found.text()


def test_a_factor_is_that_of_the_whole_line() -> None:
    text = tried(attention=ScaledByHalves).text()
    assert re.search(r"what `\*` gives: the scores q·k times a factor", text), text
    assert "1/d_head" not in text


def test_what_a_function_gives_that_was_not_seen_is_not_called_the_output() -> None:
    finding = getattr(tried(attention=OneHeadAtATime).diagnosis, "finding", None)
    assert finding is not None
    assert finding.wrong == "what comes after the values (GPT-2 has the scores q·k next)"


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["blocks.0", "blocks.1", "blocks.2"], "every block"),
        (["blocks.0", "blocks.2"], "blocks 0 and 2"),
        (["blocks.1.attn"], "block 1's attention"),
        (["blocks.0.mlp", "blocks.1.mlp"], "MLP of blocks 0 and 1"),
        (["blocks.0.ln1", "blocks.0.ln2"], "ln1 of block 0 and ln2 of block 0"),
        (["ln1", "ln2"], "both layer norms"),
    ],
)
def test_places_are_named_as_many_as_they_are(paths: list[str], words: str) -> None:
    assert place_of(paths, 3) == words


def test_a_hint_says_what_is_measured_and_supposes_no_code() -> None:
    supposed = re.compile(
        r"overwrote|was detached|were detached|detached copy|There is no ln|masked_fill fills|was made with"
    )
    assert not [each.name for each in MISTAKES if supposed.search(each.hint)]
