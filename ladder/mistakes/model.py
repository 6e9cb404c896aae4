"""Classic mistakes of the model's wiring."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from ...assembly.model import GPT2
from .mistake import Mistake, entries
from .parts import no_parts, put_in


class PlainModel(GPT2):
    """Our model, one method for each step."""

    # What depends on nothing but its arguments, the parameters, and the steps that are not among these.
    stages = ("start", "through", "final", "logits")
    while_building = frozenset({"listed"})
    parts = no_parts

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__(config, dtype=dtype)
        self.blocks = self.listed(self.blocks)
        put_in(self, self.parts(config), config, dtype)

    def listed(self, blocks: Any) -> Any:
        """All different."""
        return blocks

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


_model = entries("model", PlainModel)


def _unassigned(self: PlainModel, x: Tensor) -> Tensor:
    return self.blocks[-1](x)


def _positions_each_time(self: PlainModel, tokens: Tensor, **_: object) -> Tensor:
    x = self.embed(tokens)
    for block in self.blocks:
        x = block(x + self.pos_embed(tokens))
    return self.logits(self.final(x))


def _positions_after(self: PlainModel, tokens: Tensor, **_: object) -> Tensor:
    return self.logits(self.final(self.through(self.embed(tokens)) + self.pos_embed(tokens)))


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
        "positions added twice",
        "The position embedding is added twice. The stream starts as embed(tokens) + pos_embed(tokens).",
        rare=True,
        start=lambda self, tokens: self.embed(tokens) + 2 * self.pos_embed(tokens),
    ),
    _model(
        "positions alone",
        "The embedding of the tokens is not added. The stream starts as embed(tokens) + pos_embed(tokens).",
        rare=True,
        start=lambda self, tokens: self.pos_embed(tokens),
    ),
    _model(
        "embeddings scaled by sqrt(d_model)",
        "The sum of both embeddings is multiplied by sqrt(d_model). The stream starts as embed(tokens) + "
        "pos_embed(tokens).",
        rare=True,
        start=lambda self, tokens: PlainModel.start(self, tokens) * math.sqrt(self.config.d_model),
    ),
    _model(
        "positions added after the blocks",
        "The position embedding is added after the blocks. Add it to the embedding of the tokens, before the first.",
        rare=True,
        forward=_positions_after,
    ),
    _model(
        "positions multiplied",
        "The embeddings of tokens and positions are multiplied. Add them.",
        rare=True,
        start=lambda self, tokens: self.embed(tokens) * self.pos_embed(tokens),
    ),
    _model(
        "positions added before every block",
        "The position embedding is added before every block. Add it once, before the first.",
        rare=True,
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
        rare=True,
        final=_without_gain,
    ),
    _model(
        "final layer norm twice",
        "ln_final is applied twice. Apply it once, after the last block.",
        rare=True,
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
    _model(
        "one block in the place of all",
        "One block runs n_layers times. Make n_layers different blocks ([Block(cfg)] * n_layers makes one), and run "
        "one after another: for block in blocks: x = block(x).",
        order=lambda self: [self.blocks[0]] * len(self.blocks),
        also=[
            # Of weights that are loaded into one block for all, the last block's stay.
            {"order": lambda self: [self.blocks[-1]] * len(self.blocks)},
            {"listed": lambda self, blocks: nn.ModuleList([blocks[0]] * len(blocks))},
        ],
    ),
    _model(
        "first block alone",
        "Only the first block runs. Run all n_layers of them: for block in self.blocks: x = block(x).",
        order=lambda self: list(self.blocks)[:1],
    ),
    _model(
        "no block applied",
        "No block changes the stream. Run all n_layers of them: for block in self.blocks: x = block(x).",
        rare=True,
        order=lambda self: [],
    ),
    _model(
        "last block twice",
        "The last block runs twice. Run each block once: for block in self.blocks: x = block(x).",
        rare=True,
        order=lambda self: [*self.blocks, self.blocks[-1]],
    ),
    _model(
        "first block twice",
        "The first block runs twice. Run each block once: for block in self.blocks: x = block(x).",
        rare=True,
        order=lambda self: [self.blocks[0], *self.blocks],
    ),
    _model(
        "embeddings added again after the blocks",
        "The stream before the blocks is added again after them. Each block has added its input already.",
        rare=True,
        through=lambda self, x: x + PlainModel.through(self, x),
    ),
    _model(
        "final layer norm before the blocks too",
        "ln_final is applied before the blocks too. Apply it once, after the last.",
        rare=True,
        start=lambda self, tokens: self.ln_final(PlainModel.start(self, tokens)),
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
        rare=True,
        logits=lambda self, x: x @ self.embed.W_E.reshape(self.embed.W_E.shape[::-1]),
    ),
)
