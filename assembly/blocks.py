"""The list of a model's blocks, whose items have the type of a block."""

from collections.abc import Iterator
from typing import cast, overload

from torch import nn

from ..components import Block

__all__ = ["Blocks"]


class Blocks(nn.ModuleList):
    """The blocks of a model: an ``nn.ModuleList`` whose items are typed, as PyTorch's own are not.

    >>> blocks = Blocks([Block(d_model=8, n_heads=2)])
    >>> blocks[0].attn.n_heads
    2
    """

    def __iter__(self) -> Iterator[Block]:
        return cast(Iterator[Block], super().__iter__())

    @overload
    def __getitem__(self, idx: slice) -> "Blocks": ...
    @overload
    def __getitem__(self, idx: int) -> Block: ...
    def __getitem__(self, idx: int | slice) -> "Block | Blocks":
        return cast(Block | Blocks, super().__getitem__(idx))
