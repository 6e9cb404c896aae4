"""Our own layers judged against the reference libraries: ``gptladder ladder``, and the first part of parity."""

from collections.abc import Callable, Iterator

import torch

from .answers import Reference
from .results import Verdict
from .rungs import Rung, cases, compare


def judge(rung: Rung, reference: Reference, *, number: int, seed: int = 0) -> Verdict:
    """Try a rung's layer on ``number`` cases against one reference."""
    float64 = float32 = gradient = 0.0
    worst = 0
    for case in cases(seed, number):
        exact, gradients = compare(rung, reference, case, torch.float64)
        if exact >= float64:
            worst = case.seed
        float64, gradient = max(float64, exact), max(gradient, gradients)
        float32 = max(float32, compare(rung, reference, case, torch.float32)[0])
    return Verdict(
        rung=rung.name,
        reference=reference.library,
        cases=number,
        float64=float64,
        float32=float32,
        gradient=gradient,
        tolerance64=rung.tolerance(torch.float64),
        tolerance32=rung.tolerance(torch.float32),
        worst=worst,
    )


def judge_in_order(
    rungs: tuple[Rung, ...],
    *,
    number: int,
    seed: int = 0,
    stop_at_failure: bool = True,
    on_start: Callable[[Rung, Reference], None] = lambda rung, reference: None,
) -> Iterator[Verdict]:
    """Judge the rungs in order against each of their references; stop after the first rung that fails."""
    for rung in rungs:
        fell = False
        for reference in rung.references:
            on_start(rung, reference)
            verdict = judge(rung, reference, number=number, seed=seed)
            fell |= not verdict.passed
            yield verdict
        if fell and stop_at_failure:
            return
