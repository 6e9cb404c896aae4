"""Layers in nanoGPT's manner (nn.Linear, nn.Embedding, one c_attn for q, k and v, tied logits), and their adapters."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parameters = Mapping[str, Tensor]


class CausalSelfAttention(nn.Module):
    bias: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.n_head, self.n_embd = config.n_head, config.n_embd
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.register_buffer("bias", torch.ones(config.block_size, config.block_size).tril()[None, None])

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).chunk(3, 2)
        )
        att = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.n_embd), CausalSelfAttention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.n_embd), MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor) -> tuple[Tensor, None]:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x)), None


class Positions(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.wpe = nn.Embedding(config.block_size, config.n_embd)

    def forward(self, idx: Tensor) -> Tensor:
        return self.wpe(torch.arange(idx.shape[1])).expand(*idx.shape, -1)


def _config(cfg: Any) -> SimpleNamespace:
    return SimpleNamespace(n_embd=cfg.d_model, n_head=cfg.n_heads, block_size=cfg.n_ctx)


def _heads(W: Tensor) -> Tensor:
    return W.transpose(0, 1).flatten(1)  # [n_heads d_model d_head] -> [d_model (n_heads d_head)]


def _attention_state(p: Parameters, at: str = "", to: str = "") -> dict[str, Tensor]:
    return {
        f"{to}c_attn.weight": torch.cat([_heads(p[at + name]) for name in ("W_Q", "W_K", "W_V")], dim=1).T,
        f"{to}c_attn.bias": torch.cat([p[at + name].flatten() for name in ("b_Q", "b_K", "b_V")]),
        f"{to}c_proj.weight": p[f"{at}W_O"].flatten(0, 1).T,
        f"{to}c_proj.bias": p[f"{at}b_O"],
    }


def _mlp_state(p: Parameters, at: str = "", to: str = "") -> dict[str, Tensor]:
    return {
        f"{to}c_fc.weight": p[f"{at}W_in"].T,
        f"{to}c_fc.bias": p[f"{at}b_in"],
        f"{to}c_proj.weight": p[f"{at}W_out"].T,
        f"{to}c_proj.bias": p[f"{at}b_out"],
    }


def _norm_state(p: Parameters, at: str = "", to: str = "") -> dict[str, Tensor]:
    return {f"{to}weight": p[f"{at}w"], f"{to}bias": p[f"{at}b"]}


def _block_state(p: Parameters, at: str = "", to: str = "") -> dict[str, Tensor]:
    return {
        **_norm_state(p, f"{at}ln1.", f"{to}ln_1."),
        **_attention_state(p, f"{at}attn.", f"{to}attn."),
        **_norm_state(p, f"{at}ln2.", f"{to}ln_2."),
        **_mlp_state(p, f"{at}mlp.", f"{to}mlp."),
    }


def embed(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return nn.Embedding(cfg.d_vocab, cfg.d_model), {"weight": parameters["W_E"]}


def pos_embed(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return Positions(_config(cfg)), {"wpe.weight": parameters["W_pos"]}


def layernorm(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return nn.LayerNorm(cfg.d_model), _norm_state(parameters)


def attention(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return CausalSelfAttention(_config(cfg)), _attention_state(parameters)


def mlp(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return MLP(_config(cfg)), _mlp_state(parameters)


def block(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return Block(_config(cfg)), _block_state(parameters)


def unembed(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return nn.Linear(cfg.d_model, cfg.d_vocab, bias=False), {"weight": parameters["W_U"].T}


def model(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    config = _config(cfg)
    config.vocab_size, config.n_layer = cfg.d_vocab, cfg.n_layers
    state = {
        "wte.weight": parameters["embed.W_E"],
        "lm_head.weight": parameters["embed.W_E"],  # the same parameter under its other name
        "wpe.weight": parameters["pos_embed.W_pos"],
        **_norm_state(parameters, "ln_final.", "ln_f."),
    }
    for i in range(cfg.n_layers):
        state |= _block_state(parameters, f"blocks.{i}.", f"h.{i}.")
    return GPT(config), state
