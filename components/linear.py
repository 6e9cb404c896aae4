"""``x @ W + b``, by the kernel that is quick for so many rows.

PyTorch's products on a CPU go to MKL, which is slow for the few rows that decoding has, and gains little there
from a second thread. oneDNN, which PyTorch carries too (and calls by the operator used here in compiled code), reads
the same weights in place two to three times as fast; ``benchmarks/decode.py`` measures what that is worth.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Decoding has a row for each sequence. From some dozens on MKL has caught up.
_FEW_ROWS = 16

_has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    x: Float[Tensor, "*batch d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, "d_out"] | None
) -> Float[Tensor, "*batch d_out"]:
    """``x @ W + b``, to rounding the same whichever kernel computes it."""
    if (
        _has_onednn
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == W.dtype == torch.float32
        and 0 < x.numel() <= _FEW_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    ):
        return torch.ops.mkldnn._linear_pointwise(x, W.T, b, "none", [], "")
    return F.linear(x, W.T, b)
