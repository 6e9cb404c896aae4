"""Speculation gives what the model alone gives: the same tokens, or tokens of the same distribution."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder import GPT2
from gptladder.sampling import PromptLookup, SamplingParams, generate, speculate
from gptladder.sampling.speculative import _Chooser, _Guess
from gptladder.sampling.transforms import Chain
from gptladder.tokenizer import BPETokenizer

GREEDY = SamplingParams(temperature=0)
ALPHA = 1e-6


@pytest.fixture(scope="module")
def drafts(tiny: Callable[..., GPT2]) -> dict[str, GPT2 | PromptLookup]:
    """A good one, a bad one, the model itself, and none."""
    near = tiny()
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return {"near": near, "far": tiny(9, n_layers=1), "itself": tiny(), "lookup": PromptLookup()}


each_draft = pytest.mark.parametrize("draft", ["near", "far", "itself", "lookup"])


@each_draft
@pytest.mark.parametrize("lookahead", [1, 3, 7])
@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(temperature=0, repetition_penalty=1.3, frequency_penalty=0.5, min_new_tokens=4),
        SamplingParams(temperature=0, no_repeat_ngram_size=2, bad_words_ids=[[7]]),
    ],
    ids=["plain", "penalties", "bans"],
)
def test_greedy_output_is_the_model_s_alone(
    model: GPT2, drafts: dict[str, GPT2 | PromptLookup], draft: str, lookahead: int, params: SamplingParams
) -> None:
    for prompt, new in (([3, 1, 4], 18), ([9, 9, 9, 9], 40), ([5], 4)):
        alone = generate(model, prompt, params, max_new_tokens=new, eos_token_ids=[0])[0]
        found = speculate(
            model, prompt, params, draft=drafts[draft], lookahead=lookahead, max_new_tokens=new, eos_token_ids=[0]
        )
        assert (found.tokens, found.finish_reason) == (alone.tokens, alone.finish_reason)
        assert found.calls + found.accepted in (len(found.tokens), len(found.tokens) + 1)


def test_the_acceptance_rate(model: GPT2, drafts: dict[str, GPT2 | PromptLookup]) -> None:
    itself = speculate(model, [3, 1, 4], GREEDY, draft=drafts["itself"], lookahead=4, max_new_tokens=20)
    assert itself.acceptance_rate == 1
    assert (itself.calls, itself.accepted, itself.proposed) == (4, 16, 16)  # 4 guesses and one of its own a call
    near = speculate(model, [3, 1, 4], GREEDY, draft=drafts["near"], max_new_tokens=20)
    far = speculate(model, [3, 1, 4], GREEDY, draft=drafts["far"], max_new_tokens=20)
    assert 1 > near.acceptance_rate > far.acceptance_rate
    assert near.calls < far.calls
    alone = speculate(model, [5], GREEDY, draft=PromptLookup(), max_new_tokens=1)
    assert (alone.acceptance_rate, alone.proposed) == (0, 0)


def test_sampling_from_itself_accepts_everything(model: GPT2, drafts: dict[str, GPT2 | PromptLookup]) -> None:
    found = speculate(model, [3, 1, 4], SamplingParams(top_k=7), draft=drafts["itself"], max_new_tokens=20)
    assert found.acceptance_rate == 1


def chi_square(counts: Counter[tuple[int, ...]], probs: dict[tuple[int, ...], float]) -> float:
    """The p-value of Pearson's test, the outcomes expected fewer than 5 times taken together."""
    total = sum(counts.values())
    bins: list[tuple[float, float]] = []
    rare = [0.0, 0.0]
    for outcome, prob in probs.items():
        if total * prob >= 5:
            bins.append((counts[outcome], total * prob))
        else:
            rare = [rare[0] + counts[outcome], rare[1] + total * prob]
    if rare[1] >= 5:
        bins.append((rare[0], rare[1]))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in bins)
    return float(torch.special.gammaincc(torch.tensor((len(bins) - 1) / 2), torch.tensor(statistic / 2)))


def expected_of_two(model: GPT2, prompt: list[int], params: SamplingParams) -> dict[tuple[int, ...], float]:
    """The probability of each pair of next tokens."""
    chain = params.chain(prompt_width=len(prompt))
    with torch.inference_mode():
        history = torch.tensor([prompt])
        first = chain(history, model(history)[:, -1]).softmax(-1)[0]
        pairs = torch.tensor([[*prompt, token] for token in range(model.d_vocab)])
        second = chain(pairs, model(pairs)[:, -1]).softmax(-1)
    joint = first[:, None] * second
    return {(a, b): float(joint[a, b]) for a in range(model.d_vocab) for b in range(model.d_vocab)}


@pytest.mark.parametrize("draft", ["near", "far", "lookup"])
def test_sampled_output_has_the_model_s_distribution(tiny: Callable[..., GPT2], draft: str) -> None:
    """From end to end: the first two tokens of 1,000 runs, the second of which is checked after the first."""
    sizes = {"d_vocab": 6, "d_model": 8, "n_heads": 1, "n_layers": 1, "init_range": 0.5}
    model, far = tiny(1, **sizes), tiny(2, **sizes)
    near = tiny(1, **sizes)
    with torch.no_grad():
        near.pos_embed.W_pos.add_(torch.randn_like(near.pos_embed.W_pos), alpha=0.3)
    guide = {"near": near, "far": far, "lookup": PromptLookup()}[draft]
    prompt, params = [3, 1, 4, 3], SamplingParams(temperature=1.2, repetition_penalty=1.1)
    counts: Counter[tuple[int, ...]] = Counter()
    accepted = proposed = 0
    for seed in range(1000):
        found = speculate(model, prompt, params, draft=guide, lookahead=2, seed=seed, max_new_tokens=3)
        counts[tuple(found.tokens[:2])] += 1
        accepted += found.accepted
        proposed += found.proposed
    assert 0 < accepted < proposed, "both branches must have been taken"
    assert chi_square(counts, expected_of_two(model, prompt, params)) > ALPHA


@pytest.mark.parametrize("kind", ["flat", "peaked", "certain"])
def test_accepting_and_drawing_again_give_the_distribution(kind: str) -> None:
    """The rule alone, 8,000 times: guesses from one distribution come out as draws from another."""
    p = torch.tensor([0.05, 0.30, 0.15, 0.0, 0.42, 0.08], dtype=torch.float64)
    q = {
        "flat": torch.full((6,), 1 / 6, dtype=torch.float64),
        "peaked": torch.tensor([0.9, 0.02, 0.02, 0.02, 0.02, 0.02], dtype=torch.float64),
        "certain": torch.tensor([0.0, 1, 0, 0, 0, 0], dtype=torch.float64),
    }[kind]
    chooser = _Chooser(Chain(), greedy=False, generator=torch.Generator().manual_seed(42))
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(8_000):
        guess = _Guess(chooser.draw(q), q)
        counts[(guess.token if chooser.accepts(guess, p) else chooser.draw(p - q),)] += 1
    assert counts[(3,)] == 0
    assert chi_square(counts, {(token,): float(prob) for token, prob in enumerate(p)}) > ALPHA


@pytest.mark.parametrize(
    ("tokens", "most", "guessed"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 3, [9, 1, 2]),
        ([1, 2, 3, 9, 1, 2, 3], 0, []),
        ([1, 2, 3], 5, []),
        ([5, 1, 7, 1], 5, [7, 1]),  # one token is enough
        ([2, 3, 8, 1, 3, 9, 2, 3], 1, [8]),  # two are better
        ([1, 3, 8, 1, 3, 9, 1, 3], 1, [9]),  # the latest
        ([4, 4, 4], 5, [4]),
        ([4], 5, []),
    ],
)
def test_prompt_lookup(tokens: list[int], most: int, guessed: list[int]) -> None:
    assert PromptLookup(max_ngram=2).propose(tokens, most) == guessed


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 6), st.integers(1, 4))
def test_prompt_lookup_guesses_what_the_text_holds(tokens: list[int], most: int, size: int) -> None:
    guessed = PromptLookup(size).propose(tokens, most)
    assert len(guessed) <= most
    if guessed:
        text = ",".join(map(str, tokens)) + ","
        assert f"{tokens[-1]}," + "".join(f"{token}," for token in guessed) in text


def test_text_and_stop_strings(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    settings = {"tokenizer": byte_tokenizer, "max_new_tokens": 40, "stop": "a"}
    alone = generate(byte_model, "Once", GREEDY, **settings)[0]
    found = speculate(byte_model, "Once", GREEDY, draft=byte_model, **settings)
    assert (found.text, found.tokens, found.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)


def test_a_draft_with_a_shorter_context(model: GPT2, tiny: Callable[..., GPT2]) -> None:
    short = tiny(3, n_ctx=6)
    alone = generate(model, [3, 1, 4], GREEDY, max_new_tokens=40)[0]
    assert speculate(model, [3, 1, 4], GREEDY, draft=short, max_new_tokens=40).tokens == alone.tokens
    assert alone.finish_reason == "context"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [1] * 25}, "25 tokens.*n_ctx=24"),
        ({"lookahead": 0}, "lookahead must be a whole number of at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ({"stop": "x"}, "stop strings are looked for in text"),
        ({"params": SamplingParams(logit_bias=dict.fromkeys(range(31), -math.inf))}, "no token is left.*loosen"),
    ],
)
def test_what_cannot_be_is_refused(model: GPT2, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speculate(model, **{"prompt": [1, 2], "draft": PromptLookup(), **settings})


def test_a_draft_of_another_vocabulary(model: GPT2, tiny: Callable[..., GPT2]) -> None:
    with pytest.raises(ValueError, match="the draft's vocabulary has 30 tokens and the model's 31"):
        speculate(model, [1], draft=tiny(d_vocab=30))
    with pytest.raises(ValueError, match="max_ngram must be a whole number of at least 1, not 0"):
        PromptLookup(0)
