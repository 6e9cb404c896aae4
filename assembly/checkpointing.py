"""Activation checkpointing: a block's activations are computed again for its gradients instead of being held."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..components.dropout import drops
from ..components.tap import any_hooks


def call_block(block: nn.Module, residual: Tensor, *, checkpointed: bool, **kwargs: Any) -> Tensor:
    """Return ``block(residual, **kwargs)``, checkpointed if gradients are wanted and the second call gives the same.

    The second call happens in ``backward``, after hooks and `no_dropout` may have ended, and a cache has changed:
    with hooks, with dropout switched off for this thread, or with a cache, the activations are held.

    Example:
        >>> from gptladder.components import Block
        >>> block, x = Block(d_model=6, n_heads=2), torch.randn(1, 3, 6)
        >>> torch.equal(call_block(block, x, checkpointed=True), block(x))
        True
    """
    if (
        checkpointed
        and torch.is_grad_enabled()
        and kwargs.get("cache") is None
        and not any_hooks()
        and not any(module._forward_hooks for module in block.modules())
        and drops(block) == block.training
    ):
        return checkpoint(block, residual, use_reentrant=False, **kwargs)
    return block(residual, **kwargs)
