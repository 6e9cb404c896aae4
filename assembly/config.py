"""The configuration of a GPT-2: sizes, and the few choices that change the arithmetic."""

import dataclasses
import math
import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any, get_args

from ..components.block import Norm
from ..components.mlp import ActFn


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The sizes and choices of one model, under TransformerLens's names.

    It cannot be changed; ``dataclasses.replace`` returns a changed copy.

    Args:
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: attention heads of each block.
        d_head: width of one head (default: ``d_model / n_heads``).
        d_mlp: hidden width of the MLP (default: ``4 * d_model``).
        d_vocab: tokens in the vocabulary.
        n_ctx: number of positions.
        act_fn: ``gelu_new``, ``gelu`` or ``relu``.
        norm: ``pre`` (GPT-2) or ``post``; with ``post`` there is no final layer norm, because the last block ends in
            one.
        layer_norm_eps: added to the variance in each layer norm.
        init_range: standard deviation of the initial weights.
        tie_word_embeddings: the output projection is the token embedding, transposed.
        unembed_bias: the output projection has a bias ``b_U`` (GPT-2: no; processed TransformerLens weights: yes).
        scale_attn_weights: divide attention scores by ``sqrt(d_head)``.
        scale_attn_by_inverse_layer_idx: also divide them by the block's number, counted from 1.
        embed_dropout: probability of dropping an entry after the embeddings, in training.
        attn_dropout: the same in the attention pattern.
        resid_dropout: the same in what each layer adds to the residual stream.

    Raises:
        ValueError: a size below 1, sizes that do not divide, an unknown choice, a probability outside [0, 1), a value
            of another type.

    Example:
        >>> config = GPT2Config(d_model=64, n_layers=2, n_heads=4, d_vocab=100, n_ctx=32)
        >>> config.d_head, config.d_mlp
        (16, 256)
    """

    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_head: int = 0
    d_mlp: int = 0
    d_vocab: int = 50257
    n_ctx: int = 1024
    act_fn: ActFn = "gelu_new"
    norm: Norm = "pre"
    layer_norm_eps: float = 1e-5
    init_range: float = 0.02
    tie_word_embeddings: bool = True
    unembed_bias: bool = False
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    embed_dropout: float = 0.0
    attn_dropout: float = 0.0
    resid_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if name in ("d_head", "d_mlp") and not value:  # it follows from other sizes
                continue
            if (size := _whole(value)) is None or size < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 on")
            object.__setattr__(self, name, size)  # of NumPy, perhaps
        if not self.d_head:
            if self.d_model % self.n_heads:
                raise ValueError(
                    f"n_heads={self.n_heads} does not divide d_model={self.d_model}: change one of them, or give d_head"
                )
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if not self.d_mlp:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        for choice, kind in (("act_fn", ActFn), ("norm", Norm)):
            if getattr(self, choice) not in get_args(kind):
                raise ValueError(f"{choice} is {getattr(self, choice)!r}; it can be {', '.join(get_args(kind))}")
        for flag in _FLAGS:
            if not isinstance(getattr(self, flag), bool):
                raise ValueError(f"{flag} is {getattr(self, flag)!r}; it can be True or False")
        for probability in ("embed_dropout", "attn_dropout", "resid_dropout"):
            if not 0 <= _number(getattr(self, probability)) < 1:
                raise ValueError(f"{probability} is {getattr(self, probability)!r}; it must be in [0, 1)")
        for positive in ("layer_norm_eps", "init_range"):
            if not 0 < _number(getattr(self, positive)) < math.inf:
                raise ValueError(f"{positive} is {getattr(self, positive)!r}; it must be a finite number above 0")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "GPT2Config":
        """Return the configuration of a published model, with some fields changed.

        Raises:
            ValueError: a name that is not in ``PRESETS``.

        Example:
            >>> GPT2Config.preset("gpt2-medium", n_ctx=256).d_model
            1024
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
        return dataclasses.replace(PRESETS[name], **changes)

    def attn_scale(self, layer: int) -> float:
        """Return the factor of a block's attention scores; blocks are counted from 0."""
        scale = self.d_head**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


_SIZES = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")
_FLAGS = ("tie_word_embeddings", "unembed_bias", "scale_attn_weights", "scale_attn_by_inverse_layer_idx")


def _whole(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


PRESETS: dict[str, GPT2Config] = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(d_model=1024, n_layers=24, n_heads=16),
    "gpt2-large": GPT2Config(d_model=1280, n_layers=36, n_heads=20),
    "gpt2-xl": GPT2Config(d_model=1600, n_layers=48, n_heads=25),
    "distilgpt2": GPT2Config(n_layers=6),
}
"""The published models, by their names on the hub."""
