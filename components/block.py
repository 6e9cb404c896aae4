"""One transformer block: attention and MLP, each with its layer norm, around the residual stream."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .attention import Attention
from .dropout import dropout
from .head_inputs import head_inputs
from .kv_cache import LayerCache
from .layer_norm import LayerNorm
from .mlp import MLP, ActFn
from .shapes import shape_checked
from .tap import Tap

Norm = Literal["pre", "post"]


class Block(nn.Module):
    """One transformer block.

    With ``norm="pre"`` (GPT-2), each layer reads a normalised copy of the residual stream and adds to the stream
    itself: ``x = x + attn(ln1(x)); x = x + mlp(ln2(x))``. With ``norm="post"`` (Vaswani et al. 2017; GPT-1), the stream
    is normalised after each addition: ``x = ln1(x + attn(x)); x = ln2(x + mlp(x))``.

    Reference: Radford et al. 2019, section 2.3; ``transformer_lens.components.TransformerBlock``.

    Args:
        d_model, n_heads, d_head, scale: as for `Attention`.
        d_mlp, act_fn: as for `MLP`.
        layer_norm_eps: as for `LayerNorm`.
        norm: ``pre`` or ``post``.
        attn_dropout: probability of dropping an entry of the attention pattern in training.
        resid_dropout: probability of dropping an entry of what attention and MLP add to the residual stream.
        fused: use PyTorch's fused kernels in attention and layer norms, see `Attention`.
        init_range: standard deviation of the initial weights.

    Raises:
        ValueError: another ``norm``; a dropout outside [0, 1); what the layers refuse.

    Example:
        >>> block = Block(d_model=12, n_heads=3)
        >>> block(torch.randn(2, 5, 12)).shape  # batch seq d_model
        torch.Size([2, 5, 12])
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_head: int | None = None,
        d_mlp: int | None = None,
        act_fn: ActFn = "gelu_new",
        layer_norm_eps: float = 1e-5,
        norm: Norm = "pre",
        scale: float | None = None,
        attn_dropout: float = 0.0,
        resid_dropout: float = 0.0,
        fused: bool = True,
        init_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm is {norm!r}; it can be 'pre' or 'post'")
        if not 0 <= resid_dropout < 1:
            raise ValueError(f"resid_dropout is {resid_dropout}; it is a probability in [0, 1)")
        self.d_model = d_model
        self.norm = norm
        self.resid_dropout = resid_dropout
        self.ln1 = LayerNorm(d_model=d_model, layer_norm_eps=layer_norm_eps, fused=fused, device=device, dtype=dtype)
        self.attn = Attention(
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            scale=scale,
            dropout=attn_dropout,
            fused=fused,
            init_range=init_range,
            device=device,
            dtype=dtype,
        )
        self.ln2 = LayerNorm(d_model=d_model, layer_norm_eps=layer_norm_eps, fused=fused, device=device, dtype=dtype)
        self.mlp = MLP(d_model=d_model, d_mlp=d_mlp, act_fn=act_fn, init_range=init_range, device=device, dtype=dtype)
        self.hook_resid_pre = Tap()  # all [batch seq d_model]
        self.hook_attn_out = Tap()
        self.hook_resid_mid = Tap()
        self.hook_mlp_out = Tap()
        self.hook_resid_post = Tap()
        # On request: what attention and MLP read, apart from what stays in the residual stream (see `head_inputs`).
        self.hook_attn_in = Tap(on_request=True)  # [batch seq n_heads d_model], as the next three
        self.hook_q_input = Tap(on_request=True)
        self.hook_k_input = Tap(on_request=True)
        self.hook_v_input = Tap(on_request=True)
        self.hook_mlp_in = Tap(on_request=True)  # [batch seq d_model]

    def reset_parameters(self) -> None:
        """Draw the weights of all layers anew, and set biases to 0 and gains to 1."""
        for layer in (self.ln1, self.attn, self.ln2, self.mlp):
            layer.reset_parameters()

    @shape_checked
    def forward(
        self,
        resid_pre: Float[Tensor, "batch seq d_model={self.d_model}"],
        *,
        padding_mask: Bool[Tensor, "batch key_pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq d_model={self.d_model}"]:
        """Return the residual stream after this block; ``padding_mask`` and ``cache`` as for `Attention`."""
        pre_norm = self.norm == "pre"
        resid_pre = self.hook_resid_pre(resid_pre)
        if (qkv := head_inputs(self, resid_pre)) is None:
            attn_in = self.ln1(resid_pre) if pre_norm else resid_pre
            attn_out = self.attn(attn_in, padding_mask=padding_mask, cache=cache)
        else:
            attn_out = self.attn.attend(*qkv, padding_mask=padding_mask, cache=cache)
        attn_out = self.hook_attn_out(attn_out)
        resid_mid = resid_pre + dropout(attn_out, self.resid_dropout, self)
        resid_mid = self.hook_resid_mid(resid_mid if pre_norm else self.ln1(resid_mid))
        mlp_in = self.hook_mlp_in(resid_mid)
        mlp_in = self.ln2(mlp_in) if pre_norm else mlp_in
        mlp_out = self.hook_mlp_out(self.mlp(mlp_in))
        resid_post = resid_mid + dropout(mlp_out, self.resid_dropout, self)
        return self.hook_resid_post(resid_post if pre_norm else self.ln2(resid_post))
