"""The layers of GPT-2, one module each. A layer needs no other layer (except `Block`, which composes them) and no
configuration object."""

from .act_names import act_name
from .attention import Attention
from .block import Block
from .caching import ActivationCache, run_with_cache
from .dropout import no_dropout
from .embed import Embed
from .kv_cache import KVCache, LayerCache
from .layer_norm import LayerNorm
from .mlp import MLP
from .pos_embed import PosEmbed
from .shapes import TypeCheckError, typecheck
from .taps import HookPoint, Tap, add_hook, hooks, named_taps, offer, reset_hooks, run_with_hooks
from .unembed import Unembed

__all__ = [
    "MLP",
    "ActivationCache",
    "Attention",
    "Block",
    "Embed",
    "HookPoint",
    "KVCache",
    "LayerCache",
    "LayerNorm",
    "PosEmbed",
    "Tap",
    "TypeCheckError",
    "Unembed",
    "act_name",
    "add_hook",
    "hooks",
    "named_taps",
    "no_dropout",
    "offer",
    "reset_hooks",
    "run_with_cache",
    "run_with_hooks",
    "typecheck",
]
