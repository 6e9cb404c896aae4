"""The learning rate at each step, the last step, and what is due."""

import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.training.presets import Decay, OptimConfig
from gptladder.training.schedule import is_due, last_step, learning_rate, warmup_decay

RATE = partial(warmup_decay, lr=1e-3, min_lr=1e-4, warmup_steps=10, decay_steps=110)


def test_landmarks() -> None:
    assert RATE(0) == pytest.approx(1e-3 / 11)
    assert RATE(9) == pytest.approx(1e-3 * 10 / 11)
    assert RATE(10) == 1e-3
    assert RATE(60) == pytest.approx((1e-3 + 1e-4) / 2)
    assert RATE(110) == RATE(1000) == 1e-4
    assert RATE(10, decay_steps=10) == 1e-4


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
    assert {warmup_decay(s, lr=0.1, min_lr=0.1, warmup_steps=0, decay_steps=0) for s in range(9)} == {0.1}


def test_linear_is_a_straight_line_to_the_end() -> None:
    rates = [
        warmup_decay(step, lr=1.0, min_lr=0.2, warmup_steps=2, decay_steps=10, decay="linear") for step in range(13)
    ]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_a_configuration_decays_to_the_end_of_its_run(decay: Decay) -> None:
    optim = OptimConfig(max_steps=10, lr=0.5, min_lr=0.1, warmup_steps=4, decay=decay)
    given = {"lr": 0.5, "min_lr": 0.1, "warmup_steps": 4, "decay": decay}
    for step in range(20):
        assert learning_rate(optim, step, 10) == warmup_decay(step, decay_steps=10, **given)
        shorter = dataclasses.replace(optim, decay_steps=7)
        assert learning_rate(shorter, step, 10) == warmup_decay(step, decay_steps=7, **given)
    assert learning_rate(optim, 10, 10) == 0.1
    constant = dataclasses.replace(optim, min_lr=None)
    assert {learning_rate(constant, step, None) for step in range(4, 20)} == {0.5}


@pytest.mark.parametrize(
    ("ends", "last"),
    [
        ({"max_steps": 7}, 7),
        ({"max_epochs": 1.5}, 4),  # 15 windows, 4 at a time
        ({"max_epochs": 2}, 5),
        ({"max_epochs": 4}, 10),
        ({"max_steps": 3, "max_epochs": 2}, 3),
        ({"max_steps": 9, "max_epochs": 2}, 5),
        ({"target_loss": 1.0}, None),
        ({"target_loss": 1.0, "min_lr": 1e-4, "decay_steps": 5}, None),
        ({"max_steps": 7, "min_lr": 1e-4}, 7),
    ],
)
def test_a_run_ends_at_the_earlier_of_steps_and_epochs(ends: dict[str, Any], last: int | None) -> None:
    assert last_step(OptimConfig(batch=4, **ends), windows_per_epoch=10) == last


def test_a_decay_needs_an_end() -> None:
    with pytest.raises(ValueError, match="this run has no end: give --decay-steps, --max-steps or --max-epochs"):
        last_step(OptimConfig(target_loss=1.0, min_lr=1e-4), windows_per_epoch=10)


def test_every_third_step_is_due() -> None:
    due = [step for step in range(10) if is_due(3, step=step, epoch=0.5, batch=4, windows_per_epoch=10)]
    assert due == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("batch", "due"),
    [(4, [3, 5, 8, 10]), (5, [2, 4, 6, 8, 10]), (10, list(range(1, 11))), (25, list(range(1, 11)))],
)
def test_each_epoch_is_due_at_the_step_that_ends_it(batch: int, due: list[int]) -> None:
    found = [
        step
        for step in range(1, 11)
        if is_due("epoch", step=step, epoch=step * batch / 10, batch=batch, windows_per_epoch=10)
    ]
    assert found == due
