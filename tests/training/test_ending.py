"""What ends a run, which evaluation is the best, and what losses show."""

import math

import pytest

from gptladder.training.ending import (
    Ending,
    divergence_limit,
    evaluations,
    learns_by_heart,
    why_it_ends,
    without_improvement,
)
from gptladder.training.metrics import Metrics
from gptladder.training.presets import OptimConfig


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
        ({2: 1.0, 6: 0.0, 8: 2.6}, [3.0] * 6 + [2.0] * 2, False),  # nor is one, if nothing can be lower than the best
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
