"""Attention as it is written down: the layer that the mistakes of attention are made from."""

import math

import torch
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from ...components.tap import Tap
from .mistake import entries


class PlainAttention(nn.Module):
    """Attention as it is written down, one method for each step, with TransformerLens's parameters.

    ``q k v z`` are ``[batch seq n_heads d_head]``, scores and pattern ``[batch n_heads query_pos key_pos]``.
    """

    # What depends on nothing but its arguments, the parameters, and the steps that are not among these.
    stages = ("queries", "keys", "values", "scores", "scaled", "masked", "pattern", "gather", "out")
    fill = -math.inf

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.d_head = config.d_model, config.n_heads, config.d_head
        self.n_ctx = config.n_ctx
        self.scale = config.attn_scale(0)
        into = (self.n_heads, self.d_model, self.d_head)
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.empty(into, dtype=dtype)) for _ in range(3))
        self.b_Q, self.b_K, self.b_V = (nn.Parameter(torch.empty(into[::2], dtype=dtype)) for _ in range(3))
        self.W_O = nn.Parameter(torch.empty(self.n_heads, self.d_head, self.d_model, dtype=dtype))
        self.b_O = nn.Parameter(torch.empty(self.d_model, dtype=dtype))
        self.hook_pattern = Tap()

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """All steps in their order."""
        return self.out(self.z(x))

    def z(self, x: Tensor) -> Tensor:
        """All heads' outputs."""
        pattern = self.pattern(self.masked(self.scaled(self.scores(self.queries(x), self.keys(x)))))
        return self.gather(self.hook_pattern(pattern), self.values(x))

    def queries(self, x: Tensor) -> Tensor:
        """``x @ W_Q + b_Q``."""
        return self.heads(x, self.W_Q, self.b_Q)

    def keys(self, x: Tensor) -> Tensor:
        """``x @ W_K + b_K``."""
        return self.heads(x, self.W_K, self.b_K)

    def values(self, x: Tensor) -> Tensor:
        """``x @ W_V + b_V``."""
        return self.heads(x, self.W_V, self.b_V)

    def heads(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        """A projection, split into heads."""
        return torch.einsum("bsm,nmh->bsnh", x, W) + b

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """How well each query matches each key."""
        return torch.einsum("bqnh,bknh->bnqk", q, k)

    def scaled(self, scores: Tensor) -> Tensor:
        """By ``1 / sqrt(d_head)``."""
        return scores * self.scale

    def masked(self, scores: Tensor) -> Tensor:
        """``fill`` where a query may not look."""
        return scores.masked_fill(~self.allowed(scores), self.fill)

    def allowed(self, scores: Tensor) -> Tensor:
        """A query may look at its own key and at earlier ones."""
        return ones(scores).tril()

    def pattern(self, scores: Tensor) -> Tensor:
        """Weights over the keys."""
        return scores.softmax(dim=-1)

    def gather(self, pattern: Tensor, v: Tensor) -> Tensor:
        """Each head's weighted sum of values."""
        return torch.einsum("bnqk,bknh->bqnh", pattern, v)

    def out(self, z: Tensor) -> Tensor:
        """All heads through ``W_O``, summed, and ``b_O`` once."""
        return torch.einsum("bsnh,nhm->bsm", z, self.W_O) + self.b_O


def ones(scores: Tensor) -> Tensor:
    """Return a mask that hides nothing, ``[query_pos key_pos]``."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool)


attention_mistake = entries("attention", PlainAttention)


def pattern_of_nothing(self: PlainAttention, scores: Tensor) -> Tensor:
    """The pattern, with no weight at all where a whole row is masked, as in torch's own attention."""
    return scores.softmax(dim=-1).nan_to_num(nan=0.0)


def exponentials(scores: Tensor) -> Tensor:
    """The weights as a softmax by hand begins: the largest score of each row is taken off first."""
    return (scores - scores.amax(-1, keepdim=True)).exp()
