"""One text under way: its chunks while it grows, its completion when it has ended, and what ends it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from .params import SamplingParams
from .text import TextStream
from .transforms.base import whole

__all__ = ["Chunk", "Completion", "FinishReason", "Logprobs", "Row", "check_fits", "check_lengths", "collect"]

_LEAST_SEED, _LARGEST_SEED = -(2**63), 2**64 - 1  # what torch.Generator takes

FinishReason = Literal["eos", "stop", "length", "context"]
"""An end token; a stop string; ``max_new_tokens``; no position left to read the newest token at."""


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before any transform."""

    chosen: float
    """Of the token taken."""
    top: dict[int, float]
    """Of the likeliest tokens, the likeliest first."""


@dataclass(frozen=True)
class Chunk:
    """What one step adds to one row."""

    row: int
    """``prompt * n + sample``."""
    token: int
    text: str
    """What can be shown by now; it may lag behind the token."""
    finish_reason: FinishReason | None
    """None while the row goes on."""
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Completion:
    """The continuation of a prompt, without the prompt."""

    text: str
    """Without the end token, and cut before the stop string; empty where there is no tokenizer."""
    tokens: list[int]
    """All that were generated, the end token and those of the stop string among them."""
    finish_reason: FinishReason
    logprobs: list[Logprobs] | None = None
    """One for each token, where they were asked for."""


def collect(chunks: Sequence[Chunk]) -> Completion:
    """One row's chunks, the last of which ends it, as a whole."""
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
    """Raise ValueError if no text can have the lengths that are asked for."""
    whole("max_new_tokens", max_new_tokens, least=1)
    if params.min_new_tokens > max_new_tokens:
        raise ValueError(f"min_new_tokens={params.min_new_tokens} is more than max_new_tokens={max_new_tokens}")


def check_fits(prompt: Sequence[int], n_ctx: int, name: str = "the prompt", mend: str = "shorten it") -> None:
    """Raise ValueError for a prompt that the model has no positions for."""
    if len(prompt) > n_ctx:
        raise ValueError(f"{name} has {len(prompt)} tokens, and the model reads at most n_ctx={n_ctx}: {mend}")


class Row:
    """One text under way: counts its tokens, and notices its end.

    Args:
        index: its number, for its chunks.
        prompt_length: tokens of the prompt.
        text: turns tokens into text, where there is a tokenizer.
        n_ctx: most tokens that the model can read; None where that does not end the row.
        device: where the row's generator draws.
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
        if not _LEAST_SEED <= seed <= _LARGEST_SEED:
            raise ValueError(f"seed must be from -2**63 to 2**64 - 1, not {seed}")
        self.index, self.length = index, prompt_length
        self.generator = torch.Generator(device).manual_seed(seed)
        self.finished = False
        self._text, self._eos_token_ids, self._n_ctx = text, frozenset(eos_token_ids), n_ctx
        self._most = prompt_length + max_new_tokens

    def append(self, token: int, logprobs: Logprobs | None = None) -> Chunk:
        """Take in the next token."""
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
