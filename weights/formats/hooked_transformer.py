"""TransformerLens's HookedTransformer: its configuration, its state dict, raw or processed, and back."""

import dataclasses
import inspect
import keyword
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...assembly.config import GPT2Config
from ..layout import WeightsError, check_depth, check_type, from_ours, to_ours
from ..lazy import Lazy, chosen, layered
from ..wrapper_prefixes import unwrapped

_SAME = {
    "d_model": "d_model",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "d_head": "d_head",
    "d_mlp": "d_mlp",
    "d_vocab": "d_vocab",
    "n_ctx": "n_ctx",
    "eps": "layer_norm_eps",
    "use_attn_scale": "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
}
_ACT_FN = {
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
}
_NORM = re.compile(r"(blocks\.\d+\.ln[12]|ln_final)\.([wb])")
_OFF: dict[str, Any] = {
    "attention_dir": "causal",
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "rotary_base": 10000,
    "rotary_scaling_factor": 1.0,
    "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_by_parts_factor": 8.0,
    "NTK_original_ctx_len": 8192,
    "yarn_factor": 1.0,
    "yarn_attention_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_original_max_position_embeddings": 4096,
    "yarn_truncate": True,
}
# Fields that do not touch the logits: which activations are offered to hooks, tokens, devices, bookkeeping.
_IGNORED = re.compile(
    r"use_attn_result|use_split_qkv_input|use_hook_mlp_in|use_attn_in|use_hook_tokens|default_prepend_bos|default_padding_side"
    r"|model_name|original_architecture|from_checkpoint|checkpoint_\w+|tokenizer_\w+|init_mode|init_weights"
    r"|initializer_range|seed|device|dtype|n_devices|n_params|trust_remote_code|(bos|eos|pad|decoder_start)_token_id"
    r"|train_seq_length|layer_norm_folding|tie_word_embeddings|attn_implementation|split_attention_weights"
)


def config_from_hooked(cfg: Any) -> GPT2Config:
    """Return our configuration from a ``HookedTransformerConfig``, or a bridge's; the weights will show tying.

    Every field that is not read here, and is not known to leave the logits alone, must stand at its default: a field
    that a later version adds is then refused by name as soon as a model uses it.

    Raises:
        WeightsError: a model that is not a GPT-2.
    """
    expected: dict[str, Any] = {
        "normalization_type": ("LN", "LNPre"),
        "positional_embedding_type": ("standard",),
        "act_fn": tuple(_ACT_FN),
        "attn_scale": (-1.0, math.sqrt(max(cfg.d_head, 0))),
        "d_vocab_out": (-1, cfg.d_vocab),
        "n_key_value_heads": (None, cfg.n_heads),
        "architecture": (None, "GPT2LMHeadModel", "TransformerLensNative"),  # a bridge's
    }
    # Most fields of a bridge's configuration are no dataclass fields, but arguments of its own __init__.
    defaults = {field.name: field.default for field in dataclasses.fields(cfg)}
    defaults |= {name: argument.default for name, argument in inspect.signature(type(cfg)).parameters.items()}
    for name, value in vars(cfg).items():
        if name in _SAME or _IGNORED.fullmatch(name):
            continue
        allowed = expected.get(name, (defaults[name],) if name in defaults else ())
        if value not in allowed:
            can_be = f"can be {' or '.join(map(repr, allowed))}" if allowed else "must not be there"
            raise WeightsError(f"{type(cfg).__name__}: {name}={value!r:.200} is not GPT-2's; it {can_be}")
    try:
        return GPT2Config(
            **{ours: getattr(cfg, theirs) for theirs, ours in _SAME.items()},
            act_fn=_ACT_FN[cfg.act_fn],  # pyright: ignore[reportArgumentType]
            init_range=float(cfg.initializer_range) if cfg.initializer_range > 0 else 0.02,
            tie_word_embeddings=False,
            unembed_bias=True,
        )
    except ValueError as error:
        raise WeightsError(f"{type(cfg).__name__}: {error}") from error


def config_from_hooked_fields(fields: Mapping[str, Any]) -> GPT2Config:
    """Return our configuration from a ``HookedTransformerConfig``'s fields in a file; needs no transformer-lens.

    Raises:
        WeightsError: a field that is missing, or not GPT-2's.
    """
    if missing := sorted(_SAME.keys() - fields.keys()):
        raise WeightsError(f"HookedTransformerConfig: {missing[0]} is missing")
    for name, ours in _SAME.items():
        check_type("HookedTransformerConfig", name, fields[name], type(getattr(GPT2Config, ours)))
    filled = {"act_fn": "relu", "initializer_range": -1.0, **fields}
    if not isinstance(filled["initializer_range"], int | float):
        raise WeightsError(
            f"HookedTransformerConfig: initializer_range={filled['initializer_range']!r:.200} is no number"
        )
    if strange := [name for name in filled if not name.isidentifier() or keyword.iskeyword(name)]:
        raise WeightsError(f"HookedTransformerConfig: {strange[0]!r:.80} is no field of any")
    # What HookedTransformer has besides GPT-2's is off: None or False, but for a few numbers.
    off = {name: _OFF.get(name, False if value is False else None) for name, value in filled.items()}
    stand_in = dataclasses.make_dataclass(
        "HookedTransformerConfig", [(name, Any, dataclasses.field(default=default)) for name, default in off.items()]
    )
    return config_from_hooked(stand_in(**filled))


def state_from_hooked(config: GPT2Config, tensors: Mapping[str, Tensor]) -> tuple[GPT2Config, Mapping[str, Tensor]]:
    """Return our state dict from HookedTransformer's, and the configuration that it fits.

    Weights that TransformerLens has processed (folded, centred, …) come in as they are: where no layer norm has
    parameters any more, all get gain 1 and bias 0, which is what ``LNPre`` computes. Raw GPT-2 weights become tied
    again: a ``W_U`` that equals ``W_E`` transposed, and a ``b_U`` of zeros, are not kept twice.

    Raises:
        WeightsError: a key that is missing, left over or misshapen.
    """
    constants = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE)")
    names = {name: key for name, key in unwrapped(tensors).items() if not constants.fullmatch(name)}
    theirs: Mapping[str, Tensor] = chosen(tensors, names)
    check_depth(config, tensors)
    norms = [*(f"blocks.{i}.ln{n}" for i in range(config.n_layers) for n in (1, 2)), "ln_final"]
    processed = not any(f"{norm}.{part}" in theirs for norm in norms for part in "wb")
    if processed and "embed.W_E" in theirs:
        like = theirs["embed.W_E"].new_empty(0)
        fills = (("w", like.new_ones), ("b", like.new_zeros))
        unscaled = {f"{norm}.{part}": partial(fill, config.d_model) for norm in norms for part, fill in fills}
        theirs = layered(Lazy(unscaled), theirs)
    full = untied(config)
    return simplified(full, to_ours("hooked", full, theirs))


def state_to_hooked(config: GPT2Config, ours: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return HookedTransformer's state dict, without the constants ``mask`` and ``IGNORE``.

    It always has a ``W_U`` of its own and a ``b_U``.
    """
    return from_ours("hooked", *with_unembedding(config, ours))


def without_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of HookedTransformer's for ``LNPre``, whose layer norms have no parameters.

    Raises:
        WeightsError: a gain that is not 1 or a bias that is not 0, which would be lost.
    """
    for name, tensor in tensors.items():
        if (norm := _NORM.fullmatch(name)) and not tensor.eq(1.0 if norm[2] == "w" else 0.0).all():
            raise WeightsError(
                f"{name} is not all {1 if norm[2] == 'w' else 0}, and LNPre has none: fold the model first"
            )
    return {name: tensor for name, tensor in tensors.items() if not _NORM.fullmatch(name)}


def simplified(config: GPT2Config, ours: Mapping[str, Tensor]) -> tuple[GPT2Config, Mapping[str, Tensor]]:
    """Tie a projection that equals the embedding, and drop a ``b_U`` of zeros: bit for bit the same function."""
    tied = torch.equal(ours["unembed.W_U"], ours["embed.W_E"].T)
    biased = bool(ours["unembed.b_U"].any())
    dropped = {"unembed.W_U"} if tied else set()
    dropped |= set() if biased else {"unembed.b_U"}
    return (
        dataclasses.replace(config, tie_word_embeddings=tied, unembed_bias=biased),
        chosen(ours, [name for name in ours if name not in dropped]),
    )


def with_unembedding(config: GPT2Config, ours: Mapping[str, Tensor]) -> tuple[GPT2Config, Mapping[str, Tensor]]:
    """Undo `simplified`: add an output projection of its own, with a bias."""
    W_E = ours["embed.W_E"]
    return untied(config), layered(ours, {"unembed.W_U": W_E.T, "unembed.b_U": W_E.new_zeros(config.d_vocab)})


def untied(config: GPT2Config) -> GPT2Config:
    """Return the configuration with an output projection of its own and a bias: TransformerLens's only form."""
    return dataclasses.replace(config, tie_word_embeddings=False, unembed_bias=True)


def hooked_config_fields(config: GPT2Config) -> dict[str, Any]:
    """Return the arguments of ``HookedTransformerConfig`` for a model of ours.

    Raises:
        WeightsError: a model that HookedTransformer cannot hold.
    """
    if config.norm != "pre":
        raise WeightsError("HookedTransformer has no post-norm blocks")
    return {
        **{theirs: getattr(config, ours) for theirs, ours in _SAME.items()},
        "act_fn": config.act_fn,
        "normalization_type": "LN",
        "initializer_range": config.init_range,
    }
