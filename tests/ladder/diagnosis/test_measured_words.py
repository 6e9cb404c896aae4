"""Numbers and names that were measured on a layer: another eps, another fill of a mask, what a step multiplies."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptladder.assembly.config import GPT2Config
from gptladder.ladder.formula.in_code import in_code
from gptladder.ladder.formula.quantities import quantities
from gptladder.ladder.results import Diagnosis, Fault, Finding, Tried
from gptladder.ladder.rungs import RUNGS, Case, make_trial

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "layers")]
import nanogpt
from layers import Split, line_of, tried
from nanogpt import GPT, MLP, Block


class ThousandthOfEps(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, 1e-3)  # here: ThousandthOfEps


class FillsMinusFive(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -5.0).softmax(-1)  # here: FillsMinusFive


class AddsMinusFour(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        return (scores - 4 * torch.ones_like(scores[0, 0]).triu(1)).softmax(-1)  # here: AddsMinusFour


class HidesThePast(Split):
    """Every key that the last query may see is hidden alike, so that all of them count."""

    def pattern(self, scores: Tensor) -> Tensor:
        return (scores + torch.ones_like(scores[0, 0]).tril() * -1e10).softmax(-1)  # here: HidesThePast


class HidesItselfToo(Split):
    """The first query has the number added to all of its scores, so that it sees every key."""

    def pattern(self, scores: Tensor) -> Tensor:
        return (scores + torch.ones_like(scores[0, 0]).triu(0) * -1e9).softmax(-1)  # here: HidesItselfToo


class HidesAllAlike(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        return (scores + torch.full_like(scores[0, 0], -1e9)).softmax(-1)  # here: HidesAllAlike


class ParallelHalves(nn.Module):
    """The second half of a block reads what the first half reads."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = (nn.LayerNorm(d_model) for _ in range(2))
        self.attn, self.mlp = (
            Split(d_model, n_heads),
            nn.Sequential(nn.Linear(d_model, d_mlp), nn.GELU(approximate="tanh"), nn.Linear(d_mlp, d_model)),
        )

    def forward(self, x: Tensor) -> Tensor:
        mid = x + self.attn(self.ln1(x))
        return mid + self.mlp(self.ln2(x))  # here: ParallelHalves


class OverTheHeads(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        return (scores + torch.ones_like(scores[0, 0]).triu(1) * -1e9).softmax(1)  # here: OverTheHeads


class ValuesWithoutBias(Split):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        del self.qkv
        self.q, self.k, self.v = (nn.Linear(d_model, d_model) for _ in range(3))

    def parts(self, x: Tensor) -> list[Tensor]:
        return [self.q(x), self.k(x), x @ self.v.weight.T]

    def gathered(self, pattern: Tensor, v: Tensor) -> Tensor:
        return pattern @ v  # here: ValuesWithoutBias


class MeanAddedAgain(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input.mean(-1, keepdim=True)


class OneMore(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -torch.inf).exp()
        return weights / (1 + weights.sum(-1, keepdim=True))  # here: OneMore


class NothingForNan(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        present = torch.ones_like(scores, dtype=torch.bool).triu(0)  # here: NothingForNan
        return scores.masked_fill(present, -torch.inf).softmax(-1).nan_to_num(0.0)


class NotProjected(Split):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        scores = q @ k.mT / math.sqrt(self.d_head)
        return self.gathered(self.pattern(scores), v).transpose(1, 2).flatten(2)  # here: NotProjected


class KeysOfQueries(Split):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        del self.qkv
        self.q, self.k, self.v = (nn.Linear(d_model, d_model) for _ in range(3))

    def parts(self, x: Tensor) -> list[Tensor]:
        q = self.q(x)
        k = self.k(q)  # here: KeysOfQueries
        return [q, k, self.v(x)]


class Capped(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        return super().pattern(50 * (scores / 50).tanh())  # here: Capped


class OutsideTheBracket(MLP):
    def forward(self, x: Tensor) -> Tensor:
        u = self.c_fc(x)
        inner = 0.7978845608028654 * u + 0.044715 * u**3  # here: OutsideTheBracket
        return self.c_proj(0.5 * u * (1 + torch.tanh(inner)))


class WidenedAgain(MLP):
    def forward(self, x: Tensor) -> Tensor:
        post = F.gelu(self.c_fc(x), approximate="tanh")
        return post @ self.c_fc.weight + self.c_proj.bias  # here: WidenedAgain


class MeanOfFewer(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        mean = input.sum(-1, keepdim=True) / (input.shape[-1] - 1)  # here: MeanOfFewer
        return (input - mean) * (
            input.var(-1, unbiased=False, keepdim=True) + self.eps
        ).rsqrt() * self.weight + self.bias


class ShiftTimesGain(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        x = F.layer_norm(input, self.normalized_shape, eps=self.eps)
        return x * self.weight + self.weight * self.bias  # here: ShiftTimesGain


class ScaledAfterTheMask(Split):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        scores = (q @ k.mT).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
        z = (scores / math.sqrt(self.d_head)).softmax(-2).nan_to_num(0.0) @ v  # here: ScaledAfterTheMask
        return self.out(z.transpose(1, 2).flatten(2))


class NormInTheLoop(GPT):
    def forward(self, idx: Tensor) -> tuple[Tensor, None]:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = self.ln_f(block(x))  # here: NormInTheLoop
        return self.lm_head(x), None


class BareFinalNorm(GPT):
    def __init__(self, config: object) -> None:
        super().__init__(config)
        self.ln_f = nn.LayerNorm(list(self.ln_f.normalized_shape), elementwise_affine=False)


class NoActivation(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.c_fc(x))  # here: NoActivation


class MaskedInTraining(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        return super().pattern(scores) if self.training else scores.softmax(-1)  # here: MaskedInTraining


class OneHeadForAll(Split):
    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return q, k[:, :1].expand_as(k), v  # here: OneHeadForAll


class OtherPower(MLP):
    def forward(self, x: Tensor) -> Tensor:
        u = self.c_fc(x)
        inner = 0.7978845608028654 * (u + 0.44715 * u**2)  # here: OtherPower
        return self.c_proj(0.5 * u * (1 + torch.tanh(inner)))


class HalfPositions(nn.Module):
    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        self.wpe = nn.Embedding(n_ctx, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.wpe(torch.arange(tokens.shape[1]) // 2).expand(*tokens.shape, -1)


class KeysWithOtherBias(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.empty(n_heads, d_model, d_head)) for _ in range(3))
        self.b_Q, self.b_K, self.b_V = (nn.Parameter(torch.empty(n_heads, d_head)) for _ in range(3))
        self.W_O, self.b_O = nn.Parameter(torch.empty(n_heads, d_head, d_model)), nn.Parameter(torch.empty(d_model))

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("bsm,nmh->bnsh", x, self.W_Q) + self.b_Q[:, None]
        k = torch.einsum("bsm,nmh->bnsh", x, self.W_K) + self.b_Q[:, None]  # here: KeysWithOtherBias
        v = torch.einsum("bsm,nmh->bnsh", x, self.W_V) + self.b_V[:, None]
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("bnsh,nhm->bsm", z, self.W_O) + self.b_O


@pytest.mark.parametrize(
    ("rung", "layer", "words"),
    [
        ("layer_norm", ThousandthOfEps, "The mistake: eps is 0.001."),
        ("attention", FillsMinusFive, "The mistake: mask fills -5."),
        ("attention", AddsMinusFour, "The mistake: mask adds -4."),
        ("attention", HidesThePast, "The mistake: mask inverted."),
        ("attention", HidesItselfToo, "The mistake: mask blocks the present."),
        ("attention", HidesAllAlike, "The mistake: no causal mask."),
        ("block", ParallelHalves, "on the input (GPT-2 calls it on the stream after attention)."),
        ("attention", OverTheHeads, "The mistake: softmax over the heads."),
        ("attention", ValuesWithoutBias, "First wrong: what `@` gives (GPT-2 has the values next)."),
        ("attention", OneMore, "The mistake: one more key in the softmax, of zeros."),
        ("attention", NothingForNan, "The mistake: mask blocks the present."),
        ("attention", NotProjected, "The mistake: output projection not applied."),
        ("attention", KeysOfQueries, "by W_K.\nGPT-2 multiplies the layer's input by W_K."),
        ("attention", Capped, "takes the scaled scores times 0.02 (line "),
        ("mlp", OutsideTheBracket, "takes sqrt(2/pi) x in GELU (line "),
        ("mlp", WidenedAgain, ") by W_in transposed."),
        ("mlp", NoActivation, "(GPT-2 has the hidden layer after the activation next)"),
        ("mlp", OtherPower, "times 0.44715. GPT-2 adds 0.044715 x³ to x."),
        ("layer_norm", MeanOfFewer, "the mean times 1.03704 = d_model/(d_model - 1), with d_model=28 here."),
        ("layer_norm", ShiftTimesGain, "the normalised vector times w (line {line}). First wrong: what `*` gives."),
        ("attention", ScaledAfterTheMask, "First wrong: what `softmax` gives (GPT-2 has the attention pattern next)."),
        (
            "attention",
            MaskedInTraining,
            "; in training mode, without dropout, it is right.\nThe mistake: no causal mask.",
        ),
        ("attention", OneHeadForAll, "No gradient reaches W_K of heads 1, 2 and 3, counted from 0: "),
        ("model", NormInTheLoop, "First wrong: the call of ln_final there, on the stream after block 0 ("),
    ],
)
def test_the_report_names_what_was_measured(rung: str, layer: type[nn.Module], words: str) -> None:
    found = tried(**{rung: layer})
    assert found.status == "failed", found.text()
    assert found.at is not None, found.text()
    assert found.at.rpartition(":")[2] == line_of(layer), found.text()
    assert words.format(line=line_of(layer)) in found.text(), found.text()


def test_a_final_norm_without_parameters_is_right_but_for_these() -> None:
    found = tried(model=BareFinalNorm)
    assert found.fault is not None
    assert found.fault.message == "ln_final.b, ln_final.w are missing (GPT-2 has them); all else is right"


def test_the_keys_bias_is_seen_in_the_trace() -> None:
    found = tried(attention=KeysWithOtherBias)
    assert found.mistakes == ("b_Q added to the keys",)
    assert f"The keys get b_Q for their bias (line {line_of(KeysWithOtherBias)}), and" in found.text()


def test_of_a_table_the_rows_are_reported_and_no_inputs() -> None:
    text = tried(pos_embed=HalfPositions).text()
    assert "Position 1 gets row 0 of the table, not row 1." in text
    assert " takes " not in text


@pytest.mark.parametrize(
    ("rung", "layer", "fix"),
    [
        ("attention", KeysOfQueries, "In code: x @ W_K + b_K, split into heads."),
        ("mlp", OtherPower, "In code: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))."),
        ("layer_norm", MeanOfFewer, "In code: x.mean(dim=-1, keepdim=True)."),
        ("layer_norm", MeanAddedAgain, "Return that output as it is."),
    ],
)
def test_the_fix_of_a_mistake_without_a_name_is_gpt2s_step_in_code(rung: str, layer: type[nn.Module], fix: str) -> None:
    found = tried(**{rung: layer})
    assert f"\n{fix}\n" in found.text("fix") or (found.diagnosis is not None and found.diagnosis.what)
    assert fix not in found.text("what")


class CutPattern(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        return super().pattern(scores).detach()  # here: CutPattern


class AllHidden(Split):
    def pattern(self, scores: Tensor) -> Tensor:
        present = torch.ones_like(scores, dtype=torch.bool).triu(0)
        return scores.masked_fill(present, -torch.inf).softmax(0)


class SmallEps(nn.LayerNorm):
    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model, eps)


class UsualEps(nn.LayerNorm):
    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model, eps)


def test_another_eps_by_default_is_called_wrong() -> None:
    note = tried(layer_norm=SmallEps).note
    assert note.endswith("own default is 1e-06, and GPT-2's is 1e-05: built without eps, it is wrong.")
    assert "default" not in tried(layer_norm=UsualEps).note


def test_every_step_of_gpt2_has_its_code() -> None:
    config = GPT2Config(d_model=4, n_layers=1, n_heads=2, d_head=2, n_ctx=5, d_vocab=7)
    case = Case(config, 1, 3, 0)
    for judged in RUNGS:
        steps = quantities(make_trial(judged, judged.own, case, torch.float64))
        assert [each.words for each in steps if each.step and not in_code(each.words, judged.name)] == ["the input"] * (
            judged.name not in ("embed", "pos-embed", "model")
        )


def test_one_line_stands_in_a_report_once_and_missing_biases_too() -> None:
    finding = Finding("mine.py:5", "x.softmax(1)", (), "the pattern")
    fault = Fault("nan", "forward returns NaN", "mine.py:5", "x.softmax(1)")
    assert Tried("attention", "A", None, fault, Diagnosis(finding=finding)).text().count("mine.py:5") == 1
    missing = Fault("biases", "b_Q is missing (GPT-2 has it); all else is right")
    assert "The mistake" not in Tried("attention", "A", None, missing, Diagnosis(("b_Q missing",))).text()


@pytest.mark.parametrize(
    ("words", "sizes"), [("x³ in GELU times 0.5. GPT-2 has that times 0.04.", False), ("k 1", True)]
)
def test_gelus_constants_need_no_sizes(words: str, sizes: bool) -> None:
    finding = Finding("mine.py:5", "code", (), "x + 0.044715 x³ in GELU (block 0)", (words,), "In code: 2 * x.")
    assert Diagnosis(finding=finding).has_numbers("fix") == sizes


def test_an_adapter_of_one_block_for_all_is_refused_in_words() -> None:
    def model(cfg: Any, parameters: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        layer, state = nanogpt.model(cfg, parameters)
        layer.h = nn.ModuleList(
            [Block(SimpleNamespace(n_embd=cfg.d_model, n_head=cfg.n_heads, block_size=cfg.n_ctx))] * cfg.n_layers
        )
        return layer, state

    found = tried(model=model)
    assert found.status == "refused"
    assert found.fault is not None
    assert "h.0 and h.1 are one and the same Block, with one set of parameters ([Block(...)] * n" in found.fault.message


@pytest.mark.parametrize(("rung", "layer"), [("attention", CutPattern)])
def test_a_cut_gradient_shows_its_line_once_and_how_to_fix_it(rung: str, layer: type[nn.Module]) -> None:
    text = tried(**{rung: layer}).text("fix")
    assert text.count("# here: CutPattern") == 1
    assert "\nLeave the graph whole there: no .detach(), .data or torch.no_grad()." in text


def test_where_every_number_is_nan_the_mask_is_looked_at() -> None:
    found = tried(attention=AllHidden)
    assert found.fault is not None
    assert found.fault.kind == "nan"
    assert "Query 0 does not see its own position." in found.text()
    assert found.mistakes == ()
