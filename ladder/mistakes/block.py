"""Classic mistakes of the block's wiring."""

import torch
from torch import Tensor

from ...assembly.config import GPT2Config
from ...components import Block
from ..rungs import block_arguments
from .mistake import Mistake, entries
from .parts import no_parts, put_in


class PlainBlock(Block):
    """Our block, one method for each step."""

    parts = no_parts

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__(**block_arguments(config), dtype=dtype)
        put_in(self, self.parts(config), config, dtype)

    def forward(self, resid_pre: Tensor, **_: object) -> Tensor:
        """Attention, then MLP."""
        return self.after_mlp(resid_pre, self.after_attention(resid_pre))

    def after_attention(self, pre: Tensor) -> Tensor:
        """``resid_mid``."""
        return pre + self.attn(self.attention_reads(pre))

    def attention_reads(self, pre: Tensor) -> Tensor:
        """``ln1``."""
        return self.ln1(pre)

    def after_mlp(self, pre: Tensor, mid: Tensor) -> Tensor:
        """``resid_post``."""
        return mid + self.mlp(self.mlp_reads(pre, mid))

    def mlp_reads(self, pre: Tensor, mid: Tensor) -> Tensor:
        """``ln2``."""
        return self.ln2(mid)


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
        "post-norm after attention",
        f"The stream is normalised after attention's output is added, not before attention reads it. It is {_RIGHT}.",
        after_attention=lambda self, x: self.ln1(x + self.attn(x)),
    ),
    _block(
        "post-norm after the MLP",
        f"The stream is normalised after the MLP's output is added, not before the MLP reads it. It is {_RIGHT}.",
        after_mlp=lambda self, x, mid: self.ln2(mid + self.mlp(mid)),
    ),
    _block(
        "layer norm on attention's output",
        f"Attention's output is normalised, not its input. It is {_RIGHT}.",
        rare=True,
        after_attention=lambda self, x: x + self.ln1(self.attn(x)),
    ),
    _block(
        "layer norm on the MLP's output",
        f"The MLP's output is normalised, not its input. It is {_RIGHT}.",
        rare=True,
        after_mlp=lambda self, x, mid: mid + self.ln2(self.mlp(mid)),
    ),
    _block(
        "one layer norm for two",
        "The MLP reads through ln1. It reads through ln2, which has parameters of its own.",
        mlp_reads=lambda self, x, mid: self.ln1(mid),
    ),
    _block(
        "ln2 for both layer norms",
        "Attention reads through ln2. It reads through ln1, which has parameters of its own.",
        attention_reads=lambda self, x: self.ln2(x),
    ),
    _block(
        "ln1 and ln2 exchanged",
        "ln1 and ln2 have changed places. Attention reads through ln1, the MLP through ln2.",
        attention_reads=lambda self, x: self.ln2(x),
        mlp_reads=lambda self, x, mid: self.ln1(mid),
    ),
    _block(
        "ln1 not applied",
        f"Attention reads the residual stream as it is. It reads ln1 of it: {_RIGHT}.",
        attention_reads=lambda self, x: x,
    ),
    _block(
        "ln2 not applied",
        f"The MLP reads the residual stream as it is. It reads ln2 of it: {_RIGHT}.",
        mlp_reads=lambda self, x, mid: mid,
    ),
    _block(
        "no layer norm applied",
        f"Neither attention nor MLP reads the stream normalised. It is {_RIGHT}.",
        attention_reads=lambda self, x: x,
        mlp_reads=lambda self, x, mid: mid,
    ),
    _block(
        "residual added once",
        f"The MLP's output replaces the stream. Add it: {_RIGHT}.",
        after_mlp=lambda self, x, mid: self.mlp(self.mlp_reads(x, mid)),
    ),
    _block(
        "attention replaces the stream",
        f"Attention's output replaces the stream. Add it: {_RIGHT}.",
        after_attention=lambda self, x: self.attn(self.attention_reads(x)),
    ),
    _block(
        "no residual connection",
        f"Neither output is added to the stream; each replaces it. It is {_RIGHT}.",
        after_attention=lambda self, x: self.attn(self.attention_reads(x)),
        after_mlp=lambda self, x, mid: self.mlp(self.mlp_reads(x, mid)),
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
        mlp_reads=lambda self, x, mid: self.ln2(x),
    ),
    _block(
        "MLP parallel to attention, as in GPT-J",
        f"MLP and attention both read ln1(x), side by side, as in GPT-J. In GPT-2 the MLP comes after: {_RIGHT}.",
        mlp_reads=lambda self, x, mid: self.ln1(x),
    ),
    _block(
        "MLP reads attention's output alone",
        f"The MLP reads ln2 of attention's output, without the stream that it was added to. It is {_RIGHT}.",
        mlp_reads=lambda self, x, mid: self.ln2(mid - x),
    ),
    _block(
        "MLP added to the stream before attention",
        f"The MLP's output is added to x, so attention's own is lost from the stream. Add it to mid: {_RIGHT}.",
        after_mlp=lambda self, x, mid: x + self.mlp(self.mlp_reads(x, mid)),
    ),
    _block(
        "input added twice",
        f"The block's input is added again at the end. It is in mid already: {_RIGHT}.",
        after_mlp=lambda self, x, mid: x + mid + self.mlp(self.mlp_reads(x, mid)),
    ),
    _block(
        "residual added twice after attention",
        f"The stream is added to attention's output twice. Add it once: {_RIGHT}.",
        after_attention=lambda self, x: 2 * x + self.attn(self.attention_reads(x)),
    ),
    _block(
        "residual added twice after the MLP",
        f"The stream is added to the MLP's output twice. Add it once: {_RIGHT}.",
        after_mlp=lambda self, x, mid: 2 * mid + self.mlp(self.mlp_reads(x, mid)),
    ),
    _block(
        "no attention",
        f"Attention's output is not used. Add it to the stream: {_RIGHT}.",
        rare=True,
        after_attention=lambda self, x: x,
    ),
    _block(
        "no MLP",
        f"The MLP's output is not used. Add it to the stream: {_RIGHT}.",
        rare=True,
        after_mlp=lambda self, x, mid: mid,
    ),
    _block(
        "attention in the place of the MLP",
        f"Attention comes twice, the second time in the place of the MLP. It is {_RIGHT}.",
        rare=True,
        after_mlp=lambda self, x, mid: mid + self.attn(self.mlp_reads(x, mid)),
    ),
    _block(
        "MLP in the place of attention",
        f"The MLP comes twice, the first time in the place of attention. It is {_RIGHT}.",
        rare=True,
        after_attention=lambda self, x: x + self.mlp(self.attention_reads(x)),
    ),
    _block(
        "MLP before attention",
        f"The MLP comes before attention. It is {_RIGHT}.",
        after_attention=lambda self, x: x + self.mlp(self.ln2(x)),
        after_mlp=lambda self, x, mid: mid + self.attn(self.ln1(mid)),
    ),
)
