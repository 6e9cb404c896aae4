"""Attention: against the reference layers, and what the references do not show."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import Attention, LayerCache, TypeCheckError, run_with_cache
from gptladder.ladder.answers import Reference, randomize
from gptladder.ladder.rungs import check, draw_case, rung

RUNG = rung("attention")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reference", RUNG.references, ids=lambda reference: reference.library)
@given(source=st.randoms(use_true_random=False))
def test_equals_the_reference(reference: Reference, dtype: torch.dtype, source: random.Random) -> None:
    check(RUNG, reference, draw_case(source), dtype)


def made(*, fused: bool = True, seed: int = 0, dropout: float = 0.0, **sizes: Any) -> Attention:
    sizes = {"d_model": 10, "n_heads": 3, "d_head": 4, **sizes}
    layer = Attention(**sizes, fused=fused, dropout=dropout, dtype=torch.float64)
    randomize(layer, torch.Generator().manual_seed(seed))
    return layer


PATHS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])


@given(
    batch=st.integers(1, 3),
    seq=st.integers(1, 8),
    padding=st.integers(0, 4),
    cached=st.integers(0, 7),
    seed=st.integers(0, 2**31),
)
def test_the_kernel_and_the_formula_agree(batch: int, seq: int, padding: int, cached: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, seq, 10, dtype=torch.float64, generator=generator)
    mask = torch.rand(batch, seq, generator=generator) > 0.3 if padding else None
    outputs = []
    for fused in (True, False):
        layer = made(fused=fused, seed=seed)
        cut = min(cached, seq - 1)
        if cut == 0:
            outputs.append(layer(x, padding_mask=mask))
            continue
        cache = LayerCache(batch=batch, n_heads=3, d_head=4, capacity=seq, dtype=torch.float64)
        first = layer(x[:, :cut], padding_mask=None if mask is None else mask[:, :cut], cache=cache)
        outputs.append(torch.cat([first, layer(x[:, cut:], padding_mask=mask, cache=cache)], dim=1))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12


@PATHS
@given(seq=st.integers(2, 9), data=st.data())
def test_a_position_is_blind_to_later_ones_to_the_bit(fused: bool, seq: int, data: st.DataObject) -> None:
    changed = data.draw(st.integers(1, seq - 1))
    layer = made(fused=fused)
    x = torch.randn(2, seq, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seq))
    other = x.clone()
    other[:, changed] += 1
    assert torch.equal(layer(x)[:, :changed], layer(other)[:, :changed])
    assert not torch.equal(layer(x)[:, changed], layer(other)[:, changed])


@PATHS
def test_no_position_attends_to_padding(fused: bool) -> None:
    layer = made(fused=fused)
    x = torch.randn(1, 6, 10, dtype=torch.float64)
    mask = torch.tensor([[False, False, True, True, False, True]])
    other = x.clone()
    other[:, [0, 1, 4]] = 9.0
    tokens = mask[0]
    assert torch.equal(layer(x, padding_mask=mask)[:, tokens], layer(other, padding_mask=mask)[:, tokens])
    alone = layer(x[:, tokens])
    assert (layer(x, padding_mask=mask)[:, tokens] - alone).abs().max() < 1e-12


@PATHS
def test_a_query_with_no_key_gets_the_output_bias_and_no_bad_gradient(fused: bool) -> None:
    layer = made(fused=fused)
    x = torch.randn(2, 4, 10, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    output = layer(x, padding_mask=mask)
    assert torch.equal(output[0, :2], layer.b_O.expand(2, -1))
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [x, *layer.parameters()])


@pytest.mark.parametrize("causal_alone", [True, False])
def test_in_float32_the_paths_agree_to_rounding(causal_alone: bool) -> None:
    x = torch.randn(2, 9, 10)
    mask = None if causal_alone else torch.ones(2, 9, dtype=torch.bool)
    fused, explicit = (made(fused=fused).float()(x, padding_mask=mask) for fused in (True, False))
    assert (fused - explicit).abs().max() < 5e-6


def test_heads_need_not_fill_the_model() -> None:
    layer = Attention(d_model=10, n_heads=3, d_head=7)
    assert layer(torch.randn(1, 2, 10)).shape == (1, 2, 10)
    assert layer.W_O.shape == (3, 7, 10)


def test_transformer_lenss_parameters_are_views() -> None:
    layer = made()
    for index, (W, b) in enumerate([("W_Q", "b_Q"), ("W_K", "b_K"), ("W_V", "b_V")]):
        assert getattr(layer, W).shape == (3, 10, 4)
        assert torch.equal(getattr(layer, W), layer.W_QKV[:, index].permute(1, 0, 2))
        assert getattr(layer, W).untyped_storage().data_ptr() == layer.W_QKV.untyped_storage().data_ptr()
        assert torch.equal(getattr(layer, b), layer.b_QKV[index])


def test_the_pattern_is_causal_and_sums_to_one() -> None:
    layer = made()
    _, cache = run_with_cache(layer, torch.randn(2, 5, 10, dtype=torch.float64))
    pattern, scores = cache["hook_pattern"], cache["hook_attn_scores"]
    assert (pattern.sum(-1) - 1).abs().max() < 1e-14
    above = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert (pattern[..., above] == 0).all()
    assert (scores[..., above] == -math.inf).all()
    q, k = cache["hook_q"], cache["hook_k"]
    assert scores[1, 2, 4, 3].item() == pytest.approx((q[1, 4, 2] @ k[1, 3, 2]).item() / 2, abs=1e-13)


@PATHS
def test_dropout_acts_in_training_alone_and_keeps_the_mean(fused: bool) -> None:
    torch.manual_seed(0)
    layer, plain = made(fused=fused, dropout=0.5), made(fused=fused)
    x = torch.randn(1, 4, 10, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
    assert (mean - plain(x)).abs().max() < 0.15
    assert torch.equal(layer.eval()(x), plain(x))


def test_another_width_and_a_wrong_mask_are_refused() -> None:
    layer = made()
    with pytest.raises(TypeCheckError, match=r"(?s)normalized_resid_pre.*d_model.*This Attention has d_model=10"):
        layer(torch.zeros(1, 2, 11, dtype=torch.float64))
    with pytest.raises(ValueError, match="padding_mask covers 3 keys, but there are 2"):
        layer(torch.zeros(1, 2, 10, dtype=torch.float64), padding_mask=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(TypeCheckError, match="padding_mask"):
        layer(torch.zeros(1, 2, 10, dtype=torch.float64), padding_mask=torch.ones(1, 2))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_heads": 3, "d_head": None}, "n_heads=3 does not divide d_model=10"),
        ({"dropout": 1.5}, r"dropout is 1\.5"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"dropout": -0.1}, "dropout is -0"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**sizes)


def test_a_state_dict_with_one_projection_missing_is_refused() -> None:
    state = {name: torch.zeros(3, 10, 4) for name in ("W_Q", "W_K")}
    with pytest.raises(RuntimeError, match="W_QKV"):
        made().load_state_dict(state)


def test_the_constants_of_transformer_lens_and_arena_are_left_out() -> None:
    layer, other = made(), made(seed=1)
    constants = {"mask": torch.ones(4, 4, dtype=torch.bool), "IGNORE": torch.tensor(-math.inf)}
    other.load_state_dict({**layer.state_dict(), **constants})
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(other.parameters(), layer.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Unexpected"):
        other.load_state_dict({**layer.state_dict(), "masks": constants["mask"]})
