"""The decisions of a run: the learning rate at each step, what ends it, what is due, and which evaluation is best."""

import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.training.metrics import Metrics
from gptladder.training.presets import Decay, OptimConfig
from gptladder.training.schedule import (
    Ending,
    divergence_limit,
    evaluations,
    is_due,
    last_step,
    learning_rate,
    learns_by_heart,
    warmup_decay,
    why_it_ends,
    without_improvement,
)

RATE = partial(warmup_decay, lr=1e-3, min_lr=1e-4, warmup_steps=10, decay_steps=110)


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


@pytest.mark.parametrize(
    ("step", "last", "loss", "ending"),
    [
        (4, 9, 2.0, None),
        (4, 9, 1.5, "target_loss"),
        (5, 9, 1.5, "target_loss"),
        (5, 9, None, "max_steps"),
        (6, 9, 2.0, "max_steps"),
        (3, 3, 2.0, "max_epochs"),
        (4, 3, 2.0, "max_epochs"),
        (3, 4, 2.0, None),
        (3, None, 2.0, None),
    ],
)
def test_what_ends_a_run(step: int, last: int | None, loss: float | None, ending: Ending | None) -> None:
    optim = OptimConfig(max_steps=5, target_loss=1.5)
    assert why_it_ends(optim, step=step, last_step=last, loss=loss) == ending


def test_without_steps_and_loss_only_the_last_step_ends_a_run() -> None:
    assert why_it_ends(OptimConfig(max_epochs=9), step=9, last_step=None, loss=0.0) is None
    assert why_it_ends(OptimConfig(max_epochs=9), step=9, last_step=9, loss=0.0) == "max_epochs"


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


def rows(val_losses: dict[int, float], losses: list[float | None]) -> list[Metrics]:
    """The rows of a run: one before the first step, then one for each step, with its loss and perhaps an evaluation."""
    steps = enumerate([None, *losses])
    return [Metrics(step=step, epoch=0, tokens=0, loss=loss, val_loss=val_losses.get(step)) for step, loss in steps]


def test_evaluations_are_those_after_the_first_update() -> None:
    assert evaluations(rows({0: 9.0, 1: 0.0, 3: 2.0}, [1.0] * 4)) == [(1, 0.0), (3, 2.0)]


@pytest.mark.parametrize(
    ("val_losses", "count"),
    [({}, 0), ({0: 1.0}, 0), ({1: 3.0}, 0), ({1: 3.0, 2: 2.0, 3: 2.5, 4: 2.1}, 2), ({1: 2.0, 2: 2.0}, 1)],
)
def test_evaluations_since_the_best_are_counted(val_losses: dict[int, float], count: int) -> None:
    assert without_improvement(rows(val_losses, [1.0] * 4)) == count


FALLING: list[float | None] = [1.0, 1.0, 1.0, 9.0, 2.0, 2.0, 2.0, 2.0]  # 3 until the best evaluation, 2 after it


@pytest.mark.parametrize(
    ("val_losses", "losses", "verdict"),
    [
        ({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.6}, FALLING, True),
        ({4: 2.0, 6: 2.5, 8: 2.6}, FALLING, True),
        ({4: 2.0, 6: 2.02, 8: 2.02}, FALLING, True),
        ({4: 2.0, 6: 2.019, 8: 2.6}, FALLING, False),  # a rise of less than 1% is noise
        ({4: 2.0, 6: 2.6, 8: 2.019}, FALLING, False),
        ({4: 2.0, 8: 2.6}, FALLING, False),  # one evaluation since the best
        ({2: 3.0, 4: 2.5, 6: 2.0, 8: 2.6}, FALLING, False),
        ({2: 3.0, 4: 2.5, 6: 2.3, 8: 2.0}, FALLING, False),
        ({4: 2.0, 6: 2.5, 8: 2.6}, [3.0] * 8, False),  # training has not become better
        ({4: 2.0, 6: 2.5, 8: 2.6}, [3.0] * 4 + [4.0] * 4, False),
        # As many steps count before the best evaluation as after it, so the fall at the beginning does not.
        ({4: 3.0, 6: 2.0, 7: 2.5, 8: 2.6}, [9.0] * 4 + [2.0, 2.0, 2.5, 2.5], False),
        ({4: 2.0, 6: 2.5, 8: 2.6}, [3.0] * 4 + [None] * 4, False),
        ({4: 2.0, 6: 2.5, 8: 2.6}, [None] * 4 + [2.0] * 4, False),
    ],
)
def test_a_model_learns_by_heart_if_only_training_improves(
    val_losses: dict[int, float], losses: list[float | None], verdict: bool
) -> None:
    assert learns_by_heart(rows(val_losses, losses)) is verdict


@pytest.mark.parametrize(
    ("val_losses", "limit"),
    [
        ({}, math.log(100) + 1),  # equal probabilities, and 1 nat
        ({0: 4.0}, math.log(100) + 1),
        ({0: 7.0}, 8.0),  # a model to start from was worse than that
        ({0: 4.0, 1: 9.0}, math.log(100) + 1),  # the first evaluation alone counts
    ],
)
def test_a_loss_far_above_the_first_and_above_chance_has_diverged(val_losses: dict[int, float], limit: float) -> None:
    assert divergence_limit(rows(val_losses, [1.0] * 2), 100) == pytest.approx(limit)


def test_without_metrics_chance_is_the_limit() -> None:
    assert divergence_limit([], 10) == pytest.approx(math.log(10) + 1)
