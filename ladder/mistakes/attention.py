"""Classic mistakes of attention."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from .mistake import Mistake
from .plain_attention import PlainAttention, ones


def _flat(W: Tensor) -> Tensor:
    """``W_Q``, ``W_K`` or ``W_V`` as one matrix ``[d_model, n_heads * d_head]``."""
    return rearrange(W, "n m h -> m (n h)")


def _transposed(matrix: Tensor) -> Tensor:
    """Return a matrix's numbers in the order of its transpose: the transpose itself if the matrix is square."""
    return matrix.T.reshape(matrix.shape)


def _resized(vectors: Tensor, width: int) -> Tensor:
    """Return vectors of a width: cut, or with zeros behind. The mistakes that need this are made where they fit."""
    return F.pad(vectors, (0, width - vectors.shape[-1]))


def _between_heads(self: PlainAttention, x: Tensor, **_: object) -> Tensor:
    return self.out(
        F.scaled_dot_product_attention(self.queries(x), self.keys(x), self.values(x), is_causal=True, scale=self.scale)
    )


# Where a whole row is masked, or the softmax runs over an axis that is masked as a whole, the number that masks shows.
_FILLS = (-math.inf, -1e5)


def _wrong(
    mistake: str,
    hint: str,
    *,
    fills: Sequence[float] = (-math.inf,),
    or_else: Mapping[str, Any] | None = None,
    **steps: Any,
) -> Mistake:
    spellings = tuple(steps if fill == PlainAttention.fill else {**steps, "fill": fill} for fill in fills)
    spellings += (or_else,) if or_else else ()
    return Mistake(mistake, hint, "attention", PlainAttention, spellings)


ATTENTION: tuple[Mistake, ...] = (
    # The scores.
    _wrong(
        "no 1/sqrt(d_head)",
        "The attention scores are not scaled. Divide q·k by sqrt(d_head) before the mask and the softmax.",
        scaled=lambda self, scores: scores,
    ),
    _wrong(
        "sqrt(d_model) for sqrt(d_head)",
        "The scores are divided by sqrt(d_model). Divide by sqrt(d_head), the width of one head.",
        scaled=lambda self, scores: scores / math.sqrt(self.d_model),
    ),
    _wrong(
        "sqrt(n_heads) for sqrt(d_head)",
        "The scores are divided by sqrt(n_heads). Divide by sqrt(d_head); look at which axis the size is read from.",
        scaled=lambda self, scores: scores / math.sqrt(self.n_heads),
    ),
    _wrong(
        "divided by d_head, without the root",
        "The scores are divided by d_head, without the root (or by sqrt(d_head) twice). Divide once, by sqrt(d_head).",
        scaled=lambda self, scores: scores / self.d_head,
    ),
    _wrong(
        "multiplied by sqrt(d_head)",
        "The scores are multiplied by sqrt(d_head). Divide by it.",
        scaled=lambda self, scores: scores * math.sqrt(self.d_head),
    ),
    _wrong(
        "scaled after the softmax",
        "The pattern, or the values that it gathers, are divided by sqrt(d_head), and the scores are not. Divide the "
        "scores, before the softmax.",
        scaled=lambda self, scores: scores,
        pattern=lambda self, scores: scores.softmax(dim=-1) / math.sqrt(self.d_head),
    ),
    _wrong(
        "scaled although scale_attn_weights is off",
        "The scores are always divided by sqrt(d_head). Where the configuration has scale_attn_weights=False, leave "
        "them as they are.",
        scaled=lambda self, scores: scores / math.sqrt(self.d_head),
    ),
    _wrong(
        "queries and keys exchanged",
        "The scores have queries and keys exchanged: row i holds what the other positions ask of i. Put queries along "
        "the rows, scores[query, key] = q[query]·k[key].",
        scores=lambda self, q, k: einsum(k, q, "b q n h, b k n h -> b n q k"),
    ),
    _wrong(
        "attention between heads at one position",
        "Attention runs between the heads of one position: q, k and v are [batch seq n_heads d_head] where the product "
        "wants [batch n_heads seq d_head]. Transpose seq and n_heads before it, and back after it.",
        forward=_between_heads,
    ),
    # The mask.
    _wrong(
        "no causal mask",
        "Every position sees the future: no causal mask is applied. Fill the scores with -inf where key > query.",
        allowed=lambda self, scores: ones(scores),
    ),
    _wrong(
        "causal mask off by one",
        "Each position sees the one after it: the causal mask starts one diagonal too late. Mask every key > query: "
        "torch.triu(…, diagonal=1).",
        allowed=lambda self, scores: ones(scores).tril(1),
    ),
    _wrong(
        "mask blocks the present",
        "The mask covers the diagonal too: each position's own key is masked, and every key of the first position. "
        "Mask key > query only: torch.triu(…, diagonal=1), not diagonal=0.",
        fills=_FILLS,
        or_else={
            "allowed": lambda self, scores: ones(scores).tril(-1),
            "pattern": lambda self, scores: scores.softmax(dim=-1).nan_to_num(0.0),
        },
        allowed=lambda self, scores: ones(scores).tril(-1),
    ),
    _wrong(
        "mask on the wrong side",
        "Each position sees itself and the future, not the past: the mask covers the lower triangle. Mask the upper "
        "one, key > query; if the scores are [key, query], transpose them.",
        allowed=lambda self, scores: ones(scores).triu(),
    ),
    _wrong(
        "mask inverted",
        "What should be seen is masked and what should be masked is seen: the mask is inverted. Hide each key where "
        "key > query, and show it where key <= query.",
        fills=_FILLS,
        allowed=lambda self, scores: ones(scores).triu(1),
    ),
    _wrong(
        "mask fills 0",
        "Masked scores are 0, which the softmax turns into exp(0) = 1: the future still counts. Fill with -inf (or "
        "-1e9), do not multiply by a mask.",
        fill=0.0,
    ),
    _wrong(
        "mask fills 1e-9 for -1e9",
        "Masked scores are 1e-9, a tiny number next to 0, not a very negative one. Fill with -1e9 or -inf.",
        fill=1e-9,
    ),
    _wrong(
        "mask fills -1",
        "Masked scores are -1, which the softmax turns into exp(-1) = 0.37: the future still counts. Fill with -inf.",
        fill=-1.0,
    ),
    _wrong(
        "mask fills -10",
        "Masked scores are -10, which the softmax turns into a small weight, not into none. Fill with -inf.",
        fill=-10.0,
    ),
    _wrong(
        "mask of 1 for one of infinity",
        "The scores of the past are 1 larger than they should be against those of the future: a triangle of ones was "
        "added, or taken away, for a mask; that hides nothing. Fill the scores with -inf where key > query, or add a "
        "matrix that is -inf there and 0 elsewhere.",
        masked=lambda self, scores: scores + ones(scores).tril(),
    ),
    _wrong(
        "ones added to the future for a mask",
        "An upper triangle of ones is added to the scores, so the future counts more than the past. Fill the scores "
        "with -inf where key > query, or add a matrix that is -inf there and 0 elsewhere.",
        masked=lambda self, scores: scores + ones(scores).triu(1),
    ),
    # The pattern.
    _wrong(
        "causal mask after the softmax",
        "The mask is applied to the pattern, after the softmax has shared weight out to the future: rows sum to less "
        "than 1. Mask the scores, before the softmax.",
        masked=lambda self, scores: scores,
        pattern=lambda self, scores: scores.softmax(dim=-1) * ones(scores).tril(),
    ),
    _wrong(
        "softmax over the queries",
        "The softmax runs over the queries (dim=-2). Run it over the keys, the last axis of the scores: dim=-1.",
        pattern=lambda self, scores: scores.softmax(dim=-2),
    ),
    _wrong(
        "softmax over the heads",
        "The softmax runs over the heads (dim=1). Run it over the keys, the last axis of the scores: dim=-1.",
        fills=_FILLS,
        pattern=lambda self, scores: scores.softmax(dim=1),
    ),
    _wrong(
        "softmax over the batch",
        "The softmax runs over the batch (dim=0). Run it over the keys, the last axis of the scores: dim=-1.",
        fills=_FILLS,
        pattern=lambda self, scores: scores.softmax(dim=0),
    ),
    _wrong(
        "one more key in the softmax, of zeros",
        "Each row of the pattern sums to less than 1: the softmax divides by 1 + the sum of exp(scores), as if there "
        "were one more key whose score and value are 0. Divide by the sum alone (in nn.MultiheadAttention: "
        "add_zero_attn=False).",
        pattern=lambda self, scores: F.pad(scores, (1, 0)).softmax(dim=-1)[..., 1:],
    ),
    _wrong(
        "pattern transposed",
        "The values are gathered along the pattern's query axis. Sum over its keys: "
        "z[query] = sum over key of pattern[query, key] * v[key].",
        gather=lambda self, pattern, v: einsum(pattern, v, "b n k q, b k n h -> b q n h"),
    ),
    _wrong(
        "no gradient through the pattern",
        "The output is right, but no gradient flows through the pattern. Look for .detach(), .data or no_grad: "
        "leave the pattern in the graph.",
        pattern=lambda self, scores: scores.softmax(dim=-1).detach(),
    ),
    # The projections.
    _wrong(
        "keys from W_Q",
        "The keys are made with W_Q. Make them with W_K and b_K.",
        keys=lambda self, x: self.heads(x, self.W_Q, self.b_Q),
        or_else={"keys": lambda self, x: self.heads(x, self.W_Q, self.b_K)},
    ),
    _wrong(
        "queries from W_K",
        "The queries are made with W_K. Make them with W_Q and b_Q.",
        queries=lambda self, x: self.heads(x, self.W_K, self.b_K),
        or_else={"queries": lambda self, x: self.heads(x, self.W_K, self.b_Q)},
    ),
    _wrong(
        "values from W_K",
        "The values are made with W_K. Make them with W_V and b_V.",
        values=lambda self, x: self.heads(x, self.W_K, self.b_K),
        or_else={"values": lambda self, x: self.heads(x, self.W_K, self.b_V)},
    ),
    _wrong(
        "keys and values exchanged",
        "The keys are made with W_V and the values with W_K. Make the keys with W_K and b_K, and the values with "
        "W_V and b_V.",
        keys=lambda self, x: self.heads(x, self.W_V, self.b_V),
        values=lambda self, x: self.heads(x, self.W_K, self.b_K),
    ),
    _wrong(
        "b_K added to the queries",
        "The queries get b_K for their bias. Add b_Q to them.",
        queries=lambda self, x: self.heads(x, self.W_Q, self.b_K),
    ),
    _wrong(
        "b_K or b_Q added to the values",
        "The values get the bias of the keys or of the queries. Add b_V to them.",
        values=lambda self, x: self.heads(x, self.W_V, self.b_K),
        or_else={"values": lambda self, x: self.heads(x, self.W_V, self.b_Q)},
    ),
    _wrong(
        "values from W_Q",
        "The values are made with W_Q. Make them with W_V and b_V.",
        values=lambda self, x: self.heads(x, self.W_Q, self.b_Q),
        or_else={"values": lambda self, x: self.heads(x, self.W_Q, self.b_V)},
    ),
    _wrong(
        "values not projected",
        "The values are the layer's input itself, split into heads. Make them with W_V and b_V.",
        values=lambda self, x: _resized(x, self.n_heads * self.d_head).unflatten(-1, (self.n_heads, self.d_head)),
    ),
    _wrong(
        "output projection not applied",
        "What the heads gathered is returned without the output projection. Multiply it by W_O, and add b_O.",
        out=lambda self, z: _resized(z.flatten(2), self.d_model),
        or_else={"out": lambda self, z: _resized(z.flatten(2), self.d_model) + self.b_O},
    ),
    _wrong(
        "W_Q, W_K, W_V transposed",
        "The matrices W_Q, W_K and W_V are used the other way round. As one matrix each they are "
        "[d_model, n_heads * d_head] for x @ W; nn.Linear keeps its weight transposed.",
        heads=lambda self, x, W, b: (x @ _transposed(_flat(W))).unflatten(-1, b.shape) + b,
    ),
    _wrong(
        "W_O transposed",
        "The matrix W_O is used the other way round. As one matrix it is [n_heads * d_head, d_model] for z @ W_O; "
        "nn.Linear keeps its weight transposed.",
        out=lambda self, z: z.flatten(2) @ _transposed(self.W_O.flatten(0, 1)) + self.b_O,
    ),
    # The heads.
    _wrong(
        "q, k, v split with d_head outside",
        "q, k and v are split into heads the wrong way: their last axis is (n_heads d_head), each head's numbers "
        "side by side, and it was read as (d_head n_heads). Use .view(batch, seq, n_heads, d_head).",
        heads=lambda self, x, W, b: rearrange(x @ _flat(W) + b.flatten(), "b s (h n) -> b s n h", n=self.n_heads),
    ),
    _wrong(
        "q, k, v viewed by head without a transpose",
        "q, k and v are viewed as [batch n_heads seq d_head] at once, which mixes heads with positions. View them as "
        "[batch seq n_heads d_head] first, and then transpose(1, 2).",
        heads=lambda self, x, W, b: rearrange(
            (x @ _flat(W) + b.flatten()).reshape(len(x), self.n_heads, x.shape[1], self.d_head), "b n s h -> b s n h"
        ),
    ),
    _wrong(
        "heads transposed before W_O",
        "The heads' outputs are laid side by side as (d_head n_heads) before W_O. Lay them as (n_heads d_head): one "
        "head's numbers after another's.",
        out=lambda self, z: rearrange(z, "b s n h -> b s (h n)") @ self.W_O.flatten(0, 1) + self.b_O,
    ),
    _wrong(
        "z flattened without a transpose",
        "z is reshaped from [batch n_heads seq d_head] straight to [batch seq n_heads*d_head], which mixes heads with "
        "positions. Transpose it to [batch seq n_heads d_head] first.",
        out=lambda self, z: (
            rearrange(z, "b s n h -> b n s h").reshape(*z.shape[:2], -1) @ self.W_O.flatten(0, 1) + self.b_O
        ),
    ),
    _wrong(
        "heads averaged",
        "The heads' outputs are averaged. Sum them: attention's output is the sum over heads of z @ W_O, and b_O.",
        out=lambda self, z: einsum(z, self.W_O, "b s n h, n h m -> b s m") / self.n_heads + self.b_O,
    ),
    # The biases. Without b_K the output is the same: it moves all of a query's scores alike.
    _wrong(
        "b_K not added to the keys",
        "b_K is never read (no bias of the keys can show in the output: it moves all of a query's scores alike). Add "
        "it to the keys: GPT-2 has it.",
        keys=lambda self, x: self.heads(x, self.W_K, torch.zeros_like(self.b_K)),
    ),
    _wrong(
        "b_Q not added",
        "The queries lack their bias. Add b_Q.",
        queries=lambda self, x: self.heads(x, self.W_Q, torch.zeros_like(self.b_Q)),
    ),
    _wrong(
        "b_V not added",
        "The values lack their bias. Add b_V.",
        values=lambda self, x: self.heads(x, self.W_V, torch.zeros_like(self.b_V)),
    ),
    _wrong(
        "b_Q, b_K, b_V not added",
        "Queries, keys and values lack their biases. Add b_Q, b_K and b_V (in nn.Linear: bias=True).",
        heads=lambda self, x, W, b: einsum(x, W, "b s m, n m h -> b s n h"),
    ),
    _wrong(
        "b_O not added",
        "The output lacks its bias. Add b_O after the heads are summed.",
        out=lambda self, z: einsum(z, self.W_O, "b s n h, n h m -> b s m"),
    ),
    _wrong(
        "b_O added for each head",
        "b_O is added n_heads times, inside the sum over heads. Sum the heads first, and add b_O once.",
        out=lambda self, z: einsum(z, self.W_O, "b s n h, n h m -> b s m") + self.n_heads * self.b_O,
    ),
    _wrong(
        "no bias at all",
        "None of the four biases is added. GPT-2's attention has b_Q, b_K, b_V and b_O.",
        heads=lambda self, x, W, b: einsum(x, W, "b s m, n m h -> b s n h"),
        out=lambda self, z: einsum(z, self.W_O, "b s n h, n h m -> b s m"),
    ),
    # Around it.
    _wrong(
        "input added",
        "The layer adds its own input to its output. The residual connection belongs to the block: return what "
        "attention computes, alone.",
        forward=lambda self, x, **_: PlainAttention.forward(self, x) + x,
    ),
)
