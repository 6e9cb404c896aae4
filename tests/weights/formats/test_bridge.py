"""TransformerBridge's weights, in both orientations, against the bridge itself.

Run with TransformerLens 3 among the other tests, and with 4 by ``make test-bridge``: HookedTransformer is not used.
"""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from gptladder.assembly.config import GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.ladder.answers import randomize
from gptladder.weights import WeightsError, fold, from_bridge, from_hf, to_bridge_state_dict, to_hf
from gptladder.weights.formats.bridge import config_from_bridge

from .. import support

RANDOM = st.randoms(use_true_random=False)


def draw_config(source: random.Random) -> GPT2Config:
    """Return a configuration whose sizes all differ. (The ladder's own cases need TransformerLens below 4.)"""
    n_heads, d_head, *others = source.sample(range(2, 7), 2) + source.sample(range(7, 30), 4)
    d_mlp, d_vocab, n_ctx, d_model = others
    return GPT2Config(
        d_model=d_model,
        n_layers=source.choice([1, 2, 3]),
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=d_mlp,
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        act_fn=source.choice(["gelu_new", "gelu", "relu"]),
        layer_norm_eps=source.choice([1e-5, 1e-3]),
        tie_word_embeddings=source.random() < 0.5,
        unembed_bias=source.random() < 0.5,
    )


def hf_model(source: random.Random, dtype: torch.dtype = torch.float64, **changes: Any) -> transformers.GPT2LMHeadModel:
    sizes = draw_config(source)
    # A bridge has no scale_attn_weights. With a square MLP, its matrices are ambiguous.
    fixed = {"n_inner": sizes.d_mlp + (sizes.d_mlp == sizes.n_heads * sizes.d_head), "scale_attn_weights": True}
    config = support.hf_config(sizes, source, **{**fixed, **changes})
    return support.hf_model(config, source.getrandbits(32), dtype)


def bridged(hf: transformers.GPT2LMHeadModel) -> TransformerBridge:
    hf = copy.deepcopy(hf)  # a bridge takes the model that it wraps apart
    return build_bridge_from_module(hf, "GPT2LMHeadModel", hf_config=hf.config, tokenizer=None, device="cpu")


def native_config(**changes: Any) -> TransformerBridgeConfig:
    sizes = {"d_model": 6, "n_layers": 2, "n_heads": 2, "d_head": 3, "d_mlp": 10, "d_vocab": 11, "n_ctx": 7}
    return TransformerBridgeConfig(**{**sizes, "act_fn": "gelu_new", "seed": 0, "device": "cpu", **changes})


def native(**changes: Any) -> TransformerBridge:
    bridge = TransformerBridge.boot_native(native_config(**changes), dtype=torch.float64)
    randomize(bridge, torch.Generator().manual_seed(0))
    return bridge


@torch.no_grad()
def largest_difference(ours: GPT2, theirs: Any) -> float:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(ours.config.d_vocab, (3, ours.config.n_ctx), generator=generator)
    logits = theirs(tokens)
    return (ours(tokens) - getattr(logits, "logits", logits)).abs().max().item()


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@given(source=RANDOM)
@settings(max_examples=25)
def test_a_bridged_model_comes_in_with_its_logits_and_goes_out_bit_for_bit(source: random.Random) -> None:
    hf = hf_model(source)
    bridge = bridged(hf)
    ours = from_bridge(bridge)
    assert largest_difference(ours, hf) <= 1e-12
    assert largest_difference(ours, bridge) <= 1e-12
    assert ours.unembed.tied == hf.config.tie_word_embeddings
    assert same_bits(to_bridge_state_dict(ours, conv1d=True), dict(bridge.state_dict()))
    assert same_bits(dict(ours.state_dict()), dict(from_hf(hf).state_dict()))
    assert same_bits(dict(to_hf(ours).state_dict()), dict(hf.state_dict()))
    alone = from_bridge(dict(bridge.state_dict()), ours.config)
    assert alone.config == ours.config
    assert same_bits(dict(alone.state_dict()), dict(ours.state_dict()))


@given(source=RANDOM)
@settings(max_examples=25)
def test_a_native_model_comes_in_with_its_logits_and_goes_out_bit_for_bit(source: random.Random) -> None:
    config = draw_config(source)
    names = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn")
    bridge = native(**{name: getattr(config, name) for name in names}, eps=config.layer_norm_eps)
    ours = from_bridge(bridge)
    assert largest_difference(ours, bridge) <= 1e-12
    assert same_bits(to_bridge_state_dict(ours, conv1d=False), dict(bridge.state_dict()))
    alone = from_bridge(dict(bridge.state_dict()), ours.config)
    assert same_bits(dict(alone.state_dict()), dict(ours.state_dict()))


@pytest.mark.parametrize("conv1d", [True, False])
@given(source=RANDOM)
@settings(max_examples=10)
def test_ours_go_out_and_come_back_bit_for_bit(conv1d: bool, source: random.Random) -> None:
    config = draw_config(source)
    model = GPT2(config, dtype=torch.float64)
    randomize(model, torch.Generator().manual_seed(source.getrandbits(32)))
    back = from_bridge(to_bridge_state_dict(model, conv1d=conv1d), config)
    assert back.config == config
    assert same_bits(dict(back.state_dict()), dict(model.state_dict()))


def test_a_folder_gives_the_bridge_and_us_the_same_model(tmp_path: Path) -> None:
    hf = hf_model(random.Random(5), torch.float32)
    hf.save_pretrained(tmp_path)
    words = {"<|endoftext|>": 0, "a": 1}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="a")),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )
    tokenizer.save_pretrained(tmp_path)  # which the bridge would look for in the network
    bridge = TransformerBridge.boot_transformers(str(tmp_path))
    ours, read = from_bridge(bridge), GPT2.from_pretrained(tmp_path)
    assert same_bits(dict(ours.state_dict()), dict(read.state_dict()))
    assert largest_difference(ours.double(), hf.double()) <= 1e-12
    assert same_bits(dict(from_bridge(dict(bridge.state_dict()), bridge.cfg).state_dict()), dict(read.state_dict()))


def test_what_goes_out_is_what_a_bridge_can_load() -> None:
    model = GPT2(config_from_bridge(native_config()), dtype=torch.float64)
    randomize(model, torch.Generator().manual_seed(2))
    bridge = native()
    bridge.load_state_dict(to_bridge_state_dict(model, conv1d=False))
    assert largest_difference(model, bridge) <= 1e-12


def test_keys_that_name_the_wrapped_component_are_read() -> None:
    bridge = native()
    state = {
        ".".join([*key.split(".")[:-1], "_original_component", key.split(".")[-1]]): tensor
        for key, tensor in bridge.state_dict().items()
    }
    assert "blocks.1.mlp.in._original_component.weight" in state
    expected = from_bridge(bridge)
    assert same_bits(dict(from_bridge(state, expected.config).state_dict()), dict(expected.state_dict()))
    state["embed.weight"] = torch.zeros_like(state["embed._original_component.weight"])
    with pytest.raises(WeightsError, match=r"^embed\.weight is there twice"):
        from_bridge(state, expected.config)


@pytest.mark.parametrize("options", [{}, {"no_processing": True}, {"fold_ln": False}])
def test_a_bridge_in_compatibility_mode_gives_what_it_computes(options: dict[str, Any]) -> None:
    """Its weights are processed then, in float32; the result is compared in float64."""
    bridge = bridged(hf_model(random.Random(4), torch.float32))
    raw = from_bridge(bridge).double()
    bridge.enable_compatibility_mode(disable_warnings=True, **options)
    bridge = bridge.to(torch.float64)
    ours = from_bridge(bridge)
    assert largest_difference(ours, bridge) <= 1e-12
    tokens = torch.arange(ours.config.n_ctx)[None] % ours.config.d_vocab
    assert (ours(tokens).log_softmax(-1) - raw(tokens).log_softmax(-1)).abs().max() <= 5e-5
    assert same_bits(dict(ours.state_dict()), dict(raw.state_dict())) == ("no_processing" in options)
    expected = raw if "no_processing" in options else fold(raw, **options)
    assert ours.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert (ours.state_dict()[name] - tensor).abs().max() <= 5e-6, name


def test_scale_attn_weights_is_taken_as_the_bridge_takes_it() -> None:
    """TransformerLens does not hand this field of Hugging Face's on: the bridge scales, and so do we."""
    hf = hf_model(random.Random(0), n_layer=2, n_head=3, n_embd=12, scale_attn_weights=False)
    bridge = bridged(hf)
    assert largest_difference(from_hf(hf), bridge) > 1e-3
    assert largest_difference(from_bridge(bridge), bridge) <= 1e-12


# Refused.


@pytest.mark.parametrize("conv1d", [True, False])
def test_square_matrices_are_refused_for_nothing_tells_their_orientation(conv1d: bool) -> None:
    config = GPT2Config(d_model=6, n_layers=1, n_heads=2, d_mlp=6, d_vocab=11, n_ctx=7)
    with pytest.raises(WeightsError, match="d_mlp = d_model = 6"):
        from_bridge(to_bridge_state_dict(GPT2(config), conv1d=conv1d), config)
    with pytest.raises(WeightsError, match="d_mlp = d_model = 6"):
        from_bridge(native(d_mlp=6))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_scores_soft_cap", 5.0),
        ("output_logits_soft_cap", 5.0),
        ("attention_dir", "bidirectional"),
        ("attn_scale", 2.5),
        ("normalization_type", "RMS"),
        ("positional_embedding_type", "rotary"),
        ("gated_mlp", True),
        ("attn_only", True),
        ("final_rms", True),
        ("uses_rms_norm", True),
        ("n_key_value_heads", 1),
        ("d_vocab_out", 5),
        ("act_fn", "silu"),
        ("parallel_attn_mlp", True),
        ("use_qk_norm", True),
        ("scale_embedding", True),
        ("num_experts", 3),
        ("architecture", "OPTForCausalLM"),
        ("is_multimodal", True),
    ],
)
def test_what_is_no_gpt2_is_refused_by_field(field: str, value: Any) -> None:
    """Most of these are no dataclass fields of the bridge's configuration, as they are of HookedTransformer's."""
    with pytest.raises(WeightsError) as caught:
        config_from_bridge(native_config(**{field: value}))
    assert f"TransformerBridgeConfig: {field}={value!r}" in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("use_attn_scale", False), ("scale_attn_by_inverse_layer_idx", True)])
def test_what_a_native_model_takes_no_notice_of_is_refused(field: str, value: bool) -> None:
    """Its attention computes the same with these set: to carry them over would change the model."""
    bridge, usual = native(**{field: value}), native()
    tokens = torch.arange(7)[None]
    assert torch.equal(bridge(tokens), usual(tokens))
    with pytest.raises(WeightsError, match=f"{field}={value}"):
        from_bridge(bridge)


@pytest.mark.parametrize("conv1d", [True, False])
@given(source=RANDOM)
@settings(max_examples=15)
def test_a_wrong_key_is_named_whatever_it_is(conv1d: bool, source: random.Random) -> None:
    config = config_from_bridge(native_config())
    state = to_bridge_state_dict(GPT2(config), conv1d=conv1d)
    key = source.choice(sorted(state))

    def message(state: dict[str, Tensor]) -> str:
        with pytest.raises(WeightsError) as caught:
            from_bridge(state, config)
        return str(caught.value)

    less = {name: tensor for name, tensor in state.items() if name != key}
    other_orientation = conv1d and key == "blocks.0.mlp.in.weight"  # what tells which it is
    assert message(less) == f"missing: {key}"
    assert message({**state, key + "2": state[key]}) == f"not a parameter of this model: {key}2"
    if not other_orientation:
        assert f"{key} has the shape " in message({**state, key: state[key][None]})
    assert message({**state, key: state[key].long()}) == f"{key} holds torch.int64, not floating-point numbers"


def test_orientations_that_contradict_each_other_are_refused() -> None:
    config = config_from_bridge(native_config())
    model = GPT2(config)
    conv1d, linear = (to_bridge_state_dict(model, conv1d=choice) for choice in (True, False))
    key = "blocks.1.mlp.in.weight"
    with pytest.raises(WeightsError, match=rf"{key} has the shape \[10, 6\].*\[6, 10\]"):
        from_bridge({**conv1d, key: linear[key]}, config)
    with pytest.raises(WeightsError, match=rf"{key} has the shape \[6, 10\].*\[10, 6\]"):
        from_bridge({**linear, key: conv1d[key]}, config)
