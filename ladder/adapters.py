"""Helpers for adapters: TransformerLens's parameters as the matrices that other layers keep.

An adapter is for a layer whose parameters ``climb`` cannot read by itself; see ``docs/your-layer.md``.
"""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor


def side_by_side(W: Tensor) -> Tensor:
    """Return ``[n_heads d_model d_head]`` as one matrix ``[d_model (n_heads d_head)]``, one head after another.

    Example:
        >>> side_by_side(torch.zeros(3, 8, 4)).shape
        torch.Size([8, 12])
    """
    return rearrange(W, "n_heads d_model d_head -> d_model (n_heads d_head)")


def conv1d(parameters: Mapping[str, Tensor], *names: str) -> Tensor:
    """Return parameters side by side as transformers' ``Conv1D`` keeps them, ``[in out]``; biases as one vector.

    Args:
        parameters: TransformerLens's, by name.
        names: such as ``"W_Q", "W_K", "W_V"``, or ``"b_Q", "b_K", "b_V"``, or ``"W_O"``.

    Example:
        >>> p = {f"W_{name}": torch.zeros(3, 8, 4) for name in "QKV"}
        >>> conv1d(p, "W_Q", "W_K", "W_V").shape
        torch.Size([8, 36])
    """
    parts = []
    for name in names:
        tensor, last = parameters[name], name.rpartition(".")[2]
        if last in ("W_Q", "W_K", "W_V"):
            parts.append(side_by_side(tensor))
        elif last == "W_O":
            parts.append(tensor.flatten(0, 1))
        else:
            parts.append(tensor.flatten() if last.startswith("b") else tensor)
    return torch.cat(parts, dim=-1)


def linear(parameters: Mapping[str, Tensor], *names: str) -> Tensor:
    """Return parameters side by side as ``nn.Linear`` keeps them, ``[out in]``; biases as one vector.

    Args:
        parameters, names: as for `conv1d`.

    Example:
        >>> linear({"W_O": torch.zeros(3, 4, 8)}, "W_O").shape
        torch.Size([8, 12])
    """
    matrix = conv1d(parameters, *names)
    return matrix.T if matrix.ndim == 2 else matrix
