"""A layer's answer (output and gradients), how far two are apart, and random parameters to answer with."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..assembly.config import GPT2Config

Parameters = Mapping[str, Tensor]

# Of the largest entry, in float64. Rounding is some hundred times smaller; the smallest difference between two mistakes
# in the catalogue (a mask that fills 1e-9 instead of 0) ten times larger.
_ROUNDING = 1e-11


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


def backward(output: Tensor, cotangent: Tensor) -> None:
    """Run the backward pass of an output, each entry weighted by the cotangent's.

    ``output.backward(cotangent)`` does the same, and imports sympy to check a shape: a third of a second.
    """
    (output * cotangent).sum().backward()


def close(a: Tensor, b: Tensor, rounding: float = _ROUNDING) -> bool:
    """Return whether two tensors are equal to rounding, with NaN where the other has NaN."""
    size = max(1.0, b.nan_to_num(posinf=0.0, neginf=0.0).abs().max().item())
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, 0.0, rounding * size, equal_nan=True)


@dataclass(frozen=True)
class Answer:
    """A layer's output and gradients on one trial.

    Args:
        output: of the forward pass.
        gradients: of each parameter, under TransformerLens's name, and of the ``input`` unless it is tokens; what
            got none is left out.
    """

    output: Tensor
    gradients: Mapping[str, Tensor]


def same(a: Answer, b: Answer) -> bool:
    """Return whether two answers are equal to rounding, gradients too; a missing gradient counts as one of zeros."""
    if not close(a.output, b.output):
        return False
    if a.output.isnan().any():  # NaN in the output spreads over the gradients by ways that mean nothing
        return True
    for name, gradient in {**a.gradients, **b.gradients}.items():
        zero = torch.zeros_like(gradient)
        if not close(a.gradients.get(name, zero), b.gradients.get(name, zero)):
            return False
    return True


@dataclass(frozen=True)
class Reference:
    """A layer that others are judged against.

    Args:
        library: whose it is.
        build: the layer, for a configuration, in a dtype; its parameters may be uninitialised.
        call: the layer's output for the rung's input (default: it takes that input as it is).
        parameters: its parameters (or their gradients) under the names that our layer can load (default: its own).
        adapt: the configuration nearest to a given one that the library can build (default: every one).
    """

    library: str
    build: Callable[[GPT2Config, torch.dtype], nn.Module]
    call: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x)
    parameters: Callable[[GPT2Config, Parameters], Parameters] = lambda config, parameters: parameters
    adapt: Callable[[GPT2Config], GPT2Config] = lambda config: config
