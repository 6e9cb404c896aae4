"""GPT-2's initial weights."""

import math

import torch

from ..components.block import Block


@torch.no_grad()
def scale_residual_projections(blocks: list[Block]) -> None:
    """Divide what writes to the residual stream by ``sqrt(2 * n_layers)``.

    The layers draw their weights from N(0, init_range) with biases 0. Each block adds to the stream twice, so without
    this its variance would grow with depth (Radford et al. 2019, section 2.3).
    """
    for block in blocks:
        for projection in (block.attn.W_O, block.mlp.W_out):
            projection.div_(math.sqrt(2 * len(blocks)))
