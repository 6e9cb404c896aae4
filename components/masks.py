"""The causal mask, and padding."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def allowed_keys(
    query_pos: int, key_pos: int, padding_mask: Bool[Tensor, "batch key_pos"] | None, *, device: torch.device
) -> Bool[Tensor, "... query_pos key_pos"]:
    """Return which keys each query may attend to: its own and earlier ones, without padding.

    Args:
        query_pos: number of queries; the last one stands at the last key.
        key_pos: number of keys, cached ones included.
        padding_mask: False at padding (default: no key is padding).

    Returns:
        A mask that is True where the query may look, with batch and head axes if there is padding.

    Example:
        >>> allowed_keys(2, 3, None, device=torch.device("cpu"))  # one key is cached
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """
    causal = torch.ones(query_pos, key_pos, dtype=torch.bool, device=device).tril(key_pos - query_pos)
    return causal if padding_mask is None else causal & padding_mask[:, None, None, :]


def zeros_at_padding(
    k: Float[Tensor, "batch seq n_heads d_head"],
    v: Float[Tensor, "batch seq n_heads d_head"],
    padding_mask: Bool[Tensor, "batch key_pos"],
    *,
    past: int,
) -> tuple[Float[Tensor, "batch seq n_heads d_head"], Float[Tensor, "batch seq n_heads d_head"]]:
    """Return new keys and values with zeros at padding.

    A pattern of 0 there is not enough: it does not stop infinite or undefined values, since 0 * inf is nan.

    Args:
        k, v: of the new positions.
        padding_mask: False at padding, for the cached positions and then the new ones.
        past: number of cached positions.

    Raises:
        ValueError: the mask covers another number of keys.

    Example:
        >>> k = v = torch.ones(1, 2, 1, 1)
        >>> zeros_at_padding(k, v, torch.tensor([[False, True]]), past=0)[0].flatten()
        tensor([0., 1.])
    """
    key_pos = past + k.shape[1]
    if padding_mask.shape[1] != key_pos:
        raise ValueError(
            f"padding_mask covers {padding_mask.shape[1]} keys, but there are {key_pos}, cached ones included"
        )
    padding = ~rearrange(padding_mask[:, past:], "batch key_pos -> batch key_pos 1 1")
    return k.masked_fill(padding, 0.0), v.masked_fill(padding, 0.0)
