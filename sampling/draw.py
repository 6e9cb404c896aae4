"""Choose a token from logits: the most probable one, or one drawn by its probability in one of two ways.

`multinomial` draws the same token as transformers from the same state of the generator. All rows of a batch share one
generator, so the result of a row depends on the number of rows. `inverse_cdf` uses one uniform number per row, from
that row's own generator (`row_uniforms`), so the result of a row does not depend on the others.

All three functions take float32 or float64 logits, after the transforms, and never choose a banned token.
"""

from collections.abc import Sequence

import torch
from beartype import beartype
from jaxtyping import Float, Float64, Int64, jaxtyped
from torch import Tensor

__all__ = ["greedy", "inverse_cdf", "multinomial", "row_uniforms"]


@jaxtyped(typechecker=beartype)
def greedy(logits: Float[Tensor, "batch d_vocab"]) -> Int64[Tensor, " batch"]:
    """Return the most probable token of each row (if several are, the first of them).

    >>> greedy(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.0, 0.5]]))
    tensor([1, 0])

    Raises:
        ValueError: a row has no token left, or its logits are not finite.
    """
    best, tokens = logits.max(-1)
    check_drawable(logits, best)
    return tokens


@jaxtyped(typechecker=beartype)
def multinomial(
    logits: Float[Tensor, "batch d_vocab"], generator: torch.Generator | None = None
) -> Int64[Tensor, " batch"]:
    """Draw a token for each row from one generator (default: torch's global one), as ``transformers.generate`` does.

    >>> multinomial(torch.tensor([[-torch.inf, 0.0], [0.0, -torch.inf]]))
    tensor([1, 0])

    Raises:
        ValueError: a row has no token left, or its logits are not finite.
    """
    check_drawable(logits)
    return torch.multinomial(logits.softmax(-1), num_samples=1, generator=generator).squeeze(1)


@jaxtyped(typechecker=beartype)
def inverse_cdf(logits: Float[Tensor, "batch d_vocab"], uniforms: Float64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """Draw, for each row, the token at which the cumulative probability first exceeds the row's uniform number.

    This is computed row by row on the CPU, where sums are always added in the same order. So the token of a row is the
    same in any batch and for any device. A token of probability zero adds nothing to the sum, so it is never drawn.

    >>> inverse_cdf(torch.zeros(3, 4), torch.tensor([0.0, 0.3, 0.99], dtype=torch.float64))
    tensor([0, 1, 3])

    Args:
        logits: The logits of each row.
        uniforms: One number in [0, 1) for each row.

    Raises:
        ValueError: All tokens of a row are banned, its logits are not finite, or its number is outside [0, 1).
    """
    check_drawable(logits)
    if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError(f"uniforms must lie in [0, 1), not {uniforms.tolist()}")
    tokens = []
    for row, uniform in zip(logits.cpu(), uniforms.cpu(), strict=True):
        reached = row.softmax(-1, dtype=torch.float64).cumsum(-1)
        # The last of `reached` is 1 up to rounding. A float64 below 1, multiplied by it, is still below it.
        tokens.append(torch.searchsorted(reached, uniform * reached[-1], right=True))
    return torch.stack(tokens).to(logits.device)


def row_uniforms(generators: Sequence[torch.Generator]) -> Float64[Tensor, " batch"]:
    """Return one number in [0, 1) from each row's own generator, as a tensor on the CPU.

    >>> row_uniforms([torch.Generator().manual_seed(seed) for seed in (1, 2)]).shape
    torch.Size([2])
    """
    return torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])


def check_drawable(logits: Tensor, best: Tensor | None = None) -> None:
    """Raise ValueError if a row has no token left, or its logits are not finite.

    Args:
        best: The largest logit of each row (default: computed here).
    """
    best = logits.amax(-1) if best is None else best
    if bool(best.isfinite().all()):
        return
    row = int(best.isfinite().logical_not().nonzero()[0])
    if best[row] == -torch.inf:
        raise ValueError(
            f"no token is left to choose in row {row}: all {logits.shape[1]} are banned; loosen allowed_token_ids, "
            "bad_words_ids, no_repeat_ngram_size, min_new_tokens or logit_bias, or a transform of your own"
        )
    raise ValueError(
        f"the logits of row {row} are not finite (largest: {float(best[row])}): the model has diverged, or the "
        "temperature is too near 0"
    )
