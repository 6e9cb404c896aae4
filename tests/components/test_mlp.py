"""MLP: against the reference layers, and what the references do not show."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import MLP
from gptladder.ladder.answers import Reference
from gptladder.ladder.rungs import check, draw_case, rung

RUNG = rung("mlp")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reference", RUNG.references, ids=lambda reference: reference.library)
@given(source=st.randoms(use_true_random=False))
def test_equals_the_reference(reference: Reference, dtype: torch.dtype, source: random.Random) -> None:
    check(RUNG, reference, draw_case(source), dtype)


def test_the_hidden_width_is_four_times_the_models_unless_given() -> None:
    assert MLP(d_model=6).W_in.shape == (6, 24)
    assert MLP(d_model=6, d_mlp=5).W_out.shape == (5, 6)


def test_gelu_new_is_the_tanh_form_as_published() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)[None, :, None]
    layer = MLP(d_model=1, d_mlp=1, dtype=torch.float64)
    with torch.no_grad():
        layer.W_in.fill_(1)
        layer.W_out.fill_(1)
    formula = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    assert (layer(x) - formula).abs().max() < 1e-14


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'swish'; it can be gelu_new, gelu, relu"):
        MLP(d_model=6, act_fn="swish")  # pyright: ignore[reportArgumentType]


def test_transposed_inputs_are_taken() -> None:
    x = torch.randn(5, 2, 6).transpose(0, 1)
    layer = MLP(d_model=6)
    assert torch.allclose(layer(x), layer(x.contiguous()), atol=1e-7)
