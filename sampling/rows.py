"""One text that is being generated: its chunks, its completion, and the conditions that end it."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .params import SamplingParams
from .text import TextStream
from .transforms.base import whole

__all__ = [
    "Chunk",
    "Completion",
    "FinishReason",
    "Logprobs",
    "Row",
    "check_fits",
    "check_lengths",
    "checked_seed",
    "collect",
]

_LEAST_SEED, _LARGEST_SEED = -(2**63), 2**64 - 1  # what torch.Generator takes

FinishReason = Literal["eos", "stop", "length", "context"]
"""Why a row ended: an end token, a stop string, ``max_new_tokens``, or no position left in the model's context."""


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before any transform.

    >>> Logprobs(chosen=-0.5, top={7: -0.5, 3: -1.2}).top[3]
    -1.2
    """

    chosen: float
    """The log-probability of the chosen token."""
    top: dict[int, float]
    """The log-probabilities of the most probable tokens, the most probable first."""


@dataclass(frozen=True)
class Chunk:
    """The token that one step adds to one row.

    >>> Chunk(row=0, token=7, text=" fox", finish_reason=None).text
    ' fox'
    """

    row: int
    """``prompt * n + sample``."""
    token: int
    text: str
    """The new text that later tokens cannot change; it may end before this token's text."""
    finish_reason: FinishReason | None
    """Why the row ended; None if it has not."""
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Completion:
    """The continuation of a prompt, without the prompt.

    >>> Completion(text=" fox", tokens=[7], finish_reason="length").tokens
    [7]
    """

    text: str
    """The text without the end token and without the stop string; empty without a tokenizer."""
    tokens: list[int]
    """All generated tokens, with the end token and those of the stop string."""
    finish_reason: FinishReason
    logprobs: list[Logprobs] | None = None
    """Log-probabilities of each token, if they were requested."""


def collect(chunks: Sequence[Chunk]) -> Completion:
    """Return the completion that consists of all chunks of a row.

    >>> collect([Chunk(0, 7, "a", None), Chunk(0, 8, "b", "length")])
    Completion(text='ab', tokens=[7, 8], finish_reason='length', logprobs=None)
    """
    finish_reason = chunks[-1].finish_reason
    assert finish_reason is not None
    logprobs = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        tokens=[chunk.token for chunk in chunks],
        finish_reason=finish_reason,
        logprobs=logprobs or None,
    )


def check_lengths(params: SamplingParams, max_new_tokens: int) -> None:
    """Raise ValueError if the smallest number of tokens is larger than the largest.

    >>> check_lengths(SamplingParams(min_new_tokens=9), max_new_tokens=4)
    Traceback (most recent call last):
    ValueError: min_new_tokens=9 is more than max_new_tokens=4
    """
    whole("max_new_tokens", max_new_tokens, least=1)
    if params.min_new_tokens > max_new_tokens:
        raise ValueError(f"min_new_tokens={params.min_new_tokens} is more than max_new_tokens={max_new_tokens}")


def check_fits(prompt: Sequence[int], n_ctx: int, name: str = "the prompt", advice: str = "shorten it") -> None:
    """Raise ValueError if a prompt has more tokens than the model has positions.

    >>> check_fits([1, 2, 3], n_ctx=2)
    Traceback (most recent call last):
    ValueError: the prompt has 3 tokens, and the model reads at most n_ctx=2: shorten it
    """
    if len(prompt) > n_ctx:
        raise ValueError(f"{name} has {len(prompt)} tokens, and the model reads at most n_ctx={n_ctx}: {advice}")


def checked_seed(seed: Any) -> int:
    """Return a seed as an int, or raise ValueError if it is no whole number that a generator takes.

    >>> checked_seed(torch.tensor(3))
    3
    """
    try:
        found = operator.index(seed)
    except TypeError:
        found = None
    if found is None or not _LEAST_SEED <= found <= _LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from -2**63 to 2**64 - 1, not {seed!r:.40}")
    return found


class Row:
    """One text that is being generated: counts its tokens, and decides when it ends.

    >>> row = Row(0, 3, seed=1, text=None, eos_token_ids=[9], max_new_tokens=5, n_ctx=16)
    >>> row.append(7).finish_reason, row.append(9).finish_reason
    (None, 'eos')

    Args:
        index: Number of the row, for its chunks.
        prompt_length: Number of tokens of the prompt.
        seed: Seed of the row's random number generator.
        text: Turns tokens into text (None: without a tokenizer).
        eos_token_ids: Tokens that end the row.
        max_new_tokens: Largest number of new tokens.
        n_ctx: Number of tokens at which the row ends (None: it does not end there).
        device: Device of the row's random number generator.
    """

    def __init__(
        self,
        index: int,
        prompt_length: int,
        *,
        seed: int,
        text: TextStream | None,
        eos_token_ids: Sequence[int],
        max_new_tokens: int,
        n_ctx: int | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.index, self.length = index, prompt_length
        self.generator = torch.Generator(device).manual_seed(checked_seed(seed))
        self.finished = False
        self._text, self._eos_token_ids, self._n_ctx = text, frozenset(eos_token_ids), n_ctx
        self._most = prompt_length + max_new_tokens

    def append(self, token: int, logprobs: Logprobs | None = None) -> Chunk:
        """Append the next token, and return its chunk."""
        self.length += 1
        text, stopped, reason = "", False, None
        if token in self._eos_token_ids:
            reason = "eos"
        elif self._text is not None:
            text, stopped = self._text.push(token)
        if stopped:
            reason = "stop"
        elif reason is None and self.length == self._most:
            reason = "length"
        elif reason is None and self._n_ctx is not None and self.length > self._n_ctx:
            reason = "context"
        self.finished = reason is not None
        if self.finished and self._text is not None:
            text += self._text.finish()
        return Chunk(self.index, token, text, reason, logprobs)
