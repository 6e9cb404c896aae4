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

    # The numbers of gelu_new.
    factor, root, cubic, power = 0.5, math.sqrt(2 / math.pi), 0.044715, 3

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.act_fn = config.act_fn
        self.W_in, self.b_in = empty(config.d_model, config.d_mlp, dtype=dtype), empty(config.d_mlp, dtype=dtype)
        self.W_out, self.b_out = empty(config.d_mlp, config.d_model, dtype=dtype), empty(config.d_model, dtype=dtype)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Widen, activate, narrow."""
        return self.narrow(self.activation(self.widen(x)))

    def gelu(self, x: Tensor) -> Tensor:
        """gelu_new, written out."""
        return self.factor * x * (1 + torch.tanh(self.inner(x)))

    def inner(self, x: Tensor) -> Tensor:
        """What the tanh is taken of."""
        return self.root * (x + self.cubic * x**self.power)

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


_GELU = (
    "GPT-2's gelu_new is the tanh approximation of GELU: 0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))), "
    "F.gelu(x, approximate='tanh')."
)


def _activation(mistake: str, what: str, function: Any, *, rare: bool = False) -> Mistake:
    hint = f"The activation is {what}. {_GELU}"
    return _mlp(mistake, hint, rare=rare, activation=lambda self, pre: function(pre))


def _written_gelu(self: PlainMLP, pre: Tensor) -> Tensor:
    return self.gelu(pre)


def _in_gelu(mistake: str, what: str, *, rare: bool = False, **steps: Any) -> Mistake:
    """Return the entry of gelu_new with another number or step."""
    return _mlp(mistake, f"The activation is gelu_new {what}. {_GELU}", rare=rare, activation=_written_gelu, **steps)


MLPS: tuple[Mistake, ...] = (
    _activation("erf GELU for tanh GELU", "the exact GELU, by the error function (F.gelu's default)", F.gelu),
    _activation("ReLU for GELU", "ReLU", F.relu),
    _activation("SiLU for GELU", "SiLU (swish), x * sigmoid(x)", F.silu),
    _activation(
        "quick GELU for GELU", "the quick GELU, x * sigmoid(1.702 * x)", lambda x: x * torch.sigmoid(1.702 * x)
    ),
    _activation("tanh for GELU", "tanh alone", torch.tanh),
    _mlp(
        "no activation",
        f"W_out multiplies the hidden layer without an activation. {_GELU}",
        activation=lambda self, pre: pre,
    ),
    _activation("LeakyReLU for GELU", "LeakyReLU", F.leaky_relu, rare=True),
    _activation("ELU for GELU", "ELU", F.elu, rare=True),
    _activation("softplus for GELU", "softplus", F.softplus, rare=True),
    _activation("sigmoid for GELU", "the sigmoid alone", torch.sigmoid, rare=True),
    _activation("squared ReLU for GELU", "the square of ReLU", lambda x: F.relu(x) ** 2, rare=True),
    _in_gelu("2/pi for sqrt(2/pi) in GELU", "with 2/pi, not its root", root=2 / math.pi),
    _in_gelu("sqrt(2/pi) missing in GELU", "without its factor of sqrt(2/pi)", root=1.0),
    _in_gelu("sqrt(2*pi) for sqrt(2/pi) in GELU", "with sqrt(2*pi)", root=math.sqrt(2 * math.pi), rare=True),
    _in_gelu("sqrt(pi/2) for sqrt(2/pi) in GELU", "with sqrt(pi/2)", root=math.sqrt(math.pi / 2), rare=True),
    _in_gelu("sqrt(2)/pi for sqrt(2/pi) in GELU", "with sqrt(2)/pi", root=math.sqrt(2) / math.pi, rare=True),
    _in_gelu("x² for x³ in GELU", "with x**2 in place of x**3", power=2),
    _in_gelu("0.5 missing in GELU", "without its factor of 0.5", factor=1.0),
    _in_gelu("0.44715 for 0.044715 in GELU", "with 0.44715", cubic=0.44715, rare=True),
    _in_gelu("0.0044715 for 0.044715 in GELU", "with 0.0044715", cubic=0.0044715, rare=True),
    _in_gelu("0.04715 for 0.044715 in GELU", "with 0.04715", cubic=0.04715, rare=True),
    _in_gelu(
        "sqrt(2/pi) times x alone in GELU",
        "with sqrt(2/pi) times x alone, not times x + 0.044715 * x**3",
        rare=True,
        inner=lambda self, x: self.root * x + self.cubic * x**self.power,
    ),
    _in_gelu(
        "1 - tanh in GELU",
        "with 1 - tanh in place of 1 + tanh",
        rare=True,
        gelu=lambda self, x: self.factor * x * (1 - torch.tanh(self.inner(x))),
    ),
    _in_gelu(
        "1 + missing in GELU",
        "without the 1 that is added to tanh",
        rare=True,
        gelu=lambda self, x: self.factor * x * torch.tanh(self.inner(x)),
    ),
    _mlp(
        "gelu_new whatever act_fn is",
        "The activation is always gelu_new. Take it from the configuration's act_fn.",
        activation=lambda self, pre: ACTIVATIONS["gelu_new"](pre),
    ),
    _mlp(
        "activation before W_in",
        "The activation stands at the beginning, before W_in. It belongs between W_in and W_out.",
        forward=lambda self, x, **_: self.narrow(self.widen(self.activation(x))),
    ),
    _mlp(
        "activation before W_in too",
        "The activation is applied before W_in too. It belongs between W_in and W_out alone.",
        rare=True,
        forward=lambda self, x, **_: self.narrow(self.activation(self.widen(self.activation(x)))),
    ),
    _mlp(
        "activation twice in a row",
        "The activation is applied twice between W_in and W_out. Apply it once.",
        rare=True,
        forward=lambda self, x, **_: self.narrow(self.activation(self.activation(self.widen(x)))),
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
        "b_in twice",
        "b_in is added twice. Add it once: nn.Linear and F.linear add it by themselves.",
        rare=True,
        widen=lambda self, x: x @ self.W_in + 2 * self.b_in,
    ),
    _mlp(
        "b_out not added",
        "b_out is not added. Add it after W_out.",
        narrow=lambda self, post: post @ self.W_out,
    ),
    _mlp(
        "b_out twice",
        "b_out is added twice. Add it once: nn.Linear and F.linear add it by themselves.",
        narrow=lambda self, post: post @ self.W_out + 2 * self.b_out,
    ),
    _mlp(
        "no bias at all",
        "Neither b_in nor b_out is added. Add b_in before the activation and b_out after W_out.",
        widen=lambda self, x: x @ self.W_in,
        narrow=lambda self, post: post @ self.W_out,
    ),
    _mlp(
        "W_in reshaped for transposed",
        "W_in was brought to its shape by view or reshape where a transpose was meant, which scrambles it. nn.Linear "
        "keeps its weight transposed: use .T.",
        widen=lambda self, x: x @ other_way(self.W_in).T + self.b_in,
    ),
    _mlp(
        "W_out reshaped for transposed",
        "W_out was brought to its shape by view or reshape where a transpose was meant, which scrambles it. nn.Linear "
        "keeps its weight transposed: use .T.",
        narrow=lambda self, post: post @ other_way(self.W_out).T + self.b_out,
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
