"""HookedTransformer's weights, raw and processed, against HookedTransformer itself."""

import copy
import dataclasses
import itertools
import random
from typing import Any

import pytest
import torch
import transformer_lens
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptladder.assembly.config import GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.ladder.answers import randomize
from gptladder.ladder.rungs import draw_case
from gptladder.weights import (
    WeightsError,
    from_hf,
    from_hooked_transformer,
    to_hf,
    to_hooked_state_dict,
    to_hooked_transformer,
)
from gptladder.weights.formats.hooked_transformer import config_from_hooked, hooked_config_fields

from ..support import FLAGS

RANDOM = st.randoms(use_true_random=False)


def lens_config(
    source: random.Random, dtype: torch.dtype = torch.float64, **changes: Any
) -> transformer_lens.HookedTransformerConfig:
    """Drawn, and written field by field: nothing of ours translates it."""
    ours = draw_case(source).config
    fields = {
        "d_model": ours.d_model,
        "n_layers": ours.n_layers,
        "n_heads": ours.n_heads,
        "d_head": ours.d_head,
        "d_mlp": ours.d_mlp,
        "d_vocab": ours.d_vocab,
        "n_ctx": ours.n_ctx,
        "act_fn": source.choice(["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"]),
        "eps": ours.layer_norm_eps,
        "use_attn_scale": source.random() < 0.7,
        "scale_attn_by_inverse_layer_idx": source.random() < 0.3,
        "normalization_type": "LN",
        "init_weights": False,
        "device": "cpu",
        "dtype": dtype,
    }
    return transformer_lens.HookedTransformerConfig(**{**fields, **changes})


def lens_model(
    cfg: transformer_lens.HookedTransformerConfig, seed: int = 0, *, tied: bool = False
) -> transformer_lens.HookedTransformer:
    hooked = transformer_lens.HookedTransformer(copy.deepcopy(cfg)).eval()
    randomize(hooked, torch.Generator().manual_seed(seed))
    if tied:
        with torch.no_grad():
            hooked.unembed.W_U.copy_(hooked.embed.W_E.T)
            hooked.unembed.b_U.zero_()
    return hooked


def small(**changes: Any) -> transformer_lens.HookedTransformerConfig:
    sizes = {"d_model": 6, "n_layers": 2, "n_heads": 2, "d_head": 3, "d_mlp": 10, "d_vocab": 11, "n_ctx": 7}
    return transformer_lens.HookedTransformerConfig(
        **{**sizes, "act_fn": "gelu_new", "device": "cpu", "dtype": torch.float64, "init_weights": False, **changes}
    )


def tokens_for(cfg: Any) -> Tensor:
    return torch.randint(cfg.d_vocab, (3, cfg.n_ctx), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def largest_difference(ours: GPT2, hooked: transformer_lens.HookedTransformer) -> float:
    tokens = tokens_for(hooked.cfg)
    return (ours(tokens) - hooked(tokens)).abs().max().item()


def parameters(hooked: transformer_lens.HookedTransformer) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in hooked.state_dict().items() if not name.endswith((".mask", ".IGNORE"))}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@given(source=RANDOM, tied=st.booleans())
@settings(max_examples=40)
def test_raw_weights_come_in_with_their_logits_and_go_out_bit_for_bit(source: random.Random, tied: bool) -> None:
    hooked = lens_model(lens_config(source), source.getrandbits(32), tied=tied)
    ours = from_hooked_transformer(hooked)
    assert ours.unembed.tied == tied
    assert (ours.unembed.b_U is None) == tied
    assert largest_difference(ours, hooked) <= 1e-12
    back = to_hooked_transformer(ours)
    assert same_bits(parameters(back), parameters(hooked))
    assert same_bits(to_hooked_state_dict(ours), parameters(hooked))
    assert largest_difference(ours, back) <= 1e-12
    assert not back.training
    again = from_hooked_transformer(back)
    assert same_bits(dict(again.state_dict()), dict(ours.state_dict()))
    assert again.config == dataclasses.replace(ours.config, init_range=again.config.init_range)


@given(source=RANDOM)
@settings(max_examples=15)
def test_ours_go_out_and_come_back_bit_for_bit(source: random.Random) -> None:
    """The other way around, from configurations of ours: tied or not, with and without a bias."""
    config = dataclasses.replace(
        draw_case(source).config,
        tie_word_embeddings=source.random() < 0.5,
        unembed_bias=source.random() < 0.5,
        scale_attn_by_inverse_layer_idx=source.random() < 0.5,
    )
    model = GPT2(config, dtype=torch.float64).eval()
    randomize(model, torch.Generator().manual_seed(source.getrandbits(32)))
    hooked = to_hooked_transformer(model)
    assert largest_difference(model, hooked) <= 1e-12
    back = from_hooked_transformer(hooked)
    assert back.config == config
    assert same_bits(dict(back.state_dict()), dict(model.state_dict()))


def test_heads_need_not_fill_the_residual_stream() -> None:
    for d_head in (2, 5):
        hooked = lens_model(small(d_head=d_head))
        ours = from_hooked_transformer(hooked)
        assert ours.config.d_head * ours.config.n_heads != ours.config.d_model
        assert largest_difference(ours, hooked) <= 1e-12
        assert same_bits(parameters(to_hooked_transformer(ours)), parameters(hooked))


def processed(raw: transformer_lens.HookedTransformer, flags: dict[str, bool]) -> transformer_lens.HookedTransformer:
    """As TransformerLens processes weights, which it does in float32 only; then in float64, as an exact reference."""
    hooked = transformer_lens.HookedTransformer(copy.deepcopy(raw.cfg))
    # Clones: the processing rewrites its argument.
    hooked.load_and_process_state_dict({name: tensor.clone() for name, tensor in raw.state_dict().items()}, **flags)
    return hooked.to(torch.float64, print_details=False).eval()


@pytest.mark.parametrize("values", list(itertools.product([False, True], repeat=len(FLAGS))))
@given(source=RANDOM, tied=st.booleans())
@settings(max_examples=2)
def test_processed_weights_compute_what_they_compute_there(
    values: tuple[bool, ...], source: random.Random, tied: bool
) -> None:
    flags: dict[str, bool] = dict(zip(FLAGS, values, strict=True))
    cfg = lens_config(source, torch.float32)
    # TransformerLens's own refactoring fails on heads wider than the residual stream.
    assume(not flags["refactor_factored_attn_matrices"] or cfg.d_head <= cfg.d_model)
    raw = lens_model(cfg, source.getrandbits(32), tied=tied)
    hooked = processed(raw, flags)
    ours = from_hooked_transformer(hooked)
    assert largest_difference(ours, hooked) <= 1e-12

    exact = copy.deepcopy(raw).to(torch.float64, print_details=False)
    tokens = tokens_for(cfg)
    with torch.no_grad():
        off = (ours(tokens).log_softmax(-1) - exact(tokens).log_softmax(-1)).abs().max()
    assert off <= 5e-5  # processing rounds every weight to float32; with the singular value decomposition most

    changed = any(
        not torch.equal(raw.state_dict()[name], tensor.float()) for name, tensor in parameters(hooked).items()
    )
    assert changed or not any(values[1:]), "the processing did something to compare"

    back = to_hooked_state_dict(ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in parameters(hooked).items())
    added = back.keys() - parameters(hooked).keys()
    assert bool(added) == flags["fold_ln"]
    assert all(back[name].eq(float(name.endswith("w"))).all() for name in added)


@given(source=RANDOM)
@settings(max_examples=10)
def test_a_state_dict_alone_needs_only_the_configuration(source: random.Random) -> None:
    raw = lens_model(lens_config(source, torch.float32), tied=source.random() < 0.5)
    folded = processed(raw, {"fold_ln": True})
    for hooked in (raw, folded):
        expected = from_hooked_transformer(hooked)
        # What it holds about the projection is ignored: the weights decide.
        for tied in (False, True):
            config = dataclasses.replace(expected.config, tie_word_embeddings=tied, unembed_bias=tied)
            ours = from_hooked_transformer(dict(hooked.state_dict()), config)
            assert ours.config == expected.config
            assert same_bits(dict(ours.state_dict()), dict(expected.state_dict()))
        assert same_bits(
            dict(from_hooked_transformer(parameters(hooked), hooked.cfg).state_dict()), dict(expected.state_dict())
        )


def test_processed_weights_reach_transformers() -> None:
    """The way of an interpretability result: folded weights, with a bias on the logits, into a library without one."""
    hooked = processed(lens_model(small(dtype=torch.float32), tied=True), {})
    ours = from_hooked_transformer(hooked)
    assert ours.unembed.b_U is not None
    hf = to_hf(ours)
    tokens = tokens_for(hooked.cfg)
    with torch.no_grad():
        assert (hf(tokens).logits - hooked(tokens)).abs().max() <= 1e-11
    assert largest_difference(from_hf(hf), hooked) <= 1e-11


def test_raw_weights_from_transformers_reach_transformers_bit_for_bit() -> None:
    config = GPT2Config(d_model=6, n_layers=2, n_heads=2, d_vocab=11, n_ctx=7)
    hf = to_hf(GPT2(config))
    back = to_hf(from_hooked_transformer(to_hooked_transformer(from_hf(hf))))
    assert back.config.tie_word_embeddings
    assert same_bits(dict(back.state_dict()), dict(hf.state_dict()))


def test_gelu_fast_is_gelu_new_with_a_constant_cut_at_ten_digits() -> None:
    hooked = lens_model(small(act_fn="gelu_fast"))
    assert 0 < largest_difference(from_hooked_transformer(hooked), hooked) <= 1e-10


def test_the_state_dict_is_views_of_the_model() -> None:
    model = from_hooked_transformer(lens_model(small()))
    with torch.no_grad():
        to_hooked_state_dict(model)["blocks.1.attn.W_K"][1, 2, 0] = 42.0
    assert model.blocks[1].attn.W_K[1, 2, 0] == 42.0


# Refused.


@pytest.mark.parametrize(
    ("field", "value", "with_it"),
    [
        ("positional_embedding_type", "rotary", {"rotary_dim": 2}),
        ("positional_embedding_type", "shortformer", {}),
        ("positional_embedding_type", "alibi", {}),
        ("normalization_type", "RMS", {}),
        ("normalization_type", "RMSPre", {}),
        ("normalization_type", None, {}),
        ("final_rms", True, {}),
        ("parallel_attn_mlp", True, {}),
        ("attn_only", True, {}),
        ("gated_mlp", True, {}),
        ("n_key_value_heads", 1, {}),
        ("d_vocab_out", 5, {}),
        ("attn_scores_soft_cap", 5.0, {}),
        ("output_logits_soft_cap", 5.0, {}),
        ("act_fn", "silu", {}),
        ("act_fn", "solu_ln", {}),
        ("attention_dir", "bidirectional", {}),
        ("attn_scale", 3.0, {}),
        ("use_qk_norm", True, {}),
        ("clip_qkv", 1.0, {}),
        ("use_local_attn", True, {"window_size": 3, "attn_types": ["local", "global"]}),
        ("num_experts", 4, {"experts_per_token": 2}),
        ("post_embedding_ln", True, {}),
        ("use_normalization_before_and_after", True, {}),
        ("use_attention_sinks", True, {}),
        ("use_logn_attn", True, {}),
        ("load_in_4bit", True, {}),
        ("uses_rms_norm", True, {}),
    ],
)
def test_what_is_no_gpt2_is_refused_by_field(field: str, value: Any, with_it: dict[str, Any]) -> None:
    cfg = small(**{field: value}, **with_it)
    with pytest.raises(WeightsError) as caught:
        config_from_hooked(cfg)
    message = str(caught.value)
    assert any(f"HookedTransformerConfig: {name}={getattr(cfg, name)!r}" in message for name in (field, *with_it))
    assert "\n" not in message
    with pytest.raises(WeightsError, match="HookedTransformerConfig: "):  # not only when asked for the configuration
        from_hooked_transformer({}, cfg)


def test_a_field_that_a_later_version_adds_is_refused_by_name() -> None:
    cfg: Any = small()
    cfg.attention_temperature = 0.5
    with pytest.raises(WeightsError, match=r"attention_temperature=0\.5"):
        config_from_hooked(cfg)


def test_fields_that_change_no_logit_are_let_pass() -> None:
    cfg = small(
        model_name="gpt2",
        tokenizer_name="gpt2",
        original_architecture="GPT2LMHeadModel",
        tokenizer_prepends_bos=False,
        default_prepend_bos=False,
        seed=3,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
        init_mode="xavier_uniform",
        checkpoint_index=2,
        from_checkpoint=True,
    )
    ours = config_from_hooked(cfg)
    usual = config_from_hooked(small())
    assert ours == dataclasses.replace(usual, init_range=1.0)
    assert type(usual.init_range) is float  # TransformerLens computes it with numpy


@pytest.mark.parametrize("norm", ["blocks.0.ln1", "blocks.1.ln2", "ln_final"])
def test_one_layer_norm_missing_is_not_filled_in(norm: str) -> None:
    hooked = lens_model(small())
    without = {name: tensor for name, tensor in hooked.state_dict().items() if not name.startswith(norm)}
    with pytest.raises(WeightsError) as caught:
        from_hooked_transformer(without, hooked.cfg)
    assert str(caught.value) == f"missing: {norm}.w, {norm}.b"


@given(source=RANDOM)
@settings(max_examples=15)
def test_a_wrong_key_is_named_whatever_it_is(source: random.Random) -> None:
    hooked = lens_model(small())
    if fold := source.random() < 0.5:
        hooked = processed(lens_model(small(dtype=torch.float32)), {"fold_ln": True})
    state = parameters(hooked)
    key = source.choice(sorted(state))

    def message(state: dict[str, Tensor]) -> str:
        with pytest.raises(WeightsError) as caught:
            from_hooked_transformer(state, hooked.cfg)
        return str(caught.value)

    assert message({name: tensor for name, tensor in state.items() if name != key}) == f"missing: {key}"
    assert message({**state, key + "2": state[key]}) == f"not a parameter of this model: {key}2"
    assert f"{key} has the shape " in message({**state, key: state[key][None]})
    assert message({**state, key: state[key].long()}) == f"{key} holds torch.int64, not floating-point numbers"
    if fold:
        assert "blocks.0.ln1.b" in message({**state, "blocks.0.ln1.w": torch.ones(6)})


def test_the_wrong_number_of_heads_is_refused() -> None:
    """4 heads of 3 and 3 heads of 4 have the same numbers; only the shapes by head tell them apart."""
    hooked = lens_model(small(d_model=12, n_heads=4, d_head=3))
    wrong = dataclasses.replace(config_from_hooked(hooked.cfg), n_heads=3, d_head=4)
    with pytest.raises(WeightsError) as caught:
        from_hooked_transformer(hooked.state_dict(), wrong)
    message = str(caught.value)
    assert "blocks.0.attn.W_Q has the shape [4, 12, 3]" in message
    assert "[3, 12, 4] (qkv n_heads d_model d_head)" in message


def test_post_norm_is_refused() -> None:
    model = GPT2(GPT2Config(d_model=6, n_layers=1, n_heads=2, d_vocab=11, n_ctx=5, norm="post"))
    for convert in (to_hooked_transformer, to_hooked_state_dict):
        with pytest.raises(WeightsError, match="post-norm"):
            convert(model)
    with pytest.raises(WeightsError, match="post-norm"):
        hooked_config_fields(model.config)
