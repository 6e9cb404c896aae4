"""nanoGPT's checkpoints (https://github.com/karpathy/nanoGPT): ``model`` and ``model_args`` in one ``torch.save`` file.

nanoGPT ties its output projection, fixes ``d_mlp = 4 * d_model`` and an epsilon of 1e-5, and may leave out every bias
(``bias=False``). Which GELU it computes is written in its code alone: the exact one from 14 June 2023 on (its pull
request 274), GPT-2's ``gelu_new`` before.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...assembly.config import GPT2Config
from ...components.mlp import ActFn
from ..files.pickle_values import Record
from ..layout import WeightsError, axis_sizes, check_depth, from_ours, rows, to_ours
from ..lazy import Lazy, chosen, layered
from .huggingface import parameter_names, without_tied_head

_SAME = {
    "vocab_size": "d_vocab",
    "block_size": "n_ctx",
    "n_embd": "d_model",
    "n_head": "n_heads",
    "n_layer": "n_layers",
}
_ACT_FN: ActFn = "gelu"
_ACT_FN_KEY = "act_fn"  # ours, beside model_args: nanoGPT's programs pass over it


def config_from_nanogpt(saved: Mapping[str, Any], act_fn: ActFn | None = None) -> GPT2Config:
    """Return our configuration from a checkpoint's ``model_args``.

    Args:
        saved: the checkpoint.
        act_fn: activation of the program that trained it (default: the one that the checkpoint records, if it was
            written here; else ``gelu``, as nanoGPT computes now).

    Raises:
        WeightsError: a field that is missing or not known, or sizes that do not go together.
    """
    fields, default = _fields(saved)
    if not isinstance(fields, Mapping) or not fields.keys() >= _SAME.keys():
        raise WeightsError(f"model_args must have {', '.join(_SAME)}; here it is {fields!r:.200}")
    if strange := sorted(map(str, fields.keys() - _SAME.keys() - {"bias", "dropout"})):
        raise WeightsError(
            f"model_args: the field {strange[0]} is not nanoGPT's, and may change what the model computes"
        )
    if not isinstance(fields.get("bias", True), bool):
        raise WeightsError(f"model_args: bias is {fields['bias']!r:.200}; it must be true or false")
    known: dict[str, Any] = {ours: fields[theirs] for theirs, ours in _SAME.items()}
    known |= dict.fromkeys(("embed_dropout", "attn_dropout", "resid_dropout"), fields.get("dropout", 0.0))
    try:
        return GPT2Config(
            **known,
            act_fn=act_fn or saved.get(_ACT_FN_KEY, default),
        )
    except (ValueError, TypeError) as error:
        raise WeightsError(f"model_args: {error}") from error


def has_bias(saved: Mapping[str, Any]) -> bool:
    """Return whether the layers of a checkpoint, which `config_from_nanogpt` has read, have biases."""
    return _fields(saved)[0].get("bias", True)


def _fields(saved: Mapping[str, Any]) -> tuple[Any, ActFn]:
    """Return the sizes and choices in a checkpoint, and the activation of the program that wrote it.

    nanoGPT has the former under ``model_args``. https://github.com/karpathy/build-nanogpt, which computes ``gelu_new``,
    saves the instance of its ``GPTConfig`` under ``config``, with the sizes alone.
    """
    config = saved.get("config")
    if "model_args" not in saved and isinstance(config, Record):
        return config.fields, "gelu_new" if "bias" not in config.fields else _ACT_FN
    return saved.get("model_args"), _ACT_FN


def state_from_nanogpt(config: GPT2Config, tensors: Mapping[str, Tensor], *, bias: bool = True) -> Mapping[str, Tensor]:
    """Return our state dict from nanoGPT's, with or without the prefixes of wrappers and the mask buffers.

    Args:
        bias: ``model_args["bias"]``; without it all biases, also those of layer norms, are zero.

    Raises:
        WeightsError: a key that is missing, left over or misshapen; an ``lm_head`` that is not the embedding.
    """
    check_depth(config, tensors)
    bare = without_tied_head(chosen(tensors, parameter_names(tensors)), "nanoGPT ties them")
    if bias:
        return to_ours("nanogpt", config, bare)
    if present := [name for name in bare if name.endswith(".bias")]:
        raise WeightsError(f"model_args has bias=False, but {present[0]} is there")
    sizes = axis_sizes(config)
    like = bare.get("ln_f.weight", torch.empty(0))  # a small one for its dtype; that it is missing is found below

    def zeros(shape: tuple[int, ...]) -> Tensor:
        return like.new_zeros(shape)

    absent = {
        name: partial(zeros, foreign.shape(sizes))
        for _, _, foreign in rows("nanogpt", config)
        for name in foreign.names
        if name.endswith(".bias")
    }
    return to_ours("nanogpt", config, layered(bare, Lazy(absent)))


def state_to_nanogpt(
    config: GPT2Config, ours: Mapping[str, Tensor], act_fn: ActFn | None = None
) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Return a checkpoint's plain values, and the state dict that belongs under its ``model``.

    ``bias=False`` is written where every bias is zero. A ``b_U`` of zeros is left out.

    Args:
        act_fn: activation of the program that will read it (default: ``gelu``).

    Raises:
        WeightsError: a model that nanoGPT cannot hold.
    """
    if config.unembed_bias and not ours["unembed.b_U"].any():
        config = dataclasses.replace(config, unembed_bias=False)
    for fault, is_there in (
        ("has an output projection of its own", not config.tie_word_embeddings),
        ("has an output bias b_U", config.unembed_bias),
        (f"has d_mlp={config.d_mlp}, not 4 * d_model", config.d_mlp != 4 * config.d_model),
        ("has n_heads * d_head other than d_model", config.n_heads * config.d_head != config.d_model),
        (f"has layer_norm_eps={config.layer_norm_eps:g}, not 1e-05", config.layer_norm_eps != 1e-5),
        ("scales its attention scores otherwise", config.attn_scale(1) != config.d_head**-0.5),
        ("is post-norm", config.norm != "pre"),
    ):
        if is_there:
            raise WeightsError(f"nanoGPT has no place for this model, which {fault}")
    if config.act_fn != (act_fn or _ACT_FN):
        raise WeightsError(
            f"this model computes {config.act_fn}, and nanoGPT since June 2023 {_ACT_FN}, which gives other logits; "
            f"for a nanoGPT that computes it, say --act-fn {config.act_fn}"
        )
    theirs = from_ours("nanogpt", config, ours)
    biases = [name for name in theirs if name.endswith(".bias")]
    bias = any(bool(theirs[name].any()) for name in biases)
    names = list(theirs) if bias else [name for name in theirs if name not in biases]
    fields = {
        **{theirs: getattr(config, ours) for theirs, ours in _SAME.items()},
        "bias": bias,
        "dropout": config.resid_dropout,
    }
    tensors = chosen(theirs, {f"transformer.{name}": name for name in names} | {"lm_head.weight": "wte.weight"})
    return {"model_args": fields, _ACT_FN_KEY: config.act_fn}, tensors
