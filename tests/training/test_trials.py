"""Kills, full disks, two starts at once, forks, branches and flipped bits lose nothing of a run and mix nothing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
trials_module = pytest.importorskip("trials", reason="needs POSIX: fork and limits of resources")


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> object:
    return trials_module.Trials(tmp_path_factory.mktemp("trials"))


@pytest.mark.parametrize("kind", trials_module.KINDS)
@pytest.mark.parametrize("count", [2, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_every_trial_survives(trials: object, kind: str, count: int) -> None:
    assert trials_module.survived(trials, kind, count) == count
