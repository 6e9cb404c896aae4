"""Classic mistakes of the MLP."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from ...components.mlp import ACTIVATIONS
from .mistake import Mistake, empty, entries, other_way


class PlainMLP(nn.Module):
    """The MLP as it is written down, one method for each step."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.act_fn = config.act_fn
        self.W_in, self.b_in = empty(config.d_model, config.d_mlp, dtype=dtype), empty(config.d_mlp, dtype=dtype)
        self.W_out, self.b_out = empty(config.d_mlp, config.d_model, dtype=dtype), empty(config.d_model, dtype=dtype)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Widen, activate, narrow."""
        return self.narrow(self.activation(self.widen(x)))

    def widen(self, x: Tensor) -> Tensor:
        """``x @ W_in + b_in``."""
        return x @ self.W_in + self.b_in

    def activation(self, pre: Tensor) -> Tensor:
        """The configuration's ``act_fn``."""
        return ACTIVATIONS[self.act_fn](pre)

    def narrow(self, post: Tensor) -> Tensor:
        """``post @ W_out + b_out``."""
        return post @ self.W_out + self.b_out


_mlp = entries("mlp", PlainMLP)


def _activation(mistake: str, what: str, function: Any) -> Mistake:
    hint = (
        f"The activation is {what}. GPT-2's gelu_new is the tanh approximation of GELU: "
        "0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))), F.gelu(x, approximate='tanh')."
    )
    return _mlp(mistake, hint, activation=lambda self, pre: function(pre))


def _tanh_gelu(x: Tensor, *, root: float = math.sqrt(2 / math.pi), power: int = 3, half: float = 0.5) -> Tensor:
    return half * x * (1 + torch.tanh(root * (x + 0.044715 * x**power)))


MLPS: tuple[Mistake, ...] = (
    _activation("erf GELU for tanh GELU", "the exact GELU, by the error function (F.gelu's default)", F.gelu),
    _activation("ReLU for GELU", "ReLU", F.relu),
    _activation("SiLU for GELU", "SiLU (swish), x * sigmoid(x)", F.silu),
    _activation(
        "quick GELU for GELU", "the quick GELU, x * sigmoid(1.702 * x)", lambda x: x * torch.sigmoid(1.702 * x)
    ),
    _activation("tanh for GELU", "tanh alone", torch.tanh),
    _activation("no activation", "missing", lambda x: x),
    _activation(
        "2/pi for sqrt(2/pi) in GELU", "gelu_new with 2/pi, not its root", lambda x: _tanh_gelu(x, root=2 / math.pi)
    ),
    _activation("x² for x³ in GELU", "gelu_new with x**2 in place of x**3", lambda x: _tanh_gelu(x, power=2)),
    _activation("0.5 missing in GELU", "gelu_new without its factor of 0.5", lambda x: _tanh_gelu(x, half=1.0)),
    _mlp(
        "gelu_new whatever act_fn is",
        "The activation is always gelu_new. Take it from the configuration's act_fn.",
        activation=lambda self, pre: ACTIVATIONS["gelu_new"](pre),
    ),
    _mlp(
        "activation after W_out",
        "The activation stands at the end, after W_out. It belongs between W_in and W_out.",
        forward=lambda self, x, **_: self.activation(self.narrow(self.widen(x))),
    ),
    _mlp(
        "activation twice",
        "The activation is applied after W_out too. It belongs between W_in and W_out alone.",
        forward=lambda self, x, **_: self.activation(PlainMLP.forward(self, x)),
    ),
    _mlp(
        "b_in not added",
        "b_in is not added. Add it before the activation.",
        widen=lambda self, x: x @ self.W_in,
    ),
    _mlp(
        "b_in after the activation",
        "b_in is added after the activation. Add it before.",
        forward=lambda self, x, **_: self.narrow(self.activation(x @ self.W_in) + self.b_in),
    ),
    _mlp(
        "b_out not added",
        "b_out is not added. Add it after W_out.",
        narrow=lambda self, post: post @ self.W_out,
    ),
    _mlp(
        "b_out twice",
        "b_out is added twice (F.linear and nn.Linear add it already). Add it once.",
        narrow=lambda self, post: post @ self.W_out + 2 * self.b_out,
    ),
    _mlp(
        "no bias at all",
        "Neither b_in nor b_out is added. Add b_in before the activation and b_out after W_out.",
        widen=lambda self, x: x @ self.W_in,
        narrow=lambda self, post: post @ self.W_out,
    ),
    _mlp(
        "weights reshaped for transposed",
        "W_in and W_out were brought to their shape by view or reshape where a transpose was meant, which scrambles "
        "them. Use .T: nn.Linear keeps its weight transposed.",
        widen=lambda self, x: x @ other_way(self.W_in).T + self.b_in,
        narrow=lambda self, post: post @ other_way(self.W_out).T + self.b_out,
    ),
    _mlp(
        "input added",
        "The layer adds its own input to its output. The residual connection belongs to the block: return what the MLP "
        "computes, alone.",
        forward=lambda self, x, **_: PlainMLP.forward(self, x) + x,
    ),
)
