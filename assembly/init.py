"""Initial weights, as far as they depend on the whole model."""

import math
from collections.abc import Iterable

from torch import Tensor

from ..components import initial
from ..components.block import Block

# Largest standard deviation of the first logits. Their softmax is then almost uniform: the first loss exceeds
# ln(d_vocab) by half the variance, 0.045.
_FIRST_LOGITS = 0.3


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


def limit_first_logits(W_U: Tensor, init_range: float) -> None:
    """Shrink newly drawn weights that project to the vocabulary so that the first loss is ``ln(d_vocab)``, in place.

    The residual stream that they project is normalised, so the standard deviation of the logits is ``sqrt(d_model)``
    times that of the weights: 0.55 in GPT-2 small, whose first loss is 0.15 above that of guessing. Training calls this
    on a new model; ``GPT2(config)`` itself draws every weight from N(0, init_range).

    Example:
        >>> import torch
        >>> W_U = 0.02 * torch.randn(768, 1000)
        >>> limit_first_logits(W_U, init_range=0.02)
        >>> round(float(W_U.std()) * 768**0.5, 1)
        0.3
    """
    too_large = init_range * math.sqrt(W_U.shape[0]) / _FIRST_LOGITS
    if too_large > 1:
        initial.divide_((W_U,), too_large)
