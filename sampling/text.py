"""Prompts in, text out: what stands between a user's strings and the model's tokens."""

import codecs
from collections.abc import Sequence

from torch import Tensor

from ..assembly import GPT2
from ..tokenizer import Tokenizer

__all__ = ["Prompt", "TextStream", "end_tokens", "prompt_tokens", "text_stream", "vocabulary"]

Prompt = str | Sequence[int] | Tensor
"""Text, or the ids of its tokens."""


def prompt_tokens(prompt: Prompt, model: GPT2, tokenizer: Tokenizer | None, *, name: str = "the prompt") -> list[int]:
    """The ids of a prompt's tokens.

    Args:
        name: what the prompt is called where something is wrong with it.

    Raises:
        ValueError: text without a tokenizer; no token; a token outside the model's vocabulary.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(f"{name} is text: pass tokenizer=..., or give the ids of its tokens")
        tokens = tokenizer.encode(prompt)
    else:
        tokens = list(map(int, prompt))
    if not tokens:
        raise ValueError(
            f"{name} is empty, and a model needs at least one token to read: give a space or a newline, or "
            "[tokenizer.eot_id], the end-of-text token that texts begin after"
        )
    for token in tokens:
        if not 0 <= token < model.d_vocab:
            raise ValueError(
                f"{name} holds token {token}, but the model's vocabulary has {model.d_vocab}: ids go from 0 to "
                f"{model.d_vocab - 1}"
            )
    return tokens


def end_tokens(eos_token_ids: Sequence[int] | None, model: GPT2, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The tokens that end a text: those given, or else the tokenizer's end of text.

    Raises:
        ValueError: a token outside the model's vocabulary.
    """
    if eos_token_ids is None:
        return () if tokenizer is None or tokenizer.eot_id is None else (tokenizer.eot_id,)
    for token in eos_token_ids:
        if not 0 <= token < model.d_vocab:
            raise ValueError(f"eos_token_ids holds {token}, but the model's vocabulary ends at {model.d_vocab - 1}")
    return tuple(eos_token_ids)


def vocabulary(model: GPT2, tokenizer: Tokenizer | None) -> int:
    """How many ids can be generated: models may have more than their tokenizer, for the sake of a round number."""
    return model.d_vocab if tokenizer is None else min(tokenizer.n_vocab, model.d_vocab)


def text_stream(tokenizer: Tokenizer | None, stop: str | Sequence[str]) -> "TextStream | None":
    """What turns a row's tokens into text; without a tokenizer there is none.

    Raises:
        ValueError: an empty stop string, or one without a tokenizer.
    """
    if tokenizer is not None:
        return TextStream(tokenizer, (stop,) if isinstance(stop, str) else stop)
    if stop or stop == "":
        raise ValueError("stop strings are looked for in text: pass tokenizer=..., or use eos_token_ids")
    return None


class TextStream:
    """Turns tokens into text as they come, and ends at a stop string.

    A character whose bytes are spread over tokens is given out once it is whole; bytes that are no UTF-8 become U+FFFD,
    and the half of a character at the very end is left out. The text is cut before the stop string that is complete
    first, wherever the borders of tokens lie; what may yet turn out to be the beginning of one is held back.

    Raises:
        ValueError: an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise ValueError("a stop string is empty, and would end every text at once: leave it out")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """The text that one more token settles, and whether a stop string has ended it."""
        self._held += self._utf8.decode(self._tokenizer.decode_bytes([token]))
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        settled = min(found)[1] if found else len(self._held) - self._begun()
        text, self._held = self._held[:settled], "" if found else self._held[settled:]
        return text, bool(found)

    def finish(self) -> str:
        """What was held back, where no further token will come."""
        text, self._held = self._held, ""
        return text

    def _begun(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if self._held.endswith(stop[:size])), default=0
        )
