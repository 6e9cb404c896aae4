"""Compute the logits after the last tokens of a text."""

from typing import Any

import torch
from torch import Tensor

from ..assembly import GPT2
from ..components.dropout import no_dropout

__all__ = ["logits_after"]


def logits_after(model: GPT2, tokens: Tensor, *, last: int = 1, **kwargs: Any) -> Tensor:
    """Return the logits after each of the ``last`` tokens, Float[batch last d_vocab], without dropout.

    They are float64 for a float64 model, and float32 for all others.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> logits_after(model, torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 1, 5])
    """
    with no_dropout(model):
        logits = model.unembed(model.final_residual(tokens, **kwargs)[:, -last:])
    return logits if logits.dtype == torch.float64 else logits.float()
