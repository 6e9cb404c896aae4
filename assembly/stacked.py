"""The weights of all blocks as one tensor, [n_layers …], under TransformerLens's names; and the biases, summed."""

from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def stacked(name: str) -> Any:
    """Return a property that stacks one parameter of each block into a copy.

    Args:
        name: the parameter within a block: ``attn.W_Q``.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=12, n_layers=2, n_heads=3, d_vocab=50, n_ctx=8))
        >>> model.W_Q.shape  # n_layers n_heads d_model d_head
        torch.Size([2, 3, 12, 4])
    """
    parameter = attrgetter(name)

    def stack(self: Any) -> Tensor:
        return torch.stack([parameter(block) for block in self.blocks])

    stack.__doc__ = f"``{name}`` of all blocks, [n_layers …] (a copy)."
    return property(stack)


def accumulated_bias(
    self: Any, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
) -> Float[Tensor, "d_model"]:
    """Return the sum of the output biases of all blocks before ``layer``, as in TransformerLens.

    Args:
        layer: number of a block, or ``n_layers``.
        mlp_input: add the bias of this layer's attention.
        include_mlp_biases: count the MLPs' biases.

    Raises:
        ValueError: no such layer, or ``mlp_input`` after the last one.
    """
    n_layers = len(self.blocks)
    if not 0 <= layer <= n_layers - mlp_input:
        raise ValueError(f"layer is {layer}; it can be 0 to {n_layers - mlp_input}")
    total = torch.zeros_like(self.blocks[0].attn.b_O)
    for block in self.blocks[:layer]:
        total = total + block.attn.b_O + (block.mlp.b_out if include_mlp_biases else 0)
    return total + self.blocks[layer].attn.b_O if mlp_input else total
