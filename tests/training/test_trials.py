"""Kills, full disks, two starts at once, forks, branches and flipped bits lose nothing of a run and mix nothing."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gptladder.tokenizer import CharTokenizer

sys.path.insert(0, str(Path(__file__).parent))
trials_module = pytest.importorskip("trials", reason="needs POSIX: fork and limits of resources")


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trials_module.Trials(tmp_path_factory.mktemp("trials"))


@pytest.mark.parametrize("kind", trials_module.KINDS)
@pytest.mark.parametrize("count", [2, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_every_trial_survives(trials: object, kind: str, count: int) -> None:
    assert trials_module.survived(trials, kind, count) == count


def test_a_run_that_is_killed_after_its_tokenizer_begins_again(trials: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, save = trials.fresh(), CharTokenizer.save

    def then_killed(tokenizer: CharTokenizer, where: Path) -> None:
        save(tokenizer, where)
        os._exit(9)

    with monkeypatch.context() as patched:
        patched.setattr(CharTokenizer, "save", then_killed)
        child = trials_module.in_child(lambda: trials_module.run(trials.folder, resume="auto"))
    assert trials_module.ended(child) == 9
    assert (folder / "tokenizer").exists()
    trials_module.run(trials.folder, resume="auto")
    assert trials_module.results(folder) == trials.expected
