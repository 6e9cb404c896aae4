"""The position-wise feed-forward layer: widen, activate, narrow."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import initial
from .kernels import linear
from .shapes import shape_checked
from .tap import Tap

ActFn = Literal["gelu_new", "gelu", "relu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),  # Hendrycks & Gimpel 2016, the tanh approximation: GPT-2's
    "gelu": F.gelu,  # the same paper's exact form, by the error function
    "relu": F.relu,
}


class MLP(nn.Module):
    """Feed-forward layer, ``act_fn(x @ W_in + b_in) @ W_out + b_out``.

    Reference: Vaswani et al. 2017, section 3.3; ``transformer_lens.components.MLP``.

    Args:
        d_model: width of the residual stream.
        d_mlp: hidden width (default: ``4 * d_model``).
        act_fn: ``gelu_new`` (GPT-2's), ``gelu`` (exact) or ``relu``.
        init_range: standard deviation of the initial weights; the biases start at 0.

    Raises:
        ValueError: an unknown activation.

    Example:
        >>> mlp = MLP(d_model=12, d_mlp=20, act_fn="relu")
        >>> mlp(torch.randn(2, 5, 12)).shape  # batch seq d_model
        torch.Size([2, 5, 12])
    """

    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, "d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, "d_model"]

    def __init__(
        self,
        *,
        d_model: int,
        d_mlp: int | None = None,
        act_fn: ActFn = "gelu_new",
        init_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn is {act_fn!r}; it can be {', '.join(get_args(ActFn))}")
        self.d_model = d_model
        self.d_mlp = 4 * d_model if d_mlp is None else d_mlp
        self.act_fn = act_fn
        self.init_range = init_range
        self.W_in = nn.Parameter(torch.empty(d_model, self.d_mlp, device=device, dtype=dtype))
        self.b_in = nn.Parameter(torch.empty(self.d_mlp, device=device, dtype=dtype))
        self.W_out = nn.Parameter(torch.empty(self.d_mlp, d_model, device=device, dtype=dtype))
        self.b_out = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.hook_pre = Tap()  # [batch seq d_mlp]
        self.hook_post = Tap()  # [batch seq d_mlp]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, and set the biases to 0."""
        initial.normal_((self.W_in, self.W_out), std=self.init_range)
        initial.fill_((self.b_in, self.b_out), 0.0)

    @shape_checked
    def forward(
        self, normalized_resid_mid: Float[Tensor, "batch seq d_model={self.d_model}"]
    ) -> Float[Tensor, "batch seq d_model={self.d_model}"]:
        """Return the layer's output at each position, computed from that position alone."""
        pre = self.hook_pre(linear(normalized_resid_mid, self.W_in, self.b_in))
        post = self.hook_post(ACTIVATIONS[self.act_fn](pre))
        return linear(post, self.W_out, self.b_out)

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"d_model={self.d_model}, d_mlp={self.d_mlp}, act_fn={self.act_fn!r}"
