"""The output projection: from the residual stream to a score for each token of the vocabulary."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import initial
from .kernels import linear
from .shapes import shape_checked
from .tap import Tap


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
            them tied, because the matrix exists once. `tie_to` names another embedding later.
        init_range: standard deviation of the initial weights; the bias starts at 0.

    Raises:
        ValueError: an embedding of other sizes.

    Example:
        >>> from gptladder.components import Embed
        >>> embed = Embed(d_vocab=10, d_model=4)
        >>> unembed = Unembed(d_model=4, d_vocab=10, tied_to=embed)
        >>> unembed.W_U.data_ptr() == embed.W_E.data_ptr()
        True
        >>> unembed(torch.randn(2, 5, 4)).shape  # batch seq d_vocab
        torch.Size([2, 5, 10])
    """

    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, "d_vocab"] | None

    def __init__(
        self,
        *,
        d_model: int,
        d_vocab: int,
        bias: bool = True,
        tied_to: nn.Module | None = None,
        init_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_vocab = d_vocab
        self.init_range = init_range
        # In a tuple, so that the embedding does not become a submodule, with its parameter under a second name.
        self._tied_to: tuple[nn.Module, ...] = ()
        if tied_to is None:
            self.W_U = nn.Parameter(torch.empty(d_model, d_vocab, device=device, dtype=dtype))
        else:
            self._tied_to = (self._checked(tied_to),)
        self.register_parameter("b_U", nn.Parameter(torch.empty(d_vocab, device=device, dtype=dtype)) if bias else None)
        # On request, since the logits are large, and are what a model returns.
        self.hook_in = Tap(on_request=True)  # [batch seq d_model]
        self.hook_out = Tap(on_request=True)  # [batch seq d_vocab]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, unless they are an embedding's, and set the bias to 0."""
        if not self.tied:
            initial.normal_((self.W_U,), std=self.init_range)
        initial.fill_((self.b_U,), 0.0)

    @property
    def tied(self) -> bool:
        """Whether ``W_U`` is an embedding's table."""
        return bool(self._tied_to)

    def tie_to(self, embed: nn.Module) -> None:
        """Use the table ``W_E`` of another embedding from now on; a model calls this when its ``embed`` is replaced.

        A module that has no ``W_E`` but contains the embedding used so far, a wrapper around it, changes nothing.

        Raises:
            ValueError: this layer is not tied; a module without a ``W_E``; an embedding of other sizes.
        """
        if not self.tied:
            raise ValueError("this unembedding has its own W_U: build it with tied_to to tie it")
        if not hasattr(embed, "W_E") and any(module is self._tied_to[0] for module in embed.modules()):
            return
        self._tied_to = (self._checked(embed),)

    def _checked(self, embed: nn.Module) -> nn.Module:
        table = getattr(embed, "W_E", None)
        if not isinstance(table, Tensor):
            raise ValueError(
                f"the unembedding is tied to the embedding's W_E, and {type(embed).__name__} has none: give it one, or "
                "build the model with tie_word_embeddings=False"
            )
        if table.shape != (self.d_vocab, self.d_model):
            d_vocab, d_model = table.shape
            raise ValueError(
                f"an unembedding of d_vocab={self.d_vocab}, d_model={self.d_model} cannot be tied to an embedding of "
                f"d_vocab={d_vocab}, d_model={d_model}"
            )
        return embed

    def __getattr__(self, name: str) -> Any:
        if name == "W_U" and self._tied_to:
            return self._tied_to[0].W_E.T
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "W_U" and self.__dict__.get("_tied_to"):
            raise ValueError("W_U is the embedding's W_E: change that, or build with tie_word_embeddings=False")
        super().__setattr__(name, value)

    @shape_checked
    def forward(
        self, normalized_resid_final: Float[Tensor, "batch seq d_model={self.d_model}"]
    ) -> Float[Tensor, "batch seq d_vocab={self.d_vocab}"]:
        """Return the logits of the token that follows each position."""
        return self.hook_out(linear(self.hook_in(normalized_resid_final), self.W_U, self.b_U))

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"d_model={self.d_model}, d_vocab={self.d_vocab}, bias={self.b_U is not None}, tied={self.tied}"
