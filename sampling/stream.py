"""Text from a model, token by token (`stream`) or all at once (`generate`, which is `stream` collected).

All rows (every sample of every prompt) advance together, one token per step. Prompts of different lengths are padded on
the left; neither the model nor a transform sees the padding. Each prompt is read once, for all of its samples. A row
that has ended leaves the batch and costs no more time. Each row draws from its own generator: its text depends on its
prompt, its seed and the settings, not on other rows (except for rounding in float32, which can decide between two
tokens that are almost equally probable)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..assembly import GPT2
from ..components.dropout import no_dropout
from ..components.kv_cache import KVCache
from ..components.shapes import typecheck
from ..tokenizer import TokenizerSource
from .draw import greedy, inverse_cdf, multinomial, row_uniforms
from .params import SamplingParams
from .rows import Chunk, Completion, FinishReason, Logprobs, Row, check_fits, check_lengths, collect
from .text import Prompt, as_tokenizer, end_tokens, only_text, prompt_tokens, text_stream, vocabulary
from .transforms import PADDING, LogitsTransform
from .transforms.base import whole

__all__ = ["Chunk", "Completion", "Draw", "FinishReason", "Logprobs", "PastContext", "generate", "stream"]

PastContext = Literal["stop", "slide"]
"""Past ``n_ctx`` tokens: end the row, or continue and read the last ``n_ctx`` tokens again for each new token.

Sliding changes the position of every token and, with learned positions, all keys and values: nothing cached can be
used, and a token costs as much time as reading ``n_ctx`` tokens.
"""

_COLUMNS = 256  # of new tokens that are reserved from the start

Draw = Literal["inverse_cdf", "multinomial"]
"""How tokens are drawn, see `gptladder.sampling.draw`; ``multinomial`` draws transformers' tokens, for one row."""


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
    """Continue prompts, and yield each token as it comes.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> [chunk.finish_reason for chunk in stream(model, [1, 2], max_new_tokens=3)]
    [None, None, 'length']

    Args:
        model: In any mode; dropout is off during each step.
        prompts: one, or several of any lengths: text, or the ids of tokens.
        params: How tokens are chosen (default: sampled from the model's distribution as it is).
        tokenizer: needed for text in, text out and stop strings. Ids that it lacks are never generated.
        n: Number of samples of each prompt.
        seed: sample ``i`` of every prompt is drawn with ``seed + i``; or one seed for each row.
        max_new_tokens: Largest number of tokens of a row.
        eos_token_ids: Tokens that end a row (default: the tokenizer's end of text).
        stop: strings that end a row.
        past_context: What happens when ``n_ctx`` is full.
        logprobs: Report the log-probability of each token taken, and of this many of the most probable tokens.
        transforms: The user's own, see `SamplingParams.chain`.
        draw: how tokens are drawn.

    Returns:
        An iterator over what each step adds to each row, rows in order.

    Raises:
        ValueError: an empty prompt; a token outside the vocabulary; more than ``n_ctx`` tokens, unless they may slide;
            an empty stop string; text without a tokenizer; a number out of range. During iteration: no token left.
    """
    params = SamplingParams() if params is None else params
    tokenizer = as_tokenizer(tokenizer)
    prompts = _several(prompts)
    names = ["the prompt"] if len(prompts) == 1 else [f"prompt {i}" for i in range(len(prompts))]
    tokens = [prompt_tokens(prompt, model, tokenizer, name=name) for prompt, name in zip(prompts, names, strict=True)]
    eos_token_ids = end_tokens(eos_token_ids, model, tokenizer)
    if not prompts:
        raise ValueError("there is no prompt to continue: give at least one")
    whole("n", n, least=1)
    check_lengths(params, max_new_tokens)
    if past_context not in ("stop", "slide"):
        raise ValueError(f"past_context is {past_context!r}; it can be 'stop' or 'slide'")
    if draw not in ("inverse_cdf", "multinomial"):
        raise ValueError(f"draw is {draw!r}; it can be 'inverse_cdf' or 'multinomial'")
    if draw == "multinomial" and len(prompts) * n > 1:
        raise ValueError(
            f"multinomial draws from one generator, and there are {len(prompts) * n} rows: give one prompt and n=1, or "
            "draw by inverse_cdf"
        )
    if logprobs is not None and not 0 <= logprobs <= model.d_vocab:
        raise ValueError(f"logprobs must be from 0 to the vocabulary's {model.d_vocab}, not {logprobs}")
    longest = min(min(map(len, tokens)) + max_new_tokens, model.config.n_ctx)
    check_memory(model, rows=len(prompts) * n, positions=longest)
    seeds = [seed + sample for _ in prompts for sample in range(n)] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts) * n:
        raise ValueError(f"there are {len(seeds)} seeds for {len(prompts)} prompts with {n} samples each")
    n_ctx = model.config.n_ctx
    for prompt, name in zip(tokens, names, strict=True):
        if past_context == "stop":
            check_fits(prompt, n_ctx, name, advice="shorten it, or let it slide (past_context='slide')")
    rows = [
        Row(
            row,
            len(tokens[row // n]),
            seed=seeds[row],
            text=text_stream(tokenizer, stop),
            eos_token_ids=eos_token_ids,
            max_new_tokens=max_new_tokens,
            n_ctx=n_ctx if past_context == "stop" else None,
            device=model.embed.W_E.device if draw == "multinomial" else "cpu",
        )
        for row in range(len(seeds))
    ]
    custom = only_text(transforms, model, tokenizer)
    chain = params.chain(prompt_width=max(map(len, tokens)), eos_token_ids=eos_token_ids, custom=custom)
    batch = _Batch(model, tokens, rows, n=n, max_new_tokens=max_new_tokens, n_vocab=vocabulary(model, tokenizer))

    @torch.inference_mode()
    def step() -> list[Chunk]:
        logits = batch.logits()
        transformed = chain(batch.history, logits) if chain.transforms else logits
        if params.greedy:
            chosen = greedy(transformed)
        elif draw == "multinomial":
            chosen = multinomial(transformed, batch.rows[0].generator)
        else:
            chosen = inverse_cdf(transformed, row_uniforms([row.generator for row in batch.rows]))
        reported = [None] * len(batch.rows) if logprobs is None else _logprobs(logits, chosen, logprobs)
        new = zip(batch.rows, chosen.tolist(), reported, strict=True)
        chunks = [row.append(token, token_logprobs) for row, token, token_logprobs in new]
        batch.append(chosen)
        return sorted(chunks, key=lambda chunk: chunk.row)

    def run() -> Iterator[Chunk]:
        while batch.rows:
            yield from step()

    return run()


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


class _Batch:
    """The rows still at work, their tokens so far, and the model's memory of them.

    Rows that fit into ``n_ctx`` come first, and are in the cache in that order; those behind them slide.

    Args:
        prompts: each is continued by ``n`` rows.
        n_vocab: of the model's vocabulary, so much is used.
    """

    def __init__(
        self, model: GPT2, prompts: list[list[int]], rows: list[Row], *, n: int, max_new_tokens: int, n_vocab: int
    ) -> None:
        self._model, self._n, self._max_new_tokens, self._n_vocab = model, n, max_new_tokens, n_vocab
        self._n_ctx = model.config.n_ctx
        self._end = max(map(len, prompts))
        # Room for more columns is made as the texts grow: `max_new_tokens` may be huge and mean "until it ends".
        tokens = torch.full((len(rows), self._end + min(max_new_tokens, _COLUMNS)), PADDING)
        for row in rows:
            prompt = prompts[row.index // n]
            tokens[row.index, self._end - len(prompt) : self._end] = torch.tensor(prompt)
        self._tokens = tokens.to(model.embed.W_E.device)
        self.rows = rows
        self._cached = len(rows)
        self._cache: KVCache | None = None
        self._shapes: set[torch.Size] = set()
        self._regroup()

    @property
    def history(self) -> Tensor:
        """The tokens so far, Int64[rows seq], padded on the left."""
        return self._tokens[:, : self._end]

    def logits(self) -> Tensor:
        """Of each row's next token, Float[rows n_vocab], in float32 at least."""
        parts = []
        if self._cached and self._cache is None:
            parts.append(self._read_prompts())
        elif self._cached:
            parts.append(self._read(self._tokens[: self._cached, self._end - 1 : self._end], cache=self._cache))
        if self._cached < len(self.rows):  # these rows are at least n_ctx long: there is no padding in the window
            parts.append(self._read(self._tokens[self._cached :, self._end - self._n_ctx : self._end]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def append(self, chosen: Tensor) -> None:
        """Add a token to each row, and let those go that it has ended."""
        if self._end == self._tokens.shape[1]:
            self._tokens = F.pad(self._tokens, (0, self._end), value=PADDING)
        self._tokens[:, self._end] = chosen
        self._end += 1
        self._regroup()

    def _regroup(self) -> None:
        going_on = [i for i, row in enumerate(self.rows) if not row.finished]
        fitting = [i for i in going_on if i < self._cached and self.rows[i].length <= self._n_ctx]
        order = fitting + [i for i in going_on if i not in fitting]
        if self._cache is not None and len(fitting) < self._cached:
            self._cache.reorder(torch.tensor(fitting, dtype=torch.int64, device=self._tokens.device))
        self._cached = len(fitting)
        if order != list(range(len(self.rows))):
            self.rows = [self.rows[i] for i in order]
            self._tokens = self._tokens[order]

    def _read_prompts(self) -> Tensor:
        lengths = [row.length for row in self.rows[: self._cached]]
        tokens = self._tokens[: self._cached : self._n, self._end - max(lengths) : self._end]
        is_token = tokens != PADDING
        # The row with the most padding may yet get the most tokens, and padding stays in the cache.
        room = min(self._max_new_tokens - 1, self._n_ctx - min(lengths))
        self._cache = self._model.new_cache(len(tokens), capacity=max(lengths) + room)
        logits = self._read(
            tokens.clamp(min=0), padding_mask=None if bool(is_token.all()) else is_token, cache=self._cache
        )
        if self._n > 1:
            self._cache = self._cache.fork(self._n)
        return logits.repeat_interleave(self._n, dim=0)

    def _read(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        # The shapes are those of the last step but for the key positions, which grow: once is enough.
        known = tokens.shape in self._shapes
        self._shapes.add(tokens.shape)
        with typecheck(False) if known else nullcontext():
            return logits_after(self._model, tokens, **kwargs)[:, -1, : self._n_vocab]


def check_memory(model: GPT2, *, rows: int, positions: int, name: str = "n") -> None:
    """Raise ValueError if the keys and values of so many texts at once are more than the machine's memory."""
    config = model.config
    weight = model.embed.W_E
    if weight.device.type != "cpu":  # whose own allocator refuses at once
        return
    for_each = positions * config.n_layers * 2 * config.n_heads * config.d_head + config.d_vocab
    needed, memory = rows * for_each * weight.element_size(), machine_memory()
    if needed > memory:
        raise ValueError(
            f"{name} is too large: {rows:,} texts of up to {positions:,} tokens need {needed / 1e9:,.0f} GB for keys "
            f"and values, and this machine has {memory / 1e9:,.0f} GB"
        )


def machine_memory() -> int:
    """Return the bytes of memory that the machine has, or a very large number if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 2**63


def logits_after(model: GPT2, tokens: Tensor, *, last: int = 1, **kwargs: Any) -> Tensor:
    """The logits after each of the last tokens, Float[batch last d_vocab], in float32 at least, without dropout.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> logits_after(model, torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 1, 5])
    """
    with no_dropout(model):
        logits = model.unembed(model.final_residual(tokens, **kwargs)[:, -last:])
    return logits if logits.dtype == torch.float64 else logits.float()


def _logprobs(logits: Tensor, chosen: Tensor, number: int) -> list[Logprobs]:
    log_probs = logits.log_softmax(-1)
    taken = log_probs.gather(1, chosen[:, None])[:, 0].tolist()
    values, ids = (part.tolist() for part in log_probs.topk(min(number, log_probs.shape[1])))
    return [Logprobs(one, dict(zip(*top, strict=True))) for one, *top in zip(taken, ids, values, strict=True)]


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list: text, ids and one row of ids are one; whatever holds these is several."""
    if isinstance(prompts, Tensor):
        one = prompts.dim() == 1
    else:
        one = isinstance(prompts, str) or (len(prompts) > 0 and all(isinstance(item, int) for item in prompts))
    return [cast(Prompt, prompts)] if one else list(cast(Sequence[Prompt], prompts))
