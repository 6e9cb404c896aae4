"""Layers as ARENA's students write them: one configuration object, TransformerLens's parameter names, einsum."""

import math
from typing import Any

import einops
import torch
from torch import Tensor, nn


def _weight(*shape: int, std: float) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))


class LayerNorm(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.w = nn.Parameter(torch.ones(cfg.d_model))
        self.b = nn.Parameter(torch.zeros(cfg.d_model))

    def forward(self, residual: Tensor) -> Tensor:
        mean = residual.mean(dim=-1, keepdim=True)
        deviation = (residual.var(dim=-1, keepdim=True, unbiased=False) + self.cfg.layer_norm_eps).sqrt()
        return (residual - mean) / deviation * self.w + self.b


class Embed(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.W_E = _weight(cfg.d_vocab, cfg.d_model, std=cfg.init_range)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.W_E[tokens]


class PosEmbed(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.W_pos = _weight(cfg.n_ctx, cfg.d_model, std=cfg.init_range)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, seq = tokens.shape
        return einops.repeat(self.W_pos[:seq], "seq d_model -> batch seq d_model", batch=batch)


class Attention(nn.Module):
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    b_Q: Tensor
    b_K: Tensor
    b_V: Tensor
    IGNORE: Tensor

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        for name in ("W_Q", "W_K", "W_V"):
            setattr(self, name, _weight(cfg.n_heads, cfg.d_model, cfg.d_head, std=cfg.init_range))
        self.W_O = _weight(cfg.n_heads, cfg.d_head, cfg.d_model, std=cfg.init_range)
        for name in ("b_Q", "b_K", "b_V"):
            setattr(self, name, nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head)))
        self.b_O = nn.Parameter(torch.zeros(cfg.d_model))
        self.register_buffer("IGNORE", torch.tensor(float("-inf")))

    def forward(self, normalized_resid_pre: Tensor) -> Tensor:
        project = "batch seq d_model, n_heads d_model d_head -> batch seq n_heads d_head"
        q = einops.einsum(normalized_resid_pre, self.W_Q, project) + self.b_Q
        k = einops.einsum(normalized_resid_pre, self.W_K, project) + self.b_K
        v = einops.einsum(normalized_resid_pre, self.W_V, project) + self.b_V
        scores = einops.einsum(q, k, "batch q n_heads d_head, batch k n_heads d_head -> batch n_heads q k")
        pattern = self.apply_causal_mask(scores / self.cfg.d_head**0.5).softmax(-1)
        z = einops.einsum(v, pattern, "batch k n_heads d_head, batch n_heads q k -> batch q n_heads d_head")
        return (
            einops.einsum(z, self.W_O, "batch q n_heads d_head, n_heads d_head d_model -> batch q d_model") + self.b_O
        )

    def apply_causal_mask(self, attn_scores: Tensor) -> Tensor:
        later = torch.triu(torch.ones(attn_scores.shape[-2:], device=attn_scores.device), diagonal=1).bool()
        return attn_scores.masked_fill_(later, self.IGNORE)


class MLP(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.W_in = _weight(cfg.d_model, cfg.d_mlp, std=cfg.init_range)
        self.W_out = _weight(cfg.d_mlp, cfg.d_model, std=cfg.init_range)
        self.b_in = nn.Parameter(torch.zeros(cfg.d_mlp))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model))

    def forward(self, normalized_resid_mid: Tensor) -> Tensor:
        pre = einops.einsum(normalized_resid_mid, self.W_in, "b s d_model, d_model d_mlp -> b s d_mlp") + self.b_in
        post = 0.5 * pre * (1 + torch.tanh(math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3)))
        return einops.einsum(post, self.W_out, "b s d_mlp, d_mlp d_model -> b s d_model") + self.b_out


class TransformerBlock(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.ln1, self.attn = LayerNorm(cfg), Attention(cfg)
        self.ln2, self.mlp = LayerNorm(cfg), MLP(cfg)

    def forward(self, resid_pre: Tensor) -> Tensor:
        resid_mid = self.attn(self.ln1(resid_pre)) + resid_pre
        return self.mlp(self.ln2(resid_mid)) + resid_mid


class Unembed(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.W_U = _weight(cfg.d_model, cfg.d_vocab, std=cfg.init_range)
        self.b_U = nn.Parameter(torch.zeros(cfg.d_vocab), requires_grad=True)

    def forward(self, normalized_resid_final: Tensor) -> Tensor:
        return normalized_resid_final @ self.W_U + self.b_U


class DemoTransformer(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.embed, self.pos_embed = Embed(cfg), PosEmbed(cfg)
        self.blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg.n_layers)])
        self.ln_final, self.unembed = LayerNorm(cfg), Unembed(cfg)

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        residual = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            residual = block(residual)
        return self.unembed(self.ln_final(residual)), None
