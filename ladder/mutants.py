"""Classic mistakes: wrong layers, each one small step from the right one. Its rung must fail every one of them."""

from .mutant import Mutant
from .mutants_attention import ATTENTION
from .mutants_layers import EMBED, LAYER_NORM, MLPS, POS_EMBED, UNEMBED
from .mutants_wiring import BLOCK, INSIDE_BLOCK, INSIDE_MODEL, MODEL

MUTANTS: tuple[Mutant, ...] = (*EMBED, *POS_EMBED, *LAYER_NORM, *ATTENTION, *MLPS, *BLOCK, *UNEMBED, *MODEL)

# The same mistakes inside a larger layer, by the larger one's rung.
INSIDE: dict[str, tuple[Mutant, ...]] = {"block": INSIDE_BLOCK, "model": INSIDE_MODEL}

__all__ = ["INSIDE", "MUTANTS", "Mutant"]
