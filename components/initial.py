"""Initial values of parameters.

On the ``meta`` device a parameter has a shape and no values, so these functions leave it alone. (Drawing there would do
nothing, but PyTorch imports sympy to find that out: more than a second and 70 MB.)
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def normal_(weights: Iterable[Tensor], std: float) -> None:
    """Draw every entry from N(0, std**2), in place."""
    for weight in weights:
        if not weight.is_meta:
            nn.init.normal_(weight, std=std)


@torch.no_grad()
def fill_(parameters: Iterable[Tensor | None], value: float) -> None:
    """Set every entry to ``value``, in place; None stands for a parameter that the layer does not have."""
    for parameter in parameters:
        if parameter is not None and not parameter.is_meta:
            parameter.fill_(value)


@torch.no_grad()
def divide_(weights: Iterable[Tensor], divisor: float) -> None:
    """Divide every entry by ``divisor``, in place."""
    for weight in weights:
        if not weight.is_meta:
            weight.div_(divisor)
