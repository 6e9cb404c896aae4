"""Compute the next-token cross-entropy without holding the logits of a whole batch in memory.

With GPT-2's vocabulary, the logits of a batch are by far the largest tensor in a training step of a small model: 0.8 GB
for 16 sequences of 256 tokens, and as much again for the probabilities and for the gradient. Here the positions are
divided into chunks. For each chunk, the logits, the loss and the gradients are computed before the next chunk begins,
so only one chunk of logits exists at any time (Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language
Models"; Hsu et al. 2024, "Liger Kernel").
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..assembly.model import GPT2
from ..components.kernels import chosen_products, is_transformed

IGNORE_INDEX = -100  # PyTorch's own default for targets that do not count

Reduction = Literal["mean", "sum"]

# Number of logits in a chunk. On a CPU, 16 MB in float32 fit into the caches; an accelerator needs larger products.
_LOGITS_ON_CPU = 2**22
_LOGITS_ELSEWHERE = 2**27

# An accelerator's matrix units are several times slower on rows whose length is not a multiple of this, and GPT-2's
# vocabulary has 50,257 tokens.
_ALIGNED = 64

_LOG2_E = 1 / math.log(2)


class TokenLoss(NamedTuple):
    """The loss of a batch, and the number of right predictions."""

    loss: Float[Tensor, ""]
    """Cross-entropy in nats, summed or averaged over the tokens that count."""
    correct: Int[Tensor, ""]
    """Tokens that count and are the argmax of their logits (of equal maxima, the first)."""
    tokens: Int[Tensor, ""]
    """Tokens that count."""


def linear_cross_entropy(
    hidden: Float[Tensor, "*positions d_model"],
    weight: Float[Tensor, "d_vocab d_model"],
    targets: Int[Tensor, "*positions"],
    *,
    bias: Float[Tensor, "d_vocab"] | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
) -> TokenLoss:
    """Return ``cross_entropy(hidden @ weight.T + bias, targets)``, and how many predictions are right.

    The logits of all positions never exist at the same time. ``hidden``, ``weight`` and ``bias`` get gradients; second
    derivatives raise an error. Forward-mode differentiation and ``torch.func`` transforms give right results, but need
    the memory of all logits. With autocast, the matrix products run in its dtype and the softmax in float32, as in
    PyTorch. Compiled code calls this function as one operator, without a graph break.

    Args:
        hidden: the input of the projection, with any leading axes.
        weight: the projection, one row per token of the vocabulary.
        targets: the right token of each position; ``ignore_index`` if the position does not count.
        bias: added to the logits (default: none).
        ignore_index: the target of positions that do not count.
        reduction: ``mean`` over the tokens that count (nan if there are none), or their ``sum``.

    Raises:
        ValueError: ``reduction`` is neither of these, or ``targets`` has another shape than the positions.

    Example:
        >>> result = linear_cross_entropy(torch.zeros(2, 4), torch.ones(10, 4), torch.tensor([3, -100]))
        >>> result.loss  # one of ten equal guesses, and one position that does not count
        tensor(2.3026)
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; it can be {', '.join(get_args(Reduction))}")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets have the shape {list(targets.shape)}, but there are {list(hidden.shape[:-1])} positions"
        )
    tokens = (targets != ignore_index).sum()
    if not torch.compiler.is_compiling() and is_transformed():  # the operator has no rules for these
        logits = F.linear(hidden, weight, bias).flatten(0, -2)
        total = F.cross_entropy(logits, targets.flatten(), ignore_index=ignore_index, reduction="sum")
        correct = (logits.argmax(dim=-1) == targets.flatten()).sum()
        return TokenLoss(total if reduction == "sum" else total / tokens, correct, tokens)
    device = hidden.device.type
    product_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    differentiate = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    )
    total, correct, *_ = _operator(
        hidden.flatten(0, -2), weight, bias, targets.flatten(), ignore_index, product_dtype, differentiate
    )
    return TokenLoss(total if reduction == "sum" else total / tokens, correct, tokens)


class NextTokenLoss(nn.Module):
    """A model with its loss: the module that training calls, compiles, and wraps for several processes.

    Its parameters are those of the model, with names that begin with ``model.``.

    Example:
        >>> from gptladder import GPT2Config
        >>> loss = NextTokenLoss(GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=4)))
        >>> tokens = torch.tensor([[1, 2, 3, 4]])
        >>> loss(tokens[:, :-1], tokens[:, 1:]).tokens
        tensor(3)
    """

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> TokenLoss:
        """Return the summed loss of predicting ``targets`` from ``tokens``; `IGNORE_INDEX` marks targets to ignore."""
        hidden = self.model.final_residual(tokens)
        unembed = self.model.unembed
        return linear_cross_entropy(hidden, unembed.W_U.T, targets, bias=unembed.b_U, reduction="sum")


def _chunked(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    product_dtype: torch.dtype,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the summed loss, the right predictions, and the gradients of hidden, weight and bias.

    The gradients are empty tensors unless ``differentiate``.
    """
    softmax_dtype = torch.float32 if product_dtype in (torch.float16, torch.bfloat16) else product_dtype
    total_dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    total = torch.zeros((), dtype=total_dtype, device=hidden.device)
    correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    d_hidden = torch.empty_like(hidden) if differentiate else hidden.new_empty(0)
    d_bias = torch.zeros_like(bias) if differentiate and bias is not None else hidden.new_empty(0)

    counts = targets != ignore_index
    targets = targets.where(counts, 0).unsqueeze(-1)
    rows = _rows_of_a_chunk(hidden, weight)
    W = _aligned(weight).to(product_dtype)
    d_W = torch.zeros_like(W, dtype=weight.dtype) if differentiate else hidden.new_empty(0)
    # Reuse one buffer for all chunks: allocating it per chunk costs as much time as filling it.
    buffer = torch.empty(rows, len(W), dtype=softmax_dtype, device=hidden.device)
    same_dtype = product_dtype == softmax_dtype
    narrow_buffer = buffer if same_dtype else buffer.new_empty(buffer.shape, dtype=product_dtype)
    d_W_part = None if same_dtype or not differentiate else torch.empty_like(W)
    for first in range(0, hidden.shape[0], rows):
        chunk = slice(first, first + rows)
        h, target, count = hidden[chunk], targets[chunk], counts[chunk].unsqueeze(-1)
        aligned = narrow_buffer[: len(h)]
        # Logits to the base 2, since powers of 2 are faster than powers of e: 2.8 times on a CPU.
        with chosen_products():
            torch.mm((h * _LOG2_E).to(product_dtype), W.T, out=aligned)
        narrow, logits = aligned[:, : len(weight)], buffer[: len(h), : len(weight)]
        if bias is None:
            loss, right, exps, norm = _loss_of_a_chunk(narrow, target, count, out=logits)
        else:
            logits.copy_(narrow).add_(bias, alpha=_LOG2_E)
            loss, right, exps, norm = _loss_of_a_chunk(logits, target, count, out=logits)
        total += loss
        correct += right
        if not differentiate:
            continue
        # The gradients: softmax - one_hot. The smaller factors of the products are divided by the norm instead of it.
        narrow.copy_(exps.scatter_add_(-1, target, -norm))
        scale = count / norm
        scaled = (h * scale).to(product_dtype)
        with chosen_products():
            d_hidden[chunk] = (aligned @ W) * scale
            if d_W_part is None:
                d_W.addmm_(aligned.T, scaled)
            else:
                d_W += torch.mm(aligned.T, scaled, out=d_W_part)
        if bias is not None:
            d_bias += (narrow.T @ scale.to(product_dtype)).squeeze(-1)
    if differentiate and len(W) != len(weight):
        d_W = torch.empty_like(weight).copy_(d_W[: len(weight)])
    return total / _LOG2_E, correct, d_hidden, d_W, d_bias


def _aligned(weight: Tensor) -> Tensor:
    """Return the projection, on an accelerator with rows of zeros below it, whose logits are zero and are left out."""
    missing = -len(weight) % _ALIGNED
    return F.pad(weight, (0, 0, 0, missing)) if _is_accelerated(weight) and missing else weight


def _is_accelerated(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def _rows_of_a_chunk(hidden: Tensor, weight: Tensor) -> int:
    """Return the number of positions in a chunk, such that all chunks have about the same size."""
    positions, (d_vocab, d_model) = hidden.shape[0], weight.shape
    limit = (_LOGITS_ELSEWHERE if _is_accelerated(hidden) else _LOGITS_ON_CPU) // d_vocab
    # Each chunk adds to the whole gradient of the projection. If that is wide, chunks need more rows to be worth it.
    limit = max(1, limit, d_model // 3)
    return math.ceil(positions / math.ceil(positions / limit)) if positions else 1


def _loss_of_a_chunk(
    logits: Tensor, target: Tensor, count: Tensor, *, out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the summed loss and the right predictions of a chunk, and the exponentials of its logits with their sums.

    The logits and the loss are to the base 2. The exponentials are written to ``out``, in its dtype.
    """
    own = logits.gather(-1, target).to(out.dtype)
    if _is_accelerated(logits):
        highest, index = logits.max(dim=-1, keepdim=True)  # of equal maxima, the first
        highest, is_highest = highest.to(out.dtype), index == target
    else:
        logits = out.copy_(logits)
        highest, is_highest = _highest_on_cpu(logits, target, own)
    # The loss is the logarithm of the sum of exponentials minus the logit of the target, both shifted by the maximum.
    exps = torch.sub(logits, highest, out=out).exp2_()
    norm = exps.sum(dim=-1, keepdim=True)
    return ((norm.log2() - (own - highest)) * count).sum(), (is_highest & count).sum(), exps, norm


def _highest_on_cpu(logits: Tensor, target: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of each row, and whether the target's logit, ``own``, is it (of equal maxima, the first).

    On a CPU an argmax takes ten times as long as a maximum. It is needed only for rows with ties, which are rare.
    """
    others = logits.scatter_(-1, target, -math.inf).amax(dim=-1, keepdim=True)
    logits.scatter_(-1, target, own)
    right = own > others
    tied = (own == others).squeeze(-1).nonzero().squeeze(-1)
    if len(tied):
        right[tied] = logits[tied].argmax(dim=-1, keepdim=True) == target[tied]
    return torch.maximum(own, others), right


# torch.compile treats a custom operator as one opaque node; otherwise it would unroll the loop over chunks.
_operator = torch.library.custom_op("gptladder::linear_cross_entropy", _chunked, mutates_args=())


@_operator.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    product_dtype: torch.dtype,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty((), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32),
        hidden.new_empty((), dtype=torch.int64),
        torch.empty_like(hidden) if differentiate else hidden.new_empty(0),
        torch.empty_like(weight) if differentiate else hidden.new_empty(0),
        torch.empty_like(bias) if differentiate and bias is not None else hidden.new_empty(0),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.has_bias = inputs[2] is not None
    ctx.save_for_backward(*output[2:])


def _scale_gradients(ctx: Any, d_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
        raise RuntimeError(
            "linear_cross_entropy has first derivatives only: use logits and cross_entropy for second ones"
        )
    d_hidden, d_weight, d_bias = ctx.saved_tensors
    return (
        d_hidden * d_total,
        d_weight * d_total,
        d_bias * d_total if ctx.has_bias else None,
        None,
        None,
        None,
        None,
    )


_operator.register_autograd(_scale_gradients, setup_context=_keep_gradients)
