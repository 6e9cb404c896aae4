"""SamplingParams against the chain that transformers builds of the same settings."""

import copy
import dataclasses
import itertools
import json
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from gptladder.sampling.draw import check_drawable, inverse_cdf
from gptladder.sampling.params import SamplingParams
from gptladder.sampling.transforms import Chain, FrequencyPenalty, MinNewTokens, PresencePenalty, TopK

D_VOCAB, EOS = 40, 0

OURS = {
    "logit_bias": {5: -1.5, 6: 2.0},
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[7], [3, 4]],
    "min_new_tokens": 3,
    "allowed_token_ids": list(range(30)),
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
    "epsilon_cutoff": 0.001,
    "eta_cutoff": 0.002,
}
NAMES = {
    "SequenceBiasLogitsProcessor": "LogitBias",
    "RepetitionPenaltyLogitsProcessor": "RepetitionPenalty",
    "NoRepeatNGramLogitsProcessor": "NoRepeatNGram",
    "NoBadWordsLogitsProcessor": "BadWords",
    "MinNewTokensLengthLogitsProcessor": "MinNewTokens",
    "PrefixConstrainedLogitsProcessor": "AllowedTokens",
    "Custom": "Custom",
    "TemperatureLogitsWarper": "Temperature",
    "TopKLogitsWarper": "TopK",
    "TopPLogitsWarper": "TopP",
    "MinPLogitsWarper": "MinP",
    "TypicalLogitsWarper": "Typical",
    "EpsilonLogitsWarper": "Epsilon",
    "EtaLogitsWarper": "Eta",
}


class Custom:
    """A transform of the caller's, which both libraries take."""

    def __call__(self, history: Tensor, logits: Tensor) -> Tensor:
        return F.logsigmoid(logits)


def transformers_chain(prompt_width: int, do_sample: bool, **ours: Any) -> Any:
    """Return the processors that ``generate`` of transformers uses for the same settings."""
    theirs = dict(ours)
    if "logit_bias" in theirs:
        theirs["sequence_bias"] = [[[token], bias] for token, bias in theirs.pop("logit_bias").items()]
    allowed = theirs.pop("allowed_token_ids", None)
    if not do_sample:
        theirs = {name: value for name, value in theirs.items() if name not in WARPERS}
    config = GPT2Config(
        n_layer=1, n_head=1, n_embd=8, n_positions=32, vocab_size=D_VOCAB, bos_token_id=EOS, eos_token_id=EOS
    )
    model: Any = GPT2LMHeadModel(config)
    # Its default is top_k=50.
    settings = GenerationConfig(
        **{"top_k": 0, **theirs}, do_sample=do_sample, num_beams=1, eos_token_id=EOS, pad_token_id=EOS
    )
    model._prepare_special_tokens(settings, device="cpu")
    return model._get_logits_processor(
        settings,
        input_ids_seq_length=prompt_width,
        prefix_allowed_tokens_fn=None if allowed is None else lambda row, tokens: allowed,
        logits_processor=LogitsProcessorList([Custom()]),
        device="cpu",
    )


FIELDS = [field.name for field in dataclasses.fields(SamplingParams)]
WARPERS = FIELDS[FIELDS.index("temperature") :]


def kinds(chain: Chain) -> list[str]:
    return [type(step).__name__ for step in chain.transforms]


def test_the_order_is_that_of_transformers() -> None:
    theirs = [NAMES[type(step).__name__] for step in transformers_chain(4, do_sample=True, **OURS)]
    chain = SamplingParams(**OURS).chain(prompt_width=4, eos_token_ids=[EOS], custom=[Custom()])
    assert kinds(chain) == theirs
    assert set(theirs) == set(NAMES.values())  # nothing is left out on both sides


def test_the_order_of_the_fields_is_the_order_of_the_chain() -> None:
    """The two penalties that transformers has not follow the repetition penalty."""
    every = {**OURS, "frequency_penalty": 0.5, "presence_penalty": 0.5}
    assert set(every) == set(FIELDS)
    alone = [SamplingParams(**{name: every[name]}).chain(prompt_width=0, eos_token_ids=[EOS]) for name in FIELDS]
    together = SamplingParams(**every).chain(prompt_width=0, eos_token_ids=[EOS])
    assert kinds(together) == [kind for chain in alone for kind in kinds(chain)]
    assert len(kinds(together)) == len(FIELDS)
    assert kinds(together)[1:4] == ["RepetitionPenalty", "FrequencyPenalty", "PresencePenalty"]


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_values_are_those_of_transformers(seed: int, do_sample: bool) -> None:
    """In float64, where no probability falls on a cutoff."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, D_VOCAB, generator=generator, dtype=torch.float64)
    history = torch.randint(1, 8, (4, 6), generator=generator)
    ours = dict(OURS) if do_sample else {**OURS, "temperature": 0}
    chain = SamplingParams(**ours).chain(prompt_width=4, eos_token_ids=[EOS], custom=[Custom()])
    expected = transformers_chain(4, do_sample, **OURS)(history, logits)
    torch.testing.assert_close(chain(history, logits), expected, atol=1e-12, rtol=0)
    kept = (expected > -torch.inf).sum(-1)
    assert (kept >= 1).all()
    assert (kept < D_VOCAB).all()


def test_greedy_leaves_the_distribution_alone() -> None:
    params = SamplingParams(**{**OURS, "temperature": 0})
    assert params.greedy
    assert not SamplingParams(**OURS).greedy
    theirs = [NAMES[type(step).__name__] for step in transformers_chain(4, do_sample=False, **OURS)]
    assert kinds(params.chain(prompt_width=4, eos_token_ids=[EOS], custom=[Custom()])) == theirs


def test_the_defaults_change_nothing() -> None:
    assert SamplingParams().chain(prompt_width=3, eos_token_ids=[EOS]) == Chain()
    assert not SamplingParams().greedy
    assert [type(step) for step in transformers_chain(3, do_sample=True)] == [Custom]


def test_the_end_of_the_prompt_reaches_those_that_count() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.2, min_new_tokens=2)
    assert params.chain(prompt_width=7, eos_token_ids=[EOS, 9]).transforms == (
        FrequencyPenalty(0.5, prompt_width=7),
        PresencePenalty(0.2, prompt_width=7),
        MinNewTokens(2, eos_token_ids=(EOS, 9), prompt_width=7),
    )


def test_without_an_end_token_there_is_none_to_hold_back() -> None:
    assert SamplingParams(min_new_tokens=2).chain(prompt_width=1) == Chain()


def test_an_end_token_among_the_bad_words_is_banned() -> None:
    """transformers drops it from the list without a warning."""
    logits = torch.zeros(1, D_VOCAB)
    history = torch.zeros(1, 0, dtype=torch.long)
    chain = SamplingParams(bad_words_ids=[[EOS]]).chain(prompt_width=0, eos_token_ids=[EOS])
    assert chain(history, logits)[0, EOS] == -torch.inf


def test_plain_frozen_fields() -> None:
    params = SamplingParams(**OURS)
    same = SamplingParams(**{**OURS, "bad_words_ids": ((7,), (3, 4)), "allowed_token_ids": tuple(range(30))})
    assert params == same
    assert hash(params) == hash(same)
    assert params != dataclasses.replace(params, top_k=21)
    assert dataclasses.replace(params, top_k=21).chain(prompt_width=0).transforms[6] == TopK(21)
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == params
    assert json.loads(json.dumps(dataclasses.asdict(params)))["bad_words_ids"] == [[7], [3, 4]]
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_lists_changed_later_do_not_reach_the_settings() -> None:
    bias, words, allowed = {1: 1.0}, [[1]], [1, 2]
    params = SamplingParams(logit_bias=bias, bad_words_ids=words, allowed_token_ids=allowed)
    bias[2], words[0][0] = 1.0, 3
    allowed.append(3)
    assert (params.logit_bias, params.bad_words_ids, params.allowed_token_ids) == ({1: 1.0}, ((1,),), (1, 2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature must be from 1e-06 to 1e[+]06 .*, not -0.1"),
        ({"temperature": math.inf}, "temperature must be from 1e-06 to 1e[+]06 .*, not inf"),
        ({"top_k": -1}, "top_k must be a whole number of at least 0, not -1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1 .*, not 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1 .*, not 1.5"),
        ({"top_p": 1.5, "temperature": 0}, "top_p must be above 0 and at most 1 .*, not 1.5"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1 .*, not -0.1"),
        ({"typical_p": 1.1}, "typical_p must be between 0 and 1 .*, not 1.1"),
        ({"epsilon_cutoff": 1.0}, "epsilon_cutoff must be between 0 and 1 .*, not 1.0"),
        ({"eta_cutoff": -1e-3}, "eta_cutoff must be between 0 and 1 .*, not -0.001"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be from 1e-06 to 1e[+]06 .*, not 0.0"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be from -1e[+]06 to 1e[+]06, not nan"),
        ({"presence_penalty": math.inf}, "presence_penalty must be from -1e[+]06 to 1e[+]06, not inf"),
        ({"no_repeat_ngram_size": 0}, "no_repeat_ngram_size must be a whole number of at least 1, not 0"),
        ({"min_new_tokens": -1}, "min_new_tokens must be a whole number of at least 0, not -1"),
        ({"logit_bias": {-1: 1.0}}, "each token of logit_bias must be a whole number of at least 0, not -1"),
        ({"bad_words_ids": [[]]}, "bad_words_ids must name at least one token"),
        ({"allowed_token_ids": []}, "allowed_token_ids must name at least one token"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_where_it_is_given(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SamplingParams(**wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "0.8"}, r"temperature must be from 1e-06 to 1e\+06 .*, not '0.8'"),
        ({"temperature": 1e-300}, r"temperature must be from 1e-06 .*, not 1e-300"),
        ({"temperature": True}, r"temperature must be .*, not True"),
        ({"temperature": 10**400}, r"temperature must be .*, not 1000"),
        ({"frequency_penalty": 1e39}, r"frequency_penalty must be from -1e\+06 to 1e\+06, not 1e\+39"),
        ({"presence_penalty": -1e39}, r"presence_penalty must be from -1e\+06 to 1e\+06, not -1e\+39"),
        ({"repetition_penalty": 1e39}, r"repetition_penalty must be .*, not 1e\+39"),
        ({"logit_bias": {3: 1e39}}, r"logit_bias of token 3 must be .*, not 1e\+39"),
        ({"logit_bias": [3]}, r"logit_bias must be a dict of token ids and numbers, not \[3\]"),
        ({"bad_words_ids": [1, 2]}, "bad_words_ids must be a list of token ids, not 1"),
        ({"top_k": True}, "top_k must be a whole number of at least 0, not True"),
        ({"top_k": 2.0}, "top_k must be a whole number of at least 0, not 2.0"),
        ({"min_new_tokens": 1.5}, "min_new_tokens must be a whole number of at least 0, not 1.5"),
    ],
)
def test_a_value_of_the_wrong_kind_or_size_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)


def test_top_k_of_0_keeps_all_tokens() -> None:
    assert SamplingParams(top_k=0).chain(prompt_width=1) == SamplingParams().chain(prompt_width=1)


EXTREME = {
    "temperature": (1e-6, 1e6),
    "repetition_penalty": (1e-6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "logit_bias": ({1: -1e9}, {1: 1e9}),
    "top_p": (1e-300, 1.0),
    "min_p": (1e-300, 1.0),
    "typical_p": (1e-300, 1 - 1e-12),
    "epsilon_cutoff": (1e-300, 1 - 1e-12),
    "eta_cutoff": (1e-300, 1 - 1e-12),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", list(itertools.product((0, 1), repeat=5)))
def test_values_at_their_limits_leave_a_token_to_draw(ends: tuple[int, ...], dtype: torch.dtype) -> None:
    """The largest and smallest settings, together, never make logits that cannot be drawn from."""
    names = list(EXTREME)
    settings = {name: EXTREME[name][ends[place % 5]] for place, name in enumerate(names)}
    chain = SamplingParams(**settings).chain(prompt_width=2, eos_token_ids=[EOS])
    history = torch.randint(D_VOCAB, (3, 40), generator=torch.Generator().manual_seed(0))
    for scale in (0.0, 1.0, 1e3):
        logits = torch.randn(3, D_VOCAB, generator=torch.Generator().manual_seed(1), dtype=dtype) * scale
        transformed = chain(history, logits)
        check_drawable(transformed)
        assert transformed.amax(-1).isfinite().all()
        drawn = inverse_cdf(transformed, torch.tensor([0.0, 0.5, 1 - 1e-12], dtype=torch.float64))
        assert transformed.gather(1, drawn[:, None]).isfinite().all()
