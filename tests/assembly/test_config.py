"""The configuration: presets, defaults that follow from other sizes, and what it refuses."""

import dataclasses
import inspect
import re
from typing import Any

import pytest

from gptladder import GPT2, PRESETS, GPT2Config


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("distilgpt2", 81_912_576),
    ],
)
def test_the_published_models_have_as_many_parameters_as_published(preset: str, parameters: int) -> None:
    model = GPT2(GPT2Config.preset(preset), device="meta")
    assert model.num_parameters() == parameters
    untied = GPT2(GPT2Config.preset(preset, tie_word_embeddings=False), device="meta")
    assert untied.num_parameters() == parameters + 50257 * PRESETS[preset].d_model


def test_transformers_agrees_on_every_preset() -> None:
    transformers = pytest.importorskip("transformers")
    from gptladder.weights.formats.huggingface import config_to_hf

    plain = transformers.GPT2Config()
    assert (plain.layer_norm_epsilon, plain.initializer_range) == (GPT2Config().layer_norm_eps, GPT2Config().init_range)
    for config in PRESETS.values():
        theirs = transformers.GPT2Config(**config_to_hf(config))
        assert (theirs.n_embd, theirs.n_layer, theirs.n_head) == (config.d_model, config.n_layers, config.n_heads)
        assert theirs.n_embd // theirs.n_head == config.d_head == 64


def test_widths_that_are_not_given_follow() -> None:
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
def test_the_scale_of_the_scores_follows_the_flags(flags: dict[str, Any], scales: list[float]) -> None:
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
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf; it must be a finite number above 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_number(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT2Config(**wrong)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(GPT2Config)])
@pytest.mark.parametrize("value", ["12", [1], object(), 1j, "yes"], ids=lambda value: type(value).__name__)
def test_a_value_of_the_wrong_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is "):
        GPT2Config(**{field: value})


@pytest.mark.parametrize("field", ["tie_word_embeddings", "unembed_bias", "scale_attn_weights"])
@pytest.mark.parametrize("value", [0, 1, None, "no"])
def test_a_flag_is_true_or_false(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}; it can be True or False"):
        GPT2Config(**{field: value})


def test_sizes_may_be_numpys() -> None:
    numpy = pytest.importorskip("numpy")
    config = GPT2Config(**{name: numpy.int64(12) for name in ("d_model", "n_layers", "n_heads", "d_vocab", "n_ctx")})
    assert config == GPT2Config(d_model=12, n_layers=12, n_heads=12, d_vocab=12, n_ctx=12)
    assert {type(getattr(config, name)) for name in ("d_model", "d_head", "d_mlp", "d_vocab")} == {int}


def test_an_unknown_preset_is_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match="'gpt3'; there are gpt2, gpt2-medium"):
        GPT2Config.preset("gpt3")


def test_it_cannot_be_changed_in_place() -> None:
    config = GPT2Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layers = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert dataclasses.replace(config, n_layers=3).n_layers == 3


def test_every_field_is_described_under_its_own_name() -> None:
    text = inspect.getdoc(GPT2Config) or ""
    described = re.findall(r"^    (\w+): \S", text, flags=re.MULTILINE)
    assert sorted(described) == sorted([*(field.name for field in dataclasses.fields(GPT2Config)), "ValueError"])


@pytest.mark.parametrize("size", ["d_model", "n_layers", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx"])
@pytest.mark.parametrize("value", [-1, True, 2.0])
def test_every_size_is_a_whole_number_of_at_least_1(size: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{size} is {value}"):
        GPT2Config(**{"d_head": 4, "d_mlp": 4, size: value})
    smallest: dict[str, Any] = {"d_head": 4, size: 1}
    assert getattr(GPT2Config(**smallest), size) == 1


@pytest.mark.parametrize("dropout", ["embed_dropout", "attn_dropout", "resid_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_every_dropout_is_a_probability(dropout: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{dropout} is {value}"):
        GPT2Config(**{dropout: value})


def test_a_size_is_used_by_the_layer_it_is_for() -> None:
    config = GPT2Config(d_model=10, n_layers=3, n_heads=2, d_head=4, d_mlp=7, d_vocab=11, n_ctx=9, layer_norm_eps=0.1)
    config = dataclasses.replace(config, attn_dropout=0.1, resid_dropout=0.2, act_fn="relu", unembed_bias=True)
    model = GPT2(config)
    block = model.blocks[2]
    assert (len(model.blocks), block.attn.n_heads, block.attn.d_head, block.mlp.d_mlp) == (3, 2, 4, 7)
    assert (block.attn.dropout, block.resid_dropout, block.mlp.act_fn) == (0.1, 0.2, "relu")
    assert model.embed.W_E.shape == (11, 10)
    assert model.pos_embed.W_pos.shape == (9, 10)
    assert model.unembed.b_U is not None
    assert {block.ln1.layer_norm_eps, block.ln2.layer_norm_eps, model.ln_final.layer_norm_eps} == {0.1}


def test_sizes_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        GPT2Config(768)  # pyright: ignore[reportCallIssue]


def test_one_head_is_as_wide_as_the_model() -> None:
    assert GPT2Config(d_model=8, n_heads=1).d_head == 8
