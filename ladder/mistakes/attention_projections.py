"""Classic mistakes of attention's projections, heads and biases."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .mistake import Mistake, Steps
from .plain_attention import PlainAttention
from .plain_attention import attention_mistake as _wrong

# What is made of the layer's input, and the letter of its matrix and bias.
_PROJECTIONS: Mapping[str, str] = {"queries": "Q", "keys": "K", "values": "V"}


def _flat(W: Tensor) -> Tensor:
    """``W_Q``, ``W_K`` or ``W_V`` as one matrix ``[d_model, n_heads * d_head]``."""
    return rearrange(W, "n m h -> m (n h)")


def _transposed(matrix: Tensor) -> Tensor:
    """Return a matrix's numbers in the order of its transpose: the transpose itself if the matrix is square."""
    return matrix.T.reshape(matrix.shape)


def _resized(vectors: Tensor, width: int) -> Tensor:
    """Return vectors of a width: cut, or with zeros behind. The mistakes that need this are made where they fit."""
    return F.pad(vectors, (0, width - vectors.shape[-1]))


# ---- the same for queries, keys and values ----


def _projected(matrix: str, bias: str, heads: Any = PlainAttention.heads) -> Any:
    """Return the step that makes queries, keys or values with these parameters."""

    def project(self: PlainAttention, x: Tensor) -> Tensor:
        return heads(self, x, getattr(self, f"W_{matrix}"), getattr(self, f"b_{bias}"))

    return project


def _from(letters: str) -> Steps:
    """Return the steps that make queries, keys and values with the matrices and biases of these letters."""
    own = zip(_PROJECTIONS.items(), letters, strict=True)
    return {made: _projected(letter, letter) for (made, right), letter in own if letter != right}


_TAKEN = {
    "queries": "The scores are of queries",
    "keys": "The scores are of keys",
    "values": "The pattern weighs values",
}


def _from_another(made: str, matrix: str) -> Mistake:
    """Return what makes queries, keys or values with another matrix, beside that matrix's bias or the right one."""
    right = _PROJECTIONS[made]
    return _wrong(
        f"{made} from W_{matrix}",
        f"{_TAKEN[made]} that are made with W_{matrix}. Use those that are made with W_{right} and b_{right}.",
        **{made: _projected(matrix, matrix)},
        also=[{made: _projected(matrix, right)}],
    )


def _used_transposed(self: PlainAttention, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return (x @ _transposed(_flat(W))).unflatten(-1, b.shape) + b


def _d_head_outside(self: PlainAttention, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return rearrange(x @ _flat(W) + b.flatten(), "b s (h n) -> b s n h", n=self.n_heads)


def _viewed_by_head(self: PlainAttention, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    side_by_side = x @ _flat(W) + b.flatten()
    return rearrange(side_by_side.reshape(len(x), self.n_heads, x.shape[1], self.d_head), "b n s h -> b s n h")


def _one_transposed(made: str) -> Mistake:
    letter = _PROJECTIONS[made]
    return _wrong(
        f"W_{letter} transposed",
        f"The matrix W_{letter} is used the other way round. As one matrix it is [d_model, n_heads * d_head] for "
        f"x @ W_{letter}; nn.Linear keeps its weight transposed.",
        rare=True,
        **{made: _projected(letter, letter, _used_transposed)},
    )


def _split_with_d_head_outside(made: str) -> Mistake:
    letter = _PROJECTIONS[made]
    return _wrong(
        f"{made} split with d_head outside",
        f"The {made} alone are split into heads the wrong way: their last axis is (n_heads d_head), each head's "
        "numbers side by side, and it was read as (d_head n_heads). Use .view(batch, seq, n_heads, d_head).",
        rare=True,
        **{made: _projected(letter, letter, _d_head_outside)},
    )


def _viewed_without_transpose(made: str) -> Mistake:
    letter = _PROJECTIONS[made]
    return _wrong(
        f"{made} viewed by head without a transpose",
        f"The {made} alone are viewed as [batch n_heads seq d_head] at once, which mixes heads with positions. View "
        "them as [batch seq n_heads d_head] first, and then transpose(1, 2).",
        rare=True,
        **{made: _projected(letter, letter, _viewed_by_head)},
    )


PROJECTIONS_AND_HEADS: tuple[Mistake, ...] = (
    # The projections.
    *(_from_another(made, matrix) for made in _PROJECTIONS for matrix in "QKV" if matrix != _PROJECTIONS[made]),
    _wrong(
        "keys and values exchanged",
        "The keys are made with W_V and the values with W_K. Make the keys with W_K and b_K, and the values with "
        "W_V and b_V.",
        **_from("QVK"),
    ),
    _wrong(
        "queries and values exchanged",
        "The queries are made with W_V and the values with W_Q. Make the queries with W_Q and b_Q, and the values with "
        "W_V and b_V.",
        rare=True,
        **_from("VKQ"),
    ),
    _wrong(
        "queries from W_K, keys from W_V, values from W_Q",
        "The queries are made with W_K, the keys with W_V and the values with W_Q. Make each with its own matrix and "
        "bias; look at the order in which one product is split into three.",
        rare=True,
        **_from("KVQ"),
    ),
    _wrong(
        "queries from W_V, keys from W_Q, values from W_K",
        "The queries are made with W_V, the keys with W_Q and the values with W_K. Make each with its own matrix and "
        "bias; look at the order in which one product is split into three.",
        rare=True,
        **_from("VQK"),
    ),
    _wrong(
        "b_K added to the queries",
        "The queries get b_K for their bias. Add b_Q to them.",
        queries=lambda self, x: self.heads(x, self.W_Q, self.b_K),
    ),
    _wrong(
        "b_V added to the queries",
        "The queries get b_V for their bias. Add b_Q to them.",
        rare=True,
        queries=lambda self, x: self.heads(x, self.W_Q, self.b_V),
    ),
    _wrong(
        "b_K or b_Q added to the values",
        "The values get the bias of the keys or of the queries. Add b_V to them.",
        values=lambda self, x: self.heads(x, self.W_V, self.b_K),
        also=[{"values": lambda self, x: self.heads(x, self.W_V, self.b_Q)}],
    ),
    _wrong(
        "W_Q, W_K, W_V transposed",
        "The matrices W_Q, W_K and W_V are used the other way round. As one matrix each they are "
        "[d_model, n_heads * d_head] for x @ W; nn.Linear keeps its weight transposed.",
        heads=_used_transposed,
    ),
    *(_one_transposed(made) for made in _PROJECTIONS),
    _wrong(
        "W_O transposed",
        "The matrix W_O is used the other way round. As one matrix it is [n_heads * d_head, d_model] for z @ W_O; "
        "nn.Linear keeps its weight transposed.",
        out=lambda self, z: z.flatten(2) @ _transposed(self.W_O.flatten(0, 1)) + self.b_O,
    ),
    _wrong(
        "values not projected",
        "The values are the layer's input itself, split into heads. Make them with W_V and b_V.",
        rare=True,
        values=lambda self, x: _resized(x, self.n_heads * self.d_head).unflatten(-1, (self.n_heads, self.d_head)),
    ),
    _wrong(
        "output projection not applied",
        "What the heads gathered is returned without the output projection. Multiply it by W_O, and add b_O.",
        out=lambda self, z: _resized(z.flatten(2), self.d_model),
        also=[{"out": lambda self, z: _resized(z.flatten(2), self.d_model) + self.b_O}],
    ),
    # The heads.
    _wrong(
        "q, k, v split with d_head outside",
        "q, k and v are split into heads the wrong way: their last axis is (n_heads d_head), each head's numbers "
        "side by side, and it was read as (d_head n_heads). Use .view(batch, seq, n_heads, d_head).",
        heads=_d_head_outside,
    ),
    *(_split_with_d_head_outside(made) for made in _PROJECTIONS),
    _wrong(
        "q, k, v viewed by head without a transpose",
        "q, k and v are viewed as [batch n_heads seq d_head] at once, which mixes heads with positions. View them as "
        "[batch seq n_heads d_head] first, and then transpose(1, 2).",
        heads=_viewed_by_head,
    ),
    *(_viewed_without_transpose(made) for made in _PROJECTIONS),
    _wrong(
        "heads transposed before W_O",
        "The heads' outputs are laid side by side as (d_head n_heads) before W_O. Lay them as (n_heads d_head): one "
        "head's numbers after another's.",
        out=lambda self, z: rearrange(z, "b s n h -> b s (h n)") @ self.W_O.flatten(0, 1) + self.b_O,
    ),
    _wrong(
        "z flattened without a transpose",
        "The heads of z are merged while its axes are [batch n_heads seq d_head], which mixes heads with positions. "
        "Transpose it to [batch seq n_heads d_head] first.",
        out=lambda self, z: (
            rearrange(z, "b s n h -> b n s h").reshape(*z.shape[:2], -1) @ self.W_O.flatten(0, 1) + self.b_O
        ),
    ),
    _wrong(
        "heads in reverse before W_O",
        "The heads' outputs go through W_O in reverse: the last head's through the first's part. Lay them side by side "
        "from the first head to the last.",
        rare=True,
        out=lambda self, z: torch.einsum("bsnh,nhm->bsm", z.flip(2), self.W_O) + self.b_O,
    ),
    _wrong(
        "the first head in the place of all",
        "Every head's part of W_O gets the first head's output. Give each its own head's.",
        rare=True,
        gather=lambda self, pattern, v: PlainAttention.gather(self, pattern, v)[:, :, :1].expand_as(v),
    ),
    _wrong(
        "heads averaged",
        "The heads' outputs are averaged. Sum them: attention's output is the sum over heads of z @ W_O, and b_O.",
        out=lambda self, z: torch.einsum("bsnh,nhm->bsm", z, self.W_O) / self.n_heads + self.b_O,
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
        "b_Q twice",
        "b_Q is added twice. Add it once: nn.Linear and F.linear add it by themselves.",
        rare=True,
        queries=lambda self, x: self.heads(x, self.W_Q, 2 * self.b_Q),
    ),
    _wrong(
        "b_V twice",
        "b_V is added twice. Add it once: nn.Linear and F.linear add it by themselves.",
        values=lambda self, x: self.heads(x, self.W_V, 2 * self.b_V),
    ),
    _wrong(
        "b_Q, b_K, b_V not added",
        "Queries, keys and values lack their biases. Add b_Q, b_K and b_V (in nn.Linear: bias=True).",
        heads=lambda self, x, W, b: torch.einsum("bsm,nmh->bsnh", x, W),
    ),
    _wrong(
        "b_O not added",
        "The output lacks its bias. Add b_O after the heads are summed.",
        out=lambda self, z: torch.einsum("bsnh,nhm->bsm", z, self.W_O),
    ),
    _wrong(
        "b_O twice",
        "b_O is added twice. Add it once: nn.Linear and F.linear add it by themselves.",
        out=lambda self, z: torch.einsum("bsnh,nhm->bsm", z, self.W_O) + 2 * self.b_O,
    ),
    _wrong(
        "b_O added for each head",
        "b_O is added n_heads times, as it is inside a sum over heads. Sum the heads first, and add b_O once.",
        out=lambda self, z: torch.einsum("bsnh,nhm->bsm", z, self.W_O) + self.n_heads * self.b_O,
    ),
    _wrong(
        "no bias at all",
        "None of the four biases is added. GPT-2's attention has b_Q, b_K, b_V and b_O.",
        heads=lambda self, x, W, b: torch.einsum("bsm,nmh->bsnh", x, W),
        out=lambda self, z: torch.einsum("bsnh,nhm->bsm", z, self.W_O),
    ),
)
