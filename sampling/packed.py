"""Pack the matrices of a model for fast decoding, in float32, bfloat16 or int8.

Decoding one token reads every weight once and does little arithmetic with it, so its time is that of reading the
weights from memory. The layouts here are PyTorch's own: oneDNN's blocked matrices (which compiled code uses), and
FBGEMM's quantised matrices (which dynamic quantisation in ``torch.ao.quantization`` uses). ``benchmarks/decode.py``
measures how much faster each of them is.

A packed model consists of the layers in this module, which replace `Attention`, `MLP`, `Block`, `Unembed` and `GPT2`.
Their matrices exist only in the packed form.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..assembly.arguments import check_model
from ..assembly.blocks import Blocks
from ..assembly.model import GPT2
from ..components import MLP, Attention, Block, LayerNorm, Unembed
from ..components.kernels import is_transformed
from ..components.kv_cache import LayerCache
from ..components.mlp import ACTIVATIONS
from ..components.tap import Tap, any_hooks
from .transforms.base import whole

PackedWeights = Literal["float32", "bfloat16", "int8"]
"""Formats that the weights of a packed model can have."""

_Product = Callable[[Tensor], Tensor]
_Pack = Callable[[Tensor, Tensor | None], _Product]


def pack(model: GPT2, weights: PackedWeights, *, rows: int = 1) -> GPT2:
    """Return a model that computes (nearly) the same and decodes faster. It is for inference on a CPU only.

    The packed model works everywhere the model does (`generate`, `stream`, caches, hooks). But its matrices exist only
    in the packed form: they cannot be read, trained, saved, loaded, moved or converted. To do any of this, use the
    original model, and pack it again.

    Args:
        model: The model, which is not changed. Blocks, attentions and MLPs of other classes are copied unpacked.
        weights: ``float32`` gives the same results up to rounding. ``bfloat16`` rounds all weights and activations to 8
            bits of precision. ``int8`` rounds weights and inputs of products to 8 bits; the inputs share one scale for
            all rows that are computed together, so the result of a row depends on the other rows.
        rows: Number of sequences that will be decoded together. Other numbers work too, but may be slower.

    Raises:
        ValueError: ``weights`` is none of these; ``rows`` is below 1; the model is not on the CPU, is already packed,
            or is of a subclass.
        RuntimeError: This build of PyTorch has no oneDNN, or no quantised engine.

    Example:
        >>> from gptladder import GPT2Config
        >>> model = GPT2(GPT2Config(d_model=16, n_layers=2, n_heads=4, d_vocab=50, n_ctx=8)).eval()
        >>> packed = pack(model, "float32")
        >>> tokens = torch.tensor([[3, 1, 4]])
        >>> bool((packed(tokens) - model(tokens)).abs().max() < 1e-5)
        True
    """
    if weights not in get_args(PackedWeights):
        raise ValueError(f"weights are {weights!r}; they can be {', '.join(get_args(PackedWeights))}")
    check_model(model)
    whole("rows", rows, least=1)
    if isinstance(model, PackedGPT2):
        raise ValueError("the model is packed already: pack the model that it was packed from")
    if type(model) is not GPT2 or type(model.unembed) is not Unembed:
        raise ValueError(
            f"pack takes a GPT2 with an Unembed, not a {type(model).__name__} with a {type(model.unembed).__name__}: "
            "what their classes change would be left out"
        )
    if model.embed.W_E.device.type != "cpu":
        raise ValueError(f"packed weights are for a CPU, and the model is on {model.embed.W_E.device}")
    if weights != "int8" and not torch.backends.mkldnn.is_available():
        raise RuntimeError("this build of PyTorch has no oneDNN, whose layout packed weights are in")
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32

    def packed(W: Tensor, b: Tensor | None) -> _Product:
        W, b = W.detach(), None if b is None else b.detach()
        return _Int8(W, b) if weights == "int8" else _Blocked(W.to(dtype), None if b is None else b.to(dtype), rows)

    return PackedGPT2(model, packed, dtype)


class _Matrix:
    """A packed matrix with its bias. It never changes, so all copies of a model share it."""

    def __deepcopy__(self, memo: Any) -> "_Matrix":
        return self

    def __reduce__(self) -> Any:
        raise ValueError(
            "a packed model cannot be pickled: pickle the model that it was packed from, and pack that again"
        )


class _Blocked(_Matrix):
    """``x @ W + b`` with W in oneDNN's layout, which is chosen for a number of input rows."""

    def __init__(self, W: Tensor, b: Tensor | None, rows: int) -> None:
        self._W, self._b = torch.ops.mkldnn._reorder_linear_weight(W.T.contiguous(), rows), b

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self._W, self._b, "none", [], "")


class _Int8(_Matrix):
    """``x @ W + b`` with W in 8 bits and one scale per output; inputs are rounded to 8 bits with one scale for all."""

    def __init__(self, W: Tensor, b: Tensor | None) -> None:
        W = W.T.float().contiguous()
        scales = W.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        with warnings.catch_warnings():
            # PyTorch plans to remove this type of tensor, but does not offer another way to pack it yet.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
            rounded = torch.quantize_per_channel(W, scales, torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(rounded, None if b is None else b.float())

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic.default(x, self._packed, False)


class _Packed(nn.Module):
    """Base of the packed layers: refuses what is impossible with packed matrices."""

    def _refuse_reading(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "a packed model's matrices cannot be saved or loaded: use the model that it was packed from, and pack that "
            "again"
        )

    # PyTorch calls each of these before it changes anything, so no model is left half loaded.
    state_dict = load_state_dict = _save_to_state_dict = _load_from_state_dict = _refuse_reading

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Packed":
        """Refuse to be moved or converted, unless that changes nothing."""
        for parameter in self.parameters():
            probe = parameter.new_empty(0)
            converted = fn(probe)
            if (converted.dtype, converted.device) != (probe.dtype, probe.device):
                raise ValueError(
                    f"a packed model cannot become {converted.dtype} on {converted.device}: convert the model that it "
                    "was packed from, and pack that again"
                )
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("W_", "b_")):
            raise AttributeError(f"{name} is packed, and cannot be read: read it from the model that was packed")
        return super().__getattr__(name)


class PackedAttention(_Packed, Attention):
    """`Attention` with packed matrices."""

    def __init__(self, attn: Attention, packed: _Pack) -> None:
        nn.Module.__init__(self)
        _take(self, attn)
        self.product_qkv = packed(attn.W_QKV.flatten(1), attn.b_QKV.flatten())
        self.product_o = packed(attn.W_O.flatten(0, 1), attn.b_O)

    def project(
        self, normalized_resid_pre: Float[Tensor, "batch seq d_model"]
    ) -> tuple[Float[Tensor, "batch seq n_heads d_head"], ...]:
        """Return queries, keys and values, by one packed product."""
        return self.split(_product(self.product_qkv, normalized_resid_pre))

    def output(self, z: Float[Tensor, "batch seq n_heads d_head"]) -> Float[Tensor, "batch seq d_model"]:
        """Return the sum of the heads' contributions to the residual stream."""
        if self.hook_result.active:
            raise ValueError("a packed model forms no hook_result: put the hook on the model that was packed")
        return _product(self.product_o, z.flatten(2))


class PackedMLP(_Packed, MLP):
    """`MLP` with packed matrices."""

    def __init__(self, mlp: MLP, packed: _Pack) -> None:
        nn.Module.__init__(self)
        _take(self, mlp)
        self.product_in = packed(mlp.W_in, mlp.b_in)
        self.product_out = packed(mlp.W_out, mlp.b_out)
        self.activation = ACTIVATIONS[mlp.act_fn]

    def forward(self, normalized_resid_mid: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        """Return the layer's output at each position."""
        pre = self.hook_pre(_product(self.product_in, normalized_resid_mid))
        return _product(self.product_out, self.hook_post(self.activation(pre)))


class PackedUnembed(_Packed, Unembed):
    """`Unembed` with a packed matrix."""

    def __init__(self, unembed: Unembed, packed: _Pack) -> None:
        nn.Module.__init__(self)
        _take(self, unembed)
        self._tied_to = ()
        self._was_tied = unembed.tied
        self.product_u = packed(unembed.W_U, unembed.b_U)

    @property
    def tied(self) -> bool:
        """Whether the packed matrix was an embedding's table."""
        return self._was_tied

    def tie_to(self, embed: nn.Module) -> None:
        """Refuse, because the packed matrix cannot be replaced by another embedding."""
        raise ValueError(
            "a packed model's embedding cannot be replaced, since its output projection is tied to it and packed: "
            "replace it in the model that was packed, and pack that again"
        )

    def forward(
        self, normalized_resid_final: Float[Tensor, "batch seq d_model"]
    ) -> Float[Tensor, "batch seq d_vocab={self.d_vocab}"]:
        """Return the logits of the token that follows each position."""
        return self.hook_out(_product(self.product_u, self.hook_in(normalized_resid_final)))

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"d_model={self.d_model}, d_vocab={self.d_vocab}, tied={self.tied}"


class PackedBlock(_Packed, Block):
    """`Block` of packed layers. For a single new token it does their operations itself, without calling them.

    With matrices in 8 bits, the calls of the modules would take a sixth of the time.
    """

    def __init__(self, block: Block, packed: _Pack, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        _take(self, block)
        self.ln1, self.ln2 = (_frozen(layer, dtype) for layer in (block.ln1, block.ln2))
        self.attn = PackedAttention(block.attn, packed) if type(block.attn) is Attention else _frozen(block.attn, dtype)
        self.mlp = PackedMLP(block.mlp, packed) if type(block.mlp) is MLP else _frozen(block.mlp, dtype)

    def forward(
        self,
        resid_pre: Float[Tensor, "batch seq d_model"],
        *,
        padding_mask: Bool[Tensor, "batch key_pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return the residual stream after this block, as `Block` does."""
        batch, seq, _ = resid_pre.shape
        # Call the layers if anything can observe or change what they do, or if there is more than one token.
        layers: Any = self._modules  # faster than attributes of a module
        ln1, attn, ln2, mlp = layers["ln1"], layers["attn"], layers["ln2"], layers["mlp"]
        if (
            seq > 1
            or cache is None
            or padding_mask is not None
            or self.norm != "pre"
            or self.training
            or torch.is_grad_enabled()
            or type(ln1) is not LayerNorm
            or type(ln2) is not LayerNorm
            or type(attn) is not PackedAttention
            or type(mlp) is not PackedMLP
            or any_hooks()
            or is_transformed()
            or not (attn.fused and ln1.fused and ln2.fused)
            or _is_customised(self)
        ):
            return super().forward(resid_pre, padding_mask=padding_mask, cache=cache)
        # One token: LayerNorm and attention, with the new key and value written into the cache.
        gain = ln1._parameters
        x = torch.layer_norm(resid_pre, (self.d_model,), gain["w"], gain["b"], ln1.layer_norm_eps, False)
        qkv = attn.product_qkv(x).view(batch, 3, attn.n_heads, 1, attn.d_head).transpose(0, 1)
        cache.extend(batch, 1, attn.n_heads, attn.d_head).copy_(qkv[1:])
        z = F.scaled_dot_product_attention(qkv[0], *cache.held(), scale=attn.scale)
        resid_mid = resid_pre + attn.product_o(z.reshape(batch, 1, attn.n_heads * attn.d_head))
        # LayerNorm and MLP.
        gain = ln2._parameters
        x = torch.layer_norm(resid_mid, (self.d_model,), gain["w"], gain["b"], ln2.layer_norm_eps, False)
        return resid_mid + mlp.product_out(mlp.activation(mlp.product_in(x)))


class PackedGPT2(_Packed, GPT2):
    """`GPT2` of packed layers, as `pack` returns it."""

    def __init__(self, model: GPT2, packed: _Pack, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        _take(self, model)
        self._num_parameters = model.num_parameters()
        self.embed, self.pos_embed = _frozen(model.embed, dtype), _frozen(model.pos_embed, dtype)
        self.blocks = Blocks(
            PackedBlock(block, packed, dtype) if type(block) is Block else _frozen(block, dtype)
            for block in model.blocks
        )
        self.ln_final = _frozen(model.ln_final, dtype)
        self.unembed = PackedUnembed(model.unembed, packed)
        self.requires_grad_(False).eval()

    def num_parameters(self) -> int:
        """Return the number of parameters of the original model."""
        return self._num_parameters

    def reset_parameters(self) -> None:
        """Refuse, because packed matrices cannot be initialized."""
        self._refuse_reading()


def _take(packed: nn.Module, original: nn.Module) -> None:
    """Copy the sizes, options, taps and hooks of the original to the packed layer, but no layers or parameters."""
    for name, value in vars(original).items():
        if not name.startswith("_") and name != "training":
            setattr(packed, name, value)
        elif name.startswith(("_forward_hooks", "_forward_pre_hooks")):
            setattr(packed, name, copy.copy(value))
    for name, module in original.named_children():
        if isinstance(module, Tap):
            setattr(packed, name, copy.deepcopy(module))


def _frozen(layer: nn.Module, dtype: torch.dtype) -> Any:
    """Return an unpacked copy of a layer, which refuses to load weights, as the packed layers around it do."""
    layer = copy.deepcopy(layer).to(dtype)
    for module in layer.modules():
        module.register_load_state_dict_pre_hook(_refuse_loading)
    return layer


def _refuse_loading(*_: Any) -> None:
    raise ValueError(
        "weights cannot be loaded into a part of a packed model: load them into the model that was packed, and pack "
        "that again"
    )


def _product(product: _Product, x: Tensor) -> Tensor:
    """Compute a packed product. Refuse to differentiate, because it has no derivatives."""
    if is_transformed() or (torch.is_grad_enabled() and x.requires_grad):
        raise RuntimeError(
            "a packed model has no derivatives, and takes no torch.func transform: use the model that was packed"
        )
    return product(x)


def _is_customised(block: nn.Module) -> bool:
    """Return whether a layer or tap of a block must be called, because it has a PyTorch hook or was replaced."""
    if nn.modules.module._has_any_global_hook():
        return True
    layers: Any = block._modules.values()
    for layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            return True
        for tap in layer._modules.values():
            if tap._forward_hooks or tap._forward_pre_hooks or type(tap) is not Tap:
                return True
    return False
