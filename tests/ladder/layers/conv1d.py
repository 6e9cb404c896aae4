"""transformers' own GPT-2, whose Conv1D keeps matrices as [in, out]; and the adapters that put it on the ladder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block

Parameters = Mapping[str, Tensor]


class Logits(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gpt2 = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gpt2(tokens).logits


def _config(cfg: Any) -> GPT2Config:
    # Called without a mask, only the scaled dot product attention is causal by itself.
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}  # an argument that its type does not name
    return GPT2Config(n_embd=cfg.d_model, n_head=cfg.n_heads, n_positions=cfg.n_ctx, **attention)


def _attention_state(p: Parameters, at: str = "", to: str = "") -> dict[str, Tensor]:
    flat = [p[at + name].transpose(0, 1).flatten(1) for name in ("W_Q", "W_K", "W_V")]
    return {
        f"{to}c_attn.weight": torch.cat(flat, dim=1),
        f"{to}c_attn.bias": torch.cat([p[at + name].flatten() for name in ("b_Q", "b_K", "b_V")]),
        f"{to}c_proj.weight": p[f"{at}W_O"].flatten(0, 1),
        f"{to}c_proj.bias": p[f"{at}b_O"],
    }


def _mlp_state(p: Parameters, at: str = "", to: str = "") -> dict[str, Tensor]:
    names = {"c_fc.weight": "W_in", "c_fc.bias": "b_in", "c_proj.weight": "W_out", "c_proj.bias": "b_out"}
    return {to + theirs: p[at + name] for theirs, name in names.items()}


def _block_state(p: Parameters, at: str = "", to: str = "") -> dict[str, Tensor]:
    norms = {f"{to}ln_{n}.{theirs}": p[f"{at}ln{n}.{name}"] for n in (1, 2) for theirs, name in _NORM}
    return {**norms, **_attention_state(p, f"{at}attn.", f"{to}attn."), **_mlp_state(p, f"{at}mlp.", f"{to}mlp.")}


_NORM = (("weight", "w"), ("bias", "b"))


def attention(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return GPT2Attention(_config(cfg), layer_idx=0), _attention_state(parameters)


def mlp(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    config = _config(cfg)
    config.activation_function = {"gelu_new": "gelu_new", "gelu": "gelu", "relu": "relu"}[cfg.act_fn]
    return GPT2MLP(cfg.d_mlp, config), _mlp_state(parameters)


def block(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    return GPT2Block(_config(cfg), layer_idx=0), _block_state(parameters)


def model(cfg: Any, parameters: Parameters) -> tuple[nn.Module, dict[str, Tensor]]:
    config = _config(cfg)
    config.vocab_size, config.n_layer = cfg.d_vocab, cfg.n_layers
    state = {
        "gpt2.transformer.wte.weight": parameters["embed.W_E"],
        "gpt2.transformer.wpe.weight": parameters["pos_embed.W_pos"],
        **{f"gpt2.transformer.ln_f.{theirs}": parameters[f"ln_final.{name}"] for theirs, name in _NORM},
    }
    for i in range(cfg.n_layers):
        state |= _block_state(parameters, f"blocks.{i}.", f"gpt2.transformer.h.{i}.")
    return Logits(config), state
