import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.training.schedule import warmup_cosine

RATE = partial(warmup_cosine, lr=1e-3, min_lr=1e-4, warmup_steps=10, decay_steps=110)


def test_landmarks() -> None:
    assert RATE(0) == pytest.approx(1e-3 / 11)
    assert RATE(9) == pytest.approx(1e-3 * 10 / 11)
    assert RATE(10) == 1e-3
    assert RATE(60) == pytest.approx((1e-3 + 1e-4) / 2)
    assert RATE(110) == RATE(1000) == 1e-4


@given(step=st.integers(0, 300))
def test_rises_then_falls_between_its_limits(step: int) -> None:
    assert 0 < RATE(step) <= 1e-3
    assert RATE(step) < RATE(step + 1) if step < 10 else RATE(step) >= RATE(step + 1) >= 1e-4


def test_decay_is_pytorchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=1e-4)
    for step in range(10, 110):
        assert math.isclose(RATE(step), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        reference.step()


def test_constant_where_both_rates_are_equal() -> None:
    assert {warmup_cosine(s, lr=0.1, min_lr=0.1, warmup_steps=0, decay_steps=0) for s in range(9)} == {0.1}
