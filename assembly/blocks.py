"""The blocks of a model: a list whose items have the type of a block, built from the configuration."""

from collections.abc import Iterator
from typing import cast, overload

import torch
from torch import nn

from ..components import Block
from .config import GPT2Config
from .init import scale_residual_projections

__all__ = ["Blocks"]


class Blocks(nn.ModuleList):
    """The blocks of a model: an ``nn.ModuleList`` whose items are typed, as PyTorch's own are not.

    >>> blocks = Blocks([Block(d_model=8, n_heads=2)])
    >>> blocks[0].attn.n_heads
    2
    """

    @classmethod
    def from_config(
        cls,
        config: GPT2Config,
        *,
        fused: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Blocks":
        """Return the blocks of a new model, with random weights.

        >>> len(Blocks.from_config(GPT2Config(d_model=8, n_layers=3, n_heads=2)))
        3
        """
        blocks = cls(
            Block(
                d_model=config.d_model,
                n_heads=config.n_heads,
                d_head=config.d_head,
                d_mlp=config.d_mlp,
                act_fn=config.act_fn,
                layer_norm_eps=config.layer_norm_eps,
                norm=config.norm,
                scale=config.attn_scale(layer),
                attn_dropout=config.attn_dropout,
                resid_dropout=config.resid_dropout,
                fused=fused,
                init_range=config.init_range,
                device=device,
                dtype=dtype,
            )
            for layer in range(config.n_layers)
        )
        scale_residual_projections(blocks)
        return blocks

    def reset_parameters(self) -> None:
        """Draw the weights of all blocks again, as for a new model."""
        for block in self:
            block.reset_parameters()
        scale_residual_projections(self)

    def __iter__(self) -> Iterator[Block]:
        return cast(Iterator[Block], super().__iter__())

    @overload
    def __getitem__(self, idx: slice) -> "Blocks": ...
    @overload
    def __getitem__(self, idx: int) -> Block: ...
    def __getitem__(self, idx: int | slice) -> "Block | Blocks":
        return cast(Block | Blocks, super().__getitem__(idx))
