"""Hugging Face's GPT-2 in memory: configuration and state dict, both ways, against transformers itself."""

import copy
import dataclasses
import itertools
import json
import random
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptladder.assembly.config import PRESETS, GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.ladder.answers import randomize
from gptladder.ladder.rungs import draw_case
from gptladder.weights import WeightsError, from_hf, to_hf
from gptladder.weights.formats.huggingface import config_from_hf, config_to_hf, without_unembed_bias

from .. import support
from ..support import hf_model

RANDOM = st.randoms(use_true_random=False)


def hf_config(source: random.Random, **changes: Any) -> transformers.GPT2Config:
    act_fn = {"activation_function": source.choice(["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"])}
    return support.hf_config(draw_case(source).config, source, **{**act_fn, **changes})


def small(**changes: Any) -> transformers.GPT2Config:
    return hf_config(random.Random(3), tie_word_embeddings=True, **changes)


def tokens_for(config: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (3, config.n_positions), generator=generator)


@torch.no_grad()
def largest_difference(ours: GPT2, hf: transformers.GPT2LMHeadModel) -> float:
    tokens = tokens_for(hf.config)
    return (ours(tokens) - hf(tokens).logits).abs().max().item()


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@given(source=RANDOM)
@settings(max_examples=40)
def test_a_model_comes_in_with_its_logits_and_goes_out_bit_for_bit(source: random.Random) -> None:
    hf = hf_model(hf_config(source), source.getrandbits(32))
    ours = from_hf(hf)
    assert largest_difference(ours, hf) <= 1e-12
    back = to_hf(ours)
    assert same_bits(dict(back.state_dict()), dict(hf.state_dict()))
    assert (back.lm_head.weight is back.transformer.wte.weight) == hf.config.tie_word_embeddings
    assert not back.training
    tokens = tokens_for(hf.config)
    # The tanh of gelu_pytorch_tanh goes out as gelu_new, which rounds differently.
    exact = hf.config.activation_function != "gelu_pytorch_tanh"
    assert (back(tokens).logits - hf(tokens).logits).abs().max() <= (0 if exact else 1e-12)
    assert same_bits(dict(from_hf(back).state_dict()), dict(ours.state_dict()))


@given(source=RANDOM, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=10)
def test_bits_are_kept_in_every_dtype(source: random.Random, dtype: torch.dtype) -> None:
    hf = hf_model(hf_config(source), source.getrandbits(32), dtype)
    ours = from_hf(hf)
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    assert same_bits(dict(to_hf(ours).state_dict()), dict(hf.state_dict()))


@given(source=RANDOM)
@settings(max_examples=20)
def test_every_spelling_of_the_state_dict_is_the_same_model(source: random.Random) -> None:
    hf = hf_model(hf_config(source))
    expected = dict(from_hf(hf).state_dict())
    tied, n = hf.config.tie_word_embeddings, hf.config.n_positions
    buffers = {f"transformer.h.{i}.attn.bias": torch.ones(n, n).tril()[None, None] for i in range(hf.config.n_layer)}
    buffers |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, n, n, dtype=torch.uint8) for i in range(1)}
    buffers |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(hf.config.n_layer)}
    for prefix, masks, head in itertools.product((True, False), (True, False), (True, False) if tied else (True,)):
        state = dict(hf.state_dict()) | (buffers if masks else {})
        if not head:
            del state["lm_head.weight"]
        state = {key if prefix else key.removeprefix("transformer."): tensor for key, tensor in state.items()}
        assert same_bits(dict(from_hf(state, hf.config).state_dict()), expected)
        assert same_bits(dict(from_hf(state, hf.config.to_dict()).state_dict()), expected)


def test_a_head_kept_as_a_copy_is_taken_for_the_embedding() -> None:
    hf = hf_model(small())
    state = dict(hf.state_dict())
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    ours = from_hf(state, hf.config)
    assert ours.unembed.tied
    assert largest_difference(ours, hf) <= 1e-12


@given(source=RANDOM)
@settings(max_examples=10)
def test_a_model_without_a_head_is_read(source: random.Random) -> None:
    hf = hf_model(hf_config(source, tie_word_embeddings=True))
    ours = from_hf(hf.transformer)
    assert largest_difference(ours, hf) <= 1e-12


def test_a_model_without_a_head_but_untied_lacks_it() -> None:
    bare = transformers.GPT2Model(hf_config(random.Random(0), tie_word_embeddings=False))
    with pytest.raises(WeightsError, match=r"^missing: lm_head\.weight$"):
        from_hf(bare)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("activation_function", "relu"),
        ("activation_function", "gelu"),
        ("layer_norm_epsilon", 0.1),
        ("n_inner", 7),
        ("tie_word_embeddings", False),
        ("n_head", 2),
    ],
)
def test_each_field_that_changes_the_arithmetic_is_carried_both_ways(field: str, value: Any) -> None:
    sizes = {"vocab_size": 17, "n_positions": 9, "n_embd": 12, "n_layer": 3, "n_head": 3, "n_inner": None}
    plain = {**sizes, "bos_token_id": None, "eos_token_id": None}
    usual = transformers.GPT2Config(**plain)
    hf = hf_model(transformers.GPT2Config(**{**plain, field: value}))
    tokens = tokens_for(usual)
    if field not in ("n_inner", "tie_word_embeddings"):  # with those the weights themselves are others
        assert (hf_model(usual)(tokens).logits - hf(tokens).logits).abs().max() > 1e-4
    ours = from_hf(hf)
    assert largest_difference(ours, hf) <= 1e-12
    assert largest_difference(ours, to_hf(ours)) <= 1e-12
    assert getattr(to_hf(ours).config, field) == value


def test_dropout_is_carried_both_ways() -> None:
    fields = small(resid_pdrop=0.2, embd_pdrop=0.3, attn_pdrop=0.4, initializer_range=0.05).to_dict()
    ours = config_from_hf(fields)
    assert (ours.resid_dropout, ours.embed_dropout, ours.attn_dropout, ours.init_range) == (0.2, 0.3, 0.4, 0.05)
    back = config_to_hf(ours)
    assert all(back[name] == fields[name] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range"))


def test_where_the_file_is_silent_the_defaults_are_transformers() -> None:
    ours = config_from_hf({"model_type": "gpt2"})
    assert ours == config_from_hf(transformers.GPT2Config().to_dict())
    assert (ours.resid_dropout, ours.embed_dropout, ours.attn_dropout) == (0.1, 0.1, 0.1)


@given(source=RANDOM)
@settings(max_examples=40)
def test_a_configuration_goes_out_and_comes_back(source: random.Random) -> None:
    ours = config_from_hf(hf_config(source).to_dict())
    assert config_from_hf(config_to_hf(ours)) == ours
    assert config_from_hf(transformers.GPT2Config(**config_to_hf(ours)).to_dict()) == ours
    assert config_from_hf(json.loads(json.dumps(config_to_hf(ours)))) == ours


# Configurations that are out there.

PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
LARGER = {"n_special": 0, "predict_special_tokens": True}
FILES = {
    "gpt2": {},
    "gpt2-medium": {**LARGER, "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {**LARGER, "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {**LARGER, "n_embd": 1600, "n_layer": 48, "n_head": 25, "output_past": True},
    "distilgpt2": {"n_layer": 6, "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
}
# What transformers 2 to 4 wrote besides, from their PretrainedConfig.to_dict().
OLDER = json.loads("""{
    "return_dict": true, "output_hidden_states": false, "output_attentions": false, "torchscript": false,
    "torch_dtype": "float32", "use_bfloat16": false, "tf_legacy_loss": false, "pruned_heads": {},
    "xla_device": null, "tie_word_embeddings": true, "chunk_size_feed_forward": 0, "is_encoder_decoder": false,
    "is_decoder": false, "cross_attention_hidden_size": null, "add_cross_attention": false,
    "tie_encoder_decoder": false, "max_length": 20, "min_length": 0, "do_sample": false, "early_stopping": false,
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "bad_words_ids": null, "num_return_sequences": 1, "output_scores": false,
    "return_dict_in_generate": false, "forced_bos_token_id": null, "forced_eos_token_id": null,
    "remove_invalid_values": false, "exponential_decay_length_penalty": null, "suppress_tokens": null,
    "begin_suppress_tokens": null, "finetuning_task": null, "id2label": {"0": "A", "1": "B"},
    "label2id": {"A": 0, "B": 1}, "num_labels": 2, "tokenizer_class": null, "prefix": null, "pad_token_id": null,
    "sep_token_id": null, "eos_token_ids": 0, "decoder_start_token_id": null, "problem_type": null,
    "_name_or_path": "gpt2", "use_cache": true, "transformers_version": "4.57.1",
    "_attn_implementation_autoset": true, "attn_implementation": null, "gradient_checkpointing": false,
    "n_inner": null, "reorder_and_upcast_attn": false, "scale_attn_weights": true,
    "scale_attn_by_inverse_layer_idx": false, "_output_attentions": false, "dtype": "float32"
}""")


@pytest.mark.parametrize("name", FILES)
def test_published_configurations_are_the_presets(name: str) -> None:
    dropout = {"resid_dropout": 0.1, "embed_dropout": 0.1, "attn_dropout": 0.1}
    expected = dataclasses.replace(PRESETS[name], **dropout)
    assert config_from_hf({**PUBLISHED, **FILES[name]}) == expected
    assert config_from_hf({**OLDER, **PUBLISHED, **FILES[name]}) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gptj"),
        ("model_type", "gpt_bigcode"),
        ("add_cross_attention", True),
        ("reorder_and_upcast_attn", 1),
        ("is_encoder_decoder", True),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("pruned_heads", {"0": [1]}),
        ("activation_function", "silu"),
        ("activation_function", "gelu_fast"),
        ("activation_function", None),
        ("activation_function", ["gelu"]),
        ("rotary_dim", 64),
        ("multi_query", True),
        ("alibi", False),
        ("scale_attn_weights", "false"),
        ("scale_attn_weights", None),
        ("tie_word_embeddings", 0),
        ("layer_norm_epsilon", "1e-5"),
        ("layer_norm_epsilon", True),
        ("n_layer", 12.0),
        ("n_embd", None),
        ("vocab_size", "50257"),
        ("resid_pdrop", None),
    ],
)
def test_what_would_change_the_arithmetic_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(WeightsError) as caught:
        config_from_hf({**PUBLISHED, field: value})
    assert f"{field}={value!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 7}, "n_heads=7 does not divide d_model=768"),
        ({"n_head": 0}, "n_heads is 0"),
        ({"n_layer": -1}, "n_layers is -1"),
        ({"n_inner": -3}, "d_mlp is -3"),
        ({"vocab_size": 0}, "d_vocab is 0"),
        ({"n_positions": 0}, "n_ctx is 0"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_eps is 0.0"),
        ({"attn_pdrop": 1.5}, "attn_dropout is 1.5"),
    ],
)
def test_sizes_that_make_no_model_are_refused_with_the_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match="config: ") as caught:
        config_from_hf({**PUBLISHED, **changes})
    assert message in str(caught.value)


# State dicts that are wrong.


def refusal(state: dict[str, Tensor], config: transformers.GPT2Config | dict[str, Any]) -> str:
    with pytest.raises(WeightsError) as caught:
        from_hf(state, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused() -> None:
    hf = hf_model(small())
    head = hf.lm_head.weight.detach()
    for other in (head + 1e-9, head[:-1], head[:, :-1], head.flatten()[:1]):
        message = refusal({**hf.state_dict(), "lm_head.weight": other}, hf.config)
        assert "lm_head.weight differs from wte.weight" in message
        assert "tie_word_embeddings" in message


def test_a_key_that_is_there_twice_is_refused() -> None:
    hf: Any = hf_model(small())
    state = {**hf.state_dict(), "h.0.mlp.c_fc.bias": hf.transformer.h[0].mlp.c_fc.bias}
    assert "h.0.mlp.c_fc.bias is there twice" in refusal(state, hf.config)


@given(source=RANDOM)
@settings(max_examples=15)
def test_a_wrong_key_is_named_whatever_it_is(source: random.Random) -> None:
    hf = hf_model(hf_config(source))
    state = dict(hf.state_dict())
    key = source.choice([key for key in state if key != "lm_head.weight"])
    name = key.removeprefix("transformer.")
    less = {other: tensor for other, tensor in state.items() if other != key}
    assert f"missing: {name}" in refusal(less, hf.config)
    assert refusal({**state, key + "_new": state[key]}, hf.config).endswith(f": {name}_new")
    if hf.config.tie_word_embeddings:
        del state["lm_head.weight"]  # which would be found to differ first
    longer = torch.cat([state[key], state[key][:1]])
    assert f"{name} has the shape {list(longer.shape)}" in refusal({**state, key: longer}, hf.config)
    assert refusal({**state, key: state[key].int()}, hf.config).startswith(f"{name} holds torch.int32")


@pytest.mark.parametrize("change", [("n_layer", 1), ("n_layer", 4), ("n_positions", 12), ("vocab_size", 12)])
def test_a_configuration_of_another_model_is_refused(change: tuple[str, int]) -> None:
    hf = hf_model(small(n_layer=2, n_positions=10, vocab_size=20))
    fields = {**hf.config.to_dict(), change[0]: change[1]}
    layer = {1: "not a parameter of this model: h.1.", 4: "missing: h.2."}
    assert layer.get(change[1], f"[{change[1]}, ") in refusal(dict(hf.state_dict()), fields)


def test_heads_for_another_task_are_refused_by_name() -> None:
    config = small(num_labels=2, pad_token_id=0)
    assert "score.weight" in refusal(transformers.GPT2ForSequenceClassification(config).state_dict(), config)


def test_a_mixture_of_dtypes_is_refused() -> None:
    hf = hf_model(small(), dtype=torch.float32)
    state = {**hf.state_dict(), "transformer.ln_f.bias": hf.transformer.ln_f.bias.detach().half()}
    message = refusal(state, hf.config)
    assert "ln_final.b is torch.float16" in message
    assert "is torch.float32" in message


def test_a_bare_state_dict_needs_its_configuration() -> None:
    with pytest.raises(TypeError, match="config"):
        from_hf(hf_model(small()).state_dict())


# Out of ours, what transformers' GPT-2 has no place for.


def biased(source: random.Random, *, tied: bool, folded: bool) -> GPT2:
    """A model of ours with a bias on its logits; with layer norms as TransformerLens's folding leaves them, or not."""
    config = dataclasses.replace(
        config_from_hf(hf_config(source, tie_word_embeddings=tied).to_dict()), unembed_bias=True
    )
    model = GPT2(config, dtype=torch.float64).eval()
    randomize(model, torch.Generator().manual_seed(source.getrandbits(32)))
    if folded:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".ln" in f".{name}":
                    parameter.fill_(float(name.endswith("w")))
    return model


@given(source=RANDOM, tied=st.booleans(), folded=st.booleans())
@settings(max_examples=30)
def test_a_bias_on_the_logits_is_carried(source: random.Random, tied: bool, folded: bool) -> None:
    model = biased(source, tied=tied, folded=folded)
    assert model.unembed.b_U is not None
    assert model.unembed.b_U.abs().max() > 1e-3
    state = copy.deepcopy(model.state_dict())
    hf = to_hf(model)
    assert not hf.config.tie_word_embeddings
    assert largest_difference(model, hf) <= 1e-11
    assert same_bits(dict(model.state_dict()), dict(state))
    assert largest_difference(from_hf(hf), hf) <= 1e-12


@given(source=RANDOM, tied=st.booleans())
@settings(max_examples=10)
def test_a_bias_of_zeros_is_left_out_bit_for_bit(source: random.Random, tied: bool) -> None:
    model = biased(source, tied=tied, folded=False)
    assert model.unembed.b_U is not None
    torch.nn.init.zeros_(model.unembed.b_U)
    config, rest = without_unembed_bias(model.config, model.state_dict())
    assert (config.unembed_bias, config.tie_word_embeddings) == (False, tied)
    assert same_bits(dict(rest), {name: tensor for name, tensor in model.state_dict().items() if name != "unembed.b_U"})
    assert largest_difference(model, to_hf(model)) <= 1e-12


def test_a_bias_is_carried_in_float64_whatever_the_weights_are() -> None:
    """In float32 the only rounding is of the result: within a few units in the last place of the exact projection."""
    model = biased(random.Random(5), tied=False, folded=False)
    _, exact = without_unembed_bias(model.config, model.state_dict())
    single = model.float()
    _, rounded = without_unembed_bias(single.config, single.state_dict())
    assert rounded["unembed.W_U"].dtype == torch.float32
    error = (rounded["unembed.W_U"] - exact["unembed.W_U"]).abs().max() / exact["unembed.W_U"].abs().max()
    assert 0 < error < 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("bias", [0.0, 1.0])
@pytest.mark.parametrize(("changes", "message"), [({"d_head": 5}, r"2 \* 5 is not 6"), ({"norm": "post"}, "post-norm")])
def test_what_transformers_cannot_hold_is_refused(changes: dict[str, Any], message: str, bias: float) -> None:
    config = GPT2Config(d_model=6, n_layers=1, n_heads=2, d_vocab=11, n_ctx=5, unembed_bias=True, **changes)
    model = GPT2(config)
    assert model.unembed.b_U is not None
    torch.nn.init.constant_(model.unembed.b_U, bias)
    with pytest.raises(WeightsError, match=message):
        to_hf(model)
