"""Causal multi-head self-attention."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .kv_cache import LayerCache
from .linear import PackedMatrix, linear
from .shapes import shape_checked
from .taps import Tap

# Positions up to which, in bfloat16 on a CPU and with gradients, batched products are 2 to 4 times as quick as
# PyTorch's fused kernel (benchmarks/attention.py).
_SHORT = 512


class Attention(nn.Module):
    """Causal multi-head self-attention: each position gathers values from itself and from those before it.

    Reference: Vaswani et al. 2017, section 3.2; Radford et al. 2019 (GPT-2); ``transformer_lens.components.Attention``.

    Queries, keys and values come from one projection, stored as Hugging Face stores it: ``W_QKV`` is its
    ``c_attn.weight``, viewed by head. TransformerLens's parameters can be read as views of it (``W_Q``, ``W_K``,
    ``W_V``, ``b_Q``, ``b_K``, ``b_V``), and its ``state_dict()`` can be loaded.

    Args:
        d_model: width of the residual stream.
        n_heads: attention heads.
        d_head: width of one head; ``d_model / n_heads`` where it is not given.
        scale: what scores are multiplied by; ``1 / sqrt(d_head)`` where it is not given.
        dropout: probability of dropping an entry of the attention pattern, in training.
        fused: use PyTorch's kernel where nobody listens to ``hook_attn_scores`` or ``hook_pattern``; False computes
            scores and pattern as written, always, which second derivatives on a CPU need: the kernel has none there.
        init_range: standard deviation of the initial weights; the biases start at 0.

    Raises:
        ValueError: ``d_model`` that ``n_heads`` does not divide, with no ``d_head``; a dropout outside [0, 1).
    """

    W_QKV: Float[Tensor, "d_model 3 n_heads d_head"]
    b_QKV: Float[Tensor, "3 n_heads d_head"]
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
        self.d_model = d_model
        self.n_heads = n_heads
        self.d_head = d_head
        self.scale = 1 / math.sqrt(d_head) if scale is None else scale
        self.dropout = dropout
        self.fused = fused
        self.W_QKV = nn.Parameter(torch.empty(d_model, 3, n_heads, d_head, device=device, dtype=dtype))
        self.b_QKV = nn.Parameter(torch.zeros(3, n_heads, d_head, device=device, dtype=dtype))
        self.W_O = nn.Parameter(torch.empty(n_heads, d_head, d_model, device=device, dtype=dtype))
        self.b_O = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype))
        for weight in (self.W_QKV, self.W_O):
            nn.init.normal_(weight, std=init_range)
        self.packed: dict[str, PackedMatrix] = {}
        self.hook_q = Tap()  # [batch query_pos n_heads d_head]
        self.hook_k = Tap()  # [batch key_pos n_heads d_head], of this call's positions
        self.hook_v = Tap()  # the same
        self.hook_attn_scores = Tap()  # [batch n_heads query_pos key_pos], masked
        self.hook_pattern = Tap()  # [batch n_heads query_pos key_pos]
        self.hook_z = Tap()  # [batch query_pos n_heads d_head]

    @shape_checked
    def forward(
        self,
        normalized_resid_pre: Float[Tensor, "batch query_pos d_model={self.d_model}"],
        *,
        padding_mask: Bool[Tensor, "batch key_pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch query_pos d_model={self.d_model}"]:
        """Attend.

        Args:
            normalized_resid_pre: the positions that attend.
            padding_mask: False at keys that nobody may attend to. It covers the cache's positions, then this call's.
            cache: keys and values of the positions before these; those of these positions are appended to it.

        Returns:
            What each position gathered. A position with no key to attend to gets ``b_O``.

        Raises:
            ValueError: a mask that does not cover the keys; a cache of another batch size, or too small.
        """
        cached = cache is not None and cache.length > 0
        q, k, v = self.project(normalized_resid_pre)
        if cache is None:
            keys, values = k.transpose(1, 2), v.transpose(1, 2)
        else:
            keys, values = cache.append(k, v)
        if padding_mask is not None and padding_mask.shape[1] != keys.shape[2]:
            raise ValueError(
                f"padding_mask covers {padding_mask.shape[1]} keys; there are {keys.shape[2]}, the cache's included"
            )
        if self.fused and not (self.hook_attn_scores.active or self.hook_pattern.active):
            z = self._fused(q, keys, values, padding_mask, cached)
        else:
            z = self._explicit(q, keys, values, padding_mask)
        z = rearrange(self.hook_z(z), "batch query_pos n_heads d_head -> batch query_pos (n_heads d_head)")
        return linear(z, self.W_O.flatten(0, 1), self.b_O, self.packed.get("W_O"))

    def project(
        self, normalized_resid_pre: Float[Tensor, "batch seq d_model"]
    ) -> tuple[Float[Tensor, "batch seq n_heads d_head"], ...]:
        """Queries, keys and values, by one matrix product."""
        qkv = linear(normalized_resid_pre, self.W_QKV.flatten(1), self.b_QKV.flatten(), self.packed.get("W_QKV"))
        q, k, v = qkv.unflatten(-1, (3, self.n_heads, self.d_head)).unbind(2)
        return self.hook_q(q), self.hook_k(k), self.hook_v(v)

    def _fused(
        self,
        q: Float[Tensor, "batch query_pos n_heads d_head"],
        keys: Float[Tensor, "batch n_heads key_pos d_head"],
        values: Float[Tensor, "batch n_heads key_pos d_head"],
        padding_mask: Bool[Tensor, "batch key_pos"] | None,
        cached: bool,
    ) -> Float[Tensor, "batch query_pos n_heads d_head"]:
        # The kernel needs no mask where only causality counts and nothing is cached; nor does a single query, the last.
        causal_alone = padding_mask is None and not cached
        if (
            causal_alone
            and q.device.type == "cpu"
            and q.dtype == torch.bfloat16
            and q.shape[1] <= _SHORT
            and torch.is_grad_enabled()
        ):
            return self._by_products(q, keys, values)
        unmasked = causal_alone or (padding_mask is None and q.shape[1] == 1)
        z = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys,
            values,
            attn_mask=None if unmasked else self._allowed(q, keys, padding_mask),
            is_causal=causal_alone,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return z.transpose(1, 2)

    def _by_products(
        self,
        q: Float[Tensor, "batch seq n_heads d_head"],
        keys: Float[Tensor, "batch n_heads seq d_head"],
        values: Float[Tensor, "batch n_heads seq d_head"],
    ) -> Float[Tensor, "batch seq n_heads d_head"]:
        batch, seq = q.shape[:2]
        causal = torch.full((seq, seq), -math.inf, dtype=q.dtype, device=q.device).triu(1)
        scores = torch.baddbmm(
            causal, q.transpose(1, 2).flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), alpha=self.scale
        )
        pattern = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        z = torch.bmm(pattern, values.flatten(0, 1))
        return rearrange(z, "(batch n_heads) seq d_head -> batch seq n_heads d_head", batch=batch)

    def _explicit(
        self,
        q: Float[Tensor, "batch query_pos n_heads d_head"],
        keys: Float[Tensor, "batch n_heads key_pos d_head"],
        values: Float[Tensor, "batch n_heads key_pos d_head"],
        padding_mask: Bool[Tensor, "batch key_pos"] | None,
    ) -> Float[Tensor, "batch query_pos n_heads d_head"]:
        allowed = self._allowed(q, keys, padding_mask)
        pattern = self.hook_pattern(
            self.attention_pattern(self.hook_attn_scores(self.attention_scores(q, keys, allowed)))
        )
        pattern = F.dropout(pattern, self.dropout, self.training)
        return einsum(
            pattern,
            values,
            "batch n_heads query_pos key_pos, batch n_heads key_pos d_head -> batch query_pos n_heads d_head",
        )

    def attention_scores(
        self,
        q: Float[Tensor, "batch query_pos n_heads d_head"],
        keys: Float[Tensor, "batch n_heads key_pos d_head"],
        allowed: Bool[Tensor, "... query_pos key_pos"],
    ) -> Float[Tensor, "batch n_heads query_pos key_pos"]:
        """How well each query matches each key, scaled; minus infinity where it may not look."""
        scores = einsum(
            q, keys, "batch query_pos n_heads d_head, batch n_heads key_pos d_head -> batch n_heads query_pos key_pos"
        )
        return (scores * self.scale).masked_fill(~allowed, -math.inf)

    def attention_pattern(
        self, scores: Float[Tensor, "batch n_heads query_pos key_pos"]
    ) -> Float[Tensor, "batch n_heads query_pos key_pos"]:
        """Scores to weights that sum to 1 over the keys; all 0 for a query that may look nowhere."""
        pattern = scores.softmax(dim=-1)
        return pattern.masked_fill(pattern.isnan(), 0.0)

    def _allowed(
        self,
        q: Float[Tensor, "batch query_pos n_heads d_head"],
        keys: Float[Tensor, "batch n_heads key_pos d_head"],
        padding_mask: Bool[Tensor, "batch key_pos"] | None,
    ) -> Bool[Tensor, "... query_pos key_pos"]:
        """Which keys each query may look at: its own and earlier ones, less padding. The last one has the last key."""
        query_pos, key_pos = q.shape[1], keys.shape[2]
        causal = torch.ones(query_pos, key_pos, dtype=torch.bool, device=q.device).tril(key_pos - query_pos)
        return (
            causal if padding_mask is None else causal & rearrange(padding_mask, "batch key_pos -> batch 1 1 key_pos")
        )

    @property
    def W_Q(self) -> Float[Tensor, "n_heads d_model d_head"]:
        """The queries' part of ``W_QKV`` (a view)."""
        return self.W_QKV[:, 0].transpose(0, 1)

    @property
    def W_K(self) -> Float[Tensor, "n_heads d_model d_head"]:
        """The keys' part of ``W_QKV`` (a view)."""
        return self.W_QKV[:, 1].transpose(0, 1)

    @property
    def W_V(self) -> Float[Tensor, "n_heads d_model d_head"]:
        """The values' part of ``W_QKV`` (a view)."""
        return self.W_QKV[:, 2].transpose(0, 1)

    @property
    def b_Q(self) -> Float[Tensor, "n_heads d_head"]:
        """The queries' part of ``b_QKV`` (a view)."""
        return self.b_QKV[0]

    @property
    def b_K(self) -> Float[Tensor, "n_heads d_head"]:
        """The keys' part of ``b_QKV`` (a view)."""
        return self.b_QKV[1]

    @property
    def b_V(self) -> Float[Tensor, "n_heads d_head"]:
        """The values' part of ``b_QKV`` (a view)."""
        return self.b_QKV[2]

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        """Take TransformerLens's three matrices, three biases and two constants where they stand in place of ours."""
        parts = {
            "W_QKV": ("W_Q", "W_K", "W_V", "qkv n_heads d_model d_head -> d_model qkv n_heads d_head"),
            "b_QKV": ("b_Q", "b_K", "b_V", "qkv n_heads d_head -> qkv n_heads d_head"),
        }
        for whole, (*names, pattern) in parts.items():
            keys = [prefix + name for name in names]
            if all(key in state_dict for key in keys):
                state_dict[prefix + whole] = rearrange([state_dict.pop(key) for key in keys], pattern)
        if prefix + "IGNORE" in state_dict:
            del state_dict[prefix + "IGNORE"], state_dict[prefix + "mask"]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        return f"d_model={self.d_model}, n_heads={self.n_heads}, d_head={self.d_head}, dropout={self.dropout}"
