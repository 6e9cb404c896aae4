"""Each transform against transformers' processor of the same kind, against its definition, and against what must hold.

transformers has no frequency and no presence penalty: those are held against a count in plain Python.

Knife edges are left out: where a probability, or a sum of them, lies within `EDGE` of the number it is compared with,
two correct programs may round to different sides.
"""

import copy
import dataclasses
import math
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process

from gptladder.components.shapes import TypeCheckError
from gptladder.sampling.transforms import (
    PADDING,
    AllowedTokens,
    BadWords,
    Chain,
    Epsilon,
    Eta,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    MinP,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from gptladder.sampling.transforms.base import Transform

# The types of transformers ask for a torch.LongTensor, which no function of torch returns.
hf: Any = logits_process

EDGE = 1e-5
DTYPES = st.sampled_from([torch.float32, torch.float64])
PROBABILITIES = st.floats(0.01, 0.99)


@st.composite
def logits_of(draw: st.DrawFn, most_tokens: int = 24, distinct: bool = False) -> Tensor:
    """Logits of -20 to 20, tied and banned ones among them unless ``distinct``; every row has one token free."""
    batch, d_vocab = draw(st.integers(1, 4)), draw(st.integers(2, most_tokens))
    dtype = draw(DTYPES)
    if distinct:
        seed, scale = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.1, 1.0, 5.0]))
        logits = scale * torch.randn(batch, d_vocab, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        assume(all(len(row.unique()) == d_vocab for row in logits))
        return logits
    values = st.floats(-20, 20, width=32) | st.just(-math.inf)
    logits = torch.from_numpy(draw(npst.arrays(np.float64, (batch, d_vocab), elements=values))).to(dtype)
    assume(bool((logits.amax(-1) > -torch.inf).all()))
    return logits


@st.composite
def texts_of(draw: st.DrawFn, longest: int = 12) -> tuple[Tensor, Tensor]:
    """History [batch seq] without padding, over a small vocabulary so that tokens and n-grams repeat, and logits."""
    logits = draw(logits_of(most_tokens=6))
    batch, d_vocab = logits.shape
    seq = draw(st.integers(0, longest))
    tokens = draw(npst.arrays(np.int64, (batch, seq), elements=st.integers(0, d_vocab - 1)))
    return torch.from_numpy(tokens), logits


def no_history(logits: Tensor) -> Tensor:
    return torch.zeros(len(logits), 0, dtype=torch.long)


def support(logits: Tensor) -> Tensor:
    return logits > -torch.inf


# The distribution as a whole, against transformers


@given(logits_of(), st.floats(0.05, 20))
def test_temperature_equals_transformers(logits: Tensor, temperature: float) -> None:
    history = no_history(logits)
    assert torch.equal(
        Temperature(temperature)(history, logits), hf.TemperatureLogitsWarper(temperature)(history, logits)
    )


@given(logits_of(), st.integers(1, 30))
def test_top_k_equals_transformers_ties_included(logits: Tensor, k: int) -> None:
    history = no_history(logits)
    assert torch.equal(TopK(k)(history, logits), hf.TopKLogitsWarper(k)(history, logits))


@given(logits_of(distinct=True), st.data())
def test_top_k_keeps_exactly_k_distinct_logits(logits: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, logits.shape[1]))
    kept = TopK(k)(no_history(logits), logits)
    assert (support(kept).sum(-1) == k).all()
    assert torch.equal(kept.sort(descending=True).values[:, :k], logits.sort(descending=True).values[:, :k])


def check_top_p(logits: Tensor, p: float) -> None:
    upwards = logits.sort().values.softmax(-1).cumsum(-1)
    assume(((upwards - (1 - p)).abs() > EDGE).all())
    ours = TopP(p)(no_history(logits), logits)
    theirs = hf.TopPLogitsWarper(p)(no_history(logits), logits)
    # Of tied tokens either may be kept: the values kept are compared, and that each stands in its place.
    assert torch.equal(ours.sort().values, theirs.sort().values)
    assert torch.equal(ours[support(ours)], logits[support(ours)])


@given(logits_of(), PROBABILITIES)
def test_top_p_equals_transformers(logits: Tensor, p: float) -> None:
    check_top_p(logits, p)


@given(logits_of(distinct=True), PROBABILITIES)
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: Tensor, p: float) -> None:
    probs = logits.softmax(-1)
    kept = support(TopP(p)(no_history(logits), logits))
    masses = (probs * kept).sum(-1)
    least = probs.masked_fill(~kept, 2).amin(-1)
    assert (masses > p - EDGE).all()
    assert (masses - least < p + EDGE).all()
    assert (least > probs.masked_fill(kept, -1).amax(-1)).all()


@given(logits_of())
@example(torch.tensor([[0.0, -20.0]]))  # the first token's probability rounds to 1
def test_top_p_of_1_and_min_p_of_0_change_nothing(logits: Tensor) -> None:
    assert torch.equal(TopP(1.0)(no_history(logits), logits), logits)
    assert torch.equal(MinP(0.0)(no_history(logits), logits), logits)


@given(logits_of(), st.floats(0, 1))
@example(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 1.0)
def test_min_p_equals_transformers(logits: Tensor, p: float) -> None:
    best = logits.amax(-1, keepdim=True)
    ratio = (logits - best).exp()
    assume((((ratio - p).abs() > EDGE * p) | (logits == best)).all())
    assume(p == 0 or p > 1e-30)  # theirs compares probabilities, which vanish in float32 where logits do not
    assert torch.equal(MinP(p)(no_history(logits), logits), hf.MinPLogitsWarper(p)(no_history(logits), logits))


def check_typical(logits: Tensor, mass: float) -> None:
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).nansum(-1, keepdim=True)
    distance, order = (-log_probs - entropy).abs().sort()
    reached = log_probs.gather(1, order).exp().cumsum(-1)
    assume(((reached - mass).abs() > EDGE).all())
    gaps = distance.diff()
    assume(((gaps == 0) | (gaps > EDGE) | gaps.isnan()).all())  # nearly tied tokens may change places
    theirs = hf.TypicalLogitsWarper(mass)(no_history(logits), logits)
    assert torch.equal(Typical(mass)(no_history(logits), logits), theirs)


@given(logits_of(), PROBABILITIES)
@example(torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf]]), 0.3)
def test_typical_equals_transformers(logits: Tensor, mass: float) -> None:
    check_typical(logits, mass)


@given(logits_of(), PROBABILITIES)
def test_epsilon_equals_transformers(logits: Tensor, epsilon: float) -> None:
    assume(((logits.softmax(-1) - epsilon).abs() > EDGE).all())
    theirs = hf.EpsilonLogitsWarper(epsilon)(no_history(logits), logits)
    assert torch.equal(Epsilon(epsilon)(no_history(logits), logits), theirs)


@given(logits_of(), PROBABILITIES)
@example(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6)  # the cutoff lies between the last two
@example(torch.linspace(0, 1, 24)[None], 0.01)  # a high entropy: the cutoff falls under epsilon
def test_eta_equals_transformers(logits: Tensor, epsilon: float) -> None:
    probs = logits.softmax(-1)
    entropy = torch.special.entr(probs).sum(-1, keepdim=True)
    cutoff = (math.sqrt(epsilon) * (-entropy).exp()).clamp(max=epsilon)
    assume(((probs - cutoff).abs() > EDGE).all())
    theirs = hf.EtaLogitsWarper(epsilon)(no_history(logits), logits)
    assert torch.equal(Eta(epsilon)(no_history(logits), logits), theirs)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 3.0]), st.sampled_from([257, 3000, 5000]), PROBABILITIES)
def test_masses_over_a_large_vocabulary(seed: int, scale: float, d_vocab: int, mass: float) -> None:
    """The mass lies among the first 256 tokens, the first 4,096 or further down; in float64, where no edge is met."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([[scale], [8.0]], dtype=torch.float64)
    logits = scales * torch.randn(2, d_vocab, generator=generator, dtype=torch.float64)
    history = no_history(logits)
    assert torch.equal(TopP(mass)(history, logits), hf.TopPLogitsWarper(mass)(history, logits))
    assert torch.equal(Typical(mass)(history, logits), hf.TypicalLogitsWarper(mass)(history, logits))


@pytest.mark.parametrize(("d_vocab", "p", "kept"), [(4, 0.6, 3), (1000, 0.5005, 501), (50_257, 0.9, 45_232)])
def test_top_p_of_equal_logits(d_vocab: int, p: float, kept: int) -> None:
    logits = torch.zeros(2, d_vocab)
    assert support(TopP(p)(no_history(logits), logits)).sum(-1).tolist() == [kept, kept]


# Single tokens, against transformers


@given(texts_of(), st.floats(0.1, 3))
def test_repetition_penalty_equals_transformers(text: tuple[Tensor, Tensor], penalty: float) -> None:
    assert torch.equal(RepetitionPenalty(penalty)(*text), hf.RepetitionPenaltyLogitsProcessor(penalty)(*text))


@given(texts_of(), st.integers(1, 5))
def test_no_repeat_ngram_equals_transformers(text: tuple[Tensor, Tensor], n: int) -> None:
    assert torch.equal(NoRepeatNGram(n)(*text), hf.NoRepeatNGramLogitsProcessor(n)(*text))


@given(texts_of(), st.data())
def test_bad_words_equal_transformers(text: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    tokens = st.integers(0, text[1].shape[1] - 1)
    words = data.draw(st.lists(st.lists(tokens, min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple))
    assert torch.equal(BadWords(words)(*text), hf.NoBadWordsLogitsProcessor(words)(*text))


@given(texts_of(), st.data())
def test_logit_bias_equals_transformers(text: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    tokens = st.integers(0, text[1].shape[1] - 1)
    biases = data.draw(st.dictionaries(tokens, st.floats(-30, 30, width=32) | st.just(-math.inf), min_size=1))
    theirs = hf.SequenceBiasLogitsProcessor({(token,): bias for token, bias in biases.items()})
    assert torch.equal(LogitBias(biases)(*text), theirs(*text))


@given(texts_of(), st.integers(0, 12), st.integers(0, 6), st.data())
def test_min_new_tokens_equals_transformers(
    text: tuple[Tensor, Tensor], prompt_width: int, least: int, data: st.DataObject
) -> None:
    ends = data.draw(st.lists(st.integers(0, text[1].shape[1] - 1), min_size=1, max_size=3))
    theirs = hf.MinNewTokensLengthLogitsProcessor(prompt_width, least, ends)
    assert torch.equal(MinNewTokens(least, ends, prompt_width)(*text), theirs(*text))


@given(texts_of(), st.data())
def test_allowed_tokens_equal_transformers(text: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    history, logits = text
    ids = data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=1))
    assume(support(logits[:, ids]).any(-1).all())  # with none left theirs lifts the earlier bans, ours does not
    theirs = hf.PrefixConstrainedLogitsProcessor(lambda row, tokens: ids, num_beams=1)
    assert torch.equal(AllowedTokens(ids)(history, logits), theirs(history, logits))


def test_allowed_tokens_lift_no_ban() -> None:
    logits = torch.tensor([[-torch.inf, 1.0]])
    assert not support(AllowedTokens([0])(no_history(logits), logits)).any()


# What transformers has not


@given(texts_of(), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 12))
def test_frequency_and_presence_penalties_by_their_definition(
    text: tuple[Tensor, Tensor], frequency: float, presence: float, prompt_width: int
) -> None:
    history, logits = text
    counts = [Counter(row[prompt_width:]) for row in history.tolist()]
    count = torch.tensor([[row[token] for token in range(logits.shape[1])] for row in counts]).to(logits)
    by_count = FrequencyPenalty(frequency, prompt_width)(history, logits)
    by_presence = PresencePenalty(presence, prompt_width)(history, logits)
    tolerance = 1e-12 if logits.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(by_count, logits - frequency * count, atol=tolerance, rtol=0)
    torch.testing.assert_close(by_presence, logits - presence * (count > 0).to(logits), atol=tolerance, rtol=0)


# What holds for all


BY_DISTRIBUTION = [
    Temperature(0.7), TopK(3), TopP(0.6), MinP(0.2), Typical(0.6), Epsilon(0.1), Eta(0.1),
]  # fmt: skip
BY_HISTORY = [
    RepetitionPenalty(1.3), FrequencyPenalty(0.5, 4), PresencePenalty(0.5, 4), NoRepeatNGram(1), NoRepeatNGram(2),
    NoRepeatNGram(3), BadWords([[0], [1, 0], [0, 1, 1]]), MinNewTokens(3, [1], 4),
]  # fmt: skip
ALL = [*BY_DISTRIBUTION, *BY_HISTORY, LogitBias({0: 1.5, 1: -2.0}), AllowedTokens([0, 1])]
ALL = [*ALL, Chain(ALL)]
each = pytest.mark.parametrize("transform", ALL, ids=lambda transform: type(transform).__name__)


# All transforms get the texts of one test: to draw a text takes longer than to transform it.


@given(text=texts_of())
def test_the_input_is_left_alone(text: tuple[Tensor, Tensor]) -> None:
    history, logits = text
    before = history.clone(), logits.clone()
    for transform in ALL:
        transform(history, logits)
        assert torch.equal(history, before[0]), transform
        assert torch.equal(logits, before[1]), transform


@given(text=texts_of())
def test_a_batch_is_its_rows_one_by_one(text: tuple[Tensor, Tensor]) -> None:
    history, logits = text
    for transform in ALL:
        rows = [transform(history[i : i + 1], logits[i : i + 1]) for i in range(len(logits))]
        assert torch.equal(transform(history, logits), torch.cat(rows)), transform


def pad_prompts(transform: Any, width: int) -> Any:
    """The same transform for prompts that are wider by so many columns of padding."""
    if hasattr(transform, "prompt_width"):
        return dataclasses.replace(transform, prompt_width=transform.prompt_width + width)
    if isinstance(transform, Chain):
        return Chain([pad_prompts(step, width) for step in transform.transforms])
    return transform


@given(text=texts_of(), padding=st.integers(1, 4))
def test_left_padding_is_no_text(text: tuple[Tensor, Tensor], padding: int) -> None:
    history, logits = text
    padded = torch.cat([torch.full((len(history), padding), PADDING), history], dim=1)
    for transform in ALL:
        found = pad_prompts(transform, padding)(padded, logits)
        assert torch.equal(found, transform(history, logits)), transform


def test_prompts_of_different_lengths_side_by_side() -> None:
    """Row 1's prompt is shorter by two: its padding is neither a token nor part of an n-gram, (-1, -1) or (-1, 2)."""
    history = torch.tensor([[0, 1, 2, 0, 1], [PADDING, PADDING, 2, 3, 3]])
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).repeat(2, 1)
    banned = -torch.inf
    assert NoRepeatNGram(2)(history, logits).tolist() == [[4, 3, banned, 1], [4, 3, 2, banned]]
    assert RepetitionPenalty(2.0)(history, logits).tolist() == [[2, 1.5, 1, 1], [4, 3, 1, 0.5]]
    assert FrequencyPenalty(0.5, prompt_width=3)(history, logits).tolist() == [[3.5, 2.5, 2, 1], [4, 3, 2, 0]]
    short = torch.tensor([[0, 1, 0], [PADDING, PADDING, 2]])
    assert NoRepeatNGram(3)(short, logits).tolist() == [[4, 3, 2, 1], [4, 3, 2, 1]]


@given(logits=logits_of())
def test_the_likeliest_token_stays_the_likeliest(logits: Tensor) -> None:
    for transform in [t for t in BY_DISTRIBUTION if not isinstance(t, Typical)]:
        after = transform(no_history(logits), logits)
        best = after.argmax(-1, keepdim=True)
        assert torch.equal(logits.gather(1, best), logits.amax(-1, keepdim=True)), transform
        assert support(after).any(-1).all(), transform


@given(logits_of(distinct=True), PROBABILITIES, PROBABILITIES, st.integers(1, 10), st.integers(1, 10))
def test_supports_are_nested(logits: Tensor, a: float, b: float, j: int, k: int) -> None:
    history = no_history(logits)
    less, more = sorted((a, b))

    def nested(small: Callable[..., Tensor], large: Callable[..., Tensor]) -> bool:
        return bool((support(small(history, logits)) <= support(large(history, logits))).all())

    assert nested(TopK(min(j, k)), TopK(max(j, k)))
    assert nested(TopP(less), TopP(more))
    assert nested(Typical(less), Typical(more))
    assert nested(MinP(more), MinP(less))
    assert nested(Epsilon(more), Epsilon(less))
    assert nested(Eta(more), Eta(less))


@pytest.mark.parametrize("transform", BY_DISTRIBUTION, ids=repr)
@given(logits=logits_of(distinct=True), data=st.data())
@settings(max_examples=50)
def test_renaming_the_tokens_renames_the_result(transform: Any, logits: Tensor, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(logits.shape[1]))))
    probs = transform(no_history(logits), logits).softmax(-1)
    renamed = transform(no_history(logits), logits[:, order]).softmax(-1)
    # The order of summation changes: a token at the edge may come or go, and then much more than EDGE moves.
    assume(far_from_the_edge(transform, logits))
    torch.testing.assert_close(renamed, probs[:, order], atol=EDGE, rtol=0)


def far_from_the_edge(transform: Any, logits: Tensor) -> bool:
    """Whether the transform keeps the same tokens when its number is a little larger and a little smaller."""
    if isinstance(transform, Temperature | TopK):
        return True
    (number,) = dataclasses.astuple(transform)
    around = [support(type(transform)(number * (1 + sign * EDGE))(no_history(logits), logits)) for sign in (-1, 1)]
    return torch.equal(*around)


@given(text=texts_of(), data=st.data())
def test_renaming_the_tokens_of_the_text_too(text: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    history, logits = text
    order = torch.tensor(data.draw(st.permutations(range(logits.shape[1]))))
    name = order.argsort()
    for transform in [t for t in BY_HISTORY if not hasattr(t, "words")]:
        renamed = transform
        if isinstance(transform, MinNewTokens):
            renamed = dataclasses.replace(transform, eos_token_ids=[int(name[i]) for i in transform.eos_token_ids])
        found = renamed(name[history], logits[:, order])
        assert torch.equal(found, transform(history, logits)[:, order]), transform


@each
def test_rows_in_which_all_is_banned_stay_so(transform: Any) -> None:
    """Whether any token is left is for drawing to say, once, and not for every transform."""
    logits = torch.full((2, 6), -torch.inf)
    assert not support(transform(torch.zeros(2, 5, dtype=torch.long), logits)).any()


@each
def test_calling_changes_nothing_about_the_dataclass(transform: Any) -> None:
    fresh = copy.deepcopy(transform)
    text = repr(transform)
    transform(torch.tensor([[0, 1, 2]]), torch.tensor([[3.0, 2.0, 1.0, 0.0]]))
    for other in (fresh, dataclasses.replace(transform), pickle.loads(pickle.dumps(transform))):
        assert transform == other
        assert hash(transform) == hash(other)
        assert repr(other) == text
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(transform, dataclasses.fields(transform)[0].name, 1)


def test_a_mapping_changed_later_does_not_reach_the_transform() -> None:
    biases = {0: 1.0}
    transform = LogitBias(biases)
    biases[0] = 5.0
    assert transform(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 2)).tolist() == [[1.0, 0.0]]


def test_a_token_of_the_prompt_that_cannot_be_generated_changes_no_logit() -> None:
    logits = torch.ones(1, 3)
    assert RepetitionPenalty(2.0)(torch.tensor([[9, 1]]), logits).tolist() == [[1, 0.5, 1]]


def test_a_transform_needs_a_formula() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Transform()  # pyright: ignore[reportAbstractUsage]


def test_a_chain_runs_in_order_with_a_function_among_its_steps() -> None:
    history, logits = torch.tensor([[0]]), torch.tensor([[1.0, 2.0, 4.0]])
    seen = []

    def double(history: Tensor, logits: Tensor) -> Tensor:
        seen.append(history)
        return 2 * logits

    assert Chain([TopK(1), double])(history, logits).tolist() == [[-torch.inf, -torch.inf, 8.0]]
    assert Chain([double, LogitBias({2: -7.0}), TopK(1)])(history, logits).tolist() == [[-torch.inf, 4.0, -torch.inf]]
    assert all(torch.equal(history, each) for each in seen)
    assert len(seen) == 2
    assert Chain()(history, logits) is logits


# Wrong input


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Temperature(0.0), "temperature must be from 1e-06 to 1e[+]06.*greedy.*not 0.0"),
        (lambda: Temperature(-1.0), "temperature must be from 1e-06 to 1e[+]06.*not -1.0"),
        (lambda: Temperature(1e6 + 1), "temperature must be from 1e-06 to 1e[+]06.*not 1000001.0"),
        (lambda: Temperature(math.nan), "temperature must be from 1e-06 to 1e[+]06.*not nan"),
        (lambda: TopK(0), "top_k must be a whole number of at least 1, not 0"),
        (lambda: TopK(2.5), "top_k must be a whole number of at least 1, not 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: TopP(0.0), "top_p must be above 0 and at most 1.*not 0.0"),
        (lambda: TopP(1.01), "top_p must be above 0 and at most 1.*not 1.01"),
        (lambda: MinP(-0.1), "min_p must be from 0 to 1 .*, not -0.1"),
        (lambda: MinP(1.1), "min_p must be from 0 to 1 .*, not 1.1"),
        (lambda: Typical(0.0), "typical_p must be between 0 and 1.*not 0.0"),
        (lambda: Typical(1.0), "typical_p must be between 0 and 1.*not 1.0"),
        (lambda: Epsilon(0.0), "epsilon_cutoff must be between 0 and 1.*not 0.0"),
        (lambda: Epsilon(1.0), "epsilon_cutoff must be between 0 and 1.*not 1.0"),
        (lambda: Eta(0.0), "eta_cutoff must be between 0 and 1.*not 0.0"),
        (lambda: Eta(1.0), "eta_cutoff must be between 0 and 1.*not 1.0"),
        (lambda: RepetitionPenalty(0.0), "repetition_penalty must be from 1e-06 to 1e[+]06.*not 0.0"),
        (lambda: FrequencyPenalty(math.inf, 0), "frequency_penalty must be from -1e[+]06 to 1e[+]06, not inf"),
        (lambda: FrequencyPenalty(1e6 + 1, 0), "frequency_penalty must be from .*, not 1000001.0"),
        (lambda: FrequencyPenalty(1.0, -1), "prompt_width must be a whole number of at least 0, not -1"),
        (lambda: PresencePenalty(math.nan, 0), "presence_penalty must be from -1e[+]06 to 1e[+]06, not nan"),
        (lambda: PresencePenalty(1.0, -1), "prompt_width must be a whole number of at least 0, not -1"),
        (lambda: NoRepeatNGram(0), "no_repeat_ngram_size must be a whole number of at least 1, not 0"),
        (lambda: LogitBias({}), "logit_bias must name at least one token"),
        (lambda: LogitBias({-1: 1.0}), "each token of logit_bias must be a whole number of at least 0.*not -1"),
        (lambda: LogitBias({7: math.inf}), r"logit_bias of token 7 must be from .* \(or -inf: never\), not inf"),
        (lambda: LogitBias({7: 1e9 + 1}), r"logit_bias of token 7 must be from .*, not 1000000001.0"),
        (lambda: LogitBias({7: math.nan}), r"logit_bias of token 7 must be from .*, not nan"),
        (lambda: BadWords([]), "bad_words_ids must list at least one word"),
        (lambda: BadWords([[1], []]), "bad_words_ids must name at least one token"),
        (lambda: BadWords([[1, -1]]), "each token of bad_words_ids must be a whole number of at least 0.*not -1"),
        (lambda: BadWords(["no"]), "each token of bad_words_ids must be a whole number of at least 0.*not 'n'"),  # pyright: ignore[reportArgumentType]
        (lambda: AllowedTokens([]), "allowed_token_ids must name at least one token"),
        (lambda: AllowedTokens([1.5]), "each token of allowed_token_ids must be a whole number of at least 0.*not 1.5"),  # pyright: ignore[reportArgumentType]
        (lambda: MinNewTokens(-1, [0], 0), "min_new_tokens must be a whole number of at least 0, not -1"),
        (lambda: MinNewTokens(1, [], 0), "eos_token_ids must name at least one token"),
        (lambda: MinNewTokens(1, [0], -1), "prompt_width must be a whole number of at least 0, not -1"),
        (lambda: Chain([TopK(1), 0.7]), "a step of the chain must be a callable.*not 0.7"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_wrong_number_is_refused_with_its_name(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_largest_settings_are_allowed() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    history = torch.tensor([[0]])
    for transform in (Temperature(1e6), RepetitionPenalty(1e6), FrequencyPenalty(1e6, 0), LogitBias({0: 1e9})):
        assert support(transform(history, logits)).all()


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (LogitBias({4: 1.0}), "logit_bias"),
        (BadWords([[1], [4, 1]]), "bad_words_ids"),
        (AllowedTokens([0, 4]), "allowed_token_ids"),
        (MinNewTokens(9, [4], 0), "eos_token_ids"),
    ],
    ids=repr,
)
def test_a_token_outside_the_vocabulary_is_named(transform: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} names token 4, but the vocabulary ends at 3"):
        transform(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 4))


@each
def test_wrong_shapes_are_refused(transform: Any) -> None:
    with pytest.raises(TypeCheckError, match="logits"):
        transform(torch.zeros(1, 2, dtype=torch.long), torch.zeros(4))
    with pytest.raises(TypeCheckError, match="batch"):
        transform(torch.zeros(2, 2, dtype=torch.long), torch.zeros(1, 4))
    with pytest.raises(TypeCheckError, match="history"):
        transform(torch.zeros(1, 2), torch.zeros(1, 4))
