"""Learned absolute positions: one row of a table for each position."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import initial
from .shapes import shape_checked


class PosEmbed(nn.Module):
    """Position embedding, ``W_pos[position]``.

    Reference: Radford et al. 2019 (GPT-2), ``wpe``; ``transformer_lens.components.PosEmbed``.

    Args:
        n_ctx: number of positions.
        d_model: width of the residual stream.
        init_range: standard deviation of the initial weights.

    Example:
        >>> pos_embed = PosEmbed(n_ctx=8, d_model=4)
        >>> tokens = torch.tensor([[3, 1, 3]])
        >>> torch.equal(pos_embed(tokens, offset=2)[0], pos_embed.W_pos[2:5])
        True
    """

    W_pos: Float[Tensor, "n_ctx d_model"]

    def __init__(
        self,
        *,
        n_ctx: int,
        d_model: int,
        init_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_ctx = n_ctx
        self.d_model = d_model
        self.W_pos = nn.Parameter(torch.empty(n_ctx, d_model, device=device, dtype=dtype))
        self.init_range = init_range
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        initial.normal_((self.W_pos,), std=self.init_range)

    @shape_checked
    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        offset: int = 0,
        positions: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_model={self.d_model}"]:
        """Return the embedding of each token's position; only the shape of ``tokens`` counts.

        Args:
            offset: position of the first token, if earlier ones are in a cache.
            positions: position of each token (default: ``offset, offset + 1, …``). Left padding needs this.

        Returns:
            The embeddings. Without ``positions`` the rows of the batch share memory: copy them before changing them in
            place.

        Raises:
            ValueError: a position below 0, or ``n_ctx`` or above.
        """
        if positions is not None:
            try:
                return F.embedding(positions, self.W_pos)
            except IndexError:
                low, high = int(positions.min()), int(positions.max())
                raise ValueError(
                    f"positions run from {low} to {high}, but n_ctx is {self.n_ctx}: they go from 0 to {self.n_ctx - 1}"
                ) from None
        batch, seq = tokens.shape
        if offset < 0 or offset + seq > self.n_ctx:
            raise ValueError(
                f"{seq} tokens from position {offset} do not fit into n_ctx={self.n_ctx} positions: crop the sequence"
            )
        return self.W_pos[offset : offset + seq].expand(batch, seq, self.d_model)

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"n_ctx={self.n_ctx}, d_model={self.d_model}"
