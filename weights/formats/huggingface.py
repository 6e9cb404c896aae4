"""Hugging Face's GPT-2: its configuration, its state dict, and back."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...assembly.config import GPT2Config
from ..layout import WeightsError, check_type, from_ours, to_ours
from ..lazy import Lazy, chosen, layered
from ..wrapper_prefixes import unwrapped

# Its fields and ours, where both mean the same.
_SAME = {
    "vocab_size": "d_vocab",
    "n_positions": "n_ctx",
    "n_embd": "d_model",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "resid_pdrop": "resid_dropout",
    "embd_pdrop": "embed_dropout",
    "attn_pdrop": "attn_dropout",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "init_range",
    "scale_attn_weights": "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
    "tie_word_embeddings": "tie_word_embeddings",
}
# What transformers takes where the file is silent (transformers.GPT2Config's defaults), where ours differ.
_SILENT = {"resid_dropout": 0.1, "embed_dropout": 0.1, "attn_dropout": 0.1}
_ACT_FN = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}

# Fields that would change the arithmetic, with the only value that leaves it GPT-2's.
_MUST_BE: dict[str, Any] = {
    "model_type": "gpt2",
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "quantization_config": None,
    "pruned_heads": {},
}
# Fields that do not touch the logits: the order of operations in attention (``reorder_and_upcast_attn``, which computes
# 16-bit attention in float32), tokens, generation, classification heads, bookkeeping.
_IGNORED = re.compile(
    r"n_ctx|reorder_and_upcast_attn|n_special|predict_special_tokens|output_past|use_cache|gradient_checkpointing|activation_function|n_inner"
    r"|summary_\w+|_?num_labels|id2label|label2id|problem_type|finetuning_task|task_specific_params|architectures"
    r"|(bos|eos|pad|sep|cls|mask|unk|decoder_start|forced_bos|forced_eos)_token_ids?|tokenizer_class|prefix|vocab_pad\w*"
    r"|transformers_version|_name_or_path|_commit_hash|_attn_implementation\w*|attn_implementation|(torch_)?dtype"
    r"|return_dict\w*|_?output_\w+|torchscript|xla_device|use_bfloat16|tf_legacy_loss|is_decoder|cross_attention_hidden_size"
    r"|tie_encoder_decoder|chunk_size_feed_forward|(max|min)_(new_tokens|length)|do_sample|early_stopping|num_beams"
    r"|num_beam_groups|diversity_penalty|temperature|top_k|top_p|typical_p|repetition_penalty|length_penalty"
    r"|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids|num_return_sequences|remove_invalid_values"
    r"|exponential_decay_length_penalty|suppress_tokens|begin_suppress_tokens|auto_map"
)


_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def config_from_hf(fields: Mapping[str, Any]) -> GPT2Config:
    """Return our configuration from ``config.json``'s fields (``transformers.GPT2Config.to_dict()``).

    Raises:
        WeightsError: a model of another kind; a field that changes the arithmetic in a way that is not supported, or
            that is not known; sizes that do not go together.
    """
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(GPT2Config)}
    check_type("config", "reorder_and_upcast_attn", fields.get("reorder_and_upcast_attn", False), bool)
    # The kind of model first: of another kind, every field is unknown.
    for name, value in sorted(fields.items(), key=lambda field: field[0] != "model_type"):
        if name in _MUST_BE:
            if value != _MUST_BE[name] and value is not None:
                raise WeightsError(f"config: {name}={value!r:.200} is not supported, only {_MUST_BE[name]!r}")
        elif name in _SAME:
            kind = kinds[_SAME[name]]
            right = isinstance(value, (int, float) if kind is float else kind)
            if not right or isinstance(value, bool) != (kind is bool):  # Python takes True for 1
                raise WeightsError(f"config: {name}={value!r:.200} is not of type {kind.__name__}")
        elif not _IGNORED.fullmatch(name):
            raise WeightsError(
                f"config: the field {name}={value!r:.200} is not known, and may change what the model computes"
            )
    activation = fields.get("activation_function", "gelu_new")
    if activation not in tuple(_ACT_FN):
        raise WeightsError(
            f"config: activation_function={activation!r:.200} is not supported, only {', '.join(_ACT_FN)}"
        )
    known = {ours: fields[theirs] for theirs, ours in _SAME.items() if theirs in fields}
    try:
        return GPT2Config(**{**_SILENT, **known, "act_fn": _ACT_FN[activation], "d_mlp": fields.get("n_inner") or 0})
    except ValueError as error:
        raise WeightsError(f"config: {error}") from error


def config_to_hf(config: GPT2Config) -> dict[str, Any]:
    """Return ``config.json``'s fields from our configuration.

    Raises:
        WeightsError: a model that transformers' GPT-2 cannot hold.
    """
    if config.n_heads * config.d_head != config.d_model:
        raise WeightsError(
            f"transformers' GPT-2 needs n_heads * d_head = d_model; here {config.n_heads} * {config.d_head} is not "
            f"{config.d_model}"
        )
    end_of_text = 50256 if config.d_vocab > 50256 else None
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{theirs: getattr(config, ours) for theirs, ours in _SAME.items()},
        "n_ctx": config.n_ctx,
        "n_inner": None if config.d_mlp == 4 * config.d_model else config.d_mlp,
        "activation_function": config.act_fn,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }


def state_from_hf(config: GPT2Config, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return our state dict from Hugging Face's, with or without the prefix ``transformer.`` and the mask buffers.

    Raises:
        WeightsError: a key that is missing, left over or misshapen; a tied projection that differs from the embedding.
    """
    bare = chosen(tensors, parameter_names(tensors))
    if config.tie_word_embeddings:
        bare = without_tied_head(bare, "the configuration ties them: set tie_word_embeddings to false")
    return to_ours("hf", config, bare)


def parameter_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names of the parameters among a GPT-2's tensors, without prefixes -> with them.

    The prefixes are ``transformer.`` and those of wrappers (see `wrapper_prefixes.unwrapped`). The causal masks, which
    older versions kept beside the parameters, are left out.

    Raises:
        WeightsError: a name that is there twice, with and without a prefix.
    """
    bare: dict[str, str] = {}
    for unprefixed, key in unwrapped(names).items():
        name = unprefixed.removeprefix("transformer.")
        if name in bare:
            raise WeightsError(f"{name} is there twice, as {bare[name]} and as {key}")
        if not _MASK.fullmatch(name):
            bare[name] = key
    return bare


def without_tied_head(bare: Lazy, tied: str) -> Lazy:
    """Return the tensors without the ``lm_head.weight`` that a tied model may have beside the embedding it equals.

    Args:
        tied: why it has to be equal, for the message.

    Raises:
        WeightsError: it is not.
    """
    if (
        "lm_head.weight" in bare
        and "wte.weight" in bare
        and not torch.equal(bare["lm_head.weight"], bare["wte.weight"])
    ):
        raise WeightsError(f"lm_head.weight differs from wte.weight, but {tied}")
    return chosen(bare, [name for name in bare if name != "lm_head.weight"])


def state_to_hf(config: GPT2Config, ours: Mapping[str, Tensor]) -> tuple[GPT2Config, Mapping[str, Tensor]]:
    """Return Hugging Face's state dict, with prefixes as ``save_pretrained`` writes them, and its configuration.

    transformers' GPT-2 has no ``b_U``. One that is zero is left out; another is carried by an untied projection that
    gives the same logits to rounding (see `without_unembed_bias`).

    Raises:
        WeightsError: a model that transformers' GPT-2 cannot hold.
    """
    if config.unembed_bias and config.norm == "pre":  # post-norm is refused below, as it is without the bias
        config, ours = without_unembed_bias(config, ours)
    tensors = from_ours("hf", config, ours)
    prefixed = {key if key == "lm_head.weight" else f"transformer.{key}": key for key in tensors}
    return config, chosen(tensors, prefixed)


def without_unembed_bias(config: GPT2Config, ours: Mapping[str, Tensor]) -> tuple[GPT2Config, Mapping[str, Tensor]]:
    """Return the same function without ``b_U``: bit for bit if it is zero, else untied and exact to rounding.

    The last layer norm puts out ``n * w + b`` where ``n`` has mean 0 over d_model, so adding a constant to a column of
    the projection changes nothing unless ``b`` is there to be multiplied by it. With ``w = b = 1`` the logits are
    ``n @ L + sum(L)``; hence ``L`` is ``w * W_U`` with its columns' means taken out (which changes nothing) and
    ``(b @ W_U + b_U) / d_model`` put in (which sums to the bias). Computed in float64.
    """
    rest = chosen(ours, [name for name in ours if name != "unembed.b_U"])
    if not ours["unembed.b_U"].any():
        return dataclasses.replace(config, unembed_bias=False), rest
    W_U = (ours["embed.W_E"].T if config.tie_word_embeddings else ours["unembed.W_U"]).double()
    bias = ours["ln_final.b"].double() @ W_U + ours["unembed.b_U"].double()
    folded = ours["ln_final.w"].double()[:, None] * W_U
    folded += bias / config.d_model - folded.mean(dim=0)
    changed = {
        "unembed.W_U": folded.to(ours["embed.W_E"].dtype),
        "ln_final.w": torch.ones_like(ours["ln_final.w"]),
        "ln_final.b": torch.ones_like(ours["ln_final.b"]),
    }
    return dataclasses.replace(config, tie_word_embeddings=False, unembed_bias=False), layered(changed, rest)
