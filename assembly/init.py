"""GPT-2's initial weights, as far as they depend on the whole model."""

import math
from collections.abc import Iterable

from ..components import initial
from ..components.block import Block

# Standard deviation of the first logits. Their softmax is then almost uniform: the first loss exceeds ln(d_vocab) by
# half the variance, 0.045.
_FIRST_LOGITS = 0.3


def projection_range(d_model: int, init_range: float) -> float:
    """Return the standard deviation of the initial weights that project to the vocabulary.

    It is ``init_range``, but no more than keeps the first logits small: the residual stream that they project is
    normalised, so the logits' standard deviation is ``sqrt(d_model)`` times that of the weights.

    Example:
        >>> projection_range(128, init_range=0.02)
        0.02
        >>> round(projection_range(768, init_range=0.02), 5)
        0.01083
    """
    return min(init_range, _FIRST_LOGITS / math.sqrt(d_model))


def scale_residual_projections(blocks: Iterable[Block]) -> None:
    """Divide the weights that write to the residual stream by ``sqrt(2 * n_layers)``, in place.

    The layers draw their weights from N(0, init_range) and set biases to 0. Each block adds to the stream twice, so
    without this its variance would grow with depth (Radford et al. 2019, section 2.3).

    Example:
        >>> blocks = [Block(d_model=8, n_heads=2) for _ in range(2)]
        >>> before = blocks[0].mlp.W_out.clone()
        >>> scale_residual_projections(blocks)
        >>> bool((blocks[0].mlp.W_out * 2 - before).abs().max() < 1e-6)
        True
    """
    blocks = list(blocks)
    for block in blocks:
        initial.divide_((block.attn.W_O, block.mlp.W_out), math.sqrt(2 * len(blocks)))
