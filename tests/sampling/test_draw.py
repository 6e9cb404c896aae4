"""Drawing: the same tokens as transformers, the frequencies that the probabilities ask for, and nothing else ever."""

import functools
import math
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptladder.components.shapes import TypeCheckError
from gptladder.sampling.draw import greedy, inverse_cdf, multinomial, row_uniforms
from gptladder.sampling.params import SamplingParams
from gptladder.sampling.transforms import Chain, MinP, TopK, TopP

N = 20_000
ALPHA = 1e-6
SEED = 42

FLAT = 1e-3 * torch.arange(50.0)  # all different, so that top-k can choose
PEAKED = -0.4 * torch.arange(50.0) + 8 * (torch.arange(50) == 7)  # token 7: 98%
UNDER_ONE = 1 - 2**-53  # the largest number that torch.rand gives in float64


each_draw = pytest.mark.parametrize(
    "draw",
    [greedy, multinomial, lambda logits: inverse_cdf(logits, torch.full((len(logits),), 0.5, dtype=torch.float64))],
    ids=["greedy", "multinomial", "inverse_cdf"],
)


def goodness_of_fit(counts: Tensor, probs: Tensor) -> float:
    """The p-value of Pearson's chi-square test, the outcomes expected fewer than 5 times taken together."""
    expected, order = (counts.sum() * probs.double()).sort()
    rare = max(int((expected < 5).sum()), 1 + int((expected.cumsum(0) < 5).sum()))
    observed, expected = (torch.cat([bins[:rare].sum()[None], bins[rare:]]) for bins in (counts[order], expected))
    assert expected.min() >= 5
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor(len(expected) - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def test_the_chi_square_test_itself() -> None:
    """Against values that any table holds, and with rare outcomes merged: 4 and 2 expected become one bin of 6."""
    assert goodness_of_fit(torch.tensor([60, 40]), torch.tensor([0.5, 0.5])) == pytest.approx(0.0455003, abs=1e-6)
    assert goodness_of_fit(torch.tensor([30, 20, 10]), torch.ones(3) / 3) == pytest.approx(math.exp(-5), abs=1e-6)
    merged = goodness_of_fit(torch.tensor([94, 1, 5]), torch.tensor([0.94, 0.04, 0.02]))
    assert merged == pytest.approx(1.0, abs=1e-6)


# Frequencies


def by_multinomial(logits: Tensor) -> Tensor:
    return multinomial(logits.expand(N, -1), torch.Generator().manual_seed(SEED))


def by_one_generator(logits: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return inverse_cdf(logits.expand(N, -1), row_uniforms([generator] * N))


@functools.cache
def uniforms_of_each_row() -> Tensor:
    return row_uniforms([torch.Generator().manual_seed(SEED + row) for row in range(N)])


def by_a_generator_for_each_row(logits: Tensor) -> Tensor:
    """Seeds in sequence, as a user gives them, must be as good as one long stream."""
    return inverse_cdf(logits.expand(N, -1), uniforms_of_each_row())


@pytest.mark.parametrize("draw", [by_multinomial, by_one_generator, by_a_generator_for_each_row])
@pytest.mark.parametrize("logits", [FLAT, PEAKED], ids=["flat", "peaked"])
@pytest.mark.parametrize("chain", [Chain(), Chain([TopK(10)]), Chain([TopP(0.99)]), Chain([MinP(0.002)])], ids=str)
def test_tokens_come_as_often_as_they_are_probable(
    draw: Callable[[Tensor], Tensor], logits: Tensor, chain: Chain
) -> None:
    logits = chain(torch.zeros(1, 0, dtype=torch.long), logits[None])[0]
    probs = logits.double().softmax(-1)
    counts = draw(logits).bincount(minlength=len(logits))
    assert counts.sum() == N
    assert counts[probs == 0].sum() == 0
    assert goodness_of_fit(counts, probs) > ALPHA


@pytest.mark.parametrize("draw", [by_multinomial, by_one_generator, by_a_generator_for_each_row])
def test_the_frequencies_would_betray_a_wrong_temperature(draw: Callable[[Tensor], Tensor]) -> None:
    counts = draw(PEAKED).bincount(minlength=len(PEAKED))
    assert goodness_of_fit(counts, (PEAKED / 1.1).softmax(-1)) < ALPHA


# As transformers


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=20),
        SamplingParams(top_p=0.8, repetition_penalty=1.3),
        SamplingParams(temperature=1.5, min_p=0.02, typical_p=0.9, no_repeat_ngram_size=2),
        SamplingParams(temperature=0),
    ],
    ids=["plain", "top-k", "top-p", "typical", "greedy"],
)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_tokens_are_those_of_transformers_generate(params: SamplingParams, seed: int) -> None:
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=64, vocab_size=97, bos_token_id=0, eos_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config).eval()
    prompt, new = torch.randint(1, 97, (1, 5)), 30
    chain = params.chain(prompt_width=5, eos_token_ids=[0])

    torch.manual_seed(seed)
    history = prompt
    for _ in range(new):
        logits = chain(history, model(history).logits[:, -1])
        token = greedy(logits) if params.greedy else multinomial(logits)
        history = torch.cat([history, token[:, None]], dim=1)

    settings = {name: value for name, value in vars(params).items() if value != getattr(SamplingParams(), name)}
    settings = {"do_sample": not params.greedy, "top_k": 0, **settings}
    torch.manual_seed(seed)
    theirs = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, use_cache=False, eos_token_id=None,
        pad_token_id=0, **settings,
    )  # fmt: skip
    assert torch.equal(history, theirs)


# Nothing else ever

LOGITS = st.floats(-10, 10) | st.floats(-800, 800) | st.just(-math.inf)


@given(
    npst.arrays(np.float64, npst.array_shapes(min_dims=2, max_dims=2), elements=LOGITS),
    st.sampled_from([torch.float32, torch.float64]),
    st.data(),
)
def test_inverse_cdf_finds_the_token_that_the_number_falls_on(
    values: np.ndarray, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Also for numbers at both ends, and right on the border between two tokens."""
    logits = torch.from_numpy(values).to(dtype)
    assume(bool((logits.amax(-1) > -torch.inf).all()))
    probs = logits.softmax(-1, dtype=torch.float64)
    borders = probs.cumsum(-1)
    edges = st.sampled_from([0.0, 5e-324, 2**-53, UNDER_ONE, *borders[borders < 1].tolist()])
    uniforms = torch.tensor([data.draw(edges | st.floats(0, UNDER_ONE)) for _ in logits], dtype=torch.float64)
    tokens = inverse_cdf(logits, uniforms)[:, None]
    reached = borders.gather(1, tokens)
    assert (probs.gather(1, tokens) > 0).all()
    assert (reached > uniforms[:, None] * borders[:, -1:]).all()
    assert (reached - probs.gather(1, tokens) <= uniforms[:, None] + 1e-15).all()


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 2), (0.499, 2), (0.5, 4), (UNDER_ONE, 4)])
def test_inverse_cdf_at_the_ends(uniform: float, token: int) -> None:
    """Tokens 0 and 5 are banned, 1 and 6 less probable than float64 can say."""
    logits = torch.tensor([[-torch.inf, -800.0, 0.0, -torch.inf, 0.0, -torch.inf, -800.0]])
    assert inverse_cdf(logits, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_the_largest_uniform_stays_under_a_rounded_total() -> None:
    """Thirds and sevenths sum to a little less or more than 1: the last token is the last that may be drawn."""
    for d_vocab in (3, 7, 10, 49, 1000, 50_257):
        logits = torch.cat([torch.zeros(1, d_vocab), torch.full((1, 3), -torch.inf)], dim=1)
        assert inverse_cdf(logits, torch.tensor([UNDER_ONE], dtype=torch.float64)).item() == d_vocab - 1


@each_draw
def test_the_only_token_left_is_taken(draw: Callable[[Tensor], Tensor]) -> None:
    logits = torch.full((6, 6), -torch.inf).fill_diagonal_(-3.0)
    assert draw(logits).tolist() == [0, 1, 2, 3, 4, 5]


# One row and its neighbours


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(2, 300))
def test_a_rows_token_depends_on_that_row_alone(seed: int, batch: int, d_vocab: int) -> None:
    logits = 2 * torch.randn(batch, d_vocab, generator=torch.Generator().manual_seed(seed))

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed + row) for row in range(batch)]

    together = inverse_cdf(logits, row_uniforms(generators()))
    alone = [inverse_cdf(logits[row : row + 1], row_uniforms([generators()[row]])) for row in range(batch)]
    assert torch.equal(together, torch.cat(alone))


def test_a_token_costs_a_generator_one_number() -> None:
    ours, plain = (torch.Generator().manual_seed(SEED) for _ in range(2))
    taken = torch.cat([row_uniforms([ours]) for _ in range(5)])
    assert torch.equal(taken, torch.rand(5, generator=plain, dtype=torch.float64))
    assert torch.equal(ours.get_state(), plain.get_state())


def test_multinomial_uses_the_generator_given_and_leaves_torchs_own() -> None:
    logits, before = torch.zeros(4, 1000), torch.get_rng_state()
    first, second = (multinomial(logits, torch.Generator().manual_seed(SEED)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, multinomial(logits, torch.Generator().manual_seed(SEED + 1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_takes_the_first_of_tied_tokens() -> None:
    assert greedy(torch.tensor([[0.0, 2.0, 2.0], [1.0, -torch.inf, 1.0]])).tolist() == [1, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inverse_cdf_draws_the_same_on_a_gpu() -> None:
    logits = 3 * torch.randn(64, 50_257, generator=torch.Generator().manual_seed(SEED))
    uniforms = torch.rand(64, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    tokens = inverse_cdf(logits.cuda(), uniforms)
    assert tokens.is_cuda
    assert torch.equal(tokens.cpu(), inverse_cdf(logits, uniforms))


# Wrong input


@each_draw
def test_a_row_that_cannot_be_drawn_from_is_named(draw: Callable[[Tensor], Tensor]) -> None:
    fine = [0.0, 1.0, -torch.inf]
    with pytest.raises(
        ValueError, match=r"^no token is left to choose in row 1: all 3 are banned; loosen .*bad_words_ids"
    ):
        draw(torch.tensor([fine, [-torch.inf] * 3]))
    with pytest.raises(
        ValueError, match=r"^the logits of row 2 are not finite \(largest: nan\): the model has diverged"
    ):
        draw(torch.tensor([fine, fine, [0.0, torch.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"row 0 are not finite \(largest: inf\).* temperature is too near 0"):
        draw(torch.tensor([[0.0, torch.inf, 1.0], fine]))


def test_drawing_refuses_a_chain_that_bans_everything() -> None:
    params = SamplingParams(allowed_token_ids=[1, 2], bad_words_ids=[[1], [2]])
    logits = params.chain(prompt_width=0)(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="no token is left to choose in row 0: all 5 are banned"):
        greedy(logits)


@pytest.mark.parametrize("uniform", [-0.1, 1.0, math.nan])
def test_a_uniform_outside_its_interval_is_refused(uniform: float) -> None:
    with pytest.raises(ValueError, match=r"uniforms must lie in \[0, 1\), not \["):
        inverse_cdf(torch.zeros(1, 3), torch.tensor([uniform], dtype=torch.float64))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(TypeCheckError, match="logits"):
        greedy(torch.zeros(3))
    with pytest.raises(TypeCheckError, match="logits"):
        multinomial(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(TypeCheckError, match="uniforms"):
        inverse_cdf(torch.zeros(1, 3), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(TypeCheckError, match="uniforms"):
        inverse_cdf(torch.zeros(1, 3), torch.zeros(1))
