"""Queries, keys and values computed from a copy of the residual stream for each head, for hooks that change one copy.

Attention reads one normalised stream with all its heads. To change what one head's queries read, and nothing else, that
head needs a stream of its own: ``hook_q_input``, ``hook_k_input`` and ``hook_v_input`` are these copies, before the
layer norm, and ``hook_attn_in`` is one for all three. They take ``3 * n_heads`` times the memory, so they are formed
only if a hook asks for one.
"""

from typing import Any

from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor

from .shapes import typecheck


def head_inputs(
    block: Any, resid_pre: Float[Tensor, "batch seq d_model"]
) -> tuple[Float[Tensor, "batch seq n_heads d_head"], ...] | None:
    """Return a block's queries, keys and values by way of the heads' own inputs, or None if no hook asks for these.

    Args:
        block: a `Block`, whose layer norm is then called three times, each time on [batch seq n_heads d_model].
        resid_pre: the block's input.

    Example:
        >>> import torch
        >>> from gptladder.components import Block, hooks
        >>> block, x = Block(d_model=6, n_heads=2), torch.randn(1, 3, 6)
        >>> head_inputs(block, x) is None
        True
        >>> with hooks(block, [("hook_q_input", lambda q_input, hook: torch.zeros_like(q_input))]):
        ...     q, k, v = head_inputs(block, x)
        >>> bool((q == 0).all()), bool((k == 0).all())
        (True, False)
    """
    modules = block._modules  # faster than attributes, and this is asked in every call
    hook_attn_in, *taps = (modules[name] for name in ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"))
    if not (hook_attn_in.active or taps[0].active or taps[1].active or taps[2].active):
        return None
    attn = block.attn
    attn_in = hook_attn_in(repeat(resid_pre, "batch seq d_model -> batch seq n_heads d_model", n_heads=attn.n_heads))
    weights = ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
    projected: list[Tensor] = []
    for tap, hook, (W, b) in zip(taps, (attn.hook_q, attn.hook_k, attn.hook_v), weights, strict=True):
        read = tap(attn_in)
        with typecheck(False):  # a layer norm's input has no axis of heads otherwise
            read = block.ln1(read) if block.norm == "pre" else read
        pattern = "batch seq n_heads d_model, n_heads d_model d_head -> batch seq n_heads d_head"
        projected.append(hook(einsum(read, W, pattern) + b))
    return tuple(projected)
