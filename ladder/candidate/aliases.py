"""The names that public code has for sizes, choices, flags and layers, and which of GPT-2's each of them means."""

import re

from .size_words import by_words

SIZES = ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "n_layers")

# What sizes and choices are called; compared in lower case, without "_".
_NAMES = {
    "d_model": (
        "d_model n_embd n_embed emb_dim embed_dim embd_size emb_size embedding_dim embedding_dimension "
        "embed_size hidden_size d_in d_out ndim d_layer dim nx hidden_dim dmodel model_dim d_embed "
        "embedding_size features n_state normalized_shape width embd_dim d_emb n_emb channels emb dims "
        "dim_model in_features feature_dim embeddings_dim model_size d_embd n_dim num_embed num_embd embed_dims "
        "num_hiddens hid_dim model_dimension model_width n_features num_features token_dim dimension d_embedding "
        "embed_dimension emb_dimension d_hidden_size residual_dim d_residual norm_shape embeddings_size "
        "D h_dim embedding_length embed_len dim_embed dim_emb dim_embedding n_embedding n_embeddings_dim n_hidden_size "
        "d_embeddings embedding_width hidden_dims dim1"
    ),
    "n_heads": (
        "n_heads n_head num_heads heads nhead num_attention_heads n_attn_heads h nb_heads head_num number_of_heads "
        "num_of_heads heads_num attn_heads attention_heads no_heads no_of_heads head_count heads_count"
    ),
    "d_head": (
        "d_head head_size head_dim d_k dk d_v dim_head d_key size_per_head dim_per_head per_head_dim dim_k dim_v d_q "
        "d_query d_value d_keys d_values attention_head_size attn_head_size head_dimension head_width "
        "attention_head_dim attn_head_dim embed_per_head"
    ),
    "n_kv_heads": "n_kv_heads",
    "d_mlp": (
        "d_mlp d_ff ff_dim dim_feedforward n_inner intermediate_size d_inner ffn_dim mlp_dim d_hidden "
        "feed_forward_dim hidden_features ff_hidden ffn_hidden dff d_ffn mlp_hidden_dim hidden ff_size "
        "mlp_size mlp_hidden mlp_hidden_size mlp_width ff_width inner_dim d_inner_hid d_feedforward d_feed_forward "
        "feedforward_dim feed_forward_size feedforward_size dim_ff dim_ffn dim_mlp n_mlp n_ff ffwd_dim ff_dimension "
        "ff_inner_dim feed_forward_hidden d_intermediate intermediate_dim pf_dim d_hid ffn_hidden_size ffn_hidden_dim "
        "ffn_size ffn_inner_dim ffn_num_hiddens ff_hidden_dim ff_hidden_size feedforward_hidden_size "
        "feed_forward_hidden_size ffn_intermediate_size feedforward_hidden_dim feed_forward_hidden_dim dim_hidden "
        "d_fc fc_dim feed_forward_dimension feedforward_dimension feed_forward inner_size mlp_inner_dim"
    ),
    "d_vocab": (
        "d_vocab vocab_size n_vocab vocabulary_size num_embeddings voc_size vocab vocab_dim num_tokens n_tokens "
        "vocab_len vocab_length ntoken num_vocab num_words n_words vocabulary vocabulary_len size_vocab v_size "
        "dict_size vocab_sz padded_vocab_size token_vocab_size n_vocabulary"
    ),
    "n_ctx": (
        "n_ctx block_size context_length n_positions max_seq_len max_sequence_length max_seq_length "
        "max_length seq_len sequence_length sentence_len max_sequence_len max_position_embeddings max_len "
        "context_size context_len ctx_len max_tokens max_context_length ctx_size seq_length n_seq max_context "
        "context_window ctx max_positions max_seq T_max max_T seqlen max_num_tokens max_token_len max_input_len "
        "input_length input_len max_input_length seq_max_len max_pos max_position num_positions max_block_size "
        "block_len block_length ctx_length max_ctx max_ctx_len max_context_len max_context_size "
        "max_target_len max_sentence_len max_sent_len sequence_size seq_size max_n_ctx max_len_seq length_max "
        "num_pos n_pos context max_timesteps n_context context_window_size context_window_length max_seq_size "
        "max_position_embedding max_token_length tokens_per_sequence max_size position_size pos_len"
    ),
    "n_layers": (
        "n_layers n_layer num_layers num_blocks n_blocks num_hidden_layers N depth num_transformer_blocks layers "
        "n_block num_block no_layers no_of_layers layer_num num_of_layers block_num n_decoder"
    ),
    "layer_norm_eps": "layer_norm_eps layer_norm_epsilon eps epsilon norm_eps ln_eps layernorm_eps",
    "init_range": "init_range initializer_range init_std",
    "dropout": "dropout drop_rate dropout_p dropout_rate attn_pdrop resid_pdrop embd_pdrop p pdrop drop",
    "bias": "bias qkv_bias use_bias attn_bias out_bias linear_bias",
    "act_fn": (
        "act_fn activation act activation_function hidden_act afn activation_fn activation_func act_func act_layer "
        "nonlinearity non_linearity act_name activation_name activation_type act_type"
    ),
    "device": "device",
    "debug": "debug verbose",
    "ratio": (
        "rate hidden_dimension_factor mlp_ratio expansion_factor ff_mult expand mlp_mult expansion mlp_factor factor "
        "ff_ratio ffn_ratio ff_factor ffn_factor mlp_expansion ffn_expansion ff_expansion expansion_ratio "
        "forward_expansion widening_factor ffn_mult mlp_expansion_factor ff_expansion_factor hidden_mult "
        "feed_forward_factor feedforward_factor feed_forward_expansion mlp_multiplier"
    ),
    "layer": "layer_idx block_idx layer_i layer_index layer_id",
    "scale": "scale",
    "none": "model_type",
}
# Names that are made of such words; those above come first.
_PATTERNS = {
    "drop(?!_?(last|path))": "dropout",
    r"^(n|num|nb|no|number_of)_(.*_)?(layers?|blocks)$": "n_layers",
    r"^(n|num|nb|number_of)_(kv|key_value)_?(heads?|groups?)$": "n_kv_heads",
    r"^(?!.*(kv|key|value|group))(n|num|nb|number_of)_(.*_)?heads?$": "n_heads",
    r"(layer_?norm|norm|ln).*eps": "layer_norm_eps",
    r"^(ff|ffn|ffwd|mlp|feed_?forward|fc|hidden|inner|intermediate|expansion|expand|widening)(_dim|_size|_width)?_"
    r"(scale|scaling|mult|multiplier|multiple|factor|ratio|rate|expansion)(_factor)?$": "ratio",
    r"^(n|num|nb|max|maximum)_?(ctx|context|positions?|seq_?len)$": "n_ctx",
    r"^(input|output|in|out|src|tgt|trg|source|target|token|char|word)_?vocab(ulary)?(_size|_len)?$": "d_vocab",
    r"^(qkv|attn|attention|c_attn|(out(put)?_)?proj|mlp|ffn?|ln|norm|linear|add|use|has|with|include)_bias$": "bias",
    r"^(use|has|with|add|include|enable)_(?!.*(pos|rel|mask|causal|alibi)).*_bias$": "bias",
}
# Choices between two: what GPT-2 does. A name that may also mean a module or a tensor counts only for a bool.
_FLAGS = {
    r"^(is_|use_)?(causal|masked|auto_?regressive)$|^(use_|apply_|is_)(causal_)?mask$|^(is_)?causal_?mask$": True,
    r"^mask$|^mask_future$|^is_decoder$|^decoder$": True,
    r"^(pre_?(ln|norm|layer_?norm)|norm_first|use_pre_?(ln|norm))$": True,
    r"^((use|apply|with|enable|is)_)?(rope|rotary|alibi)(_pos(itions)?|_emb(eddings?)?)?$": False,
    r"^(is_)?(cross|encoder)(_attn|_attention)?$|^add_cross_attention$": False,
    r"^((use|enable)_)?(flash|sdpa|(kv_?)?cache(_kv)?)(_attn|_attention)?$": False,
    r"^(return|output|log|store|save|keep|record|track)_(attn|attention)s?(_weights|_scores|_maps?)?$": False,
    r"^need_weights$": False,
    r"^(use_)?(gradient_|activation_)?checkpoint(ing)?$|^use_(gqa|moe|lora|swiglu|rms_?norm|qk_?norm)$": False,
}
# These change what a layer computes: its own default is not left to stand.
_DECIDE = re.compile("causal|mask|regressive|decoder|pre_?(ln|norm|layer)|norm_first|rope|rotary|alibi", re.I)
# What only other models have.
_FOREIGN = {
    r"rope|rotary|^theta$|alibi|freqs|^(cos|sin)$": "GPT-2 has no rotary positions",
    r"lora|^rank$": "GPT-2 has no low-rank parts",
}

# What the layers of a rung are called, as a rule.
CLASS_NAMES = {
    "embed": r"^(?!.*pos)(?!.*unemb).*emb",
    "pos-embed": r"pos.*(emb|enc)",
    "layer-norm": r"norm|^ln",
    "attention": r"att(entio)?n|mha|multi_?head|^(single|causal|masked|self)?_?heads?(_|$)",
    "mlp": r"mlp|feed_?fo?r?ward|ffn?$|ffwd|(position|point)_?wise|^ff",
    "block": r"block|decoder_?layer|encoder_?layer|^layer$|transformer_?layer",
    "unembed": r"unemb|lm_?head|output_?head",
    "model": r"gpt|transformer(?!.*(block|layer))|model|decoder$|lm$|bigram",
}


def flat(name: str) -> str:
    """Return a name in lower case, without "_"."""
    return name.lower().replace("_", "")


_CANONICAL = {flat(name): ours for ours, names in _NAMES.items() for name in names.split()}


def canonical(name: str) -> str | None:
    """Return our name for a size or choice, however it is spelled; None if it is not known.

    Example:
        >>> canonical("n_embd"), canonical("maxSeqLen"), canonical("colour")
        ('d_model', 'n_ctx', None)
    """
    found = _CANONICAL.get(flat(name))
    found = found or next((ours for pattern, ours in _PATTERNS.items() if re.search(pattern, name, re.I)), None)
    return found or by_words(name)


def flag(name: str) -> bool | None:
    """Return what GPT-2 does, if a name is that of a choice between two: ``is_causal``, ``use_rope``."""
    return next((value for pattern, value in _FLAGS.items() if re.search(pattern, name, re.I)), None)


def is_plain_flag(name: str) -> bool:
    """Return whether a name can mean nothing but a flag: ``use_cache`` as against ``cache``."""
    return bool(
        re.match(
            "(is|use|apply|with|enable|return|output|add|need|norm_first|pre|log|store|save|keep|record|track)_?",
            name,
            re.I,
        )
    ) or (flat(name) in ("causal", "masked", "autoregressive", "flash", "flashattention", "flashattn"))


def decides(name: str) -> bool:
    """Return whether a flag changes what a layer computes."""
    return bool(_DECIDE.search(name))


def foreign(name: str) -> str:
    """Return why GPT-2 cannot answer for a name, if it belongs to other models; otherwise an empty string."""
    return next((reason for pattern, reason in _FOREIGN.items() if re.search(pattern, name, re.I)), "")
