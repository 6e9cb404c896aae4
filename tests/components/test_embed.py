"""Embed: against the reference layers, and what the references do not show."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import Embed, TypeCheckError
from gptladder.ladder.answers import Reference
from gptladder.ladder.rungs import check, draw_case, rung

RUNG = rung("embed")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reference", RUNG.references, ids=lambda reference: reference.library)
@given(source=st.randoms(use_true_random=False))
def test_equals_the_reference(reference: Reference, dtype: torch.dtype, source: random.Random) -> None:
    check(RUNG, reference, draw_case(source), dtype)


@pytest.mark.parametrize("token", [7, -1])
def test_a_token_outside_the_vocabulary_is_named(token: int) -> None:
    with pytest.raises(ValueError, match=rf"{token}.* vocabulary has 7: ids go from 0 to 6"):
        Embed(d_vocab=7, d_model=3)(torch.tensor([[token]]))


def test_floating_point_tokens_are_refused() -> None:
    with pytest.raises(TypeCheckError, match="tokens"):
        Embed(d_vocab=7, d_model=3)(torch.zeros(1, 2))


def test_fresh_weights_have_the_standard_deviation_asked_for() -> None:
    torch.manual_seed(0)
    weights = Embed(d_vocab=500, d_model=200, init_range=0.07).W_E
    assert weights.std().item() == pytest.approx(0.07, rel=0.02)
    assert weights.mean().item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_tokens_may_be_small_integers(dtype: torch.dtype) -> None:
    embed = Embed(d_vocab=10, d_model=4)
    tokens = torch.tensor([[3, 1, 3]])
    assert torch.equal(embed(tokens.to(dtype)), embed(tokens))
