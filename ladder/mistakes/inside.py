"""The layers' own mistakes inside a block and a model."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from ...assembly.config import GPT2Config
from ..rungs import Build
from .attention import ATTENTION
from .attention_pattern import FINITE_FILL
from .block import BLOCK, PlainBlock
from .embeddings import EMBED, POS_EMBED, UNEMBED
from .layer_norm import LAYER_NORM
from .mistake import Mistake, Steps, placed
from .mlp import MLPS
from .model import PlainModel


def _inside(
    base: type[nn.Module], rung: str, where: str, paths: Callable[[GPT2Config], list[str]], mistakes: Iterable[Mistake]
) -> list[Mistake]:
    """The layers' mistakes at some places inside a larger layer; with no ``where`` if only one place has them."""

    def steps(wrong: Build) -> Steps:
        return {"parts": lambda _, config: dict.fromkeys(paths(config), wrong)}

    return [
        replace(placed(each, where), rung=rung, base=base, spellings=tuple(map(steps, each.builds)))
        for each in mistakes
    ]


def _in_every_block(*names: str) -> Callable[[GPT2Config], list[str]]:
    return lambda config: [f"blocks.{layer}{name}" for layer in range(config.n_layers) for name in names]


# Where a layer's mistake can sit in a block or a model. Tried when no mistake of the wiring itself fits.
INSIDE_BLOCK: tuple[Mistake, ...] = tuple(
    mistake
    for where, names, mistakes in (
        ("the block's attention", ["attn"], ATTENTION),
        ("the block's MLP", ["mlp"], MLPS),
        ("both layer norms", ["ln1", "ln2"], LAYER_NORM),
        ("ln1", ["ln1"], LAYER_NORM),
        ("ln2", ["ln2"], LAYER_NORM),
    )
    for mistake in _inside(PlainBlock, "block", where, lambda _, names=names: names, mistakes)
)
INSIDE_MODEL: tuple[Mistake, ...] = tuple(
    mistake
    for where, paths, mistakes in (
        # These need no place: what they say of embeddings and logits holds wherever the user's model computes them.
        ("", lambda _: ["embed"], EMBED),
        ("", lambda _: ["pos_embed"], POS_EMBED),
        ("", lambda _: ["unembed"], UNEMBED),
        ("every block", _in_every_block(""), BLOCK),
        ("every block's attention", _in_every_block(".attn"), ATTENTION),
        ("every block's MLP", _in_every_block(".mlp"), MLPS),
        ("every layer norm", lambda c: [*_in_every_block(".ln1", ".ln2")(c), "ln_final"], LAYER_NORM),
        ("every block's layer norms", _in_every_block(".ln1", ".ln2"), LAYER_NORM),
        ("ln_final", lambda _: ["ln_final"], LAYER_NORM),
    )
    for mistake in _inside(PlainModel, "model", where, paths, mistakes)
)
FINITE_MASKS: dict[str, tuple[Mistake, ...]] = {
    "attention": (FINITE_FILL,),
    "block": tuple(_inside(PlainBlock, "block", "the block's attention", lambda _: ["attn"], [FINITE_FILL])),
    "model": tuple(_inside(PlainModel, "model", "every block's attention", _in_every_block(".attn"), [FINITE_FILL])),
}
