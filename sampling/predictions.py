"""The most probable next tokens of a prompt."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..assembly import GPT2
from ..assembly.arguments import check_model
from ..tokenizer import Tokenizer, TokenizerSource
from .logits import logits_after
from .rows import check_fits
from .text import Prompt, as_tokenizer, prompt_tokens, vocabulary
from .transforms.base import whole

__all__ = ["Prediction", "most_probable", "next_logits", "top_predictions"]


class Prediction(NamedTuple):
    """One token that may come next. Example: see `top_predictions`."""

    token: int
    text: str | None
    """None without a tokenizer; bytes that are not UTF-8 become U+FFFD."""
    logit: float
    log_prob: float
    prob: float


def top_predictions(
    model: GPT2, text: Prompt, k: int = 10, *, tokenizer: TokenizerSource | None = None
) -> list[Prediction]:
    """Return the ``k`` most probable next tokens of a prompt, the most probable first.

    Args:
        model: computes without dropout, in whatever mode it is.
        text: the prompt, or the ids of its tokens. Nothing is put in front of it; `GPT2.to_tokens` returns ids that
            begin with the token that begins every text.
        k: number of tokens; a smaller vocabulary gives fewer.
        tokenizer: reads the prompt and names the tokens (default: the model's).

    Raises:
        ValueError: ``k`` below 1; text without a tokenizer; no token, a token outside the vocabulary, or more than
            ``n_ctx`` of them.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> from gptladder.tokenizer import CharTokenizer
        >>> model = GPT2(GPT2Config(d_vocab=3, d_model=8, n_layers=1, n_heads=1, n_ctx=4))
        >>> best = top_predictions(model, "ab", k=2, tokenizer=CharTokenizer("abc"))
        >>> len(best), best[0].prob >= best[1].prob, best[0].text in "abc"
        (2, True, True)
    """
    check_model(model)
    whole("k", k, least=1)
    reader = as_tokenizer(model, tokenizer)
    return most_probable(next_logits(model, text, reader), k, model, reader)


def next_logits(model: GPT2, text: Prompt, tokenizer: Tokenizer | None) -> Float[Tensor, "d_vocab"]:
    """Return the logits of the token that follows a prompt, in float64, computed in the model's own dtype.

    Raises:
        ValueError: as for `top_predictions`.
    """
    ids = prompt_tokens(text, model, tokenizer)
    check_fits(ids, model.config.n_ctx)
    with torch.inference_mode():
        return logits_after(model, torch.tensor([ids], device=model.device))[0, -1].double()


def most_probable(
    logits: Float[Tensor, "d_vocab"], k: int, model: GPT2, tokenizer: Tokenizer | None
) -> list[Prediction]:
    """Return the ``k`` most probable tokens by their logits; ids that the tokenizer lacks are left out."""
    size = model.d_vocab if tokenizer is None else vocabulary(model, tokenizer)
    best = logits[:size].topk(min(k, size))
    log_probs = logits.log_softmax(-1)[best.indices]
    return [
        Prediction(token, None if tokenizer is None else tokenizer.decode([token]), logit, log_prob, prob)
        for token, logit, log_prob, prob in zip(
            best.indices.tolist(), best.values.tolist(), log_probs.tolist(), log_probs.exp().tolist(), strict=True
        )
    ]
