"""Generate text with a model: token by token (`stream`), or all at once (`generate`, which collects the stream).

All rows (every sample of every prompt) advance together, one token per step. Prompts of different lengths are padded on
the left; neither the model nor a transform sees the padding. Each prompt is read once, for all of its samples. A row
that has ended leaves the batch and costs no more time. Each row draws from its own generator: its text depends on its
prompt, its seed and the settings, not on other rows (except for rounding in float32, which can decide between two
tokens that are almost equally probable).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor

from ..assembly import GPT2
from ..assembly.arguments import check_model
from ..tokenizer import Tokenizer, TokenizerSource
from .arguments import checked_params
from .batch import RowBatch
from .draw import greedy, inverse_cdf, multinomial, row_uniforms
from .memory import check_memory
from .params import SamplingParams
from .rows import Chunk, Completion, FinishReason, Logprobs, Row, check_fits, check_lengths, checked_seed, collect
from .text import Prompt, as_tokenizer, end_tokens, only_text, prompt_tokens, text_stream, vocabulary
from .transforms import Chain, LogitsTransform
from .transforms.base import whole

__all__ = ["Chunk", "Completion", "Draw", "FinishReason", "Logprobs", "PastContext", "generate", "stream"]

PastContext = Literal["stop", "slide"]
"""After ``n_ctx`` tokens: end the row (stop), or read the last ``n_ctx`` tokens again for each new token (slide).

Sliding changes the position of every token and, with learned positions, all keys and values. So the cache cannot be
used, and each new token costs as much time as reading ``n_ctx`` tokens.
"""

Draw = Literal["inverse_cdf", "multinomial"]
"""How tokens are drawn, see `gptladder.sampling.draw`. ``multinomial`` draws the same tokens as transformers, but only
for one row."""


def stream(
    model: GPT2,
    prompts: Prompt | Sequence[Prompt],
    params: SamplingParams | None = None,
    *,
    tokenizer: TokenizerSource | None = None,
    n: int = 1,
    seed: int | Sequence[int] = 42,
    max_new_tokens: int = 128,
    eos_token_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    past_context: PastContext = "stop",
    logprobs: int | None = None,
    transforms: Sequence[LogitsTransform] = (),
    draw: Draw = "inverse_cdf",
) -> Iterator[Chunk]:
    """Continue prompts, and return an iterator over the new tokens.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> [chunk.finish_reason for chunk in stream(model, [1, 2], max_new_tokens=3)]
    [None, None, 'length']

    Args:
        model: The model, in any mode; dropout is off during each step.
        prompts: One prompt, or several of any lengths: text, or the ids of tokens.
        params: How tokens are chosen (default: sampled from the model's own distribution).
        tokenizer: Reads and writes text, finds stop strings, and ends a row at its end of text (default: the model's
            own). Ids that it lacks are never generated. Without any, prompts are ids, and chunks have no text.
        n: Number of samples of each prompt.
        seed: Sample ``i`` of every prompt is drawn with ``seed + i``; or a list with one seed for each row.
        max_new_tokens: Largest number of new tokens of a row.
        eos_token_ids: Tokens that end a row (default: the tokenizer's end of text).
        stop: Strings that end a row.
        past_context: What happens after ``n_ctx`` tokens, see `PastContext`.
        logprobs: Report the log-probability of each chosen token, and of this many of the most probable tokens.
        transforms: Transforms of the user, see `SamplingParams.chain`.
        draw: How tokens are drawn, see `Draw`.

    Returns:
        An iterator of chunks. Each step adds one token to each row, in the order of the rows.

    Raises:
        ValueError: An argument is of the wrong type; a prompt is empty, has a token outside the vocabulary, has more
            than ``n_ctx`` tokens (unless they slide), or is text without a tokenizer; a stop string is empty; a number
            is out of range. During the iteration: all tokens are banned.
    """
    # Check the arguments now, not at the first step.
    check_model(model)
    params = checked_params(params, SamplingParams())
    tokenizer = as_tokenizer(model, tokenizer)
    tokens = _prompt_tokens(prompts, model, tokenizer, past_context)
    eos_token_ids = end_tokens(eos_token_ids, model, tokenizer)
    whole("n", n, least=1)
    check_lengths(params, max_new_tokens)
    _check_draw(draw, rows=len(tokens) * n)
    if logprobs is not None and whole("logprobs", logprobs, least=0) > model.d_vocab:
        raise ValueError(f"logprobs must be from 0 to the vocabulary's {model.d_vocab}, not {logprobs}")
    longest = min(min(map(len, tokens)) + max_new_tokens, model.config.n_ctx)
    check_memory(model, rows=len(tokens) * n, positions=longest)

    # Make a row for each sample of each prompt.
    n_ctx = model.config.n_ctx if past_context == "stop" else None
    device = model.embed.W_E.device if draw == "multinomial" else "cpu"
    new_row = partial(Row, eos_token_ids=eos_token_ids, max_new_tokens=max_new_tokens, n_ctx=n_ctx, device=device)
    rows = [
        new_row(row, len(tokens[row // n]), seed=own, text=text_stream(tokenizer, stop))
        for row, own in enumerate(_seeds(seed, prompts=len(tokens), n=n))
    ]

    # Make the batch of all rows, and the chain of transforms.
    batch = RowBatch(model, tokens, rows, n=n, max_new_tokens=max_new_tokens, n_vocab=vocabulary(model, tokenizer))
    custom = only_text(transforms, model, tokenizer)
    chain = params.chain(prompt_width=max(map(len, tokens)), eos_token_ids=eos_token_ids, custom=custom)
    return _chunks(batch, chain, "greedy" if params.greedy else draw, logprobs)


def generate(
    model: GPT2,
    prompts: Prompt | Sequence[Prompt],
    params: SamplingParams | None = None,
    *,
    tokenizer: TokenizerSource | None = None,
    n: int = 1,
    seed: int | Sequence[int] = 42,
    max_new_tokens: int = 128,
    eos_token_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    past_context: PastContext = "stop",
    logprobs: int | None = None,
    transforms: Sequence[LogitsTransform] = (),
    draw: Draw = "inverse_cdf",
) -> list[Completion]:
    """Continue prompts. Arguments and errors are those of `stream`.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> greedy, = generate(model, [1, 2], SamplingParams(temperature=0), max_new_tokens=3)
    >>> [len(row.tokens) for row in generate(model, [[1], [2, 3]], n=2, max_new_tokens=3)]
    [3, 3, 3, 3]

    Returns:
        ``n`` completions of the first prompt, then those of the second, and so on.
    """
    chunks: dict[int, list[Chunk]] = {}
    for chunk in stream(
        model,
        prompts,
        params,
        tokenizer=tokenizer,
        n=n,
        seed=seed,
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_token_ids,
        stop=stop,
        past_context=past_context,
        logprobs=logprobs,
        transforms=transforms,
        draw=draw,
    ):
        chunks.setdefault(chunk.row, []).append(chunk)
    return [collect(chunks[row]) for row in sorted(chunks)]


def _prompt_tokens(
    prompts: Prompt | Sequence[Prompt], model: GPT2, tokenizer: Tokenizer | None, past_context: PastContext
) -> list[list[int]]:
    """Return the tokens of each prompt, after checking that the model can read them."""
    if past_context not in ("stop", "slide"):
        raise ValueError(f"past_context is {past_context!r}; it can be 'stop' or 'slide'")
    prompts = _several(prompts)
    if not prompts:
        raise ValueError("there is no prompt to continue: give at least one")
    names = ["the prompt"] if len(prompts) == 1 else [f"prompt {i}" for i in range(len(prompts))]
    tokens = [prompt_tokens(prompt, model, tokenizer, name=name) for prompt, name in zip(prompts, names, strict=True)]
    if past_context == "stop":
        for prompt, name in zip(tokens, names, strict=True):
            check_fits(prompt, model.config.n_ctx, name, advice="shorten it, or let it slide (past_context='slide')")
    return tokens


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return prompts as a list. Text, a list of ids, and a tensor or array with one axis are one prompt each."""
    if hasattr(prompts, "ndim"):
        one = cast(Tensor, prompts).ndim <= 1
    elif isinstance(prompts, str | Mapping) or not hasattr(prompts, "__len__"):
        one = True
    else:
        one = len(prompts) > 0 and not any(hasattr(item, "__len__") for item in prompts)
    return [cast(Prompt, prompts)] if one else list(cast(Sequence[Prompt], prompts))


def _check_draw(draw: Draw, *, rows: int) -> None:
    if draw not in ("inverse_cdf", "multinomial"):
        raise ValueError(f"draw is {draw!r}; it can be 'inverse_cdf' or 'multinomial'")
    if draw == "multinomial" and rows > 1:
        raise ValueError(
            f"multinomial draws from one generator, and there are {rows} rows: give one prompt and n=1, or "
            "draw by inverse_cdf"
        )


def _seeds(seed: int | Sequence[int], *, prompts: int, n: int) -> list[int]:
    """Return a seed for each row."""
    seed = getattr(seed, "tolist", lambda: seed)()  # of an array or a tensor
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        seeds = list(seed)
    else:
        first = checked_seed(seed)
        seeds = [first + sample for _ in range(prompts) for sample in range(n)]
    if len(seeds) != prompts * n:
        raise ValueError(f"there are {len(seeds)} seeds for {prompts} prompts with {n} samples each")
    return seeds


def _chunks(batch: RowBatch, chain: Chain, choice: Literal["greedy"] | Draw, logprobs: int | None) -> Iterator[Chunk]:
    """Yield the chunks of one step after the other, until all rows have ended."""
    while batch.rows:
        yield from _step(batch, chain, choice, logprobs)


@torch.inference_mode()
def _step(batch: RowBatch, chain: Chain, choice: Literal["greedy"] | Draw, logprobs: int | None) -> list[Chunk]:
    """Choose a token for each row, and return the chunks in the order of the rows."""
    logits = batch.logits()
    transformed = chain(batch.history, logits) if chain.transforms else logits
    if choice == "greedy":
        chosen = greedy(transformed)
    elif choice == "multinomial":
        chosen = multinomial(transformed, batch.rows[0].generator)
    else:
        chosen = inverse_cdf(transformed, row_uniforms([row.generator for row in batch.rows]))
    reported = [None] * len(batch.rows) if logprobs is None else _logprobs(logits, chosen, logprobs)
    new = zip(batch.rows, chosen.tolist(), reported, strict=True)
    chunks = [row.append(token, token_logprobs) for row, token, token_logprobs in new]
    batch.append(chosen)
    return sorted(chunks, key=lambda chunk: chunk.row)


def _logprobs(logits: Tensor, chosen: Tensor, number: int) -> list[Logprobs]:
    """Return the log-probability of each row's chosen token, and of the ``number`` most probable ones."""
    log_probs = logits.log_softmax(-1)
    taken = log_probs.gather(1, chosen[:, None])[:, 0].tolist()
    values, ids = (part.tolist() for part in log_probs.topk(min(number, log_probs.shape[1])))
    return [Logprobs(one, dict(zip(*top, strict=True))) for one, *top in zip(taken, ids, values, strict=True)]
