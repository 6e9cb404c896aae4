"""What a layer borrows: classes of a library that it is built from, and functions of libraries that it calls."""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

_PACKAGE = Path(__file__).resolve().parents[2]
_LIBRARIES = {"gptladder", "transformer_lens", "transformers", "x_transformers", "flash_attn", "xformers", "litgpt"}
_OURS = {"components", "assembly", "weights", "sampling", "training", "lens"}

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


class BorrowedCalls(TorchFunctionMode):
    """Notes the calls in its context that compute a rung's layer, or a part of it, in the student's place.

    These are torch's fused functions, and all functions of the libraries above: a layer can call a library's class
    without holding one.

    Args:
        rung: the rung's name.
        libraries: note functions of libraries too, which makes each call slower.
    """

    def __init__(self, rung: str, *, libraries: bool = True) -> None:
        super().__init__()
        self._noted, self._libraries = _FUNCTIONS.get(rung, frozenset()), libraries
        self.names: set[str] = set()

    def __enter__(self) -> "BorrowedCalls":
        """Begin to note calls."""
        super().__enter__()
        self._libraries &= sys.getprofile() is None  # a profiler that is at work goes on
        if self._libraries:
            sys.setprofile(self._called)
        return self

    def __exit__(self, *error: Any) -> None:
        """End it."""
        if self._libraries:
            sys.setprofile(None)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function, and note its name."""
        name = getattr(func, "__name__", "")
        if name in self._noted:
            self.names.add(f"torch.{name}")
        return func(*args, **(kwargs or {}))

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and (library := _library(frame.f_code.co_filename)):
            self.names.add(f"{library}.{frame.f_code.co_qualname.split('.')[0]}")


@cache
def _library(file: str) -> str:
    """Return the library that a file belongs to; empty if it is none of those above."""
    path = Path(file).resolve()  # a link in site-packages may lead to a checkout
    parts = path.parts
    # The ladder's own functions run around the layer's; other files in a checkout may be the user's.
    if path.is_relative_to(_PACKAGE):
        return "gptladder" if path.relative_to(_PACKAGE).parts[0] in _OURS else ""
    index = max((parts.index(each) for each in ("site-packages", "dist-packages") if each in parts), default=None)
    name = "" if index is None else parts[index + 1]
    return name if name in _LIBRARIES else ""
