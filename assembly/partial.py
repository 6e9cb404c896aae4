"""A part of a model: from a layer on, or up to a layer."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..components.kv_cache import KVCache
from .checkpointing import call_block
from .text import Input


def partial_residual(
    model: Any,
    input: Input | None,
    start_at_layer: int | None,
    stop_at_layer: int | None,
    padding_mask: Tensor | None = None,
    positions: Tensor | None = None,
    cache: KVCache | None = None,
) -> Float[Tensor, "batch seq d_model"]:
    """Return the residual stream before ``stop_at_layer``, or, if that is None, the normalised one after all blocks.

    Args:
        model: a `GPT2`.
        input: tokens [batch seq]; with ``start_at_layer``, the residual stream [batch seq d_model] before that block.
        start_at_layer, stop_at_layer, padding_mask, positions: as for `GPT2.forward`.
        cache: must be None.

    Raises:
        ValueError: a layer that does not exist; an input of the wrong kind; a cache.
    """
    if cache is not None:
        raise ValueError("a cache needs all layers: leave out start_at_layer and stop_at_layer")
    n_layers = len(model.blocks)
    for name, layer in (("start_at_layer", start_at_layer), ("stop_at_layer", stop_at_layer)):
        if layer is not None and not (hasattr(layer, "__index__") and -n_layers <= layer <= n_layers):
            raise ValueError(f"{name} is {layer}, and the model has {n_layers} layers: give {-n_layers} to {n_layers}")
    if start_at_layer is None:
        residual = model.embedded(input, padding_mask, positions)
    elif isinstance(input, Tensor) and input.is_floating_point():
        residual = input
    else:
        raise ValueError(
            "with start_at_layer, the input is the residual stream before that layer, [batch seq d_model], not text or "
            "tokens: cache['resid_pre', layer] is one"
        )
    for block in model.blocks[start_at_layer:stop_at_layer]:
        residual = call_block(block, residual, checkpointed=model.checkpoint_blocks, padding_mask=padding_mask)
    return residual if stop_at_layer is not None else model.ln_final(residual)
