"""The one table of names and shapes: that it covers the model, and that both directions undo each other."""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptladder.assembly.config import GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.ladder.rungs import draw_case
from gptladder.weights.layout import TABLE, Format, WeightsError, axis_sizes, check_type, from_ours, rows, to_ours

CONFIGS = st.randoms(use_true_random=False).map(lambda source: full(draw_case(source).config))
FORMATS = [
    ("hf", False),
    ("hooked", False),
    ("bridge", False),
    ("bridge", True),
    ("ours", False),
    ("nanogpt", False),
    ("tensorflow", False),
    ("gguf", False),
]


def full(config: GPT2Config, *, bias: bool = True) -> GPT2Config:
    """With a projection of its own, so that every row of the table is used."""
    return dataclasses.replace(config, tie_word_embeddings=False, unembed_bias=bias)


def fitting(config: GPT2Config, kind: Format) -> GPT2Config:
    """With every parameter that the format has a place for."""
    if kind in ("nanogpt", "tensorflow"):
        return dataclasses.replace(config, tie_word_embeddings=True, unembed_bias=False)
    return full(config, bias=kind not in ("hf", "gguf"))


def random_state(config: GPT2Config, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = GPT2(config, device="meta").state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in shapes.items()}


def one_state(kind: Format) -> tuple[GPT2Config, dict[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    config = fitting(GPT2Config(d_model=6, n_layers=2, n_heads=2, d_head=3, d_mlp=8, d_vocab=11, n_ctx=5), kind)
    ours = random_state(config)
    return config, ours, from_ours(kind, config, ours)


@pytest.mark.parametrize(("kind", "conv1d"), FORMATS)
@given(config=CONFIGS)
@settings(max_examples=25)
def test_there_and_back_every_bit_is_the_same(kind: Format, conv1d: bool, config: GPT2Config) -> None:
    config = fitting(config, kind)
    ours = random_state(config)
    theirs = from_ours(kind, config, ours, bridge_conv1d=conv1d)
    assert sum(tensor.numel() for tensor in theirs.values()) == sum(tensor.numel() for tensor in ours.values())
    back = to_ours(kind, config, theirs, bridge_conv1d=conv1d)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


@pytest.mark.parametrize(("kind", "conv1d"), FORMATS)
@given(config=CONFIGS)
@settings(max_examples=10)
def test_the_table_declares_the_shapes_on_both_sides(kind: Format, conv1d: bool, config: GPT2Config) -> None:
    config = fitting(config, kind)
    ours = random_state(config)
    theirs = from_ours(kind, config, ours, bridge_conv1d=conv1d)
    sizes = axis_sizes(config)
    named = []
    for name, axes, foreign in rows(kind, config, bridge_conv1d=conv1d):
        assert [sizes[axis] for axis in axes.split()] == list(ours[name].shape), name
        assert all(theirs[key].shape == foreign.shape(sizes) for key in foreign.names)
        named.append(name)
    assert sorted(named) == sorted(ours)


def test_each_entry_lies_where_the_format_has_it() -> None:
    """Index by index, with no einops: the layouts of Hugging Face's Conv1D, of TransformerLens and of nn.Linear."""
    config, ours, hooked = one_state("hooked")
    _, _, bridge = one_state("bridge")
    conv1d = from_ours("bridge", config, ours, bridge_conv1d=True)
    hf = from_ours("hf", full(config, bias=False), ours)
    nanogpt = from_ours("nanogpt", fitting(config, "nanogpt"), ours)
    tensorflow = from_ours("tensorflow", fitting(config, "tensorflow"), ours)
    W_QKV, W_O = ours["blocks.1.attn.W_QKV"], ours["blocks.1.attn.W_O"]
    for part, letter in enumerate("QKV"):
        for head in range(2):
            for k in range(3):
                value, column = ours["blocks.1.attn.b_QKV"][part, head, k], 3 * head + k
                assert hf["h.1.attn.c_attn.bias"][6 * part + column] == value
                assert nanogpt["h.1.attn.c_attn.bias"][6 * part + column] == value
                assert tensorflow["model/h1/attn/c_attn/b"][6 * part + column] == value
                assert hooked[f"blocks.1.attn.b_{letter}"][head, k] == value
                assert bridge[f"blocks.1.attn.{letter.lower()}.bias"][column] == value
    for d in range(6):
        for head in range(2):
            for k in range(3):
                column = 3 * head + k
                for part, letter in enumerate("QKV"):
                    value = W_QKV[d, part, head, k]
                    assert hf["h.1.attn.c_attn.weight"][d, 6 * part + column] == value
                    assert nanogpt["h.1.attn.c_attn.weight"][6 * part + column, d] == value
                    assert tensorflow["model/h1/attn/c_attn/w"][0, d, 6 * part + column] == value
                    assert hooked[f"blocks.1.attn.W_{letter}"][head, d, k] == value
                    assert bridge[f"blocks.1.attn.{letter.lower()}.weight"][column, d] == value
                    assert conv1d[f"blocks.1.attn.{letter.lower()}.weight"][column, d] == value
                value = W_O[head, k, d]
                assert hf["h.1.attn.c_proj.weight"][column, d] == value
                assert nanogpt["h.1.attn.c_proj.weight"][d, column] == value
                assert tensorflow["model/h1/attn/c_proj/w"][0, column, d] == value
                assert hooked["blocks.1.attn.W_O"][head, k, d] == value
                assert bridge["blocks.1.attn.o.weight"][d, column] == value
                assert conv1d["blocks.1.attn.o.weight"][column, d] == value
        for m in range(8):
            value = ours["blocks.0.mlp.W_in"][d, m]
            assert hf["h.0.mlp.c_fc.weight"][d, m] == conv1d["blocks.0.mlp.in.weight"][d, m] == value
            assert bridge["blocks.0.mlp.in.weight"][m, d] == nanogpt["h.0.mlp.c_fc.weight"][m, d] == value
            assert tensorflow["model/h0/mlp/c_fc/w"][0, d, m] == value
            value = ours["blocks.0.mlp.W_out"][m, d]
            assert hf["h.0.mlp.c_proj.weight"][m, d] == conv1d["blocks.0.mlp.out.weight"][m, d] == value
            assert bridge["blocks.0.mlp.out.weight"][d, m] == nanogpt["h.0.mlp.c_proj.weight"][d, m] == value
            assert tensorflow["model/h0/mlp/c_proj/w"][0, m, d] == value
        for token in range(11):
            value = ours["unembed.W_U"][d, token]
            assert hf["lm_head.weight"][token, d] == hooked["unembed.W_U"][d, token] == value
            assert bridge["unembed.weight"][token, d] == conv1d["unembed.weight"][token, d] == value


def test_hugging_face_weights_are_viewed_not_copied() -> None:
    """What makes loading lean: of a Hugging Face state dict nothing is copied."""
    config, _, theirs = one_state("hf")
    storages = {tensor.untyped_storage().data_ptr() for tensor in theirs.values()}
    ours = to_ours("hf", config, theirs)
    assert {tensor.untyped_storage().data_ptr() for tensor in ours.values()} == storages
    assert all(tensor.is_contiguous() for name, tensor in ours.items() if name != "unembed.W_U")


@given(config=CONFIGS)
@settings(max_examples=10)
def test_a_part_is_the_part_of_the_whole(config: GPT2Config) -> None:
    theirs = from_ours("hooked", config, random_state(config))
    whole = to_ours("hooked", config, theirs)
    prefix = "blocks.0.attn."
    part = to_ours("hooked", config, {key: theirs[key] for key in theirs if key.startswith(prefix)}, part=prefix)
    assert part.keys() == {"blocks.0.attn." + name for name in ("W_QKV", "b_QKV", "W_O", "b_O")}
    assert all(torch.equal(part[name], whole[name]) for name in part)


@pytest.mark.parametrize("kind", ["hf", "hooked", "bridge", "ours", "nanogpt", "tensorflow"])
@given(source=st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_a_missing_a_foreign_and_a_misshapen_key_are_named(kind: Format, source: random.Random) -> None:
    config, _, theirs = one_state(kind)
    key = source.choice(sorted(theirs))

    with pytest.raises(WeightsError) as caught:
        to_ours(kind, config, {name: tensor for name, tensor in theirs.items() if name != key})
    assert str(caught.value) == f"missing: {key}"

    with pytest.raises(WeightsError) as caught:
        to_ours(kind, config, {**theirs, f"{key}.lora_A": theirs[key]})
    assert str(caught.value) == f"not a parameter of this model: {key}.lora_A"

    shape = list(theirs[key].shape)
    grown = [*shape[:-1], shape[-1] + 1]
    for wrong in (grown, [1, *shape], [theirs[key].numel() + 1]):
        with pytest.raises(WeightsError) as caught:
            dict(to_ours(kind, config, {**theirs, key: torch.zeros(wrong)}))
        assert f"{key} has the shape {wrong}, but the configuration asks for {shape}" in str(caught.value)

    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        with pytest.raises(WeightsError) as caught:
            dict(to_ours(kind, config, {**theirs, key: theirs[key].to(dtype)}))
        assert str(caught.value) == f"{key} holds {dtype}, not floating-point numbers"


def test_a_transposed_matrix_is_refused() -> None:
    config, _, theirs = one_state("hf")
    key = "h.1.mlp.c_fc.weight"
    with pytest.raises(
        WeightsError, match=r"h\.1\.mlp\.c_fc\.weight has the shape \[8, 6\].*\[6, 8\] \(d_model d_mlp\)"
    ):
        dict(to_ours("hf", config, {**theirs, key: theirs[key].T}))


def test_of_many_faults_five_are_named_and_the_rest_counted() -> None:
    config, _, theirs = one_state("hf")
    with pytest.raises(WeightsError) as caught:
        to_ours("hf", config, {})
    assert str(caught.value).endswith(f"(and {len(theirs) - 5} more)")
    assert str(caught.value).startswith("missing: wte.weight, wpe.weight, h.0.ln_1.weight, h.1.ln_1.weight, ")


def test_what_a_format_has_no_place_for_is_refused_not_dropped() -> None:
    config, ours, _ = one_state("hooked")
    with pytest.raises(WeightsError, match=r"unembed\.b_U has no place in the format 'hf'"):
        from_ours("hf", config, ours)
    post = GPT2Config(d_model=6, n_layers=1, n_heads=2, d_vocab=11, n_ctx=5, norm="post")
    for kind in ("nanogpt", "tensorflow"):
        with pytest.raises(WeightsError, match=rf"unembed\.W_U has no place in the format '{kind}'"):
            from_ours(kind, config, ours)
    for kind in ("hf", "hooked", "bridge", "nanogpt", "tensorflow"):
        with pytest.raises(WeightsError, match="post-norm"):
            from_ours(kind, post, GPT2(post).state_dict())


def test_a_bridge_is_a_native_models_by_default() -> None:
    config, ours, _ = one_state("bridge")
    assert list(rows("bridge", config)) == list(rows("bridge", config, bridge_conv1d=False))
    assert list(rows("bridge", config)) != list(rows("bridge", config, bridge_conv1d=True))
    key = "blocks.0.mlp.in.weight"
    theirs = from_ours("bridge", config, ours)
    assert theirs[key].shape == (config.d_mlp, config.d_model)
    assert torch.equal(to_ours("bridge", config, dict(theirs))["blocks.0.mlp.W_in"], theirs[key].T)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast(Any, TABLE[0]).ours = "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast(Any, TABLE[0].hf).axes = "x"


def test_a_post_norm_model_has_no_final_layer_norm() -> None:
    config = full(GPT2Config(d_model=4, n_layers=1, n_heads=2, d_vocab=5, n_ctx=3, norm="post"))
    names = [name for name, _, _ in rows("ours", config)]
    assert sorted(names) == sorted(GPT2(config, device="meta").state_dict())
    assert not any(name.startswith("ln_final") for name in names)


def test_three_tensors_are_stacked_in_the_order_of_their_names() -> None:
    config, _, hooked = one_state("hooked")
    back = to_ours("hooked", config, hooked)
    for part, letter in enumerate("QKV"):
        assert torch.equal(back["blocks.1.attn.W_QKV"][:, part].transpose(0, 1), hooked[f"blocks.1.attn.W_{letter}"])
        assert torch.equal(back["blocks.1.attn.b_QKV"][part], hooked[f"blocks.1.attn.b_{letter}"])


def test_more_layers_than_tensors_are_refused_before_any_is_named() -> None:
    config = GPT2Config(d_model=4, n_layers=10**9, n_heads=2, d_vocab=5, n_ctx=3)
    with pytest.raises(WeightsError, match="n_layers=1000000000, and there are 0 tensors"):
        to_ours("hf", config, {})


@pytest.mark.parametrize(("tensors", "most"), [(0, 100), (150, 150)])
def test_as_many_layers_as_tensors_and_up_to_100_are_looked_for_by_name(tensors: int, most: int) -> None:
    given = {f"odd{number}": torch.ones(1) for number in range(tensors)}
    sizes: dict[str, Any] = {"d_model": 4, "n_heads": 2, "d_vocab": 5, "n_ctx": 3}
    with pytest.raises(WeightsError, match="missing: "):
        to_ours("hf", GPT2Config(n_layers=most, **sizes), given)
    with pytest.raises(WeightsError, match=f"n_layers={most + 1}, and there are {tensors} tensors"):
        to_ours("hf", GPT2Config(n_layers=most + 1, **sizes), given)


@pytest.mark.parametrize("faults", [5, 6])
def test_the_count_of_unnamed_faults_begins_at_the_sixth(faults: int) -> None:
    config, _, theirs = one_state("hf")
    odd = {f"odd{number}": torch.ones(1) for number in range(faults)}
    with pytest.raises(WeightsError, match="not a parameter of this model: odd0, odd1, odd2, odd3, odd4") as caught:
        to_ours("hf", config, {**theirs, **odd})
    assert str(caught.value).endswith("odd4" if faults == 5 else "odd4 (and 1 more)")


def test_an_int_is_a_float_and_a_bool_is_neither() -> None:
    for value, kind in ((1, int), (1, float), (1.5, float), (True, bool), ("a", str)):
        check_type("config", "x", value, kind)
    for value, kind in ((True, int), (True, float), (1, bool), (1.0, int), ("1", int), (None, float)):
        with pytest.raises(WeightsError, match=f"config: x={value!r} is not of type {kind.__name__}"):
            check_type("config", "x", value, kind)
