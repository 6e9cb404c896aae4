"""PosEmbed: against the reference layers, and what the references do not show."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import PosEmbed
from gptladder.ladder.answers import Reference
from gptladder.ladder.rungs import check, draw_case, rung

RUNG = rung("pos-embed")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reference", RUNG.references, ids=lambda reference: reference.library)
@given(source=st.randoms(use_true_random=False))
def test_equals_the_reference(reference: Reference, dtype: torch.dtype, source: random.Random) -> None:
    check(RUNG, reference, draw_case(source), dtype)


@given(offset=st.integers(0, 5), seq=st.integers(1, 4))
def test_an_offset_shifts_the_positions(offset: int, seq: int) -> None:
    layer = PosEmbed(n_ctx=9, d_model=3)
    tokens = torch.zeros(2, seq, dtype=torch.int64)
    expected = layer.W_pos[offset : offset + seq].expand(2, -1, -1)
    assert torch.equal(layer(tokens, offset=offset), expected)


def test_positions_can_be_given_for_each_token() -> None:
    layer = PosEmbed(n_ctx=9, d_model=3)
    positions = torch.tensor([[0, 0, 1], [4, 8, 2]])
    assert torch.equal(layer(torch.zeros(2, 3, dtype=torch.int64), positions=positions), layer.W_pos[positions])


@pytest.mark.parametrize(("offset", "seq"), [(0, 10), (7, 3), (-1, 2)])
def test_positions_past_the_context_are_refused(offset: int, seq: int) -> None:
    with pytest.raises(ValueError, match=rf"{seq} tokens from position {offset} do not fit into n_ctx=9"):
        PosEmbed(n_ctx=9, d_model=3)(torch.zeros(1, seq, dtype=torch.int64), offset=offset)


@pytest.mark.parametrize("position", [9, -1])
def test_a_given_position_past_the_context_is_refused(position: int) -> None:
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    expected = rf"positions run from {position} to {position}, but n_ctx is 9: they go from 0 to 8"
    with pytest.raises(ValueError, match=expected):
        PosEmbed(n_ctx=9, d_model=3)(tokens, positions=torch.tensor([[position]]))
