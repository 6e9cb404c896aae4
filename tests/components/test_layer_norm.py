"""LayerNorm: against the reference layers, and what the references do not show."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import LayerNorm, TypeCheckError, hooks, run_with_cache
from gptladder.ladder.answers import Reference
from gptladder.ladder.rungs import check, draw_case, rung

RUNG = rung("layernorm")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reference", RUNG.references, ids=lambda reference: reference.library)
@given(source=st.randoms(use_true_random=False))
def test_equals_the_reference(reference: Reference, dtype: torch.dtype, source: random.Random) -> None:
    check(RUNG, reference, draw_case(source), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernel_and_the_formula_agree(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    fused, written = (LayerNorm(d_model=16, layer_norm_eps=1e-3, fused=fused, dtype=dtype) for fused in (True, False))
    with torch.no_grad():
        fused.w.normal_()
        fused.b.normal_()
    written.load_state_dict(fused.state_dict())
    x = (3 * torch.randn(2, 5, 16) + 4).to(dtype)
    # 16-bit floats: both compute in 32 bits and round at the end, the formula once more before the gain.
    off = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 0.04, torch.float16: 0.005}[dtype]
    assert (fused(x) - written(x)).abs().max() <= off
    assert written(x).dtype == fused(x).dtype == dtype


def test_the_fused_kernel_computes_it_unless_a_hook_or_the_user_objects() -> None:
    x = torch.randn(1, 2, 4)

    def kernel(layer: LayerNorm) -> str:
        return type(layer(x).grad_fn).__name__

    assert kernel(LayerNorm(d_model=4)) == "NativeLayerNormBackward0"
    assert kernel(LayerNorm(d_model=4, fused=False)) == "AddBackward0"
    for name in ("hook_scale", "hook_normalized"):
        layer = LayerNorm(d_model=4)
        with hooks(layer, [(name, lambda activation, hook: None)]):
            assert kernel(layer) == "AddBackward0"


def test_its_activations_are_the_scale_and_the_vector_before_the_gain() -> None:
    torch.manual_seed(0)
    layer = LayerNorm(d_model=16, dtype=torch.float64)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    _, cache = run_with_cache(layer, x)
    assert (cache["hook_scale"] - (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()).abs().max() < 1e-14
    assert (cache["hook_normalized"] - (x - x.mean(-1, keepdim=True)) / cache["hook_scale"]).abs().max() < 1e-14


def test_another_width_is_refused_with_both_numbers() -> None:
    with pytest.raises(TypeCheckError, match=r"(?s)2,3,7.*d_model.*This LayerNorm has d_model=8"):
        LayerNorm(d_model=8)(torch.zeros(2, 3, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_in_sixteen_bits_statistics_are_those_of_float32(dtype: torch.dtype, fused: bool) -> None:
    x = (100 + torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = LayerNorm(d_model=64, fused=fused).to(dtype)(x)
    exact = LayerNorm(d_model=64, fused=False, dtype=torch.float64)(x.double())
    assert (found.double() - exact).abs().max() < 0.02  # a mean in 16 bits would be off by up to half
