"""The input of every function here: text or token ids, turned into tokens with a label for each position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..assembly.model import GPT2
from ..sampling.rows import check_fits
from ..sampling.text import as_tokenizer, prompt_tokens
from ..sampling.transforms.base import whole
from ..tokenizer import Tokenizer

Text = str | Sequence[int] | Tensor
"""One prompt: its text, or its token ids, [seq] or [1 seq]."""

Texts = Text | Sequence[Text]
"""One prompt or several of as many tokens: texts, token ids, or a batch of these, [batch seq]."""


@dataclass(frozen=True)
class Prompt:
    """One prompt as a model reads it.

    Args:
        tokens: [1 seq], on the model's device.
        labels: the text of each token, or its id without a tokenizer.

    Example: see `read_prompt`.
    """

    tokens: Tensor
    labels: list[str]

    @property
    def positions(self) -> list[str]:
        """A label for each position: its number and its token."""
        return [f"{position} {label}" for position, label in enumerate(self.labels)]


def read_prompt(model: GPT2, text: Text, tokenizer: Any = None) -> Prompt:
    """Return a prompt's tokens and their labels.

    Args:
        model: what will read the prompt.
        text: the prompt.
        tokenizer: one of ours, of transformers, of tokenizers, or a folder with one (default: the model's). Text needs
            it; for token ids it gives the labels, which are the ids themselves without one.

    Raises:
        ValueError: there is text and no tokenizer, or no token, or a token outside the vocabulary, or more tokens than
            ``n_ctx``; there is more than one prompt.

    An empty text becomes the token that begins every text.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=10, n_ctx=8))
        >>> read_prompt(model, [3, 1, 4]).positions
        ['0 3', '1 1', '2 4']
    """
    tokenizer = as_tokenizer(model, tokenizer)
    ids = prompt_tokens(text, model, tokenizer)
    check_fits(ids, model.config.n_ctx)
    labels = [str(i) for i in ids] if tokenizer is None else [token_label(tokenizer, i) for i in ids]
    return Prompt(torch.tensor([ids], device=model.embed.W_E.device), labels)


def read_prompts(model: GPT2, texts: Texts, tokenizer: Any = None) -> Tensor:
    """Return the tokens of one prompt or several, [batch seq].

    Args:
        model, tokenizer: as for `read_prompt`.
        texts: the prompts.

    Raises:
        ValueError: as `read_prompt` does; no prompt, or prompts of different numbers of tokens.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=10, n_ctx=8))
        >>> read_prompts(model, [[3, 1, 4], [1, 5, 9]]).shape
        torch.Size([2, 3])
    """
    if isinstance(texts, Tensor) and texts.dim() == 2:
        return texts.to(model.embed.W_E.device)
    if not isinstance(texts, Tensor) and hasattr(texts, "tolist"):  # an array
        texts = cast(Any, texts).tolist()
    one = isinstance(texts, str | Tensor) or (len(texts) > 0 and all(isinstance(item, int) for item in texts))
    several: list[Any] = [texts] if one else list(texts)
    rows = [read_prompt(model, text, tokenizer).tokens[0] for text in several]
    if not rows:
        raise ValueError("there is no prompt: give at least one")
    if len(lengths := {len(row) for row in rows}) > 1:
        raise ValueError(
            f"the prompts have {min(lengths)} to {max(lengths)} tokens, and as many are needed in each: give prompts "
            "of one length"
        )
    return torch.stack(rows)


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of one token. Bytes that are not UTF-8 become ``\\xe2``, an id without text becomes ``[7]``."""
    try:
        return tokenizer.decode_bytes([token]).decode("utf-8", errors="backslashreplace")
    except ValueError:
        return f"[{token}]"


def one_token(model: GPT2, text: int | str, tokenizer: Tokenizer | None) -> int:
    """Return the id of an answer that is given as a token's id or as the text of exactly one token.

    Raises:
        ValueError: the text is not one token, or the id is outside the vocabulary.
    """
    if isinstance(text, str):
        if tokenizer is None:
            raise ValueError(f"the answer {text!r} is text, and there is no tokenizer to read it: pass tokenizer=…")
        ids = tokenizer.encode(text)
        if len(ids) != 1:
            parts = ", ".join(repr(token_label(tokenizer, i)) for i in ids)
            raise ValueError(f"the answer {text!r} has {len(ids)} tokens ({parts}), where one is expected")
        text = ids[0]
    token = whole("an answer that is no text", text, least=0)
    if token >= model.d_vocab:
        raise ValueError(f"the answer {token} is outside the vocabulary: ids are 0 to {model.d_vocab - 1}")
    return token
