"""Classic mistakes of attention."""

from .attention_pattern import SCORES_AND_PATTERN
from .attention_projections import PROJECTIONS_AND_HEADS
from .mistake import Mistake
from .plain_attention import PlainAttention, attention_mistake

ATTENTION: tuple[Mistake, ...] = (
    *SCORES_AND_PATTERN,
    *PROJECTIONS_AND_HEADS,
    attention_mistake(
        "input added",
        "The layer adds its own input to its output. The residual connection belongs to the block: return what "
        "attention computes, alone.",
        forward=lambda self, x, **_: PlainAttention.forward(self, x) + x,
    ),
)
