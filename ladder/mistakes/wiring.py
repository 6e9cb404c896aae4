"""Classic mistakes of wiring: the block and the model, and the layers' own mistakes inside them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from ...assembly.model import GPT2
from ...components import Block
from ..rungs import Build, block_arguments
from .attention import ATTENTION
from .embeddings import EMBED, POS_EMBED, UNEMBED, PlainUnembed
from .layer_norm import LAYER_NORM
from .mistake import Mistake, Steps, entries, placed, with_steps
from .mlp import MLPS


class PlainBlock(Block):
    """Our block, its two halves as methods."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__(**block_arguments(config), dtype=dtype)

    def forward(self, resid_pre: Tensor, **_: object) -> Tensor:
        """Attention, then MLP."""
        return self.after_mlp(resid_pre, self.after_attention(resid_pre))

    def after_attention(self, pre: Tensor) -> Tensor:
        """``resid_mid``."""
        return pre + self.attn(self.ln1(pre))

    def after_mlp(self, pre: Tensor, mid: Tensor) -> Tensor:
        """``resid_post``."""
        return mid + self.mlp(self.ln2(mid))


class PlainModel(GPT2):
    """Our model, one method for each step."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__(config, dtype=dtype)

    def forward(self, input: Any, *_: Any, **__: Any) -> Any:
        """Embed, go through the blocks, normalise, project."""
        return self.logits(self.final(self.through(self.start(input))))

    def start(self, tokens: Tensor) -> Tensor:
        """The residual stream before the first block."""
        return self.embed(tokens) + self.pos_embed(tokens)

    def through(self, x: Tensor) -> Tensor:
        """The residual stream after the last block."""
        for block in self.order():
            x = block(x)
        return x

    def order(self) -> Iterable[nn.Module]:
        """The blocks as they come."""
        return self.blocks

    def final(self, x: Tensor) -> Tensor:
        """The final layer norm."""
        return self.ln_final(x)

    def logits(self, x: Tensor) -> Tensor:
        """The output projection."""
        return self.unembed(x)


_block = entries("block", PlainBlock)

_RIGHT = "mid = x + attn(ln1(x)); out = mid + mlp(ln2(mid))"


BLOCK: tuple[Mistake, ...] = (
    _block(
        "post-norm for pre-norm",
        f"The stream is normalised after each addition, as in GPT-1. GPT-2 normalises what each layer reads: {_RIGHT}.",
        after_attention=lambda self, x: self.ln1(x + self.attn(x)),
        after_mlp=lambda self, x, mid: self.ln2(mid + self.mlp(mid)),
    ),
    _block(
        "layer norm on what is added",
        f"Each layer's output is normalised, not its input. It is {_RIGHT}.",
        after_attention=lambda self, x: x + self.ln1(self.attn(x)),
        after_mlp=lambda self, x, mid: mid + self.ln2(self.mlp(mid)),
    ),
    _block(
        "one layer norm for two",
        "ln1 is used twice. The MLP reads through ln2, which has parameters of its own.",
        after_mlp=lambda self, x, mid: mid + self.mlp(self.ln1(mid)),
    ),
    _block(
        "ln2 for both layer norms",
        "ln2 is used twice. Attention reads through ln1, which has parameters of its own.",
        after_attention=lambda self, x: x + self.attn(self.ln2(x)),
    ),
    _block(
        "ln1 and ln2 exchanged",
        "ln1 and ln2 have changed places. Attention reads through ln1, the MLP through ln2.",
        after_attention=lambda self, x: x + self.attn(self.ln2(x)),
        after_mlp=lambda self, x, mid: mid + self.mlp(self.ln1(mid)),
    ),
    _block(
        "ln1 not applied",
        f"Attention reads the residual stream as it is. It reads ln1 of it: {_RIGHT}.",
        after_attention=lambda self, x: x + self.attn(x),
    ),
    _block(
        "ln2 not applied",
        f"The MLP reads the residual stream as it is. It reads ln2 of it: {_RIGHT}.",
        after_mlp=lambda self, x, mid: mid + self.mlp(mid),
    ),
    _block(
        "no layer norm applied",
        f"Neither attention nor MLP reads the stream normalised. It is {_RIGHT}.",
        after_attention=lambda self, x: x + self.attn(x),
        after_mlp=lambda self, x, mid: mid + self.mlp(mid),
    ),
    _block(
        "residual added once",
        f"The MLP's output replaces the stream. Add it: {_RIGHT}.",
        after_mlp=lambda self, x, mid: self.mlp(self.ln2(mid)),
    ),
    _block(
        "attention replaces the stream",
        f"Attention's output replaces the stream. Add it: {_RIGHT}.",
        after_attention=lambda self, x: self.attn(self.ln1(x)),
    ),
    _block(
        "no residual connection",
        f"Neither output is added to the stream; each replaces it. It is {_RIGHT}.",
        after_attention=lambda self, x: self.attn(self.ln1(x)),
        after_mlp=lambda self, x, mid: self.mlp(self.ln2(mid)),
    ),
    _block(
        "residual from the normalised stream",
        f"Each output is added to the normalised stream. Keep x: {_RIGHT}.",
        after_attention=lambda self, x: self.ln1(x) + self.attn(self.ln1(x)),
        after_mlp=lambda self, x, mid: self.ln2(mid) + self.mlp(self.ln2(mid)),
    ),
    _block(
        "attention added to the normalised stream",
        f"Attention's output is added to ln1(x), not to x. Keep x: {_RIGHT}.",
        after_attention=lambda self, x: self.ln1(x) + self.attn(self.ln1(x)),
    ),
    _block(
        "MLP added to the normalised stream",
        f"The MLP's output is added to ln2(mid), not to mid. Keep mid: {_RIGHT}.",
        after_mlp=lambda self, x, mid: self.ln2(mid) + self.mlp(self.ln2(mid)),
    ),
    _block(
        "ln2 reads the stream before attention",
        f"The MLP reads ln2(x), the stream before attention, beside attention and not after it. It is {_RIGHT}.",
        after_mlp=lambda self, x, mid: mid + self.mlp(self.ln2(x)),
    ),
    _block(
        "MLP parallel to attention, as in GPT-J",
        f"MLP and attention both read ln1(x), side by side, as in GPT-J. In GPT-2 the MLP comes after: {_RIGHT}.",
        after_mlp=lambda self, x, mid: mid + self.mlp(self.ln1(x)),
    ),
    _block(
        "MLP reads attention's output alone",
        f"The MLP reads ln2 of attention's output, without the stream that it was added to. It is {_RIGHT}.",
        after_mlp=lambda self, x, mid: mid + self.mlp(self.ln2(mid - x)),
    ),
    _block(
        "MLP added to the stream before attention",
        f"The MLP's output is added to x, so attention's own is lost from the stream. Add it to mid: {_RIGHT}.",
        after_mlp=lambda self, x, mid: x + self.mlp(self.ln2(mid)),
    ),
    _block(
        "input added twice",
        f"The block's input is added again at the end. It is in mid already: {_RIGHT}.",
        after_mlp=lambda self, x, mid: x + mid + self.mlp(self.ln2(mid)),
    ),
    _block(
        "MLP before attention",
        f"The MLP comes before attention. It is {_RIGHT}.",
        after_attention=lambda self, x: x + self.mlp(self.ln2(x)),
        after_mlp=lambda self, x, mid: mid + self.attn(self.ln1(mid)),
    ),
)


_model = entries("model", PlainModel)


def _unassigned(self: PlainModel, x: Tensor) -> Tensor:
    return self.blocks[-1](x)


def _positions_each_time(self: PlainModel, tokens: Tensor, **_: object) -> Tensor:
    x = self.embed(tokens)
    for block in self.blocks:
        x = block(x + self.pos_embed(tokens))
    return self.logits(self.final(x))


def _residual_around(self: PlainModel, x: Tensor) -> Tensor:
    for block in self.blocks:
        x = x + block(x)
    return x


def _norm_after_each(self: PlainModel, x: Tensor) -> Tensor:
    for block in self.blocks:
        x = self.ln_final(block(x))
    return x


def _without_gain(self: PlainModel, x: Tensor) -> Tensor:
    gain, bias = self.get_parameter("ln_final.w"), self.get_parameter("ln_final.b")
    return (self.ln_final(x) - bias) / gain + bias


MODEL: tuple[Mistake, ...] = (
    _model(
        "positions not added",
        "The position embedding is not added. The stream starts as embed(tokens) + pos_embed(tokens).",
        start=lambda self, tokens: self.embed(tokens),
    ),
    _model(
        "positions multiplied",
        "The embeddings of tokens and positions are multiplied. Add them.",
        start=lambda self, tokens: self.embed(tokens) * self.pos_embed(tokens),
    ),
    _model(
        "positions added before every block",
        "The position embedding is added before every block. Add it once, before the first.",
        forward=_positions_each_time,
    ),
    _model(
        "final layer norm not applied",
        "ln_final is not applied to what the logits are made of. Normalise the stream once more before unembed.",
        final=lambda self, x: x,
    ),
    _model(
        "final layer norm without its gain",
        "The final layer norm lacks its gain. Multiply by ln_final.w, then add ln_final.b.",
        final=_without_gain,
    ),
    _model(
        "final layer norm twice",
        "ln_final is applied twice. Apply it once, after the last block.",
        final=lambda self, x: self.ln_final(self.ln_final(x)),
    ),
    _model(
        "final layer norm before the blocks",
        "ln_final stands before the blocks. Apply it after the last.",
        start=lambda self, tokens: self.ln_final(self.embed(tokens) + self.pos_embed(tokens)),
        final=lambda self, x: x,
    ),
    _model(
        "final layer norm after every block",
        "ln_final is applied after every block. Apply it once, after the last: look at the loop's indentation.",
        through=_norm_after_each,
        final=lambda self, x: x,
    ),
    _model(
        "blocks in reverse",
        "The blocks run from the last to the first. Run them from blocks[0] on.",
        order=lambda self: reversed(self.blocks),
    ),
    Mistake(
        "one block in the place of all",
        "One block runs n_layers times. Make n_layers different blocks ([Block(cfg)] * n_layers makes one), and run "
        "one after another: for block in blocks: x = block(x).",
        "model",
        PlainModel,
        # Of weights that are loaded into one block for all, the last block's stay.
        tuple({"order": lambda self, which=which: [self.blocks[which]] * len(self.blocks)} for which in (0, -1)),
    ),
    _model(
        "last block skipped",
        "The last block is not run, or what it gives is not used. Run all n_layers of them, and go on with that.",
        order=lambda self: list(self.blocks)[:-1],
    ),
    _model(
        "first block skipped",
        "The first block is not run, or what it gives is not used. Blocks count from 0: range(n_layers).",
        order=lambda self: list(self.blocks)[1:],
    ),
    _model(
        "every block reads the embedding",
        "Each block reads the embedding, and only the last one's output is used. Assign x = block(x) in the loop.",
        through=_unassigned,
    ),
    _model(
        "residual added around every block",
        "Each block's output is added to its input, x = x + block(x). The block has added it already: x = block(x).",
        through=_residual_around,
    ),
    _model(
        "logits from W_E",
        "The logits are made with W_E transposed, where the output projection has a W_U of its own here (untied). Use "
        "that: ln_final(x) @ W_U.",
        logits=lambda self, x: x @ self.embed.W_E.T + (0 if self.unembed.b_U is None else self.unembed.b_U),
    ),
    _model(
        "logits from W_E, without b_U",
        "The logits are made with W_E transposed and without a bias, where the output projection has a W_U and a b_U "
        "of its own here (untied). Use these: ln_final(x) @ W_U + b_U.",
        logits=lambda self, x: x @ self.embed.W_E.T,
    ),
    _model(
        "tied weight reshaped for transposed",
        "The logits are made with W_E brought to [d_model, d_vocab] by view or reshape, which scrambles it. Transpose "
        "it where weights are tied; here they are not, and W_U is a matrix of its own.",
        logits=lambda self, x: x @ self.embed.W_E.reshape(self.embed.W_E.shape[::-1]),
    ),
)


def with_parts(base: type[nn.Module], parts: Mapping[str, Build], steps: Steps) -> Build:
    """Return the build of a layer with wrong layers in some places, and some of its own steps replaced."""
    return with_steps(base, {**steps, "__init__": _init(base, lambda _: parts)})


def _init(base: type[nn.Module], parts: Callable[[GPT2Config], Mapping[str, Build]]) -> Callable[..., None]:
    """Return an ``__init__`` that puts wrong layers in some places."""

    def init(self: Any, config: GPT2Config, dtype: torch.dtype) -> None:
        base.__init__(self, config, dtype)  # pyright: ignore[reportCallIssue]
        for path, build in parts(config).items():
            self.set_submodule(path, build(config, dtype))
        unembed = getattr(self, "unembed", None)
        if isinstance(unembed, PlainUnembed) and config.tie_word_embeddings:
            unembed.tie_to(self.embed)

    return init


def _inside(
    base: type[nn.Module], rung: str, where: str, paths: Callable[[GPT2Config], list[str]], mistakes: Iterable[Mistake]
) -> list[Mistake]:
    """The layers' mistakes at some places inside a larger layer; with no ``where`` if only one place has them."""

    def steps(wrong: Build) -> Steps:
        return {"__init__": _init(base, lambda config: dict.fromkeys(paths(config), wrong))}

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
