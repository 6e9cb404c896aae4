"""Token embedding: one row of a table for each token."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import initial
from .shapes import shape_checked


class Embed(nn.Module):
    """Token embedding, ``W_E[token]``.

    Reference: Radford et al. 2019 (GPT-2), ``wte``; ``transformer_lens.components.Embed``.

    Args:
        d_vocab: tokens in the vocabulary.
        d_model: width of the residual stream.
        init_range: standard deviation of the initial weights.

    Example:
        >>> embed = Embed(d_vocab=10, d_model=4)
        >>> tokens = torch.tensor([[3, 1, 3]])
        >>> torch.equal(embed(tokens)[0, 0], embed.W_E[3])
        True
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
        self.init_range = init_range
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        initial.normal_((self.W_E,), std=self.init_range)

    @shape_checked
    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model={self.d_model}"]:
        """Return the embedding of each token.

        Raises:
            ValueError: a token outside the vocabulary. (On a GPU the device raises its own error: to check the tokens
                first would stall every step.)
        """
        if tokens.dtype not in (torch.int64, torch.int32):  # PyTorch looks up no others
            tokens = tokens.long()
        try:
            return F.embedding(tokens, self.W_E)
        except IndexError:
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(
                f"tokens run from {low} to {high}, but the vocabulary has {self.d_vocab}: "
                f"ids go from 0 to {self.d_vocab - 1}"
            ) from None

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"d_vocab={self.d_vocab}, d_model={self.d_model}"
