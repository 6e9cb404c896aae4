"""Drawn configurations and models of other libraries, which several tests of weights need."""

import random
from typing import Any

import torch
import transformers

from gptladder.assembly.config import GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.ladder.answers import randomize

# TransformerLens's flags of weight processing.
FLAGS = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)


def hf_config(sizes: GPT2Config, source: random.Random, **changes: Any) -> transformers.GPT2Config:
    """Return a configuration with some sizes and drawn options, written field by field: no code of ours translates it.

    Args:
        sizes: where the sizes are from.
        source: draws the options.
        changes: fields to set instead.
    """
    fields = {
        "vocab_size": sizes.d_vocab,
        "n_positions": sizes.n_ctx,
        "n_embd": sizes.n_heads * sizes.d_head,
        "n_layer": sizes.n_layers,
        "n_head": sizes.n_heads,
        "n_inner": source.choice([None, sizes.d_mlp]),
        "activation_function": source.choice(["gelu_new", "gelu", "relu"]),
        "layer_norm_epsilon": sizes.layer_norm_eps,
        "scale_attn_weights": source.random() < 0.7,
        "scale_attn_by_inverse_layer_idx": source.random() < 0.3,
        "tie_word_embeddings": source.random() < 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return transformers.GPT2Config(**{**fields, **changes})


def hf_model(
    config: transformers.GPT2Config, seed: int = 0, dtype: torch.dtype = torch.float64
) -> transformers.GPT2LMHeadModel:
    """Return a model of transformers with random weights that matter, in ``eval()`` mode."""
    hf: Any = transformers.GPT2LMHeadModel(config)
    hf.to(dtype).eval()  # the types of transformers take no dtype
    randomize(hf, torch.Generator().manual_seed(seed))
    return hf


def our_model(dtype: torch.dtype = torch.float32, **changes: Any) -> GPT2:
    """Return a small model of ours with random weights that matter, in ``eval()`` mode."""
    config = GPT2Config(
        **{"d_model": 6, "n_layers": 2, "n_heads": 2, "d_mlp": 10, "d_vocab": 11, "n_ctx": 7, **changes}
    )
    model = GPT2(config, dtype=dtype)
    randomize(model, torch.Generator().manual_seed(0))
    return model.eval()
