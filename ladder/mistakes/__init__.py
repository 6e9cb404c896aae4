"""Classic mistakes: wrong layers, each one small step from the right one. Its rung must fail every one of them."""

from .attention import ATTENTION
from .block import BLOCK
from .embeddings import EMBED, POS_EMBED, UNEMBED
from .inside import FINITE_MASKS, INSIDE_BLOCK, INSIDE_MODEL
from .layer_norm import LAYER_NORM
from .mistake import Mistake
from .mlp import MLPS
from .model import MODEL

MISTAKES: tuple[Mistake, ...] = (*EMBED, *POS_EMBED, *LAYER_NORM, *ATTENTION, *MLPS, *BLOCK, *UNEMBED, *MODEL)

# The same mistakes inside a larger layer, by the larger one's rung.
INSIDE: dict[str, tuple[Mistake, ...]] = {"block": INSIDE_BLOCK, "model": INSIDE_MODEL}

__all__ = ["FINITE_MASKS", "INSIDE", "MISTAKES", "Mistake"]
