"""Diagnosis: every mistake by its name and no other, right layers as right, what is not listed by its line."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

from gptladder.ladder.answers import Answer
from gptladder.ladder.candidate.layer import Candidate
from gptladder.ladder.candidate.places import Code
from gptladder.ladder.candidate.requests import Reply, Request
from gptladder.ladder.candidate.trace import Trace
from gptladder.ladder.diagnosis.diagnose import diagnose
from gptladder.ladder.diagnosis.smallest_case import shrink
from gptladder.ladder.diagnosis.which_line import locate
from gptladder.ladder.diagnosis.wrong_parts import part_trial
from gptladder.ladder.formula.quantities import quantities
from gptladder.ladder.formula.same_numbers import factor_of
from gptladder.ladder.formula.trace_matching import Matched
from gptladder.ladder.mistakes import INSIDE, MISTAKES, Mistake
from gptladder.ladder.mistakes.block import PlainBlock
from gptladder.ladder.mistakes.mistake import with_steps
from gptladder.ladder.mistakes.mlp import PlainMLP
from gptladder.ladder.mistakes.model import PlainModel
from gptladder.ladder.mistakes.plain_attention import PlainAttention
from gptladder.ladder.results import Diagnosis, as_text
from gptladder.ladder.rungs import RUNGS, Build, Case, Rung, Trial, answer, draw_case, make_trial, rung
from gptladder.ladder.under_test import UnderTest

SPELLED = [(mistake, build) for mistake in MISTAKES for build in mistake.builds]
NAMES = [f"{mistake.rung}: {mistake.name}" for mistake, _ in SPELLED]
BASES = {mistake.rung: mistake.base for mistake in MISTAKES}


def untied(source: random.Random) -> Case:
    case = draw_case(source)
    return replace(case, config=replace(case.config, tie_word_embeddings=False, unembed_bias=True))


def under_test(
    name: str, respond: Callable[[Trial], Answer | None], draw: Callable[[random.Random], Case] = untied
) -> UnderTest:
    def ask(requests: Iterable[Request]) -> Iterator[Reply]:
        for request in requests:
            yield Reply(answer=respond(request.trial))

    return UnderTest(rung(name), ask, draw=draw)


def built(name: str, build: Build) -> UnderTest:
    return under_test(name, lambda trial: answer(build(trial.config, trial.dtype), trial))


def diagnosed(layer: UnderTest, seed: int = 0) -> Diagnosis:
    found = diagnose(layer, seed=seed)
    assert found is not None
    return found


def examine(base: type[nn.Module], name: str, **steps: object) -> Diagnosis:
    return diagnosed(built(name, with_steps(base, steps)))


def named(mistakes: tuple[Mistake, ...], name: str) -> Mistake:
    return next(each for each in mistakes if each.name == name)


@pytest.mark.parametrize(("mistake", "build"), SPELLED, ids=NAMES)
def test_every_mistake_is_named_and_no_other(mistake: Mistake, build: Build) -> None:
    found = diagnosed(built(mistake.rung, build))
    assert found.mistakes == (mistake.name,)
    assert (*found.what, *found.fix) == tuple(text for text in (mistake.what, mistake.fix) if text)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 20))
def test_every_mistake_is_named_whatever_the_seed(seed: int) -> None:
    for mistake, build in SPELLED:
        found = diagnosed(built(mistake.rung, build), seed)
        assert found.mistakes == (mistake.name,), mistake


@pytest.mark.parametrize("each", RUNGS, ids=lambda each: each.name)
def test_right_layers_are_right_fused_or_written_out(each: Rung) -> None:
    for build in (each.build, BASES[each.name]):
        for seed in (0, 1):
            assert diagnose(built(each.name, build), seed=seed) is None


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("block", "the block's attention: causal mask off by one"),
        ("block", "both layer norms: eps not added"),
        ("block", "ln2: unbiased variance"),
        ("model", "every layer norm: eps outside the square root"),
        ("model", "softmax applied"),
    ],
)
def test_a_layers_mistake_is_found_inside_a_larger_layer(name: str, mistake: str) -> None:
    made = named(INSIDE[name], mistake)
    found = diagnosed(built(name, made.build))
    assert found.mistakes == (mistake,)


def test_an_unembedding_in_a_tied_model_is_tried_with_the_embeddings_table() -> None:
    config = replace(draw_case(random.Random(0)).config, tie_word_embeddings=True, unembed_bias=True)
    trial = make_trial(rung("model"), rung("model").own, Case(config, 2, 3, 0), torch.float64, gradients=False)
    given = torch.randn(2, 3, config.d_model, dtype=torch.float64)
    right = given @ trial.parameters["embed.W_E"].T + trial.parameters["unembed.b_U"]
    inner = part_trial(trial, "unembed", "unembed", given)
    torch.testing.assert_close(inner.expected.output, right, atol=1e-12, rtol=0)


def test_two_mistakes_at_once_are_told_apart() -> None:
    found = examine(
        PlainAttention,
        "attention",
        scaled=lambda self, scores: scores,
        out=lambda self, z: einsum(z, self.W_O, "b s n h, n h m -> b s m"),
    )
    assert found.mistakes == ("no 1/sqrt(d_head)", "b_O not added")
    assert found.what == ("The attention scores are not scaled.", "The output lacks its bias.")
    assert "The 2 mistakes: no 1/sqrt(d_head) and b_O not added." in as_text(found.lines("what"))


# A class that computes d_head itself, knows one activation and always scales: only such cases are drawn, and others
# are answered with None.
def square_only(source: random.Random) -> Case:
    while True:
        case = untied(source)
        width = case.config.n_heads * case.config.d_head
        config = replace(case.config, d_model=width, act_fn="gelu_new", scale_attn_weights=True)
        if case.config.n_heads > 1:
            return replace(case, config=config)


@pytest.mark.parametrize("mistake", ["causal mask off by one", "W_O transposed", "heads averaged"])
def test_a_layer_that_takes_few_configurations_is_diagnosed_on_those(mistake: str) -> None:
    build = named(MISTAKES, mistake).build

    def respond(trial: Trial) -> Answer | None:
        config = trial.config
        if config.d_model != config.n_heads * config.d_head or not config.scale_attn_weights:
            return None
        return answer(build(config, trial.dtype), trial)

    found = diagnosed(under_test("attention", respond, square_only))
    assert found.mistakes == (mistake,)
    assert found.smallest["d_model"] == found.smallest["n_heads"] * found.smallest["d_head"]


def test_the_smallest_case_is_as_small_as_the_mistake_allows() -> None:
    for mistake, sizes in {
        "causal mask off by one": {"batch": 1, "seq": 2, "n_heads": 1},
        "heads averaged": {"batch": 1, "seq": 1, "n_heads": 2},
        "heads transposed before W_O": {"batch": 1, "seq": 1, "n_heads": 2, "d_head": 2},
    }.items():
        build = named(MISTAKES, mistake).build
        smallest = diagnosed(built("attention", build)).smallest
        assert {**smallest, **sizes} == smallest, mistake


def test_shrinking_stays_where_it_fails_and_square_where_it_must() -> None:
    case = draw_case(random.Random(3))
    tried = []

    def fails(case: Case) -> bool:
        tried.append(case)
        return case.seq >= 3 and case.config.n_heads >= 2 and case.config.n_ctx >= case.seq

    case = replace(case, seq=7, config=replace(case.config, n_heads=4, d_head=5, d_model=20, n_ctx=9))
    small = shrink(case, fails, True)
    assert (small.batch, small.seq, small.config.n_heads, small.config.n_ctx) == (1, 3, 2, 3)
    assert shrink(case, lambda case: False, False) == case


@pytest.mark.parametrize("name", ["embed", "pos-embed", "layer-norm", "mlp"])
def test_an_answer_of_the_wrong_shape_is_no_crash(name: str) -> None:
    each = rung(name)

    def respond(trial: Trial) -> Answer:
        found = answer(each.build(trial.config, trial.dtype), trial)
        return Answer(found.output[..., :-1], found.gradients)

    found = diagnosed(under_test(each.name, respond))
    assert found.mistakes == ()


# ---- where it is, for mistakes that are not listed -------------------------------------------------------------------


class Nano(nn.Module):
    """Attention in a style of its own: one matrix, heads by view, each step on a line."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_head, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.c_attn(x).chunk(3, dim=-1))
        scores = self.scaled(q @ k.transpose(-2, -1), q)
        pattern = self.masked(scores).softmax(dim=-1)
        return self.c_proj(self.gathered(pattern, v, x).transpose(1, 2).flatten(2))

    def scaled(self, scores: Tensor, q: Tensor) -> Tensor:
        return scores / q.shape[-1] ** 0.5

    def masked(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)

    def gathered(self, pattern: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return pattern @ v


class ByLength(Nano):
    def scaled(self, scores: Tensor, q: Tensor) -> Tensor:
        return scores / q.shape[-2] ** 0.5  # HERE


class Halved(Nano):
    def scaled(self, scores: Tensor, q: Tensor) -> Tensor:
        scores = scores / q.shape[-1] ** 0.5
        return scores / 2  # HERE


class Window(Nano):
    def masked(self, scores: Tensor) -> Tensor:
        near = torch.ones(scores.shape[-2:]).tril().triu(-2).bool()  # HERE
        return scores.masked_fill(~near, -torch.inf)


class Mixed(Nano):
    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.n_head, -1, x.shape[1]).transpose(2, 3)  # HERE


class Gathers(Nano):
    def gathered(self, pattern: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return pattern @ v.flip(1)  # HERE


class Clamped(Nano):
    def scaled(self, scores: Tensor, q: Tensor) -> Tensor:
        return (scores / q.shape[-1] ** 0.5).clamp(-0.5, 0.5)  # HERE


class Feeds(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd),
            nn.LeakyReLU(),  # HERE
            nn.Linear(4 * n_embd, n_embd),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transposed(Nano):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.c_attn(x).chunk(3, dim=-1))
        scores = k @ q.transpose(-2, -1) / q.shape[-1] ** 0.5  # HERE
        hidden = self.masked(scores)
        return self.c_proj((hidden.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))

    def masked(self, scores: Tensor) -> Tensor:
        later = torch.ones(scores.shape[-2:]).triu(1).bool()
        return scores.masked_fill(later, -torch.inf)


class Decorated(Nano):
    @torch.enable_grad()
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.c_attn(x).chunk(3, dim=-1))
        pattern = self.masked(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        pattern = pattern + 0.01  # HERE
        return self.c_proj((pattern @ v).transpose(1, 2).flatten(2))


class Unmasked(Nano):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__(n_embd, n_head)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.c_attn(x).chunk(3, dim=-1))
        pattern = self.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5)  # HERE
        return self.c_proj((pattern @ v).transpose(1, 2).flatten(2))


class Fused(Nano):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.c_attn(x).chunk(3, dim=-1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)  # HERE
        return self.c_proj(z.transpose(1, 2).flatten(2))


class Averaged(Nano):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.c_attn(x).chunk(3, dim=-1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        each = z @ self.c_proj.weight.T.unflatten(0, (self.n_head, -1))
        return each.mean(1) + self.c_proj.bias  # HERE


class Heads(nn.Module):
    """One head at a time."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (
            nn.ModuleList(nn.Linear(n_embd, n_embd // n_head) for _ in range(n_head)) for _ in range(3)
        )
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        heads = zip(self.q, self.k, self.v, strict=True)
        return self.proj(torch.cat([self.head(q(x), k(x), v(x)) for q, k, v in heads], dim=-1))

    def head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT * self.scale(q)  # HERE
        later = torch.ones(scores.shape[-2:]).triu(1).bool()
        return self.pattern(scores.masked_fill(later, -torch.inf)) @ v

    def scale(self, q: Tensor) -> float:
        return (3 * q.shape[-1]) ** -0.5

    def pattern(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


class Softened(Heads):
    def scale(self, q: Tensor) -> float:
        return q.shape[-1] ** -0.5

    def pattern(self, scores: Tensor) -> Tensor:
        return (scores / 2).softmax(-1)  # HERE


LOCATED = {
    Transposed: ("attention", "the scores q·k: their rows are keys, and GPT-2's are queries", ""),
    Decorated: ("attention", "what `+` gives (GPT-2 has the gathered values z next)", ""),
    Unmasked: ("attention", "what `softmax` gives (GPT-2 has the masked scores next)", ""),
    Fused: ("attention", "(GPT-2 has the gathered values z next)", "takes the queries"),
    Averaged: ("attention", "what `mean` gives: the output without b_O times a factor", "times 0.333333"),
    Heads: ("attention", "the scores q·k times a factor", "= 1/sqrt(d_model), with d_model=12 here"),
    Softened: ("attention", "what `/` gives: the masked scores times a factor", "gives the masked scores times 0.5."),
    ByLength: ("attention", "times a factor", "= 1/sqrt(seq), with seq="),
    Halved: ("attention", "times a factor", "the scaled scores times 0.5."),
    Window: ("attention", "which keys each query sees", "does not see key 0, an earlier position"),
    Mixed: ("attention", "the order of", "puts them into another order"),
    Gathers: ("attention", "the order of the values", "puts them into another order"),
    Clamped: ("attention", "what `clamp` gives", "makes numbers from -0.5 to 0.5"),
    Feeds: ("mlp", "what `leaky_relu` gives (GPT-2 has the hidden layer after the activation next)", ""),
}


def located(layer: type[nn.Module], name: str) -> tuple[Trial, Trace]:
    case = draw_case(random.Random(5))
    config = replace(case.config, n_heads=3, d_head=4, d_model=12, d_mlp=48, act_fn="gelu_new", scale_attn_weights=True)
    trial = make_trial(rung(name), rung(name).own, replace(case, batch=2, seq=7, config=config), torch.float64)
    candidate = Candidate(layer, "mine", Code(Path(__file__)))
    reply = candidate.respond(Request(trial, look=True))
    assert reply.fault is None, reply.fault
    return trial, reply.trace


@pytest.mark.parametrize("layer", LOCATED, ids=lambda layer: layer.__name__)
def test_a_mistake_that_is_not_listed_is_located_at_its_line(layer: type[nn.Module]) -> None:
    name, wrong, detail = LOCATED[layer]
    found = locate(*located(layer, name))
    assert found is not None, layer
    assert "# HERE" in (found.code or ""), found
    assert wrong in found.wrong
    assert detail in " ".join(found.detail)


def test_a_right_layer_has_nothing_to_find_and_every_step_is_seen() -> None:
    trial, trace = located(Nano, "attention")
    assert locate(trial, trace) is None
    steps = {quantity.key for each in Matched(trial, trace).seen for quantity in each.is_}
    assert steps >= {"Q", "K", "V", "raw", "scores", "masked", "pattern", "z", "output"}


def test_a_layer_that_draws_is_located_by_what_differs() -> None:
    class Draws(Nano):
        def gathered(self, pattern: Tensor, v: Tensor, x: Tensor) -> Tensor:
            return F.dropout(pattern, 0.5) @ v  # HERE

    trial, one = located(Draws, "attention")
    _, other = located(Draws, "attention")
    found = locate(trial, one, other)
    assert found is not None
    assert "# HERE" in (found.code or "")
    assert found.wrong == "a random step"


def test_a_factor_is_found_whatever_the_order_and_only_if_it_is_one() -> None:
    right = torch.randn(3, 4, dtype=torch.float64)
    assert factor_of(2.5 * right.T.flip(0), right) == pytest.approx(2.5)
    assert factor_of(-right, right) == pytest.approx(-1)
    assert factor_of(right, right) is None
    assert factor_of(right**3, right) is None


@pytest.mark.parametrize("each", RUNGS, ids=lambda each: each.name)
def test_the_quantities_end_in_the_layers_own_output(each: Rung) -> None:
    for seed in (0, 1):
        trial = make_trial(each, each.own, untied(random.Random(seed)), torch.float64)
        last = quantities(trial)[-1]
        assert last.key == "output"
        assert torch.allclose(last.value.expand_as(trial.expected.output), trial.expected.output, 0, 1e-12)


def test_whose_pattern_is_shown_is_reported() -> None:
    masked = diagnosed(built("attention", named(MISTAKES, "no causal mask").build))
    assert list(masked.patterns) == ["the right one", "of a layer with your mistake"]
    assert masked.patterns["the right one"].triu(1).abs().max() == 0
    assert examine(PlainMLP, "mlp", widen=lambda self, x: x @ self.W_in).patterns == {}


def test_wrong_parts_and_wrong_wiring_are_named_together() -> None:
    steps = {"after_mlp": lambda self, x, mid: self.mlp(self.ln2(mid))}
    found = diagnosed(built("block", with_steps(PlainBlock, steps)))
    assert found.mistakes == ("residual added once",)
    assert PlainModel.__name__ == "PlainModel"
