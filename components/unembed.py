"""The output projection: from the residual stream to a score for each token of the vocabulary."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .embed import Embed
from .linear import PackedMatrix, linear
from .shapes import shape_checked


class Unembed(nn.Module):
    """Output projection, ``x @ W_U + b_U``.

    Reference: Radford et al. 2019 (GPT-2), ``lm_head``; ``transformer_lens.components.Unembed``. Tying: Press & Wolf
        2017.

    Args:
        d_model: width of the residual stream.
        d_vocab: tokens in the vocabulary.
        bias: whether there is a ``b_U``. GPT-2 has none; TransformerLens always has one.
        tied_to: an embedding whose table is the projection too: ``W_U`` is then ``tied_to.W_E`` transposed, in the same
            memory, and no parameter of this layer. Copying, saving, moving or compiling a model that holds both keeps
            them tied, because the matrix exists once.
        init_range: standard deviation of the initial weights; the bias starts at 0.

    Raises:
        ValueError: an embedding of other sizes.
    """

    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, "d_vocab"] | None

    def __init__(
        self,
        *,
        d_model: int,
        d_vocab: int,
        bias: bool = True,
        tied_to: Embed | None = None,
        init_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_vocab = d_vocab
        # In a tuple, so that the embedding does not become a submodule, with its parameter under a second name.
        self._tied_to = () if tied_to is None else (tied_to,)
        if tied_to is None:
            self.W_U = nn.Parameter(torch.empty(d_model, d_vocab, device=device, dtype=dtype))
            nn.init.normal_(self.W_U, std=init_range)
        elif (tied_to.d_vocab, tied_to.d_model) != (d_vocab, d_model):
            raise ValueError(
                f"an unembedding of d_vocab={d_vocab}, d_model={d_model} cannot be tied to an embedding of "
                f"d_vocab={tied_to.d_vocab}, d_model={tied_to.d_model}"
            )
        self.packed: dict[str, PackedMatrix] = {}
        if bias:
            self.b_U = nn.Parameter(torch.zeros(d_vocab, device=device, dtype=dtype))
        else:
            self.register_parameter("b_U", None)

    @property
    def tied(self) -> bool:
        """Whether ``W_U`` is an embedding's table."""
        return bool(self._tied_to)

    def __getattr__(self, name: str) -> Any:
        if name == "W_U" and self._tied_to:
            return self._tied_to[0].W_E.T
        return super().__getattr__(name)

    @shape_checked
    def forward(
        self, normalized_resid_final: Float[Tensor, "batch seq d_model={self.d_model}"]
    ) -> Float[Tensor, "batch seq d_vocab={self.d_vocab}"]:
        """The logits of the token that follows each position."""
        return linear(normalized_resid_final, self.W_U, self.b_U, self.packed.get("W_U"))

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        return f"d_model={self.d_model}, d_vocab={self.d_vocab}, bias={self.b_U is not None}, tied={self.tied}"
