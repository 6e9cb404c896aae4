"""Numbers to judge with: parameters worth comparing, and how far two tensors are apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@torch.no_grad()
def randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter at a size that matters: matrices keep the variance, biases and gains differ from 0 and 1."""
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        last = name.rpartition(".")[2]
        if last in ("w", "weight") and parameter.ndim == 1:
            drawn = 1 + drawn / 2
        elif last.startswith("b"):
            drawn = drawn / 2
        elif not any(table in name for table in ("W_E", "W_pos", "wte", "wpe")):
            drawn = drawn / math.sqrt(max(parameter.shape))
        parameter.copy_(drawn)


def difference(a: Tensor | None, b: Tensor | None) -> float:
    """The largest absolute difference; infinite where one is missing, or of another shape or dtype, or not a number."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    largest = (a - b).abs().max().item()
    return math.inf if math.isnan(largest) else largest


@dataclass(frozen=True)
class Answer:
    """What a layer made of a trial.

    Args:
        output: of the forward pass.
        gradients: of each parameter, under TransformerLens's name, and of the ``input`` where that is no tokens; what
            got none is left out.
    """

    output: Tensor
    gradients: Mapping[str, Tensor]
