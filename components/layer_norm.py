"""Layer normalisation: center each position's vector, scale it to variance 1, apply a gain and a bias."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import initial
from .kernels import widened
from .shapes import shape_checked
from .tap import Tap


class LayerNorm(nn.Module):
    """Layer normalisation over ``d_model``: ``(x - mean) / sqrt(variance + eps) * w + b``, with the biased variance.

    Reference: Ba et al. 2016; ``transformer_lens.components.LayerNorm``.

    Args:
        d_model: width of the residual stream.
        layer_norm_eps: added to the variance, under the root.
        fused: use PyTorch's fused kernel unless a hook needs ``hook_scale`` or ``hook_normalized``. With False, the
            formula is always computed as written below, so that hooks never change the result.

    Example:
        >>> layer_norm = LayerNorm(d_model=4)
        >>> layer_norm(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
        tensor([[[-1.3416, -0.4472,  0.4472,  1.3416]]], grad_fn=<NativeLayerNormBackward0>)
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
        self.w = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.hook_scale = Tap()  # [batch seq 1]
        self.hook_normalized = Tap()  # [batch seq d_model]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to 1 and the bias to 0."""
        initial.fill_((self.w,), 1.0)
        initial.fill_((self.b,), 0.0)

    @shape_checked
    def forward(
        self, residual: Float[Tensor, "batch seq d_model={self.d_model}"]
    ) -> Float[Tensor, "batch seq d_model={self.d_model}"]:
        """Return each position's normalised vector, times the gain, plus the bias."""
        if self.fused and not (self.hook_scale.active or self.hook_normalized.active):
            return F.layer_norm(residual, (self.d_model,), self.w, self.b, self.layer_norm_eps)
        wide = widened(residual)
        centred = wide - wide.mean(dim=-1, keepdim=True)
        scale = self.hook_scale(self.scale(centred))
        normalized = self.hook_normalized(centred / scale).to(residual.dtype)
        return normalized * self.w + self.b

    def scale(self, centred: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq 1"]:
        """Return the standard deviation that a centred vector is divided by."""
        return (centred.pow(2).mean(dim=-1, keepdim=True) + self.layer_norm_eps).sqrt()

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"d_model={self.d_model}, layer_norm_eps={self.layer_norm_eps}"
