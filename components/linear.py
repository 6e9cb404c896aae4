"""``x @ W + b``, by the kernel that is quick for it.

PyTorch's float32 products on a CPU go to MKL, which on some processors does not use all that they have. oneDNN, which
PyTorch carries too, does. For the few rows that decoding has, one of its operators is taken always. For the large
products of training its way is taken where training has found it accurate (`onednn_products`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Decoding has a row for each sequence. From some dozens on MKL has caught up.
_FEW_ROWS = 16

_has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_products_by_onednn = False


def onednn_products(enabled: bool) -> bool:
    """Whether float32 products of layers in training go to oneDNN's matrix product, from now on; returns what was.

    PyTorch reaches it only by allowing products in bfloat16, and what a processor makes of that permission differs:
    some have no quick bfloat16 and compute in float32, some would really round. So it is off until somebody has looked
    (`gptladder.training.kernels`), and holds for these products alone.
    """
    global _products_by_onednn
    before, _products_by_onednn = _products_by_onednn, enabled
    return before


@contextmanager
def quick_products() -> Iterator[None]:
    """Within the block, PyTorch's float32 products go where `onednn_products` says."""
    if not _products_by_onednn:
        yield
        return
    products: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


class PackedMatrix(Protocol):
    """A matrix and a bias in a form that some kernel reads quickest: see `gptladder.sampling.pack`."""

    def __call__(self, x: Tensor) -> Tensor:
        """``x @ W + b``."""
        ...


def linear(
    x: Float[Tensor, "*batch d_in"],
    W: Float[Tensor, "d_in d_out"],
    b: Float[Tensor, "d_out"] | None,
    packed: PackedMatrix | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """``x @ W + b``, to rounding the same whichever kernel computes it; ``packed`` takes the place of both."""
    if packed is not None:
        return packed(x)
    if (
        x.device.type == "cpu"
        and x.dtype == W.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    ):
        if _has_onednn and not torch.is_grad_enabled() and 0 < x.numel() <= _FEW_ROWS * x.shape[-1]:
            return torch.ops.mkldnn._linear_pointwise(x, W.T, b, "none", [], "")
        if _products_by_onednn and b is not None:
            return _QuickLinear.apply(x, W, b)  # pyright: ignore[reportReturnType]
    return F.linear(x, W.T, b)


class _QuickLinear(torch.autograd.Function):
    """A linear layer whose three products, one forwards and two backwards, are `quick_products`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        with quick_products():
            return torch.addmm(b, x.flatten(0, -2), W).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W = ctx.saved_tensors
        rows = d_out.flatten(0, -2)
        with quick_products():
            d_x = (rows @ W.T).view(x.shape) if ctx.needs_input_grad[0] else None
            d_W = x.flatten(0, -2).T @ rows if ctx.needs_input_grad[1] else None
        return d_x, d_W, rows.sum(0) if ctx.needs_input_grad[2] else None
