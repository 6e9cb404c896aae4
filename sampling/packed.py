"""Models whose matrices are laid out for decoding: in float32, bfloat16 or int8.

Decoding a token reads every weight once and does little with it, so its time is that of reading them from memory. The
layouts here are PyTorch's own: oneDNN's blocked matrices (those of compiled code), and FBGEMM's quantised ones (those
of ``torch.ao.quantization``'s dynamic quantisation). ``benchmarks/decode.py`` measures what each is worth.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..assembly.model import GPT2
from ..components import MLP, Attention, Block, Unembed
from ..components.kv_cache import LayerCache
from ..components.linear import PackedMatrix
from ..components.mlp import ACTIVATIONS
from ..components.taps import Tap, named_taps

PackedWeights = Literal["float32", "bfloat16", "int8"]
"""Formats that the weights of a packed model can have."""

# Which parameters are matrices of products, and how many of their leading axes are the input's.
_MATRICES: dict[type[nn.Module], dict[str, int]] = {
    Attention: {"W_QKV": 1, "W_O": 2},
    MLP: {"W_in": 1, "W_out": 1},
    Unembed: {"W_U": 1},
}


class _Blocked:
    """oneDNN's layout of a matrix, for about so many rows of input."""

    def __init__(self, W: Tensor, b: Tensor | None, rows: int) -> None:
        self._W, self._b = torch.ops.mkldnn._reorder_linear_weight(W.T.contiguous(), rows), b

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self._W, self._b, "none", [], "")


class _Int8:
    """A matrix in 8 bits, with a scale for each output; inputs are rounded to 8 bits as they come, with one scale."""

    def __init__(self, W: Tensor, b: Tensor | None) -> None:
        W = W.T.float().contiguous()
        scales = W.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        with warnings.catch_warnings():
            # PyTorch means to remove this type of tensor, and has no other way yet to what it is needed for here.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
            rounded = torch.quantize_per_channel(W, scales, torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(rounded, None if b is None else b.float())

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic.default(x, self._packed, False)


class _Parts(NamedTuple):
    """What a block reads for each token, looked up once: modules look their parts up slowly."""

    ln1: tuple[Any, ...]
    W_QKV: PackedMatrix
    W_O: PackedMatrix
    ln2: tuple[Any, ...]
    W_in: PackedMatrix
    act_fn: Callable[[Tensor], Tensor]
    W_out: PackedMatrix
    heads: tuple[int, int]
    scale: float
    taps: tuple[Tap, ...]

    @classmethod
    def of(cls, block: Block) -> "_Parts":
        attn, mlp = block.attn, block.mlp
        ln1, ln2 = (((ln.d_model,), ln.w, ln.b, ln.layer_norm_eps, False) for ln in (block.ln1, block.ln2))
        return cls(
            ln1,
            attn.packed["W_QKV"],
            attn.packed["W_O"],
            ln2,
            mlp.packed["W_in"],
            ACTIVATIONS[mlp.act_fn],
            mlp.packed["W_out"],
            (attn.n_heads, attn.d_head),
            attn.scale,
            tuple(named_taps(block).values()),
        )


class _DecodingBlock(Block):
    """A block that takes one token's way through packed matrices without stopping: the same operations, in line.

    With matrices in 8 bits, the calls from module to module would take a sixth of the time.
    """

    parts: _Parts

    def forward(
        self,
        resid_pre: Float[Tensor, "batch seq d_model"],
        *,
        padding_mask: Bool[Tensor, "batch key_pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """As `Block`'s; whatever is not one token of each row, unpadded, with nobody listening, goes there."""
        parts = self.parts
        batch, seq, _ = resid_pre.shape
        if (
            cache is None
            or seq > 1
            or padding_mask is not None
            or self.norm != "pre"
            or any(tap._forward_hooks for tap in parts.taps)
        ):
            return super().forward(resid_pre, padding_mask=padding_mask, cache=cache)
        n_heads, d_head = parts.heads
        x = torch.layer_norm(resid_pre, *parts.ln1)
        qkv = parts.W_QKV(x).view(batch, 3, n_heads, 1, d_head).transpose(0, 1)
        z = F.scaled_dot_product_attention(qkv[0], *cache.append_both(qkv[1:]), scale=parts.scale)
        resid_mid = resid_pre + parts.W_O(z.reshape(batch, 1, n_heads * d_head))
        x = torch.layer_norm(resid_mid, *parts.ln2)
        return resid_mid + parts.W_out(parts.act_fn(parts.W_in(x)))


def pack(model: GPT2, weights: PackedWeights, *, rows: int = 1) -> GPT2:
    """A model that computes the same, or nearly, and decodes faster. For inference on a CPU alone.

    It goes wherever the model does (`generate`, `stream`, caches, hooks), but its matrices exist in their packed form
    only: they can be neither read, trained nor saved.

    Args:
        model: it stays as it is.
        weights: ``float32``, the same to rounding; ``bfloat16``, which rounds all weights and activations to 8 bits of
            precision; ``int8``, which rounds weights and the inputs of products to 8 bits, the latter with one scale
            for all rows that are read together, so that what a row gets depends on its neighbours.
        rows: sequences that will be decoded at a time; any number works, this one best.

    Raises:
        ValueError: other weights; a model on another device than the CPU.
        RuntimeError: a build of PyTorch without oneDNN, or without a quantised engine.
    """
    if weights not in get_args(PackedWeights):
        raise ValueError(f"weights are {weights!r}; they can be {', '.join(get_args(PackedWeights))}")
    if model.embed.W_E.device.type != "cpu":
        raise ValueError(f"packed weights are for a CPU, and the model is on {model.embed.W_E.device}")
    if weights != "int8" and not torch.backends.mkldnn.is_available():
        raise RuntimeError("this build of PyTorch has no oneDNN, whose layout packed weights are in")
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    matrices = [
        module.get_parameter(name)
        for module in model.modules()
        for name in _MATRICES.get(type(module), {})
        if name in dict(module.named_parameters(recurse=False))
    ]
    # What is packed is not copied too: on "meta" it has a shape, and no memory.
    twin = copy.deepcopy(model, {id(matrix): nn.Parameter(matrix.to("meta"), False) for matrix in matrices})
    twin = twin.to(dtype).requires_grad_(False).eval()
    for original, module in zip(model.modules(), twin.modules(), strict=True):
        for name, axes in _MATRICES.get(type(module), {}).items():
            W = getattr(original, name).detach().flatten(axes).flatten(0, axes - 1)
            b = getattr(module, name.replace("W_", "b_"))
            b = None if b is None else b.detach().flatten()
            assert isinstance(module, Attention | MLP | Unembed)
            module.packed[name] = _Int8(W, b) if weights == "int8" else _Blocked(W.to(dtype), b, rows)
    for block in twin.blocks:
        assert isinstance(block, Block)
        block.__class__ = _DecodingBlock  # the same layers and names, another way through them
        vars(block)["parts"] = _Parts.of(block)
    return twin
