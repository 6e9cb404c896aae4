"""Beam search against transformers, and against every text that there is."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gptladder import GPT2
from gptladder.sampling import SamplingParams, beam_search, generate
from gptladder.sampling.beam import EarlyStopping
from gptladder.tokenizer import BPETokenizer
from gptladder.weights import to_hf

EARLY = [True, False, "never"]
PENALTIES = [-1.0, 0.0, 0.6, 1.0, 2.0]
EOS = 2
# transformers adds log-probabilities in float32, with any dtype of the model.
FLOAT32: dict[str, Any] = {"abs": 1e-5, "rel": 1e-6}

each_early_stopping = pytest.mark.parametrize("early_stopping", EARLY)
each_penalty = pytest.mark.parametrize("length_penalty", PENALTIES)


def transformers_beams(model: GPT2, prompt: list[int], **settings: object) -> list[tuple[list[int], float]]:
    theirs = to_hf(model).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=model.d_vocab - 1,
        **{"eos_token_id": EOS, **settings},
    )
    found = []
    for row, score in zip(theirs.sequences[:, len(prompt) :].tolist(), theirs.sequences_scores.tolist(), strict=True):
        found.append((row[: row.index(EOS) + 1] if EOS in row else row, score))
    return found


@each_early_stopping
@each_penalty
@pytest.mark.parametrize(("num_beams", "seed"), [(1, 0), (2, 1), (3, 2), (5, 3)])
def test_beams_are_those_of_transformers(
    tiny: Callable[..., GPT2], early_stopping: EarlyStopping, length_penalty: float, num_beams: int, seed: int
) -> None:
    model = tiny(seed, torch.float32, d_vocab=12)
    prompt = [3, 1, 4, 1]
    if num_beams == 1:  # with one beam transformers decodes greedily
        ours = beam_search(model, prompt, num_beams=1, max_new_tokens=10, eos_token_ids=[EOS])
        greedy = generate(model, prompt, SamplingParams(temperature=0), max_new_tokens=10, eos_token_ids=[EOS])
        assert ours[0].tokens == greedy[0].tokens
        return
    settings = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
    ours = beam_search(model, prompt, num_return=num_beams, max_new_tokens=10, eos_token_ids=[EOS], **settings)
    theirs = transformers_beams(model, prompt, num_return_sequences=num_beams, max_new_tokens=10, **settings)
    # transformers fills up with one text of score -1e9 for each that it has not found.
    theirs = [(tokens, score) for tokens, score in theirs if score > -1e8]
    assert [beam.tokens for beam in ours] == [tokens for tokens, _ in theirs]
    assert [beam.score for beam in ours] == pytest.approx([score for _, score in theirs], **FLOAT32)


def test_the_three_modes_of_stopping_differ(tiny: Callable[..., GPT2]) -> None:
    """Were they all one, the comparisons above would not notice."""
    found = {}
    for seed in range(12):
        model = tiny(seed, d_vocab=12)
        for early_stopping in EARLY:
            beams = beam_search(
                model,
                [3, 1, 4, 1],
                num_beams=2,
                num_return=2,
                length_penalty=1.5,
                early_stopping=early_stopping,
                max_new_tokens=15,
                eos_token_ids=[EOS],
            )
            found.setdefault(early_stopping, []).append([beam.tokens for beam in beams])
    assert found[True] != found[False] != found["never"] != found[True]


def test_penalties_and_bans_act_on_log_probabilities_as_in_transformers(tiny: Callable[..., GPT2]) -> None:
    model = tiny(5, torch.float32, d_vocab=12)
    ours = beam_search(
        model,
        [3, 1, 4, 1],
        SamplingParams(temperature=0, repetition_penalty=1.4, no_repeat_ngram_size=2, bad_words_ids=[[7]]),
        num_beams=4,
        num_return=4,
        max_new_tokens=12,
        eos_token_ids=[EOS],
    )
    theirs = transformers_beams(
        model,
        [3, 1, 4, 1],
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=12,
        repetition_penalty=1.4,
        no_repeat_ngram_size=2,
        bad_words_ids=[[7]],
    )
    assert [beam.tokens for beam in ours] == [tokens for tokens, _ in theirs]
    assert [beam.score for beam in ours] == pytest.approx([score for _, score in theirs], **FLOAT32)


def every_text(model: GPT2, prompt: list[int], longest: int) -> dict[tuple[int, ...], float]:
    """The log-probability of all texts of a length, and of all shorter ones that end."""
    vocabulary = range(model.d_vocab)
    log_probs = {}
    with torch.inference_mode():
        for length in range(1, longest + 1):
            for text in itertools.product(vocabulary, repeat=length):
                if EOS in text[:-1] or (length < longest and text[-1] != EOS):
                    continue
                read = model(torch.tensor([[*prompt, *text]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
                log_probs[text] = float(read.gather(1, torch.tensor(text)[:, None]).sum())
    return log_probs


@pytest.fixture(scope="module")
def vocabulary_of_four(tiny: Callable[..., GPT2]) -> tuple[GPT2, int, dict[tuple[int, ...], float]]:
    """Return a model, the length of its longest texts, and the log-probability of each text."""
    model, longest = tiny(7, d_vocab=4), 4
    return model, longest, every_text(model, [3, 1], longest)


@each_early_stopping
@each_penalty
def test_the_optimum_over_all_texts_of_a_vocabulary_of_four(
    vocabulary_of_four: tuple[GPT2, int, dict[tuple[int, ...], float]],
    early_stopping: EarlyStopping,
    length_penalty: float,
) -> None:
    model, longest, texts = vocabulary_of_four
    assert len(texts) == 1 + 3 + 9 + 27 * 4
    assert sum(map(math.exp, texts.values())) == pytest.approx(1)
    scores = {text: log_prob / len(text) ** length_penalty for text, log_prob in texts.items()}
    best = sorted(scores, key=lambda text: scores[text], reverse=True)
    found = beam_search(
        model,
        [3, 1],
        num_beams=len(texts),
        num_return=len(texts),
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_new_tokens=longest,
        eos_token_ids=[EOS],
    )
    assert [tuple(beam.tokens) for beam in found] == best
    assert [beam.score for beam in found] == pytest.approx([scores[text] for text in best], abs=1e-12)
    narrow = beam_search(
        model,
        [3, 1],
        num_beams=27,
        length_penalty=length_penalty,
        early_stopping="never",
        max_new_tokens=longest,
        eos_token_ids=[EOS],
    )
    assert tuple(narrow[0].tokens) == best[0]


def test_no_ban_leaks_between_beams(model: GPT2) -> None:
    """With every beam's own bans, and no others, each text's score is that of the same text scored alone."""
    params = SamplingParams(temperature=0, no_repeat_ngram_size=2)
    prompt = [3, 1, 4, 1]
    found = beam_search(model, prompt, params, num_beams=6, num_return=6, max_new_tokens=12)
    for beam in found:
        text = prompt + beam.tokens
        pairs = list(itertools.pairwise(text))
        assert len(set(pairs)) == len(pairs), "a pair of tokens comes twice"
    # A pair that one beam has used stays open to the others.
    pairs_of = [set(itertools.pairwise(prompt[-1:] + beam.tokens)) for beam in found]
    assert any(a & b for a, b in itertools.combinations(pairs_of, 2))
    chain = params.chain(prompt_width=len(prompt))
    for beam in found:
        score = 0.0
        for place, token in enumerate(beam.tokens):
            history = torch.tensor([prompt + beam.tokens[:place]])
            with torch.inference_mode():
                score += float(chain(history, model(history)[:, -1].log_softmax(-1))[0, token])
        assert beam.score == pytest.approx(score / len(beam.tokens), abs=1e-12)


def test_reasons_to_end(tiny: Callable[..., GPT2], byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    model = tiny(1)
    assert beam_search(model, [1] * 4, max_new_tokens=3)[0].finish_reason == "length"
    cut = beam_search(model, [1] * 20, max_new_tokens=30)[0]
    assert (len(cut.tokens), cut.finish_reason) == (5, "context")
    ended = SamplingParams(temperature=0, logit_bias={256: 60.0})
    found = beam_search(byte_model, "Hé", ended, tokenizer=byte_tokenizer, max_new_tokens=5, length_penalty=0.0)[0]
    assert (found.text, found.tokens, found.finish_reason) == ("", [256], "eos")
    letters = SamplingParams(temperature=0, allowed_token_ids=range(97, 123))
    going_on = beam_search(byte_model, "Hé", letters, tokenizer=byte_tokenizer, max_new_tokens=5, eos_token_ids=[])[0]
    assert going_on.text == bytes(going_on.tokens).decode()
    assert len(going_on.text) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [31]}, "the prompt holds token 31"),
        ({"prompt": [1] * 25}, "25 tokens.*n_ctx=24"),
        ({"params": SamplingParams()}, "give temperature=0, not 1.0"),
        ({"num_beams": 0}, "num_beams must be a whole number of at least 1, not 0"),
        ({"num_return": 5}, "num_return is 5, and num_beams=4 texts are all"),
        ({"num_return": 0}, "num_return must be a whole number of at least 1, not 0"),
        ({"early_stopping": "always"}, "early_stopping is 'always'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        ({"length_penalty": 1000}, "length_penalty must be from -20 to 20, not 1000"),
        ({"length_penalty": math.nan}, "length_penalty must be from -20 to 20, not nan"),
        ({"num_beams": 10**12}, r"num_beams is too large: 1,000,000,000,000 texts of up to 24 tokens need .* GB"),
        ({"eos_token_ids": [31]}, "eos_token_ids holds 31"),
        (
            {"params": SamplingParams(temperature=0, logit_bias=dict.fromkeys(range(31), -math.inf))},
            "all tokens are banned; loosen",
        ),
    ],
)
def test_what_cannot_be_is_refused(model: GPT2, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(model, **{"prompt": [1, 2], **settings})
