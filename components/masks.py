"""The causal mask, and padding."""

import torch
from jaxtyping import Bool
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
