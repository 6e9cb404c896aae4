"""A layer in float16 or bfloat16: it may be a few times as far off as our own layer at that precision."""

import random
from dataclasses import replace

import torch

from .answers import difference
from .cases import with_scores
from .diagnosis.which_line import locate
from .results import Fault, Finding
from .rungs import RANGES, Trial, altered, answer
from .under_test import UnderTest

# How many times as far off as our own layer a layer may be: one that is written out rounds each step, ours fewer.
_TIMES = 10
# Lower than any number that layers in half precision hide keys with, but -inf and the dtype's least.
_LOW_SCORE = -2e4


def low_precision(layer: UnderTest, dtype: torch.dtype, number: int) -> tuple[Fault | None, Finding | None, str]:
    """Try a layer that is right in float64 at a lower precision.

    Returns:
        What is wrong, where, and otherwise a note on how far it is off.
    """
    name = str(dtype).removeprefix("torch.")
    source = random.Random(layer.seed + 3)
    most, times = 0.0, 0.0
    for _ in range(number):
        low, exact = _rounded(layer.trial(layer.draw(source, RANGES["seq"]), gradients=False), dtype)
        fault, off, allowed = _off(layer, low, exact)
        if fault:
            return fault, None, ""
        most, times = max(most, off), max(times, off / allowed)
        if off > _TIMES * allowed:
            message = (
                f"right in float64; in {name} the output is off by {off:.1e}, where rounding explains {allowed:.1e}"
            )
            return Fault("low", message), _first_loss(layer, low, exact), ""
    if layer.rung.name in ("attention", "block", "model"):
        fault, finding = _low_scores(layer, dtype, name)
        if fault is not None:
            return fault, finding, ""
    return None, None, f"In {name} it is off by {most:.1e} at most, {times:.1f} times what rounding explains."


def _off(layer: UnderTest, low: Trial, exact: Trial) -> tuple[Fault | None, float, float]:
    """Return the fault of a layer that gives no answer; else how far it is off, and how far rounding explains."""
    found, right = layer.ask(low, gradients=False), exact.expected.output
    if found.answer is None:
        name, fault = str(low.dtype).removeprefix("torch."), found.fault
        return fault and replace(fault, message=f"right in float64; in {name} {fault.message}"), 0.0, 1.0
    own = answer(layer.rung.build(low.config, low.dtype), low, gradients=False).output
    rounding = torch.finfo(low.dtype).eps * right.abs().max().item()  # of the output itself
    return None, difference(found.answer.output.double(), right), difference(own.double(), right) + rounding


def _rounded(trial: Trial, dtype: torch.dtype) -> tuple[Trial, Trial]:
    """Return a trial with its numbers rounded to a dtype: in that dtype, and in float64 with the right answer."""
    exact = altered(
        trial,
        given=trial.given.to(dtype).double() if trial.given.is_floating_point() else trial.given,
        **{name: p.to(dtype).double() for name, p in trial.parameters.items()},
    )
    low = replace(
        exact,
        dtype=dtype,
        given=exact.given.to(dtype) if exact.given.is_floating_point() else exact.given,
        parameters={name: p.to(dtype) for name, p in exact.parameters.items()},
        cotangent=exact.cotangent.to(dtype),
    )
    return low, exact


def _first_loss(layer: UnderTest, low: Trial, exact: Trial) -> Finding | None:
    """Return the first line whose numbers are further off than rounding, against the same layer in float64."""
    for one, other in zip(layer.trace(low).events, layer.trace(exact).events, strict=False):
        if one.function != other.function or one.value.shape != other.value.shape:
            return None
        right = other.value.double()
        seen = right.isfinite() & (right.abs() < 1e4)  # but for what hides keys
        if bool((~one.value.isfinite() & (right.abs() < 1e8)).any()):
            at, code = one.at or (None, None)
            return Finding(
                at, code, (), "numbers too large for it", (f"In float64 `{one.function}` gives finite ones.",)
            )
        off = (one.value.double() - right)[seen].abs()
        size = right[seen].abs().max().item() if seen.any() else 0.0
        if seen.any() and not (off.max().item() <= 8 * torch.finfo(low.dtype).eps * max(size, 1e-3)):
            at, code = one.at or (None, None)
            amount = (
                f"`{one.function}` is off by {off.max().item():.1e} there; in float64 its largest number is {size:.1e}."
            )
            return Finding(at, code, (), "numbers that are further off than rounding", (amount,))
    return None


def _low_scores(layer: UnderTest, dtype: torch.dtype, name: str) -> tuple[Fault | None, Finding | None]:
    """Try a layer where all scores are lower than what hides keys in half precision."""
    case = layer.new_case(batch=2, seq=6)
    longer = replace(case, config=replace(case.config, n_ctx=max(6, case.config.n_ctx)))
    trial = layer.trial(longer, gradients=False)
    fault, off, allowed = _off(layer, *_rounded(with_scores(trial, _LOW_SCORE, 0.0), dtype))
    if fault or off <= _TIMES * allowed:
        return fault, None
    message = f"right in float64; in {name}, where all attention scores are {_LOW_SCORE:.0e}, off by {off:.1e}"
    telling = with_scores(trial, _LOW_SCORE, 0.05)
    return Fault("low", message), locate(telling, layer.trace(telling))
