"""Queries', keys' and values' parameters: stored as one matrix, read and loaded by TransformerLens's names as well."""

from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class QKVParameters(nn.Module):
    """The parameters ``W_QKV`` and ``b_QKV``, with TransformerLens's names for their parts.

    One matrix takes one product instead of three, and is Hugging Face's ``c_attn.weight`` without a copy. ``W_Q``,
    ``W_K``, ``W_V``, ``b_Q``, ``b_K`` and ``b_V`` are views of it: writing to them changes it.

    Example:
        >>> from gptladder.components import Attention
        >>> attn = Attention(d_model=6, n_heads=2)
        >>> attn.W_Q.shape, attn.b_Q.shape
        (torch.Size([2, 6, 3]), torch.Size([2, 3]))
    """

    W_QKV: Float[Tensor, "d_model 3 n_heads d_head"]
    b_QKV: Float[Tensor, "3 n_heads d_head"]

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
        """Join TransformerLens's three matrices and three biases, and leave out its and ARENA's constants."""
        parts = {
            "W_QKV": ("W_Q", "W_K", "W_V", "qkv n_heads d_model d_head -> d_model qkv n_heads d_head"),
            "b_QKV": ("b_Q", "b_K", "b_V", "qkv n_heads d_head -> qkv n_heads d_head"),
        }
        for whole, (*names, pattern) in parts.items():
            keys = [prefix + name for name in names]
            if all(key in state_dict for key in keys):
                state_dict[prefix + whole] = rearrange([state_dict.pop(key) for key in keys], pattern)
        for constant in ("mask", "IGNORE"):
            state_dict.pop(prefix + constant, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
