"""Layouts: the ways in which a layer's parameters can hold GPT-2's, and GPT-2's own names and shapes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...assembly.config import GPT2Config

Given = Mapping[str, Tensor]
Fill = Callable[[Given], dict[str, Tensor]]


class Unreadable(ValueError):
    """Parameters that cannot be taken for GPT-2's; the message names them, in one clause."""


class Repeated(Unreadable):
    """One block that stands several times in a list."""


class Unlearned(Unreadable):
    """A layer without parameters, though GPT-2's has some."""


@dataclass(frozen=True)
class Layout:
    """One way to read a layer's parameters.

    Args:
        fill: the layer's state dict, made from TransformerLens's parameters.
        missing: TransformerLens's names of the parameters that the layer does not have.
        label: how they lie, in words; empty if there is nothing to report.
        oddity: why GPT-2's weights do not fit as they are stored; empty if they do.
        split: which numbers are queries and keys of one head; empty if there is one way only. If the scores are right
            under one split, the layer is right under no other.
        key: what tells it from the other layouts of the layer, whatever the layer's sizes.
    """

    fill: Fill
    missing: frozenset[str] = frozenset()
    label: str = ""
    oddity: str = ""
    split: str = ""
    key: str = ""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the user's layer: its name, and the module that holds it."""

    name: str
    tensor: Tensor
    owner: nn.Module

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def kept(self) -> str:
        """How its module keeps a matrix: ``out in``, ``in out``, or unknown."""
        name = type(self.owner).__name__.lower()
        return self.known or (
            "out in" if "linear" in name or isinstance(self.owner, nn.Conv1d) else "in out" if "conv1d" in name else ""
        )

    @property
    def known(self) -> str:
        """The same, if its module is torch's own and no other of such a name."""
        return "out in" if isinstance(self.owner, nn.Linear | nn.MultiheadAttention | nn.Conv1d) else ""

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)}"


Parameters = Mapping[str, Parameter]


def segments(name: str) -> list[str]:
    """Return the words of a parameter's name that may mean something, the last first."""
    return [part for part in reversed(name.split(".")) if part.lower() not in ("weight", "bias") and not part.isdigit()]


# The layers that a block is made of, in order, and their rungs.
_BLOCK = {"ln1": "layer-norm", "attn": "attention", "ln2": "layer-norm", "mlp": "mlp"}


def shapes(rung: str, config: GPT2Config, of: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shape of each of GPT-2's parameters on a rung, by TransformerLens's name."""
    c = config
    if rung == "embed":
        found: dict[str, tuple[int, ...]] = {"W_E": (c.d_vocab, c.d_model)}
    elif rung == "pos-embed":
        found = {"W_pos": (c.n_ctx, c.d_model)}
    elif rung == "layer-norm":
        found = {"w": (c.d_model,), "b": (c.d_model,)}
    elif rung == "attention":
        found = {f"W_{each}": (c.n_heads, c.d_model, c.d_head) for each in "QKV"}
        found |= {f"b_{each}": (c.n_heads, c.d_head) for each in "QKV"}
        found |= {"W_O": (c.n_heads, c.d_head, c.d_model), "b_O": (c.d_model,)}
    elif rung == "mlp":
        found = {"W_in": (c.d_model, c.d_mlp), "b_in": (c.d_mlp,), "W_out": (c.d_mlp, c.d_model), "b_out": (c.d_model,)}
    elif rung == "unembed":
        found = {"W_U": (c.d_model, c.d_vocab), "b_U": (c.d_vocab,)}
    elif rung == "block":
        found = {}
        for name, part in _BLOCK.items():
            found |= shapes(part, c, f"{name}.")
    else:
        found = shapes("embed", c, "embed.") | shapes("pos-embed", c, "pos_embed.")
        for layer in range(c.n_layers):
            found |= shapes("block", c, f"blocks.{layer}.")
        found |= shapes("layer-norm", c, "ln_final.") | shapes("unembed", c, "unembed.")
    return {of + name: shape for name, shape in found.items()}


# More are not tried.
_MOST = 300


class Layouts(Sequence[Layout]):
    """Layouts that are made when they are read: there may be hundreds, and a run of the layer needs one.

    Args:
        count: how many there are.
        make: returns the layout of a number.
    """

    def __init__(self, count: int, make: Callable[[int], Layout]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


def joined(parts: Sequence[Sequence[Layout]]) -> Layouts:
    """Return the layouts of several parts together: every combination, up to 300."""

    def make(index: int) -> Layout:
        chosen: list[Layout] = []
        for part in reversed(parts):
            index, own = divmod(index, len(part))
            chosen.insert(0, part[own])
        return together(chosen)

    return Layouts(min(math.prod(map(len, parts)), _MOST), make)


def together(layouts: Sequence[Layout]) -> Layout:
    """Return one layout of several parts as one."""

    def fill(given: Given) -> dict[str, Tensor]:
        return {name: tensor for layout in layouts for name, tensor in layout.fill(given).items()}

    labels = dict.fromkeys(layout.label for layout in layouts if layout.label)
    oddities = dict.fromkeys(layout.oddity for layout in layouts if layout.oddity)
    missing = frozenset().union(*[layout.missing for layout in layouts])
    split = " ".join(dict.fromkeys(layout.split for layout in layouts))
    key = "; ".join(dict.fromkeys(layout.key for layout in layouts))
    return Layout(fill, missing, "; ".join(labels), " and ".join(oddities), split, key)
