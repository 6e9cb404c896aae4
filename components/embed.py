"""Token embedding: a row of a table for each token."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .shapes import shape_checked


class Embed(nn.Module):
    """Token embedding, ``W_E[token]``.

    Reference: Radford et al. 2019 (GPT-2), ``wte``; ``transformer_lens.components.Embed``.

    Args:
        d_vocab: tokens in the vocabulary.
        d_model: width of the residual stream.
        init_range: standard deviation of the initial weights.
    """

    W_E: Float[Tensor, "d_vocab d_model"]

    def __init__(
        self,
        *,
        d_vocab: int,
        d_model: int,
        init_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_vocab = d_vocab
        self.d_model = d_model
        self.W_E = nn.Parameter(torch.empty(d_vocab, d_model, device=device, dtype=dtype))
        nn.init.normal_(self.W_E, std=init_range)

    @shape_checked
    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model={self.d_model}"]:
        """Look up the embedding of each token.

        Raises:
            ValueError: a token outside the vocabulary. (On a GPU it is the device that notices, with an error of its
                own: looking first would stall every step.)
        """
        try:
            return F.embedding(tokens, self.W_E)
        except IndexError:
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(
                f"tokens run from {low} to {high}, but the vocabulary has {self.d_vocab}: "
                f"ids go from 0 to {self.d_vocab - 1}"
            ) from None

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        return f"d_vocab={self.d_vocab}, d_model={self.d_model}"
