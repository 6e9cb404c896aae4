"""Speculative decoding: a cheap draft guesses several tokens, and the model checks all of them in one call.

The output is what the model alone would generate: with ``temperature=0`` the same tokens (except for rounding, if two
tokens are almost equally probable), otherwise tokens from the same distribution.

Reference: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1; Chen et al. 2023, arXiv:2302.01318.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..assembly import GPT2
from ..assembly.arguments import check_model
from ..tokenizer import TokenizerSource
from .arguments import checked_params
from .draw import check_drawable, greedy, inverse_cdf, row_uniforms
from .logits import logits_after
from .params import SamplingParams
from .rows import Chunk, Completion, Row, check_fits, check_lengths, collect
from .text import Prompt, as_tokenizer, end_tokens, only_text, prompt_tokens, text_stream, vocabulary
from .transforms import Chain, LogitsTransform
from .transforms.base import whole

__all__ = ["PromptLookup", "Speculation", "speculate"]


@dataclass(frozen=True)
class PromptLookup:
    """A draft without a second model: it guesses that a repeated sequence of tokens continues as it did before.

    It looks for the last few tokens at an earlier place in the text, and guesses the tokens that follow there.

    Reference: Saxena 2023, "Prompt Lookup Decoding"; ``prompt_lookup_num_tokens`` in transformers.

    >>> PromptLookup(max_ngram=2).propose([5, 6, 7, 8, 5, 6], 2)
    [7, 8]

    Args:
        max_ngram: Number of last tokens to look for. If they do not occur earlier, fewer are tried, down to one.

    Raises:
        ValueError: ``max_ngram`` is below 1.
    """

    max_ngram: int = 3

    def __post_init__(self) -> None:
        whole("max_ngram", self.max_ngram, least=1)

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that follow the latest earlier occurrence; none if there is no occurrence."""
        for size in range(min(self.max_ngram, len(tokens) - 1), 0, -1):
            for start in range(len(tokens) - size - 1, -1, -1):
                if tokens[start : start + size] == tokens[-size:]:
                    return tokens[start + size : start + size + most]
        return []


@dataclass(frozen=True)
class Speculation(Completion):
    """A completion, with counts of the guesses.

    >>> Speculation(text="", tokens=[1, 2], finish_reason="length", proposed=4, accepted=1).acceptance_rate
    0.25
    """

    proposed: int = 0
    """Number of guessed tokens."""
    accepted: int = 0
    """Number of guessed tokens that were accepted."""
    calls: int = 0
    """Number of calls of the model. Without speculation there would be one call per token."""

    @property
    def acceptance_rate(self) -> float:
        """The share of guessed tokens that were accepted; 0 if there were no guesses."""
        return self.accepted / max(self.proposed, 1)


@torch.inference_mode()
def speculate(
    model: GPT2,
    prompt: Prompt,
    params: SamplingParams | None = None,
    *,
    draft: GPT2 | PromptLookup,
    lookahead: int = 4,
    tokenizer: TokenizerSource | None = None,
    seed: int = 42,
    max_new_tokens: int = 128,
    eos_token_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    transforms: Sequence[LogitsTransform] = (),
) -> Speculation:
    """Continue one prompt. ``draft`` guesses the next tokens, and ``model`` accepts or rejects each guess.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> found = speculate(model, [1, 2, 1, 2], draft=PromptLookup(), max_new_tokens=6)
    >>> len(found.tokens), found.calls <= 6
    (6, True)

    Args:
        model: The model whose text is generated.
        prompt: The prompt: text, or the ids of tokens.
        draft: A smaller model with the same vocabulary, or `PromptLookup`.
        lookahead: Number of tokens to guess before each call of the model.
        params, tokenizer, seed, max_new_tokens, eos_token_ids, stop, transforms: As for `gptladder.sampling.stream`.
            This function uses more random numbers, so the same seed gives a different text than `stream`.

    Raises:
        ValueError: `stream` would refuse an argument; the draft is no model, or has another vocabulary; ``lookahead``
            is below 1.
    """
    # Check the arguments.
    check_model(model)
    if not isinstance(draft, PromptLookup):
        check_model(draft, "draft", "a GPT2 or PromptLookup()")
    params = checked_params(params, SamplingParams())
    whole("lookahead", lookahead, least=1)
    tokenizer = as_tokenizer(model, tokenizer)
    check_lengths(params, max_new_tokens)
    tokens = prompt_tokens(prompt, model, tokenizer)
    n_ctx = model.config.n_ctx
    check_fits(tokens, n_ctx)
    eos_token_ids = end_tokens(eos_token_ids, model, tokenizer)

    # Make the row, what chooses its tokens, and what reads and guesses them.
    row = Row(
        0,
        len(tokens),
        seed=seed,
        text=text_stream(tokenizer, stop),
        eos_token_ids=eos_token_ids,
        max_new_tokens=max_new_tokens,
        n_ctx=n_ctx,
    )
    custom = only_text(transforms, model, tokenizer)
    chain = params.chain(prompt_width=len(tokens), eos_token_ids=eos_token_ids, custom=custom)
    chooser = _Chooser(chain, params.greedy, row.generator)
    most = len(tokens) + max_new_tokens
    reader = _Reader(model, vocabulary(model, tokenizer), most)
    drafter = _drafter(draft, reader, chooser)

    # Guess and check, until the row ends.
    chunks: list[Chunk] = []
    proposed = accepted = calls = 0
    while not row.finished:
        # Guess some tokens. The token after the last guess is always the model's own, so the guesses are one fewer than
        # the tokens that may follow.
        guesses = drafter.propose(tokens, min(lookahead, most - 1 - len(tokens), n_ctx - len(tokens)))
        # Compute the model's logits after the text and after each guess, in one call.
        logits = reader.logits([*tokens, *(guess.token for guess in guesses)], last=len(guesses) + 1)
        # Append the guesses that are accepted, up to the first one that is not, and one token from the model.
        new, taken = _append(row, tokens, guesses, logits, chooser)
        chunks += new
        proposed, accepted, calls = proposed + len(guesses), accepted + taken, calls + 1
    return Speculation(**vars(collect(chunks)), proposed=proposed, accepted=accepted, calls=calls)


@dataclass(frozen=True)
class _Guess:
    """A guessed token, and the distribution from which it was drawn, Float64[n_vocab]."""

    token: int
    probs: Tensor


class _Chooser:
    """Compute the distribution after the transforms, and draw from it."""

    def __init__(self, chain: Chain, greedy: bool, generator: torch.Generator) -> None:
        self._chain, self._greedy, self._generator = chain, greedy, generator

    def probs(self, tokens: list[int], logits: Tensor) -> Tensor:
        """Return the probabilities of the next token, Float64[n_vocab] (greedy decoding: 1 for the most probable)."""
        transformed = self._chain(torch.tensor([tokens], device=logits.device), logits[None])
        check_drawable(transformed)
        if self._greedy:
            return F.one_hot(greedy(transformed), transformed.shape[1])[0].double()
        return transformed[0].softmax(-1, dtype=torch.float64)

    def draw(self, weights: Tensor) -> int:
        """Draw a token with a probability in proportion to its weight. Negative weights count as 0."""
        return int(inverse_cdf(weights.clamp(min=0).log()[None], row_uniforms([self._generator])))

    def accepts(self, guess: _Guess, probs: Tensor) -> bool:
        """Return whether a guess is accepted, which has the probability min(1, model's probability / draft's)."""
        return bool(row_uniforms([self._generator]) * guess.probs[guess.token].cpu() < probs[guess.token].cpu())


def _append(
    row: Row, tokens: list[int], guesses: list[_Guess], logits: Tensor, chooser: _Chooser
) -> tuple[list[Chunk], int]:
    """Append the accepted guesses and then a token of the model to ``tokens``, unless the row ends before.

    A guess is accepted with the probability that makes the tokens' distribution the model's own (Leviathan et al.,
    algorithm 1). The token after a rejected guess is drawn from the differences of the two distributions.

    Args:
        row: the row of the text.
        tokens: the text so far; tokens are appended to it.
        guesses: the guessed tokens.
        logits: the model's logits after the text and after each guess, Float[guesses+1 n_vocab].
        chooser: computes and draws.

    Returns:
        The chunks, and the number of accepted guesses.
    """
    chunks: list[Chunk] = []
    accepted = 0
    for guess, token_logits in zip([*guesses, None], logits, strict=True):
        probs = chooser.probs(tokens, token_logits)
        taken = guess is not None and chooser.accepts(guess, probs)
        token = guess.token if guess and taken else chooser.draw(probs if guess is None else probs - guess.probs)
        accepted += taken
        tokens.append(token)
        chunks.append(row.append(token))
        if row.finished or not taken:
            break
    return chunks, accepted


class _Reader:
    """A model that reads a growing text, whose last tokens may change. The cache holds the part read before.

    Args:
        model: The model.
        n_vocab: Number of tokens that can be drawn.
        most: Largest number of tokens of the text.
    """

    def __init__(self, model: GPT2, n_vocab: int, most: int) -> None:
        self.n_ctx, self.n_vocab, self.most = model.config.n_ctx, n_vocab, most
        self.d_vocab = model.d_vocab
        self._model = model
        self._cache = model.new_cache(1, capacity=min(most, self.n_ctx))
        self._seen: list[int] = []

    def logits(self, tokens: list[int], last: int) -> Tensor:
        """Return the logits after each of the ``last`` tokens, Float[last n_vocab], in float32 or float64."""
        # Keep the part of the cache that belongs to the beginning of this text, and read the rest.
        pairs = zip(self._seen, tokens[: len(tokens) - last], strict=False)
        known = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._cache.crop(known)
        new = torch.tensor([tokens[known:]], device=self._model.embed.W_E.device)
        self._seen = list(tokens)
        return logits_after(self._model, new, last=last, cache=self._cache)[0, :, : self.n_vocab]


class _DraftModel:
    """Guess tokens by drawing them from a smaller model."""

    def __init__(self, reader: _Reader, chooser: _Chooser) -> None:
        self._reader, self._chooser = reader, chooser

    def propose(self, tokens: list[int], most: int) -> list[_Guess]:
        guesses: list[_Guess] = []
        text = list(tokens)
        while len(guesses) < most and len(text) <= self._reader.n_ctx:
            probs = self._chooser.probs(text, self._reader.logits(text, last=1)[0])
            guesses.append(_Guess(self._chooser.draw(probs), probs))
            text.append(guesses[-1].token)
        return guesses


class _Lookup:
    """Guess tokens by `PromptLookup`. Each guess has the probability 1 in its own distribution."""

    def __init__(self, lookup: PromptLookup, n_vocab: int) -> None:
        self._lookup, self._n_vocab = lookup, n_vocab

    def propose(self, tokens: list[int], most: int) -> list[_Guess]:
        # The prompt may hold ids that cannot be generated, because the tokenizer has no text for them.
        guesses = self._lookup.propose(tokens, most)
        unknown = (place for place, token in enumerate(guesses) if token >= self._n_vocab)
        guesses = guesses[: next(unknown, most)]
        return [_Guess(token, probs) for token, probs in zip(guesses, self._one_hot(guesses), strict=True)]

    def _one_hot(self, tokens: list[int]) -> Tensor:
        return F.one_hot(torch.tensor(tokens, dtype=torch.int64), self._n_vocab).double()


def _drafter(draft: GPT2 | PromptLookup, reader: _Reader, chooser: _Chooser) -> _DraftModel | _Lookup:
    """Return what guesses tokens for the model of a reader.

    Raises:
        ValueError: the draft has another vocabulary than the model.
    """
    if isinstance(draft, PromptLookup):
        return _Lookup(draft, reader.n_vocab)
    if draft.d_vocab != reader.d_vocab:
        raise ValueError(
            f"the draft's vocabulary has {draft.d_vocab} tokens and the model's {reader.d_vocab}: they must be the same"
        )
    return _DraftModel(_Reader(draft, reader.n_vocab, reader.most), chooser)
