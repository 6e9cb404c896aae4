"""`GPT2.cfg`: a model's configuration under the names of TransformerLens's ``HookedTransformerConfig``.

Tools that were written for TransformerLens read it. Our own configuration is `GPT2Config`.
"""

from typing import Any

from ..components.taps import named_taps, offer

ON_REQUEST = {
    "use_attn_result": ("hook_result",),
    "use_attn_in": ("hook_attn_in",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_hook_mlp_in": ("hook_mlp_in",),
    "use_hook_tokens": ("hook_tokens",),
}
"""TransformerLens's switches, and the activations that each lets predicates on names and caches find."""

# What a GPT-2 leaves at TransformerLens's default. A tool may ask for any of these.
_DEFAULTS: dict[str, Any] = {
    "attention_dir": "causal",
    "attn_only": False,
    "attn_scores_soft_cap": -1.0,
    "attn_types": None,
    "checkpoint_index": None,
    "checkpoint_label_type": None,
    "checkpoint_value": None,
    "clip_qkv": None,
    "default_padding_side": "right",
    "experts_per_token": None,
    "final_rms": False,
    "from_checkpoint": False,
    "gated_mlp": False,
    "init_mode": "gpt2",
    "init_weights": False,
    "layer_norm_folding": False,
    "n_devices": 1,
    "n_key_value_heads": None,
    "norm_topk_prob": False,
    "normalization_type": "LN",
    "num_experts": None,
    "output_logits_soft_cap": -1.0,
    "parallel_attn_mlp": False,
    "positional_embedding_type": "standard",
    "post_embedding_ln": False,
    "quantization_method": None,
    "relative_attention_max_distance": None,
    "relative_attention_num_buckets": None,
    "rotary_adjacent_pairs": False,
    "rotary_dim": None,
    "seed": None,
    "tokenizer_name": None,
    "train_seq_length": None,
    "trust_remote_code": False,
    "ungroup_grouped_query_attention": False,
    "use_attention_sinks": False,
    "use_dynamic_ntk_rope": False,
    "use_local_attn": False,
    "use_logn_attn": False,
    "use_normalization_before_and_after": False,
    "use_qk_norm": False,
    "uses_rms_norm": False,
    "window_size": None,
}


class LensConfig:
    """A model's configuration under TransformerLens's names. It is a view: it follows the model.

    ``default_prepend_bos`` and the switches ``use_attn_result``, ``use_attn_in``, ``use_split_qkv_input``,
    ``use_hook_mlp_in`` and ``use_hook_tokens`` can be set.

    Args:
        model: a `GPT2`.

    Raises:
        ValueError: the model is post-norm.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=12, n_layers=2, n_heads=3, d_vocab=50, n_ctx=8))
        >>> model.cfg.d_head, model.cfg.act_fn, model.cfg.positional_embedding_type, model.cfg.use_attn_result
        (4, 'gelu_new', 'standard', False)
        >>> model.cfg.use_attn_result = True
        >>> model.cfg.use_attn_result
        True
    """

    def __init__(self, model: Any) -> None:
        if model.config.norm != "pre":
            raise ValueError(
                "TransformerLens has no name for a post-norm GPT-2, so there is no cfg: read model.config, which has "
                "the sizes under the same names"
            )
        object.__setattr__(self, "_model", model)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in ON_REQUEST:
            offered = [
                tap.offered
                for path, tap in named_taps(self._model).items()
                if path.rpartition(".")[2] in ON_REQUEST[name]
            ]
            return bool(offered) and all(offered)
        if name == "tokenizer_prepends_bos":
            return self._tokenizer_prepends_bos()
        fields = self._fields()
        if name in fields:
            return fields[name]
        raise AttributeError(f"cfg has no {name!r}; it has {', '.join(dir(self))}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ON_REQUEST:
            for tap in ON_REQUEST[name]:
                offer(self._model, tap, bool(value))
        elif name == "default_prepend_bos":
            self._model.default_prepend_bos = bool(value)
        else:
            can_be = ", ".join(("default_prepend_bos", *ON_REQUEST))
            raise AttributeError(f"cfg.{name} cannot be set, since the model is made; {can_be} can")

    def __dir__(self) -> list[str]:
        return sorted({*self._fields(), *ON_REQUEST, "tokenizer_prepends_bos"})

    def __repr__(self) -> str:
        return f"LensConfig({', '.join(f'{name}={value!r}' for name, value in sorted(self.to_dict().items()))})"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and their values."""
        return {name: getattr(self, name) for name in dir(self)}

    def _tokenizer_prepends_bos(self) -> bool | None:
        tokenizer = self._model.tokenizer
        if tokenizer is None or tokenizer.start_id is None:
            return None if tokenizer is None else False
        return tokenizer.encode("")[:1] == [tokenizer.start_id]

    def _fields(self) -> dict[str, Any]:
        model, config = self._model, self._model.config
        # TransformerLens counts the matrices of attentions and MLPs alone.
        n_params = config.n_layers * config.d_model * (4 * config.n_heads * config.d_head + 2 * config.d_mlp)
        return {
            **_DEFAULTS,
            "act_fn": config.act_fn,
            "attn_scale": config.d_head**0.5 if config.scale_attn_weights else -1.0,
            "d_head": config.d_head,
            "d_mlp": config.d_mlp,
            "d_model": config.d_model,
            "d_vocab": config.d_vocab,
            "d_vocab_out": config.d_vocab,
            "default_prepend_bos": model.default_prepend_bos,
            "device": str(model.device),
            "dtype": model.dtype,
            "eps": config.layer_norm_eps,
            "initializer_range": config.init_range,
            "model_name": "custom",
            "n_ctx": config.n_ctx,
            "n_heads": config.n_heads,
            "n_layers": config.n_layers,
            "n_params": n_params,
            "original_architecture": "GPT2LMHeadModel",
            "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": config.tie_word_embeddings,
            "use_attn_scale": config.scale_attn_weights,
        }
