"""Climbing: in order, and no further than the first rung that fails."""

import dataclasses

from gptladder.ladder.mistakes import MISTAKES
from gptladder.ladder.own_layers import judge_in_order
from gptladder.ladder.rungs import RUNGS


def test_every_rung_holds_in_order() -> None:
    started: list[tuple[str, str]] = []
    verdicts = list(
        judge_in_order(RUNGS, number=2, on_start=lambda rung, reference: started.append((rung.name, reference.library)))
    )
    assert [(each.rung, each.reference) for each in verdicts] == started
    assert list(dict.fromkeys(each.rung for each in verdicts)) == [each.name for each in RUNGS]
    assert all(each.passed and each.cases == 2 for each in verdicts)


def test_it_stops_after_the_first_rung_that_fails() -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.name == "causal mask off by one")
    rungs = tuple(
        dataclasses.replace(each, build=mistake.build) if each.name == "attention" else each for each in RUNGS
    )
    verdicts = list(judge_in_order(rungs, number=2))
    assert verdicts[-1].rung == "attention"
    assert [each.passed for each in verdicts][-2:] == [False, False]
    assert all(each.passed for each in verdicts[:-2])
    assert list(judge_in_order(rungs, number=1, stop_at_failure=False))[-1].rung == "model"
