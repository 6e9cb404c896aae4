"""`stream` and `generate` against transformers, against the model called plainly, and against what must hold."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gptladder import GPT2
from gptladder.sampling import PromptLookup, SamplingParams, beam_search, evaluate, generate, speculate, stream
from gptladder.sampling.draw import greedy, inverse_cdf, row_uniforms
from gptladder.sampling.generation import PastContext
from gptladder.sampling.text import TextStream
from gptladder.sampling.transforms import PADDING
from gptladder.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from gptladder.weights import to_hf

GREEDY = SamplingParams(temperature=0)
MIXED = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9, 7, 9, 3, 2]]

# Every transform at work, and free to choose among several tokens.
BUSY = SamplingParams(
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    presence_penalty=0.2,
    no_repeat_ngram_size=2,
    bad_words_ids=[[7], [3, 4]],
    min_new_tokens=3,
    logit_bias={5: 0.5},
    temperature=1.3,
    top_k=20,
    top_p=0.95,
    min_p=0.001,
)


def plainly(
    model: GPT2, prompt: list[int], params: SamplingParams, *, seed: int, new: int, end: int | None = 0
) -> list[int]:
    """The definition: the whole text is read anew for each token, alone, without cache or padding."""
    generator = torch.Generator().manual_seed(seed)
    chain = params.chain(prompt_width=len(prompt), eos_token_ids=() if end is None else [end])
    tokens = list(prompt)
    with torch.inference_mode():
        while len(tokens) < len(prompt) + new and end not in tokens[len(prompt) :]:
            logits = chain(torch.tensor([tokens]), model(torch.tensor([tokens[-model.config.n_ctx :]]))[:, -1])
            chosen = greedy(logits) if params.greedy else inverse_cdf(logits, row_uniforms([generator]))
            tokens.append(int(chosen))
    return tokens[len(prompt) :]


# Against transformers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_is_that_of_transformers(tiny: Callable[..., GPT2], dtype: torch.dtype) -> None:
    model = tiny(1, dtype)
    prompt = torch.tensor([[3, 1, 4], [9, 2, 6]])
    theirs = to_hf(model).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=15,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = generate(model, prompt, GREEDY, max_new_tokens=15)
    assert [row.tokens for row in ours] == theirs[:, 3:].tolist()
    assert len(set(ours[0].tokens)) > 3, "a model that repeats one token would hide mistakes"


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, {"top_k": 0}),
        ({"temperature": 0.8, "top_k": 9}, None),
        ({"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.3}, {"top_k": 0}),
        ({"min_p": 0.02, "no_repeat_ngram_size": 2, "min_new_tokens": 6}, {"top_k": 0}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_multinomial_is_that_of_transformers(
    tiny: Callable[..., GPT2], settings: dict[str, Any], same: dict[str, Any] | None, seed: int
) -> None:
    model = tiny(2, torch.float32)
    prompt = torch.tensor([[3, 1, 4]])
    reference = to_hf(model)
    torch.manual_seed(seed)
    theirs = reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=15,
        do_sample=True,
        eos_token_id=5,
        pad_token_id=5,
        **{**settings, **(same or {})},
    )
    ours = generate(
        model, prompt, SamplingParams(**settings), seed=seed, draw="multinomial", eos_token_ids=[5], max_new_tokens=15
    )
    assert ours[0].tokens == theirs[0, 3:].tolist()


# Cache, batch and padding


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), BUSY], ids=["greedy", "sampled", "busy"])
@pytest.mark.parametrize("past_context", ["stop", "slide"])
def test_rows_of_a_batch_are_the_definition_s(model: GPT2, params: SamplingParams, past_context: PastContext) -> None:
    new = 30 if past_context == "slide" else 16
    found = generate(
        model, MIXED, params, n=5, seed=7, max_new_tokens=new, eos_token_ids=[0], past_context=past_context
    )
    expected = [plainly(model, prompt, params, seed=7 + sample, new=new) for prompt in MIXED for sample in range(5)]
    assert [row.tokens for row in found] == expected
    if not params.greedy:
        assert len({len(row.tokens) for row in found}) > 1, "rows must end at different times for this to prove much"


@settings(max_examples=30)
@given(data=st.data())
def test_a_row_depends_on_its_prompt_and_seed_alone(model: GPT2, data: st.DataObject) -> None:
    prompts = data.draw(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=5))
    seeds = data.draw(st.lists(st.integers(0, 2**40), min_size=len(prompts), max_size=len(prompts)))
    settings: dict[str, Any] = {"max_new_tokens": 6, "eos_token_ids": [0, 1, 2]}
    together = generate(model, prompts, BUSY, seed=seeds, **settings)
    alone = [
        generate(model, prompt, BUSY, seed=seed, **settings)[0] for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together == alone
    backwards = generate(model, prompts[::-1], BUSY, seed=seeds[::-1], **settings)
    assert together == backwards[::-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_those_of_each_row_alone(tiny: Callable[..., GPT2], dtype: torch.dtype) -> None:
    model = tiny(3, dtype)
    seen: list[tuple[Tensor, Tensor]] = []

    def listen(history: Tensor, logits: Tensor) -> Tensor:
        seen.append((history.clone(), logits.clone()))
        return logits

    generate(model, MIXED, n=2, max_new_tokens=20, eos_token_ids=[0], transforms=[listen], past_context="slide")
    assert len(seen) == 20
    with torch.inference_mode():
        for history, logits in seen:
            for row, ours in zip(history, logits, strict=True):
                alone = model(row[row != PADDING][None, -24:])[0, -1]
                torch.testing.assert_close(ours, alone, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)


def test_samples_differ_and_repeat(model: GPT2) -> None:
    first, again = (generate(model, [3, 1, 4], n=4, seed=5) for _ in range(2))
    assert first == again
    assert len({tuple(row.tokens) for row in first}) == 4
    assert generate(model, [3, 1, 4], seed=6)[0] == first[1]


def test_the_prompt_is_read_once_for_all_its_samples(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    final_residual = model.final_residual

    def listen(tokens: Tensor, **kwargs: Any) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return final_residual(tokens, **kwargs)

    monkeypatch.setattr(model, "final_residual", listen)
    generate(model, [[3, 1, 4], [1, 5]], n=3, max_new_tokens=3)
    assert shapes == [(2, 3), (6, 1), (6, 1)]


def test_rows_that_have_ended_leave_the_batch(
    model: GPT2, saying: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    final_residual = model.final_residual

    def listen(tokens: Tensor, **kwargs: Any) -> Tensor:
        rows.append(len(tokens))
        return final_residual(tokens, **kwargs)

    monkeypatch.setattr(model, "final_residual", listen)

    def ending(history: Tensor, logits: Tensor) -> Tensor:
        """Row by row, the one whose prompt begins lowest first."""
        end = history[:, 0] <= history.shape[1]
        return torch.where(end[:, None], torch.nn.functional.one_hot(torch.tensor(0), 31).log(), logits)

    found = generate(model, [[2], [4], [3]], transforms=[ending], eos_token_ids=[0])
    assert [len(row.tokens) for row in found] == [2, 4, 3]
    assert [row.finish_reason for row in found] == ["eos"] * 3
    assert rows == [3, 3, 2, 1]


def test_only_the_last_position_is_projected(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    forward: Callable[..., Tensor] = type(model.unembed).forward

    def listen(self: nn.Module, residual: Tensor) -> Tensor:
        shapes.append(tuple(residual.shape))
        return forward(self, residual)

    monkeypatch.setattr(type(model.unembed), "forward", listen)
    generate(model, [[3, 1, 4, 1, 5], [2, 6]], max_new_tokens=2)
    assert shapes == [(2, 1, 24), (2, 1, 24)]


def test_a_model_in_training_is_left_so_and_drops_nothing_out(tiny: Callable[..., GPT2]) -> None:
    model = tiny(4, resid_dropout=0.5, embed_dropout=0.5, attn_dropout=0.5)
    still = generate(model, [3, 1, 4], GREEDY)
    model.train()
    model.blocks[0].eval()
    assert generate(model, [3, 1, 4], GREEDY) == still
    assert model.training
    assert model.blocks[1].mlp.training
    assert not model.blocks[0].training
    assert not model.blocks[0].mlp.training


def test_half_precision_is_sampled_in_float32(tiny: Callable[..., GPT2]) -> None:
    model = tiny(5, torch.bfloat16)
    found = generate(model, [[3, 1, 4], [1]], SamplingParams(top_p=0.9), max_new_tokens=5, logprobs=1)
    assert all(len(row.tokens) == 5 for row in found)


# Ends


def test_past_the_context(model: GPT2) -> None:
    prompt = [1] * 20
    stopped = generate(model, prompt, GREEDY, max_new_tokens=30)[0]
    assert (len(stopped.tokens), stopped.finish_reason) == (5, "context")  # the 24th token is read, the 25th is not
    slid = generate(model, prompt, GREEDY, max_new_tokens=30, past_context="slide")[0]
    assert (len(slid.tokens), slid.finish_reason) == (30, "length")
    assert slid.tokens[:5] == stopped.tokens
    exact = generate(model, prompt, GREEDY, max_new_tokens=5)[0]
    assert (exact.tokens, exact.finish_reason) == (stopped.tokens, "length")


def test_a_prompt_longer_than_the_context_slides_from_the_beginning(model: GPT2) -> None:
    prompts = [list(range(30)), [3, 1], [5] * 24]
    found = generate(model, prompts, seed=3, max_new_tokens=8, past_context="slide")
    expected = [plainly(model, prompt, SamplingParams(), seed=3, new=8, end=None) for prompt in prompts]
    assert [row.tokens for row in found] == expected


def test_the_end_token_ends_the_text_and_is_no_part_of_it(
    byte_model: GPT2, byte_tokenizer: BPETokenizer, saying: Callable[..., Any]
) -> None:
    script = [*b"So.", 256, *b"never"]
    found = generate(byte_model, "x", tokenizer=byte_tokenizer, transforms=[saying(script)])[0]
    assert (found.text, found.tokens, found.finish_reason) == ("So.", script[:4], "eos")
    going_on = generate(
        byte_model, "x", tokenizer=byte_tokenizer, transforms=[saying(script)], eos_token_ids=[], max_new_tokens=6
    )[0]
    assert (going_on.text, going_on.finish_reason) == ("So.<|endoftext|>ne", "length")


def test_no_end_before_the_least_number_of_tokens(model: GPT2) -> None:
    always = SamplingParams(temperature=0, logit_bias={0: 1e4}, min_new_tokens=4)
    found = generate(model, [[1, 2, 3], [4]], always, eos_token_ids=[0], max_new_tokens=9)
    assert [len(row.tokens) for row in found] == [5, 5]
    assert all(row.tokens.index(0) == 4 for row in found)


@pytest.mark.parametrize(
    ("written", "stop", "text"),
    [
        ("one. Two", ".", "one"),
        ("aaabc", "aab", "a"),  # overlaps itself
        ("abababac!", "ababac", "ab"),
        ("xab\n\nabc", ["\n\n", "abc"], "xab"),
        ("abcd", ["bc", "abcd"], "a"),  # the first to be complete
        ("xabc", ["bc", "abc"], "x"),  # the longest of those
        ("naïve été", "té", "naïve é"),
        ("né", "e", None),
        ("ends in a", "ab", None),  # what was held back is given out at the end
    ],
)
def test_stop_strings(
    byte_model: GPT2,
    byte_tokenizer: BPETokenizer,
    saying: Callable[..., Any],
    written: str,
    stop: str | list[str],
    text: str | None,
) -> None:
    script = list(written.encode())
    settings: dict[str, Any] = {
        "tokenizer": byte_tokenizer,
        "stop": stop,
        "max_new_tokens": len(script),
        "transforms": [saying(script)],
    }
    found = generate(byte_model, "x", **settings)[0]
    assert found.text == (written if text is None else text)
    assert found.finish_reason == ("length" if text is None else "stop")
    shown = ""
    for chunk in stream(byte_model, "x", **settings):
        shown += chunk.text
        assert found.text.startswith(shown), "what has been shown cannot be taken back"
    assert shown == found.text


class Pieces:
    """A tokenizer with one token for each of some pieces of text."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.pieces[i] for i in ids)

    text_decoder = Tokenizer.text_decoder


def streaming(pieces: list[bytes], stop: Sequence[str] = ()) -> TextStream:
    tokenizer: Any = Pieces(pieces)
    return TextStream(tokenizer, stop)


@given(
    text=st.text("ab", max_size=14),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_stop_strings_wherever_tokens_begin(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)))))
    pieces = [text[a:b].encode() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ends = [(end, len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    first = min((end for end, _ in ends), default=None)
    expected = text if first is None else text[: first - max(size for end, size in ends if end == first)]
    turning = streaming(pieces, stops)
    shown, stopped = "", False
    for token in range(len(pieces)):
        more, stopped = turning.push(token)
        shown += more
        assert expected.startswith(shown)
        if stopped:
            break
    else:
        shown += turning.finish()
    assert (shown, stopped) == (expected, first is not None)


@given(text=st.text(max_size=12), data=st.data())
def test_streamed_text_never_shows_half_a_character(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(encoded) - 1, 1)))))
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    turning = streaming(pieces)
    shown = ""
    for token, cut in enumerate([*cuts, len(encoded)]):
        shown += turning.push(token)[0]
        whole = encoded[:cut].decode("utf-8", errors="ignore")  # all that can be known by now, and no less
        assert shown == whole
    assert shown + turning.finish() == text


def test_bytes_that_are_no_text(byte_model: GPT2, byte_tokenizer: BPETokenizer, saying: Callable[..., Any]) -> None:
    script = [0xE2, 0x82, *b"a", 0xFF, *b"b", 0xF0, 0x9F]  # the beginning of a €, a stray byte, half of an emoji
    found = generate(byte_model, "x", tokenizer=byte_tokenizer, transforms=[saying(script)], max_new_tokens=7)[0]
    assert found.text == "\N{REPLACEMENT CHARACTER}a\N{REPLACEMENT CHARACTER}b"
    assert found.tokens == script


# Log-probabilities, chunks, vocabulary


def test_logprobs_are_the_model_s_own(model: GPT2) -> None:
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    found = generate(model, prompts, SamplingParams(temperature=0.5, top_k=3), logprobs=5, max_new_tokens=6)
    for prompt, row in zip(prompts, found, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt + row.tokens]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert row.logprobs is not None
        assert len(row.logprobs) == len(row.tokens) == 6
        for token, ours, theirs in zip(row.tokens, row.logprobs, expected, strict=True):
            assert ours.chosen == pytest.approx(float(theirs[token]), abs=1e-12)
            best = theirs.topk(5)
            assert list(ours.top) == best.indices.tolist()
            assert list(ours.top.values()) == pytest.approx(best.values.tolist(), abs=1e-12)
    (found,) = generate(model, [1], logprobs=0, max_new_tokens=1)
    assert found.logprobs is not None
    assert found.logprobs[0].top == {}
    assert generate(model, [1], max_new_tokens=1)[0].logprobs is None


def test_the_stream_collected_is_what_generate_gives(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    settings: dict[str, Any] = {"tokenizer": byte_tokenizer, "n": 2, "max_new_tokens": 9, "logprobs": 2, "stop": "a"}
    chunks = list(stream(byte_model, ["Once", "up"], **settings))
    for row, found in enumerate(generate(byte_model, ["Once", "up"], **settings)):
        own = [chunk for chunk in chunks if chunk.row == row]
        assert [chunk.token for chunk in own] == found.tokens
        assert "".join(chunk.text for chunk in own) == found.text
        assert [chunk.logprobs for chunk in own] == found.logprobs
        assert [chunk.finish_reason for chunk in own] == [None] * (len(own) - 1) + [found.finish_reason]
    assert [chunk.row for chunk in chunks[:4]] == [0, 1, 2, 3]


def test_a_stream_works_only_as_far_as_it_is_read(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    final_residual = model.final_residual
    monkeypatch.setattr(model, "final_residual", lambda *a, **k: calls.append(1) or final_residual(*a, **k))
    chunks = stream(model, [1, 2])
    assert not calls
    next(chunks)
    next(chunks)
    assert len(calls) == 2
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_ids_that_the_tokenizer_lacks_are_never_generated(
    tiny: Callable[..., GPT2], byte_tokenizer: BPETokenizer
) -> None:
    padded = tiny(6, d_vocab=300, n_ctx=64)
    with torch.no_grad():
        padded.embed.W_E[257:] *= 50  # the likeliest by far, if they were allowed
    params = SamplingParams(temperature=2.0)
    found = generate(padded, "ab", params, tokenizer=byte_tokenizer, n=4, max_new_tokens=20, eos_token_ids=[])
    assert max(max(row.tokens) for row in found) <= 256
    ids = generate(padded, [97, 98], params, n=4, max_new_tokens=20)
    assert max(max(row.tokens) for row in ids) > 256


@pytest.mark.parametrize(
    "prompts",
    [
        [3, 1, 4],
        torch.tensor([3, 1, 4]),
        [[3, 1, 4]],
        [torch.tensor([3, 1, 4])],
        torch.tensor([[3, 1, 4]]),
        [(3, 1, 4)],
        torch.tensor([3, 1, 4]).numpy(),
        torch.tensor([[3, 1, 4]]).numpy(),
        list(torch.tensor([3, 1, 4]).numpy()),
    ],
    ids=["list", "tensor", "lists", "tensors", "matrix", "tuples", "array", "array of rows", "array's items"],
)
def test_one_prompt_in_every_form(model: GPT2, prompts: Any) -> None:
    assert generate(model, prompts, GREEDY) == generate(model, [3, 1, 4], GREEDY)


def test_seeds_and_end_tokens_in_every_form(model: GPT2) -> None:
    plain = generate(model, [3, 1, 4], seed=7, max_new_tokens=20)
    end = plain[0].tokens[4]
    ended = generate(model, [3, 1, 4], seed=7, max_new_tokens=20, eos_token_ids=[end])
    assert ended[0].finish_reason == "eos"
    forms: list[Any] = [end, torch.tensor([end]), torch.tensor([end]).numpy(), (end,)]
    for form in forms:
        assert generate(model, [3, 1, 4], seed=7, max_new_tokens=20, eos_token_ids=form) == ended
    seeds: list[Any] = [torch.tensor(7), torch.tensor(7).numpy(), [torch.tensor(7)], torch.tensor([7]).tolist()]
    for seed in seeds:
        assert generate(model, [3, 1, 4], seed=seed, max_new_tokens=20, stop=()) == plain


def test_text_and_tokens_in_one_batch(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    found = generate(byte_model, ["Once", [79, 110, 99, 101]], tokenizer=byte_tokenizer, max_new_tokens=5)
    assert found[0] == found[1]


# Wrong input


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "there is no prompt"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([256, 257], {}, "the prompt holds token 257.*0 to 256"),
        ([[1], [-1]], {}, "prompt 1 holds token -1"),
        ([1.5], {}, "token ids are expected, not 1.5"),
        (torch.tensor([[0.5, 1.0]]), {}, "token ids are expected, not 0.5"),
        ([[[1, 2], [3, 4]]], {}, "give one text at a time"),
        ([1] * 129, {}, "129 tokens.*n_ctx=128.*slide"),
        ([1], {"stop": ""}, "a stop string is empty"),
        ([1], {"stop": ["a", ""]}, "a stop string is empty"),
        ([1], {"n": 0}, "n must be a whole number of at least 1"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ([1], {"params": SamplingParams(min_new_tokens=9), "max_new_tokens": 8}, "min_new_tokens=9 is more than"),
        ([1], {"past_context": "wrap"}, "past_context is 'wrap'"),
        ([1], {"draw": "gumbel"}, "draw is 'gumbel'"),
        ([1], {"draw": "multinomial", "n": 2}, "there are 2 rows"),
        ([1], {"logprobs": 258}, "logprobs must be from 0 to the vocabulary's 257"),
        ([1], {"logprobs": -1}, "logprobs must be"),
        ([1], {"seed": [1, 2]}, "2 seeds for 1 prompts with 1 samples"),
        ([1], {"seed": 1.5}, "seed must be a whole number from"),
        ([1], {"seed": [None]}, "seed must be a whole number from"),
        ([1], {"seed": -(2**63) - 1}, "seed must be a whole number from"),
        ([1], {"stop": [3]}, "stop strings are text, not 3"),
        ([1], {"stop": b"a"}, "stop strings are text, not 97"),
        ([1], {"eos_token_ids": [257]}, "eos_token_ids holds 257"),
        ([1], {"eos_token_ids": [0.5]}, "token ids are expected, not 0.5"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    byte_model: GPT2, byte_tokenizer: BPETokenizer, prompts: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stream(byte_model, prompts, **{"tokenizer": byte_tokenizer, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be from 1e-06 to 1e[+]06.*-0.1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1.*0.0"),
        ({"top_p": 1.01}, "top_p must be above 0 and at most 1.*1.01"),
        ({"top_k": -1}, "top_k must be a whole number of at least 0, not -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)


def test_text_needs_a_tokenizer(model: GPT2) -> None:
    with pytest.raises(ValueError, match="the prompt is text, and the model has no tokenizer to read it: pass tok"):
        stream(model, "Once")
    with pytest.raises(ValueError, match="stop strings are looked for in text"):
        stream(model, [1], stop="x")


def test_the_models_own_tokenizer_is_the_default(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    calls: list[Callable[..., Any]] = [
        lambda **options: generate(byte_model, ["Once", "é"], n=2, stop="z", max_new_tokens=9, **options),
        lambda **options: list(stream(byte_model, [79, 110], max_new_tokens=9, **options)),
        lambda **options: beam_search(byte_model, "Once", max_new_tokens=4, **options),
        lambda **options: speculate(byte_model, "Once", draft=PromptLookup(), max_new_tokens=9, **options),
        lambda **options: evaluate(byte_model, "Once upon a time", **options),
    ]
    for call in calls:
        expected = call(tokenizer=byte_tokenizer)
        byte_model.tokenizer = byte_tokenizer
        try:
            assert call() == expected
            other = CharTokenizer("".join(map(chr, range(32, 128))) + "é")
            assert call(tokenizer=other) != expected  # the one that is passed has precedence
        finally:
            byte_model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer to read the text with: pass tokenizer"):
        evaluate(byte_model, "Once upon a time")


@pytest.mark.parametrize("params", [GREEDY, SamplingParams()])
def test_everything_banned(model: GPT2, params: SamplingParams) -> None:
    ban = SamplingParams(temperature=params.temperature, logit_bias=dict.fromkeys(range(31), -math.inf))
    with pytest.raises(ValueError, match="no token is left to choose in row 0: all 31 are banned; loosen"):
        generate(model, [1], ban)
