"""Layer normalisation: each position's vector centred, scaled to variance one, then a gain and a bias."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .shapes import shape_checked
from .taps import Tap


class LayerNorm(nn.Module):
    """Layer normalisation over ``d_model``: ``(x - mean) / sqrt(variance + eps) * w + b``, with the biased variance.

    Reference: Ba et al. 2016; ``transformer_lens.components.LayerNorm``.

    Args:
        d_model: width of the residual stream.
        layer_norm_eps: added to the variance, under the root.
        fused: use PyTorch's kernel where nobody listens to ``hook_scale`` or ``hook_normalized``; False computes the
            formula as written, always.
    """

    w: Float[Tensor, "d_model"]
    b: Float[Tensor, "d_model"]

    def __init__(
        self,
        *,
        d_model: int,
        layer_norm_eps: float = 1e-5,
        fused: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.layer_norm_eps = layer_norm_eps
        self.fused = fused
        self.w = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype))
        self.hook_scale = Tap()  # [batch seq 1]
        self.hook_normalized = Tap()  # [batch seq d_model]

    @shape_checked
    def forward(
        self, residual: Float[Tensor, "batch seq d_model={self.d_model}"]
    ) -> Float[Tensor, "batch seq d_model={self.d_model}"]:
        """Normalise each position; gain and bias after it."""
        if self.fused and not (self.hook_scale.active or self.hook_normalized.active):
            return F.layer_norm(residual, (self.d_model,), self.w, self.b, self.layer_norm_eps)
        # The kernel computes 16-bit floats' statistics in 32 bits; so must this.
        wide = residual.float() if residual.dtype in (torch.float16, torch.bfloat16) else residual
        centred = wide - wide.mean(dim=-1, keepdim=True)
        scale = self.hook_scale(self.scale(centred))
        normalized = self.hook_normalized(centred / scale).to(residual.dtype)
        return normalized * self.w + self.b

    def scale(self, centred: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq 1"]:
        """The standard deviation that a centred vector is divided by."""
        return (centred.pow(2).mean(dim=-1, keepdim=True) + self.layer_norm_eps).sqrt()

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        return f"d_model={self.d_model}, layer_norm_eps={self.layer_norm_eps}"
