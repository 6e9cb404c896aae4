"""Processed weights: the same log-probabilities in float64, and TransformerLens's own numbers name by name."""

import copy
import dataclasses
import itertools
import random
from typing import Any

import pytest
import torch
import transformer_lens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.weight_processing import ProcessWeights

from gptladder.assembly.config import GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.ladder.answers import randomize
from gptladder.ladder.rungs import draw_case
from gptladder.weights import (
    WeightsError,
    fold,
    from_hooked_transformer,
    to_hf,
    to_hooked_state_dict,
    to_hooked_transformer,
)

from .support import FLAGS

RANDOM = st.randoms(use_true_random=False)
EVERY_CHOICE: list[dict[str, bool]] = [
    dict(zip(FLAGS, values, strict=True)) for values in itertools.product([False, True], repeat=len(FLAGS))
]
NONE = dict.fromkeys(FLAGS, False)


def draw_model(source: random.Random, dtype: torch.dtype = torch.float64, **changes: Any) -> GPT2:
    choices = {
        "act_fn": source.choice(["gelu_new", "gelu", "relu"]),
        "tie_word_embeddings": source.random() < 0.5,
        "unembed_bias": source.random() < 0.5,
        "scale_attn_by_inverse_layer_idx": source.random() < 0.3,
    }
    model = GPT2(dataclasses.replace(draw_case(source).config, **{**choices, **changes}), dtype=dtype).eval()
    randomize(model, torch.Generator().manual_seed(source.getrandbits(32)))
    return model


def small(dtype: torch.dtype = torch.float64, **changes: Any) -> GPT2:
    sizes = {"d_model": 6, "n_layers": 2, "n_heads": 2, "d_head": 3, "d_mlp": 10, "d_vocab": 11, "n_ctx": 7}
    model = GPT2(GPT2Config(**{**sizes, **changes}), dtype=dtype).eval()
    randomize(model, torch.Generator().manual_seed(0))
    return model


@torch.no_grad()
def logits(model: Any, config: GPT2Config) -> Tensor:
    tokens = torch.randint(config.d_vocab, (3, config.n_ctx), generator=torch.Generator().manual_seed(1))
    given = model(tokens)
    return getattr(given, "logits", given)


def off(left: Tensor, right: Tensor) -> float:
    """The largest difference between log-probabilities."""
    return (left.log_softmax(-1) - right.log_softmax(-1)).abs().max().item()


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def copied(model: GPT2) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("flags", EVERY_CHOICE)
@given(source=RANDOM)
@settings(max_examples=3)
def test_log_probabilities_stay_at_every_choice_of_flags(flags: dict[str, Any], source: random.Random) -> None:
    model = draw_model(source)
    before = copied(model)
    folded = fold(model, **flags)
    shift = logits(folded, model.config) - logits(model, model.config)
    assert off(logits(folded, model.config), logits(model, model.config)) <= 1e-12
    assert (shift - shift.mean(-1, keepdim=True)).abs().max() <= 1e-12
    assert flags["center_unembed"] or shift.abs().max() <= 1e-12
    assert same_bits(dict(model.state_dict()), before), "the model that was given has changed"
    assert not folded.training

    # What each flag is there for.
    theirs = to_hooked_state_dict(folded)
    norms = [name for name in theirs if ".ln" in f".{name}"]
    identity = all(theirs[name].eq(float(name.endswith(".w"))).all() for name in norms)
    assert identity == flags["fold_ln"]
    written = [theirs[f"blocks.0.{name}"] for name in ("attn.b_O", "mlp.W_out", "mlp.b_out")]
    written += [theirs["embed.W_E"], theirs["pos_embed.W_pos"]]
    if not flags["refactor_factored_attn_matrices"]:  # a direction that a head never writes is arbitrary there
        written.append(theirs["blocks.0.attn.W_O"])
    assert all(table.mean(-1).abs().max() <= 1e-15 for table in written) == flags["center_writing_weights"]
    assert (theirs["unembed.W_U"].mean(-1).abs().max() <= 1e-15) == flags["center_unembed"]
    no_value_bias = not theirs["blocks.0.attn.b_V"].any()
    assert no_value_bias == (flags["fold_value_biases"] or flags["refactor_factored_attn_matrices"])
    W_V = theirs["blocks.0.attn.W_V"]
    between = W_V.mT @ W_V
    orthogonal = (between - between.diagonal(dim1=1, dim2=2).diag_embed()).abs().max() <= 1e-13
    assert orthogonal == flags["refactor_factored_attn_matrices"] or model.config.d_head == 1


def theirs_in_float64(model: GPT2, flags: dict[str, Any]) -> dict[str, Tensor]:
    """TransformerLens's own steps in the order of its ``process_weights``, which alone casts to float32."""
    cfg = to_hooked_transformer(model).cfg
    state = {name: tensor.clone() for name, tensor in to_hooked_state_dict(model).items()}
    if flags["fold_ln"]:
        state = ProcessWeights.fold_layer_norm(state, cfg)
    if flags["center_writing_weights"]:
        state = ProcessWeights.center_writing_weights(state, cfg)
    if flags["center_unembed"]:
        state = ProcessWeights.center_unembed(state, cfg)
    if flags["fold_value_biases"]:
        state = ProcessWeights.fold_value_biases(state, cfg)
        for layer in range(cfg.n_layers if flags["center_writing_weights"] else 0):
            state[f"blocks.{layer}.attn.b_O"] -= state[f"blocks.{layer}.attn.b_O"].mean()
    if flags["refactor_factored_attn_matrices"]:
        state = ProcessWeights.refactor_factored_attn_matrices(state, cfg)
    return state


def signs_aside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Singular vectors come with either sign: make the largest entry of each head's column positive."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith(".W_Q")]:
        stem = name.removesuffix("W_Q")
        for left, others in (("W_Q", ("b_Q", "W_K", "b_K")), ("W_V", ("W_O",))):
            W = tensors[stem + left]
            sign = W.gather(1, W.abs().argmax(dim=1, keepdim=True)).sign()  # [n_heads 1 d_head]
            tensors[stem + left] = W * sign
            for other in others:
                along = sign.mT if other == "W_O" else sign[:, 0] if other.startswith("b") else sign
                tensors[stem + other] = tensors[stem + other] * along
    return tensors


@pytest.mark.parametrize("flags", EVERY_CHOICE)
@given(source=RANDOM)
@settings(max_examples=3)
def test_the_numbers_are_those_of_transformer_lens(flags: dict[str, Any], source: random.Random) -> None:
    model = draw_model(source)
    # Its own refactoring fails on heads wider than the residual stream, and forms a product of no full rank otherwise.
    if model.config.d_head > model.config.d_model:
        flags = {**flags, "refactor_factored_attn_matrices": False}
    ours, theirs = to_hooked_state_dict(fold(model, **flags)), theirs_in_float64(model, flags)
    tolerance = 1e-13
    if flags["refactor_factored_attn_matrices"]:
        ours, theirs = signs_aside(ours), signs_aside(theirs)
        tolerance = 1e-9  # a singular vector is as exact as the gap to its neighbour's value is wide
    assert ours.keys() == theirs.keys()
    wrong = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
    assert {name: far for name, far in wrong.items() if not far <= tolerance} == {}


@pytest.mark.parametrize("refactor", [False, True])
def test_processing_by_hooked_transformer_gives_the_same_weights(refactor: bool) -> None:
    model = small(torch.float32)
    hooked = transformer_lens.HookedTransformer(to_hooked_transformer(model).cfg)
    raw = {name: tensor.clone() for name, tensor in to_hooked_state_dict(model).items()}
    hooked.load_and_process_state_dict(raw, refactor_factored_attn_matrices=refactor)
    ours = to_hooked_transformer(fold(model, refactor_factored_attn_matrices=refactor), normalization_type="LNPre")
    theirs, ours_state = signs_aside(dict(hooked.state_dict())), signs_aside(dict(ours.state_dict()))
    assert ours_state.keys() == theirs.keys()
    assert ours.cfg.normalization_type == hooked.cfg.normalization_type == "LNPre"
    for name, tensor in theirs.items():
        if not name.endswith((".mask", ".IGNORE")):
            assert (ours_state[name] - tensor).abs().max() <= (5e-5 if refactor else 1e-6), name
    assert off(logits(ours, model.config), logits(hooked, model.config)) <= 5e-5


def test_with_every_flag_off_it_is_the_model_itself() -> None:
    for tied, biased in itertools.product([False, True], repeat=2):
        model = small(tie_word_embeddings=tied, unembed_bias=biased)
        folded = fold(model, **NONE)
        assert folded.config == model.config
        assert same_bits(dict(folded.state_dict()), dict(model.state_dict()))


@given(source=RANDOM)
@settings(max_examples=10)
def test_what_is_folded_already_stays_as_it_is(source: random.Random) -> None:
    once = fold(draw_model(source))
    twice = fold(once)
    assert twice.config == once.config
    for name, tensor in once.state_dict().items():
        assert (twice.state_dict()[name] - tensor).abs().max() <= 1e-14, name


def test_the_arithmetic_is_float64_and_rounded_once() -> None:
    """From weights in float32 too: TransformerLens's detour leaves errors in every place that this does not."""
    model = small(torch.float32)
    wide = fold(model, dtype=torch.float64)
    assert off(logits(wide, model.config), logits(copy.deepcopy(model).double(), model.config)) <= 1e-12
    for dtype in (torch.float32, torch.bfloat16):
        narrow = fold(model.to(dtype))
        wide = fold(model, dtype=torch.float64)
        assert same_bits(dict(narrow.state_dict()), dict(wide.to(dtype).state_dict()))


def test_heads_wider_than_the_residual_stream_are_refactored_too() -> None:
    model = small(d_head=9)
    folded = fold(model, refactor_factored_attn_matrices=True)
    assert off(logits(folded, model.config), logits(model, model.config)) <= 1e-12
    assert not folded.blocks[0].attn.W_V[:, :, 6:].any()


@pytest.mark.parametrize("flags", EVERY_CHOICE)
@pytest.mark.parametrize("tied", [False, True])
def test_folded_models_reach_transformers_and_hooked_transformer(flags: dict[str, Any], tied: bool) -> None:
    model = small(tie_word_embeddings=tied)
    folded = fold(model, **flags)
    expected = logits(folded, model.config)
    hf, hooked = to_hf(folded), to_hooked_transformer(folded)
    assert hf.config.tie_word_embeddings == folded.config.tie_word_embeddings
    assert (logits(hf, model.config) - expected).abs().max() <= 1e-12
    assert (logits(hooked, model.config) - expected).abs().max() <= 1e-12
    back = from_hooked_transformer(hooked)
    assert back.config == folded.config
    assert same_bits(dict(back.state_dict()), dict(folded.state_dict()))


@pytest.mark.parametrize("flags", EVERY_CHOICE)
def test_what_hooked_transformer_has_processed_reaches_transformers(flags: dict[str, Any]) -> None:
    model = small(torch.float32)
    hooked = transformer_lens.HookedTransformer(to_hooked_transformer(model).cfg)
    hooked.load_and_process_state_dict(copy.deepcopy(dict(to_hooked_state_dict(model))), **flags)
    hooked = hooked.to(torch.float64, print_details=False).eval()
    ours = from_hooked_transformer(hooked)
    assert (logits(to_hf(ours), model.config) - logits(hooked, model.config)).abs().max() <= 1e-12


def test_lnpre_goes_out_and_comes_back_bit_for_bit() -> None:
    folded = fold(small())
    hooked = to_hooked_transformer(folded, normalization_type="LNPre")
    assert not any(".ln" in f".{name}" for name in hooked.state_dict())
    assert (logits(hooked, folded.config) - logits(folded, folded.config)).abs().max() <= 1e-12
    back = from_hooked_transformer(hooked)
    assert back.config == folded.config
    assert same_bits(dict(back.state_dict()), dict(folded.state_dict()))


@pytest.mark.parametrize("parameter", ["blocks.0.ln1.w", "blocks.1.ln2.b", "ln_final.w"])
def test_a_layer_norm_with_parameters_is_not_lost_in_lnpre(parameter: str) -> None:
    folded = fold(small())
    with torch.no_grad():
        folded.get_parameter(parameter)[2] += 1e-7
    with pytest.raises(WeightsError, match=rf"^{parameter} is not all [01], and LNPre has none: fold the model first$"):
        to_hooked_transformer(folded, normalization_type="LNPre")


def test_post_norm_is_refused() -> None:
    with pytest.raises(WeightsError, match="post-norm"):
        fold(small(norm="post"))


def test_the_result_keeps_what_the_weights_do_not_say() -> None:
    model = small(attn_dropout=0.1, init_range=0.3, layer_norm_eps=1e-3, act_fn="relu")
    folded = fold(model, fused=False)
    assert folded.config == dataclasses.replace(model.config, tie_word_embeddings=False, unembed_bias=True)
    assert not folded.ln_final.fused
