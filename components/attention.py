"""Causal multi-head self-attention."""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from . import initial
from .dropout import dropout, drops
from .kernels import attention, linear
from .kv_cache import LayerCache
from .masks import allowed_keys, zeros_at_padding
from .qkv import QKVParameters
from .shapes import shape_checked
from .tap import Tap


class Attention(QKVParameters):
    """Causal multi-head self-attention: each position gathers values from itself and from earlier positions.

    Reference: Vaswani et al. 2017, section 3.2; Radford et al. 2019 (GPT-2); ``transformer_lens.components.Attention``.

    Queries, keys and values come from one projection, ``W_QKV`` (see `QKVParameters`).

    Args:
        d_model: width of the residual stream.
        n_heads: attention heads.
        d_head: width of one head (default: ``d_model / n_heads``).
        scale: factor of the scores (default: ``1 / sqrt(d_head)``).
        dropout: probability of dropping an entry of the attention pattern in training.
        fused: use PyTorch's fused kernel unless a hook needs ``hook_attn_scores`` or ``hook_pattern``. With False,
            scores and pattern are always computed as written below: with or without hooks the result is the same to
            the bit, and second derivatives are available.
        init_range: standard deviation of the initial weights; the biases start at 0.

    Raises:
        ValueError: ``n_heads`` does not divide ``d_model`` and no ``d_head`` is given; a dropout outside [0, 1).

    Example:
        >>> attn = Attention(d_model=12, n_heads=3)
        >>> attn(torch.randn(2, 5, 12)).shape  # batch seq d_model
        torch.Size([2, 5, 12])
    """

    W_O: Float[Tensor, "n_heads d_head d_model"]
    b_O: Float[Tensor, "d_model"]

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_head: int | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        fused: bool = True,
        init_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_head is None:
            if d_model % n_heads:
                raise ValueError(f"n_heads={n_heads} does not divide d_model={d_model}: change one, or give d_head")
            d_head = d_model // n_heads
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it is a probability in [0, 1)")
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, d_head
        self.scale = 1 / math.sqrt(d_head) if scale is None else scale
        self.dropout, self.fused, self.init_range = dropout, fused, init_range
        self.W_QKV = nn.Parameter(torch.empty(d_model, 3, n_heads, d_head, device=device, dtype=dtype))
        self.b_QKV = nn.Parameter(torch.empty(3, n_heads, d_head, device=device, dtype=dtype))
        self.W_O = nn.Parameter(torch.empty(n_heads, d_head, d_model, device=device, dtype=dtype))
        self.b_O = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.hook_q = Tap()  # [batch query_pos n_heads d_head]
        self.hook_k = Tap()  # [batch key_pos n_heads d_head], of this call's positions
        self.hook_v = Tap()  # the same
        self.hook_attn_scores = Tap()  # [batch n_heads query_pos key_pos], masked
        self.hook_pattern = Tap()  # [batch n_heads query_pos key_pos]
        self.hook_z = Tap()  # [batch query_pos n_heads d_head]
        self.hook_result = Tap(on_request=True)  # [batch query_pos n_heads d_model]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, and set the biases to 0."""
        initial.normal_((self.W_QKV, self.W_O), std=self.init_range)
        initial.fill_((self.b_QKV, self.b_O), 0.0)

    @shape_checked
    def forward(
        self,
        normalized_resid_pre: Float[Tensor, "batch query_pos d_model={self.d_model}"],
        *,
        padding_mask: Bool[Tensor, "batch key_pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch query_pos d_model={self.d_model}"]:
        """Return what each position gathered.

        Args:
            normalized_resid_pre: the positions that attend.
            padding_mask: False at keys that no position attends to. It covers the cached positions, then these.
            cache: keys and values of the positions before these. Those of these positions are appended to it.

        Returns:
            The new positions' output. A position with no key to attend to gets ``b_O``.

        Raises:
            ValueError: a mask that does not cover the keys; a cache of another batch size, or too small.
        """
        return self.attend(*self.project(normalized_resid_pre), padding_mask=padding_mask, cache=cache)

    def attend(
        self,
        q: Float[Tensor, "batch query_pos n_heads d_head"],
        k: Float[Tensor, "batch query_pos n_heads d_head"],
        v: Float[Tensor, "batch query_pos n_heads d_head"],
        *,
        padding_mask: Bool[Tensor, "batch key_pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch query_pos d_model"]:
        """Return what each position gathered, by its query, from the keys and values; the rest as for `forward`."""
        past = 0 if cache is None else cache.length
        if padding_mask is not None:
            k, v = zeros_at_padding(k, v, padding_mask, past=past)
        keys, values = (k.transpose(1, 2), v.transpose(1, 2)) if cache is None else cache.append(k, v)

        # One kernel computes what follows, unless a hook needs what it never forms.
        if self.fused and not (self.hook_attn_scores.active or self.hook_pattern.active):
            rate = self.dropout if drops(self) else 0.0
            z = attention(q, keys, values, scale=self.scale, padding_mask=padding_mask, dropout=rate)
            return self.output(self.hook_z(z))

        # Scores: how well each query matches each key; minus infinity at keys that it may not see.
        scores = einsum(
            q, keys, "batch query_pos n_heads d_head, batch n_heads key_pos d_head -> batch n_heads query_pos key_pos"
        )
        allowed = allowed_keys(q.shape[1], keys.shape[2], padding_mask, device=q.device)
        scores = self.hook_attn_scores((scores * self.scale).masked_fill(~allowed, -math.inf))
        # Pattern: weights that sum to 1 over the keys; all 0 for a query that may see no key.
        pattern = self.hook_pattern(scores.softmax(dim=-1).masked_fill(scores == -math.inf, 0.0))
        # Each query gathers the values, by these weights.
        z = einsum(
            dropout(pattern, self.dropout, self),
            values,
            "batch n_heads query_pos key_pos, batch n_heads key_pos d_head -> batch query_pos n_heads d_head",
        )
        return self.output(self.hook_z(z))

    def project(
        self, normalized_resid_pre: Float[Tensor, "batch seq d_model"]
    ) -> tuple[Float[Tensor, "batch seq n_heads d_head"], ...]:
        """Return queries, keys and values, by one matrix product."""
        qkv = linear(normalized_resid_pre, self.W_QKV.flatten(1), self.b_QKV.flatten())
        return self.split(qkv)

    def split(
        self, qkv: Float[Tensor, "batch seq qkv_n_heads_d_head"]
    ) -> tuple[Float[Tensor, "batch seq n_heads d_head"], ...]:
        """Return the queries, keys and values of each head, as hooks leave them."""
        q, k, v = qkv.unflatten(-1, (3, self.n_heads, self.d_head)).unbind(2)
        return self.hook_q(q), self.hook_k(k), self.hook_v(v)

    def output(self, z: Float[Tensor, "batch seq n_heads d_head"]) -> Float[Tensor, "batch seq d_model"]:
        """Return the sum of the heads' contributions to the residual stream."""
        if self.hook_result.active:
            each = einsum(z, self.W_O, "batch seq n_heads d_head, n_heads d_head d_model -> batch seq n_heads d_model")
            return self.hook_result(each).sum(dim=2) + self.b_O
        z = rearrange(z, "batch query_pos n_heads d_head -> batch query_pos (n_heads d_head)")
        return linear(z, self.W_O.flatten(0, 1), self.b_O)

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"d_model={self.d_model}, n_heads={self.n_heads}, d_head={self.d_head}, dropout={self.dropout}"
