"""The layers of GPT-2, one module each; none needs the others (but `Block`, which composes them) or a config object."""

from .attention import Attention
from .block import Block
from .embed import Embed
from .kv_cache import KVCache, LayerCache
from .layer_norm import LayerNorm
from .mlp import MLP
from .pos_embed import PosEmbed
from .shapes import TypeCheckError, typecheck
from .taps import ActivationCache, Tap, act_name, hooks, named_taps, run_with_cache, run_with_hooks
from .unembed import Unembed

__all__ = [
    "MLP",
    "ActivationCache",
    "Attention",
    "Block",
    "Embed",
    "KVCache",
    "LayerCache",
    "LayerNorm",
    "PosEmbed",
    "Tap",
    "TypeCheckError",
    "Unembed",
    "act_name",
    "hooks",
    "named_taps",
    "run_with_cache",
    "run_with_hooks",
    "typecheck",
]
