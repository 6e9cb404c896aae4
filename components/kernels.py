"""Which kernel computes a matrix product, or attention.

The layers call `linear` and `attention` and know nothing else about kernels. Whichever kernel is chosen, the result is
the same to rounding, and so is every derivative. What a kernel cannot differentiate is computed by PyTorch's ordinary
operators instead.

Three facts decide:

* PyTorch's float32 products on a CPU go to MKL, which does not use all that some processors offer. oneDNN, which
  PyTorch contains too, does. For the few rows of decoding one of its operators is faster on processors of AMD; on those
  of Intel, whose library MKL is, generating a token took 1.4 times as long with it. For the large products of training
  it is used if a trial found it accurate (`set_onednn_products`, `gptladder.training.precision`).
* PyTorch's fused attention has first derivatives only, in reverse mode only.
* In bfloat16 on a CPU, with gradients, batched products are 2 to 4 times as fast as fused attention for short
  sequences.
"""

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from .masks import allowed_keys

# Decoding has one row for each sequence. From some dozens of rows on, MKL is as fast.
_FEW_ROWS = 16

# Longest sequences for which batched products are faster in bfloat16 on a CPU (benchmarks/attention.py).
_SHORT = 512


def _is_of_intel() -> bool:
    """Return whether the processor is one of Intel's."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as description:
            return "GenuineIntel" in description.read(200)
    except OSError:  # not Linux; Windows has the name here
        return "GenuineIntel" in platform.processor()


_has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_few_rows_by_onednn = _has_onednn and not (torch.backends.mkl.is_available() and _is_of_intel())
_onednn_products = False

_innermost_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]


def linear(
    x: Float[Tensor, "*batch d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, "d_out"] | None
) -> Float[Tensor, "*batch d_out"]:
    """Return ``x @ W + b``.

    Example:
        >>> x, W, b = torch.ones(2, 3), torch.ones(3, 4), torch.ones(4)
        >>> linear(x, W, b)[0]
        tensor([4., 4., 4., 4.])
    """
    if (
        x.device.type == "cpu"
        and x.dtype == W.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
    ):
        if _few_rows_by_onednn and not torch.is_grad_enabled() and 0 < x.numel() <= _FEW_ROWS * x.shape[-1]:
            return torch.ops.mkldnn._linear_pointwise(x, W.T, b, "none", [], "")
        if _onednn_products and b is not None:
            return _OneDNNLinear.apply(x, W, b)  # pyright: ignore[reportReturnType]
    return F.linear(x, W.T, b)


def attention(
    q: Float[Tensor, "batch query_pos n_heads d_head"],
    keys: Float[Tensor, "batch n_heads key_pos d_head"],
    values: Float[Tensor, "batch n_heads key_pos d_head"],
    *,
    scale: float,
    padding_mask: Bool[Tensor, "batch key_pos"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch query_pos n_heads d_head"]:
    """Return causal attention's values for each query; the last query stands at the last key.

    Args:
        q: queries.
        keys: keys of all positions, cached ones included.
        values: values of all positions.
        scale: factor of the scores.
        padding_mask: False at keys that no query attends to (default: every key counts).
        dropout: probability of dropping an entry of the pattern.

    Returns:
        The weighted values. A query with no key to attend to gets zeros.

    Example:
        >>> q, keys, values = torch.zeros(1, 2, 1, 4), torch.zeros(1, 1, 2, 4), torch.eye(2, 4)[None, None]
        >>> attention(q, keys, values, scale=0.5)[0, :, 0]  # the second query averages both values
        tensor([[1.0000, 0.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000, 0.0000]])
    """
    query_pos, key_pos = q.shape[1], keys.shape[2]
    q = q.transpose(1, 2)
    causal = padding_mask is None
    if query_pos != key_pos:  # some positions are cached (an if, because the kernel takes no symbolic bool)
        causal = False
    if (causal and _is_short_bfloat16_training(q)) or (not torch.compiler.is_compiling() and is_transformed()):
        z = _attention_by_products(q, keys, values, scale=scale, padding_mask=padding_mask, dropout=dropout)
        return z.transpose(1, 2)
    # The fused kernel needs no mask if only causality counts, nor for a single query, which is the last position.
    unmasked = causal or (padding_mask is None and query_pos == 1)
    z = F.scaled_dot_product_attention(
        q,
        keys,
        values,
        attn_mask=None if unmasked else allowed_keys(query_pos, key_pos, padding_mask, device=q.device),
        is_causal=causal,
        dropout_p=dropout,
        scale=scale,
    )
    return z.transpose(1, 2)


def widened(x: Tensor) -> Tensor:
    """Return 16-bit floats as float32 and everything else as it is: fused kernels compute statistics that way.

    Example:
        >>> widened(torch.ones(2, dtype=torch.bfloat16)).dtype, widened(torch.ones(2, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def is_transformed() -> bool:
    """Return whether forward-mode differentiation or a transform of ``torch.func`` is under way.

    Operators without the matching rule give wrong results there without an error (zero tangents), or fail.

    Example:
        >>> is_transformed()
        False
        >>> torch.func.vmap(lambda x: x * is_transformed())(torch.ones(2))
        tensor([1., 1.])
    """
    return forward_ad._current_level >= 0 or _innermost_transform() is not None


def set_onednn_products(enabled: bool) -> bool:
    """Choose whether float32 products of training go to oneDNN from now on, and return the choice before.

    PyTorch reaches oneDNN's product only by allowing products in bfloat16, and what a processor makes of that
    permission differs: some have no fast bfloat16 and compute in float32, some would really round. So it is off until
    a trial has found it accurate (`gptladder.training.precision`), and holds for the products of these layers alone.

    Example:
        >>> before = set_onednn_products(False)
        >>> set_onednn_products(before)
        False
    """
    global _onednn_products
    before, _onednn_products = _onednn_products, enabled
    return before


@contextmanager
def chosen_products() -> Iterator[None]:
    """Compute PyTorch's float32 products within the block as `set_onednn_products` chose."""
    if not _onednn_products:
        yield
        return
    products: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


class _OneDNNLinear(torch.autograd.Function):
    """A linear layer whose three products, one forward and two backward, are `chosen_products`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        with chosen_products():
            return torch.addmm(b, x.flatten(0, -2), W).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W = ctx.saved_tensors
        rows = d_out.flatten(0, -2)
        with chosen_products():
            d_x = (rows @ W.T).view(x.shape) if ctx.needs_input_grad[0] else None
            d_W = x.flatten(0, -2).T @ rows if ctx.needs_input_grad[1] else None
        return d_x, d_W, rows.sum(0) if ctx.needs_input_grad[2] else None


def _is_short_bfloat16_training(q: Float[Tensor, "batch n_heads seq d_head"]) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= _SHORT and torch.is_grad_enabled()


def _attention_by_products(
    q: Float[Tensor, "batch n_heads query_pos d_head"],
    keys: Float[Tensor, "batch n_heads key_pos d_head"],
    values: Float[Tensor, "batch n_heads key_pos d_head"],
    *,
    scale: float,
    padding_mask: Bool[Tensor, "batch key_pos"] | None,
    dropout: float,
) -> Float[Tensor, "batch n_heads query_pos d_head"]:
    """Attention by operators that have every derivative."""
    batch, n_heads, query_pos, _ = q.shape
    key_pos = keys.shape[2]
    q, keys, values = q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)
    if padding_mask is None:
        later = torch.full((query_pos, key_pos), -math.inf, dtype=q.dtype, device=q.device)
        scores = torch.baddbmm(later.triu(1 + key_pos - query_pos), q, keys.transpose(1, 2), alpha=scale)
        pattern = scores.softmax(dim=-1)
    else:
        scores = (torch.bmm(q, keys.transpose(1, 2)) * scale).unflatten(0, (batch, n_heads))
        allowed = allowed_keys(query_pos, key_pos, padding_mask, device=q.device)
        pattern = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
        # A query with no allowed key has no softmax; its pattern is all zeros.
        pattern = pattern.masked_fill(~allowed, 0.0).flatten(0, 1)
    z = torch.bmm(F.dropout(pattern, dropout, dropout > 0), values)
    return z.unflatten(0, (batch, n_heads))
