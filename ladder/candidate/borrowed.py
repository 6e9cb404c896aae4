"""What a layer takes ready-made: classes of a library that it is built from, and fused functions that it calls."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

_LIBRARIES = {"gptladder", "transformer_lens", "transformers", "x_transformers", "flash_attn", "xformers", "litgpt"}

# Of torch's own modules, those that are a rung's layer themselves: an attention may well use nn.Linear.
_TORCH_MODULES: Mapping[str, tuple[type[nn.Module], ...]] = {
    "embed": (nn.Embedding,),
    "pos-embed": (nn.Embedding,),
    "layer-norm": (nn.LayerNorm,),
    "attention": (nn.MultiheadAttention,),
    "block": (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.MultiheadAttention),
    "model": (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.MultiheadAttention),
}
_FUSED_ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
_FUNCTIONS = {
    "layer-norm": frozenset({"layer_norm", "native_layer_norm"}),
    "attention": _FUSED_ATTENTION,
    "block": _FUSED_ATTENTION,
    "model": _FUSED_ATTENTION,
}


def borrowed_classes(layer: nn.Module, rung: str) -> set[str]:
    """Return the classes of libraries that a layer, or a part of it, is or inherits from.

    Example:
        >>> sorted(borrowed_classes(nn.LayerNorm(4), "layer-norm"))
        ['torch.nn.LayerNorm']
    """
    found = set()
    for module in layer.modules():
        for each in type(module).__mro__:
            if each.__module__.split(".")[0] in _LIBRARIES:
                found.add(f"{each.__module__.split('.')[0]}.{each.__name__}")
        found |= {f"torch.nn.{each.__name__}" for each in _TORCH_MODULES.get(rung, ()) if isinstance(module, each)}
    return found


class FusedCalls(TorchFunctionMode):
    """Notes the fused functions of torch that are called in its context, which compute a rung's layer in one call."""

    def __init__(self, rung: str) -> None:
        super().__init__()
        self._noted = _FUNCTIONS.get(rung, frozenset())
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function, and note its name."""
        name = getattr(func, "__name__", "")
        if name in self._noted:
            self.names.add(f"torch.{name}")
        return func(*args, **(kwargs or {}))
