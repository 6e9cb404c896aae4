"""Classic mistakes of attention's scores, mask and pattern."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .mistake import Mistake, Steps
from .plain_attention import PlainAttention, attention_mistake, exponentials, ones, pattern_of_nothing

# Where a whole row is masked, or the softmax runs over an axis that is masked as a whole, the number that masks shows.
_FILLS = (-math.inf, -1e5)


def _wrong(
    mistake: str,
    hint: str,
    *,
    fills: Sequence[float] = (-math.inf,),
    nothing: bool = False,
    also: Sequence[Steps] = (),
    rare: bool = False,
    **steps: Any,
) -> Mistake:
    """Return an entry; once more for other numbers that mask, and for ``nothing`` where a whole row is masked."""
    more = [{**steps, "fill": fill} for fill in fills[1:]]
    more += [{**steps, "pattern": pattern_of_nothing}] if nothing else []
    return attention_mistake(mistake, hint, also=[*more, *also], rare=rare, **steps)


def _small_fill(fill: float) -> Mistake:
    return _wrong(
        f"mask fills {fill:g}",
        f"Masked scores are {fill:g}, which the softmax turns into exp({fill:g}) = {math.exp(fill):.2g}, not into 0: "
        "the future still counts. Fill with -inf.",
        rare=fill == -5.0,
        fill=fill,
    )


def _between_heads(least: float, transposed: bool) -> Steps:
    """Return the step of attention between the heads, each of which sees earlier ones alone from some length on."""

    def z(self: PlainAttention, x: Tensor) -> Tensor:
        qkv = self.queries(x), self.keys(x), self.values(x)
        z = F.scaled_dot_product_attention(*qkv, is_causal=x.shape[1] >= least, scale=self.scale)
        return rearrange(z, "b s n h -> b n s h").reshape(z.shape) if transposed else z

    return {"z": z}


SCORES_AND_PATTERN: tuple[Mistake, ...] = (
    # The scores.
    _wrong(
        "no 1/sqrt(d_head)",
        "The attention scores are not scaled. Divide q·k by sqrt(d_head) before the mask and the softmax.",
        scaled=lambda self, scores: scores,
    ),
    _wrong(
        "sqrt(d_model) for sqrt(d_head)",
        "The scores are divided by sqrt(d_model), or by the root of all heads' width together. Divide by sqrt(d_head), "
        "the width of one head.",
        scaled=lambda self, scores: scores / math.sqrt(self.d_model),
        also=[{"scaled": lambda self, scores: scores / math.sqrt(self.n_heads * self.d_head)}],
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
        "d_model for sqrt(d_head)",
        "The scores are divided by d_model, without a root. Divide by sqrt(d_head), the width of one head.",
        rare=True,
        scaled=lambda self, scores: scores / self.d_model,
    ),
    _wrong(
        "n_heads for sqrt(d_head)",
        "The scores are divided by n_heads. Divide by sqrt(d_head); look at which axis the size is read from.",
        rare=True,
        scaled=lambda self, scores: scores / self.n_heads,
    ),
    _wrong(
        "sqrt(seq) for sqrt(d_head)",
        "The scores are divided by the root of the sequence's length. Divide by sqrt(d_head); look at which axis the "
        "size is read from.",
        rare=True,
        scaled=lambda self, scores: scores / math.sqrt(scores.shape[-1]),
    ),
    _wrong(
        "divided by the fourth root of d_head",
        "The scores are divided by the fourth root of d_head: queries or keys alone are divided by it, not both. "
        "Divide the scores by sqrt(d_head).",
        rare=True,
        scaled=lambda self, scores: scores / self.d_head**0.25,
    ),
    _wrong(
        "multiplied by d_head",
        "The scores are multiplied by d_head. Divide them by sqrt(d_head).",
        rare=True,
        scaled=lambda self, scores: scores * self.d_head,
    ),
    _wrong(
        "b_Q added after the scale",
        "The queries are divided by sqrt(d_head) before b_Q is added, so b_Q is not scaled. Add b_Q first.",
        rare=True,
        queries=lambda self, x: self.heads(x, self.W_Q / math.sqrt(self.d_head), self.b_Q),
        scaled=lambda self, scores: scores,
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
        scores=lambda self, q, k: torch.einsum("bqnh,bknh->bnqk", k, q),
    ),
    _wrong(
        "attention between heads at one position",
        "Attention runs between the heads of one position: q, k and v are [batch seq n_heads d_head] where the product "
        "wants [batch n_heads seq d_head]. Transpose seq and n_heads before it, and back after it.",
        rare=True,
        **_between_heads(1, transposed=False),
        also=[_between_heads(*each) for each in ((1, True), (2, False), (2, True), (1e9, False), (1e9, True))],
    ),
    _wrong(
        "keys reshaped for transposed",
        "The keys were brought to [batch n_heads d_head seq] by view or reshape, which scrambles them. Transpose their "
        "last two axes: k.transpose(-2, -1).",
        rare=True,
        scores=lambda self, q, k: torch.matmul(
            q.transpose(1, 2), k.transpose(1, 2).reshape(len(k), self.n_heads, self.d_head, -1)
        ),
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
        nothing=True,
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
        nothing=True,
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
        "mask fills -1e-9 for -1e9",
        "Masked scores are -1e-9, a tiny number next to 0, not a very negative one. Fill with -1e9 or -inf.",
        rare=True,
        fill=-1e-9,
    ),
    _wrong(
        "mask fills 1e-5 for -1e5",
        "Masked scores are 1e-5, a tiny number next to 0, not a very negative one. Fill with -1e5 or -inf.",
        rare=True,
        fill=1e-5,
    ),
    _wrong(
        "mask fills -1e-5 for -1e5",
        "Masked scores are -1e-5, a tiny number next to 0, not a very negative one. Fill with -1e5 or -inf.",
        rare=True,
        fill=-1e-5,
    ),
    _wrong(
        "mask fills 1",
        "Masked scores are 1, which the softmax turns into exp(1) = 2.72: the future still counts. Fill with -inf.",
        rare=True,
        fill=1.0,
    ),
    _wrong(
        "mask fills a large positive number",
        "Masked scores are large and positive, so the future gets all the weight. Fill with a large negative number, "
        "or with -inf.",
        rare=True,
        fill=1e5,
    ),
    *(_small_fill(fill) for fill in (-1.0, -5.0, -10.0)),
    _wrong(
        "each position sees itself alone",
        "Each position sees itself and no other: the mask hides the past too. Mask key > query only.",
        rare=True,
        allowed=lambda self, scores: ones(scores).tril().triu(),
    ),
    _wrong(
        "each position sees itself and the one before alone",
        "Each position sees itself and the one before it, not the earlier ones: the mask hides them. Mask key > query "
        "only.",
        rare=True,
        allowed=lambda self, scores: ones(scores).tril().triu(-1),
    ),
    _wrong(
        "mask hides position 0",
        "Position 0 is hidden from all later ones. Mask key > query only.",
        rare=True,
        allowed=lambda self, scores: ones(scores).tril().index_fill(1, torch.tensor([0]), False).fill_diagonal_(True),
    ),
    _wrong(
        "mask's rows from the end",
        "The rows of the mask are taken from its end, so the first queries see the future. Take the first seq rows and "
        "the first seq columns: mask[:seq, :seq].",
        rare=True,
        allowed=lambda self, scores: torch.ones(self.n_ctx, self.n_ctx, dtype=torch.bool).tril()[
            -scores.shape[-2] :, : scores.shape[-1]
        ],
    ),
    _wrong(
        "mask in the first head alone",
        "Only the first head is masked: in the others, every position sees the future. Let the mask broadcast over "
        "the heads.",
        rare=True,
        allowed=lambda self, scores: ones(scores).tril() | (torch.arange(self.n_heads) > 0)[:, None, None],
    ),
    _wrong(
        "mask in the first sequence alone",
        "Only the first sequence of the batch is masked: in the others, every position sees the future. Let the mask "
        "broadcast over the batch.",
        rare=True,
        allowed=lambda self, scores: ones(scores).tril() | (torch.arange(len(scores)) > 0)[:, None, None, None],
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
        "The mask is applied to the pattern, after the softmax has shared weight out to the future: where keys "
        "are hidden, rows sum to less than 1. Mask the scores, before the softmax.",
        masked=lambda self, scores: scores,
        pattern=lambda self, scores: scores.softmax(dim=-1) * ones(scores).tril(),
    ),
    _wrong(
        "inf for -inf, or -inf after the softmax",
        "The output is NaN or inf if there is a later position: the mask fills inf into the scores, or -inf into the "
        "pattern. Fill -inf into the scores, before the softmax.",
        rare=True,
        fill=math.inf,
        also=[
            {
                "masked": lambda self, scores: scores,
                "pattern": lambda self, scores: scores.softmax(dim=-1).masked_fill(~self.allowed(scores), -math.inf),
            }
        ],
    ),
    _wrong(
        "large negative numbers filled in after the softmax",
        "The mask fills -1e9 into the pattern, after the softmax, so the future counts a billionfold. Mask the scores, "
        "before the softmax.",
        rare=True,
        masked=lambda self, scores: scores,
        pattern=lambda self, scores: scores.softmax(dim=-1).masked_fill(~self.allowed(scores), -1e9),
    ),
    _wrong(
        "no softmax",
        "The scores themselves are the pattern: there is no softmax. Take the softmax of the masked scores over the "
        "keys.",
        rare=True,
        pattern=lambda self, scores: scores,
        also=[{"pattern": lambda self, scores: scores, "fill": 0.0}],
    ),
    _wrong(
        "softmax twice",
        "The softmax is taken twice, of the scores and then of the pattern. Take it once.",
        rare=True,
        pattern=lambda self, scores: scores.softmax(dim=-1).softmax(dim=-1),
    ),
    _wrong(
        "sigmoid for softmax",
        "The scores go through a sigmoid each, so the weights of a query do not sum to 1. Take the softmax over the "
        "keys.",
        rare=True,
        pattern=lambda self, scores: scores.sigmoid(),
    ),
    _wrong(
        "exp without the sum",
        "The weights are exponentials of the scores, not divided by their sum. Take the softmax over the keys.",
        rare=True,
        also=[{"pattern": lambda self, scores: exponentials(scores)}],
        pattern=lambda self, scores: scores.exp(),
    ),
    _wrong(
        "softmax over the queries",
        "The softmax makes the weights of each key sum to 1, not those of each query. Run it over the keys: dim=-1.",
        also=[{"pattern": lambda self, scores: exponentials(scores) / exponentials(scores).sum(-2, keepdim=True)}],
        pattern=lambda self, scores: scores.softmax(dim=-2),
    ),
    _wrong(
        "softmax over the heads",
        "The softmax runs over the heads. Run it over the keys: dim=-1 of scores that are [batch n_heads query key].",
        fills=_FILLS,
        pattern=lambda self, scores: scores.softmax(dim=1),
    ),
    _wrong(
        "softmax over the batch",
        "The softmax runs over the batch. Run it over the keys: dim=-1 of scores that are [batch n_heads query key].",
        fills=_FILLS,
        pattern=lambda self, scores: scores.softmax(dim=0),
    ),
    _wrong(
        "one more key in the softmax, of zeros",
        "Each row of the pattern sums to less than 1: the softmax divides by 1 + the sum of exp(scores), as if there "
        "were one more key whose score and value are 0. Divide by the sum alone (in nn.MultiheadAttention: "
        "add_zero_attn=False).",
        rare=True,
        pattern=lambda self, scores: F.pad(scores, (1, 0)).softmax(dim=-1)[..., 1:],
    ),
    _wrong(
        "pattern transposed",
        "The values are gathered along the pattern's query axis. Sum over its keys: "
        "z[query] = sum over key of pattern[query, key] * v[key].",
        gather=lambda self, pattern, v: torch.einsum("bnkq,bknh->bqnh", pattern, v),
    ),
    _wrong(
        "no gradient through the pattern",
        "The output is right, but no gradient flows through the pattern. Look for .detach(), .data or no_grad: "
        "leave the pattern in the graph.",
        pattern=lambda self, scores: scores.softmax(dim=-1).detach(),
    ),
)

# A mask that is right for small scores. Which number it fills in does not show: where a row of scores is below it,
# every key that it should hide gets the same weight.
FINITE_FILL = _wrong(
    "mask fills a number that large scores reach",
    "Masked scores are a finite number, and where scores are in the hundreds they are not below the others: the future "
    "counts there. Fill with -inf.",
    fill=-30.0,
    also=[{"fill": fill} for fill in (-25.0, -40.0, -50.0, -80.0, -100.0, -200.0, -500.0, -1000.0)],
)
