"""Cases that show what others hide: a small stream, calls before, full length, large scores. Right layers get them."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .cases import small_stream, with_scores
from .formula.quantities import quantities
from .results import Fault, Verdict
from .rungs import Case, Trial, altered
from .under_test import FATAL, UnderTest

# By how a step's key ends: how large trained models make it, what makes it as large, and what it is.
_LARGE = {
    "post": (20.0, ("W_in", "b_in"), "the hidden layer"),
    "z": (100.0, ("W_V", "b_V"), "the values"),
    "logits": (300.0, ("W_U", "b_U"), "the logits"),
    "start": (1000.0, ("W_E", "W_pos"), "the stream"),
    "embed": (100.0, ("W_E",), "the embedding"),
    "pos-embed": (100.0, ("W_pos",), "the embedding"),
}

# What the kind of a fault is that is worth a note only: the formula is right.
OVERFLOW = "overflow"
# Scores whose exponentials are still numbers: in float64, and in float32.
_LOW = {False: -600.0, True: -60.0}

# A fault, and the trial that shows it.
Hidden = tuple[Fault, Trial]


def hidden_faults(layer: UnderTest, verdict: Verdict) -> Iterator[Hidden]:
    """Yield what is wrong with a layer that is right on the rung's own cases."""
    case = replace(layer.draw(random.Random(layer.seed + 1)), batch=2)
    with_stream = layer.rung.name in ("block", "model")
    with_attention = with_stream or layer.rung.name == "attention"
    if with_stream or layer.rung.name == "layer-norm":
        yield from _small_stream(layer, case, verdict)
    yield from _called_before(layer, case, verdict)
    if with_attention or layer.rung.name == "pos-embed":
        yield from _full_context(layer, verdict)
    if with_attention:
        yield from _large_scores(layer, case, verdict)
    yield from _large_values(layer, case, verdict)
    yield from _in_training(layer, case, verdict)


def _amount(off: float) -> str:
    return f"off by {off:.1e}" if math.isfinite(off) else "NaN or infinite"


def _right(verdict: Verdict) -> str:
    return "right" if verdict.float64 <= verdict.tolerance64 else f"right to {verdict.float64:.0e}"


def _limit(verdict: Verdict, factor: float = 1.0) -> float:
    return verdict.tolerance32 if verdict.lenient else factor * verdict.tolerance64


def _as_long(layer: UnderTest, case: Case, n_ctx: int, seq: int) -> Case:
    """Return the case with a context of this length at least and a sequence of that, if the layer has no own limit."""
    n_ctx = layer.fixed.get("n_ctx", max(case.config.n_ctx, n_ctx))
    return replace(case, seq=min(seq, n_ctx), config=replace(case.config, n_ctx=n_ctx))


def _small_stream(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    trial = layer.fair(small_stream(layer.trial(case, gradients=False)))
    fault, off = layer.off(trial, _limit(verdict, 100))
    message = (
        f"{_right(verdict)} for large inputs, {_amount(off)} where the residual stream is small, so that eps counts"
    )
    if off:
        yield fault or Fault("output", message), trial


def _called_before(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    long = _as_long(layer, case, 17, 11)
    trial = layer.trial(long, gradients=False)
    for seq, length in ((5, "a shorter"), (11, "an equally long"), (16, "a longer")):
        before = replace(long, seq=min(seq, long.config.n_ctx), batch=3 if seq == 16 else 2)
        earlier = layer.rung.input(before, torch.float64, torch.Generator().manual_seed(seq))
        later = replace(trial, before=(earlier,))
        fault, off = layer.off(later, _limit(verdict))
        if fault is not None and fault.kind in FATAL:  # it shows nothing of what the layer computes
            yield fault, trial
            return
        if not off:
            continue
        alone, still_off = layer.off(trial, _limit(verdict))
        if still_off:  # the call before makes no difference
            if alone is not None:
                yield alone, trial
            return
        what = fault.message if fault else f"the output is {_amount(off)}"
        message = f"the first call is {_right(verdict)}; after {length} sequence, {what}"
        message += ": the layer keeps something between calls"
        at, code = (fault.at, fault.code) if fault else (None, None)
        yield Fault("state", message, at, code), later
        return


def _in_training(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    """A mask that depends on the mode is missing where it matters most; what draws random numbers cannot be judged."""
    trial = layer.trial(_as_long(layer, case, 5, 5), gradients=False)
    tried = [layer.off(trial, _limit(verdict, 10), training=True) for _ in range(2)]
    if tried[0] == tried[1] and tried[0][0] is None and 0 < tried[0][1] < math.inf:
        message = f"{_right(verdict)} in eval mode; in training mode, without dropout, {_amount(tried[0][1])}"
        yield Fault("training", message), trial


def _full_context(layer: UnderTest, verdict: Verdict) -> Iterator[Hidden]:
    small = layer.draw(random.Random(layer.seed + 2))
    n_ctx = layer.fixed.get("n_ctx", 1024)
    n_layers = layer.fixed.get("n_layers", 1)
    whole = Case(replace(small.config, n_ctx=n_ctx, n_layers=n_layers), 1, n_ctx, small.seed)
    trial = layer.trial(whole, gradients=False)
    fault, off = layer.off(trial, _limit(verdict, 10))
    if off:
        what = fault.message if fault else _amount(off)
        message = f"{_right(verdict)} for short sequences; for one of n_ctx = {n_ctx} positions: {what}"
        at, code = (fault.at, fault.code) if fault else (None, None)
        yield Fault("context", message, at, code), trial


def _large_scores(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    base = layer.trial(_as_long(layer, case, 7, 7), gradients=False)
    limit = 1e-2 if verdict.lenient else 1e-8
    trial, large = altered(base, **_times(20.0, base)), "scores are in the hundreds"
    fault, off = layer.off(trial, limit)
    if fault is None and off == math.inf:
        # A right formula may overflow. One that hides keys by a finite number is off where all scores are lower.
        low = with_scores(base, _LOW[verdict.lenient], 0.05)
        fault, off_low = layer.off(low, limit)
        if not off_low:
            yield Fault(OVERFLOW, "its numbers overflow where attention scores are in the hundreds"), trial
            return
        trial, off, large = low, off_low, f"all are {_LOW[verdict.lenient]:g}"
    message = f"{_right(verdict)} for small attention scores; where {large}, {_amount(off)}"
    if off:
        yield fault or Fault("large", message), trial


def _times(factor: float, trial: Trial) -> dict[str, Tensor]:
    """Return the matrices that make queries and keys so many times as large."""
    return {name: factor * p for name, p in trial.parameters.items() if name.endswith(("W_Q", "W_K"))}


def overflow_note(layer: UnderTest, trial: Trial) -> str:
    """Return the note on a layer whose formula is right, but whose numbers overflow in a trial, with the line."""
    softmax = "`softmax` of the masked scores does not"
    note = f"Where attention scores are large (exp() of 89 overflows in float32), it gives NaN or infinity; {softmax}"
    small = altered(trial, **_times(1 / 20, trial))
    for large, other in zip(layer.trace(trial).events, layer.trace(small).events, strict=False):
        overflows = large.value.shape == other.value.shape and ~large.value.isfinite() & other.value.isfinite()
        if large.at and torch.as_tensor(overflows).any():
            return f"{note}. It begins at {large.at[0]}: {large.at[1]}"
    return f"{note}."


def _large_values(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    """A clamp or a soft cap shows only where numbers are as large as those of trained models."""
    base = layer.trial(case, gradients=False)
    keys = {each.key: each.value for each in quantities(base)}
    keys[base.rung] = keys["output"]
    for ending, (most, names, what) in _LARGE.items():
        if verdict.lenient and ending == "post":
            most = 10.0  # above, a GELU of exponentials overflows in float32
        reached = [value.abs().max().item() for key, value in keys.items() if key.endswith(ending)]
        if not reached or (factor := most / max(reached)) <= 1:
            continue
        large = {name: factor * value for name, value in base.parameters.items() if name.endswith(names)}
        yield from _off_when_large(layer, altered(base, **large), f"numbers of {what} reach {most:g}", verdict)
    if layer.rung.name in ("layer-norm", "block"):
        given = base.given * (1000.0 / base.given.abs().max())
        yield from _off_when_large(layer, altered(base, given=given), "numbers of the input reach 1000", verdict)


def _off_when_large(layer: UnderTest, trial: Trial, where: str, verdict: Verdict) -> Iterator[Hidden]:
    trial = layer.fair(trial)
    scale = max(1.0, trial.expected.output.abs().max().item())
    fault, off = layer.off(trial, scale * _limit(verdict, 100))
    message = f"{_right(verdict)} for small numbers; where {where}, {_amount(off)}"
    if off:
        yield fault or Fault("large", message), trial
