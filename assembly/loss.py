"""The loss that a model's call returns on request: next-token cross-entropy of its own input.

Training has a loss of its own, which never holds the logits of a whole batch (`gptladder.training.loss`).
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..components.kernels import is_transformed

ReturnType = Literal["logits", "loss", "both"] | None
"""What a model's call returns."""


class LogitsAndLoss(NamedTuple):
    """What a model's call returns with ``return_type="both"``."""

    logits: Float[Tensor, "batch seq d_vocab"]
    loss: Float[Tensor, "*per_token"]


def next_token_loss(
    logits: Float[Tensor, "batch seq d_vocab"],
    tokens: Int[Tensor, "batch seq"],
    is_token: Bool[Tensor, "batch seq"] | None = None,
    *,
    per_token: bool = False,
) -> Float[Tensor, "*per_token"]:
    """Return the cross-entropy of predicting each token from those before it, in nats.

    Args:
        logits: the model's.
        tokens: its input. There is no prediction of the first token, and no right answer for the last prediction.
        is_token: False at padding, which is neither predicted from nor predicted (default: there is none).
        per_token: return the loss of each token [batch seq-1], 0 at padding, instead of the mean over all tokens.

    Raises:
        ValueError: fewer than two tokens, or none that follows another; tokens of another shape than the logits.

    Example:
        >>> next_token_loss(torch.zeros(1, 3, 10), torch.tensor([[7, 1, 2]]))  # ten equal guesses
        tensor(2.3026)
    """
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(f"tokens have the shape {list(tokens.shape)}, but the logits {list(logits.shape[:-1])}")
    if tokens.shape[1] < 2:
        raise ValueError(f"the loss is of predicting the next token, and there are {tokens.shape[1]} tokens: give two")
    log_probs = logits[:, :-1].log_softmax(dim=-1)
    losses = -log_probs.gather(-1, tokens[:, 1:, None].to(logits.device))[..., 0]
    if is_token is None:
        return losses if per_token else losses.mean()
    counted = (is_token[:, :-1] & is_token[:, 1:]).to(losses.device)
    if not torch.compiler.is_compiling() and not is_transformed() and not counted.any():
        raise ValueError("no token follows another one, because all others are padding: there is nothing to predict")
    losses = losses.masked_fill(~counted, 0.0)
    return losses if per_token else losses.sum() / counted.sum()


def as_return_type(
    return_type: ReturnType, logits: Tensor, tokens: Tensor | None, is_token: Tensor | None, *, per_token: bool
) -> Any:
    """Return the logits, the loss, or both, as a model's ``return_type`` asks.

    Raises:
        ValueError: another ``return_type``; for the loss, no tokens, and what `next_token_loss` refuses.
    """
    if return_type == "logits":
        return logits
    if return_type not in ("loss", "both"):
        raise ValueError(f"return_type is {return_type!r}; it can be 'logits', 'loss', 'both' or None")
    if tokens is None:
        raise ValueError("the loss with start_at_layer needs the tokens of the input: pass tokens=…")
    loss = next_token_loss(logits, tokens, is_token, per_token=per_token)
    return loss if return_type == "loss" else LogitsAndLoss(logits, loss)
