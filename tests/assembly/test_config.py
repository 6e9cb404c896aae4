"""The configuration: presets, defaults that follow from other sizes, and what it refuses."""

import dataclasses

import pytest

from gptladder import GPT2, PRESETS, GPT2Config


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_published_models_have_as_many_parameters_as_published(preset, parameters):
    model = GPT2(GPT2Config.preset(preset), device="meta")
    assert model.num_parameters() == parameters
    untied = GPT2(GPT2Config.preset(preset, tie_word_embeddings=False), device="meta")
    assert untied.num_parameters() == parameters + 50257 * PRESETS[preset].d_model


def test_transformers_agrees_on_every_preset():
    transformers = pytest.importorskip("transformers")
    from gptladder.weights.formats.huggingface import config_to_hf

    for config in PRESETS.values():
        theirs = transformers.GPT2Config(**config_to_hf(config))
        assert (theirs.n_embd, theirs.n_layer, theirs.n_head) == (config.d_model, config.n_layers, config.n_heads)
        assert theirs.n_embd // theirs.n_head == config.d_head == 64


def test_widths_that_are_not_given_follow():
    config = GPT2Config(d_model=12, n_heads=3)
    assert (config.d_head, config.d_mlp) == (4, 48)
    assert GPT2Config(d_model=10, n_heads=3, d_head=4).d_head == 4


@pytest.mark.parametrize(
    ("flags", "scales"),
    [
        ({}, [0.5, 0.5]),
        ({"scale_attn_weights": False}, [1.0, 1.0]),
        ({"scale_attn_by_inverse_layer_idx": True}, [0.5, 0.25]),
        ({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, [1.0, 0.5]),
    ],
)
def test_the_scale_of_the_scores_follows_the_flags(flags, scales):
    config = GPT2Config(d_model=12, n_heads=3, n_layers=2, d_vocab=5, n_ctx=4, **flags)
    assert [config.attn_scale(layer) for layer in range(2)] == scales
    assert [block.attn.scale for block in GPT2(config).blocks] == scales


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_heads": 5}, "n_heads=5 does not divide d_model=768"),
        ({"d_model": 0, "d_head": 4}, "d_model is 0"),
        ({"n_layers": -1}, "n_layers is -1"),
        ({"n_heads": 0}, "n_heads is 0"),
        ({"n_ctx": 2.5}, "n_ctx is 2.5"),
        ({"act_fn": "swish"}, "act_fn is 'swish'; it can be gelu_new, gelu, relu"),
        ({"norm": "both"}, "norm is 'both'; it can be pre, post"),
        ({"attn_dropout": 1.0}, r"attn_dropout is 1.0; it must be in \[0, 1\)"),
        ({"resid_dropout": float("nan")}, "resid_dropout is nan"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_number(wrong, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**wrong)


def test_an_unknown_preset_is_answered_with_the_known():
    with pytest.raises(ValueError, match="'gpt3'; there are gpt2, gpt2-medium"):
        GPT2Config.preset("gpt3")


def test_it_cannot_be_changed_in_place():
    config = GPT2Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layers = 3
    assert dataclasses.replace(config, n_layers=3).n_layers == 3
