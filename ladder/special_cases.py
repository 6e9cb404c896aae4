"""Cases that show what others hide: a small stream, calls before, full length, large numbers. Right layers get them."""

import random
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .cases import small_stream
from .results import Fault, Verdict
from .rungs import Case, Trial, altered
from .under_test import FATAL, UnderTest

# A fault, the trial that shows it, and the inputs that the layer must be called with before.
Hidden = tuple[Fault, Trial, tuple[Tensor, ...]]


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
    yield from _large_numbers(layer, case, verdict)


def _limit(verdict: Verdict, factor: float = 1.0) -> float:
    return verdict.tolerance32 if verdict.lenient else factor * verdict.tolerance64


def _small_stream(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    trial = layer.fair(small_stream(layer.trial(case, gradients=False)))
    fault, off = layer.off(trial, _limit(verdict, 100))
    message = f"right for large inputs, off by {off:.1e} where the residual stream is small, so that eps counts"
    if off:
        yield fault or Fault("output", message), trial, ()


def _called_before(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    long = replace(case, seq=11, config=replace(case.config, n_ctx=max(case.config.n_ctx, 17)))
    trial = layer.trial(long, gradients=False)
    for seq, length in ((5, "a shorter"), (11, "an equally long"), (16, "a longer")):
        before = replace(long, seq=seq, batch=3 if seq == 16 else 2)
        earlier = layer.rung.input(before, torch.float64, torch.Generator().manual_seed(seq))
        fault, off = layer.off(trial, _limit(verdict), before=(earlier,))
        if fault is not None and fault.kind in FATAL:  # it shows nothing of what the layer computes
            yield fault, trial, ()
            return
        if not off:
            continue
        alone, still_off = layer.off(trial, _limit(verdict))
        if still_off:  # the call before makes no difference
            if alone is not None:
                yield alone, trial, ()
            return
        what = fault.message if fault else f"the output is off by {off:.1e}"
        message = f"the first call is right; after {length} sequence, {what}: the layer keeps something between calls"
        at, code = (fault.at, fault.code) if fault else (None, None)
        yield Fault("state", message, at, code), trial, (earlier,)
        return


def _full_context(layer: UnderTest, verdict: Verdict) -> Iterator[Hidden]:
    small = layer.draw(random.Random(layer.seed + 2))
    whole = Case(replace(small.config, n_ctx=1024, n_layers=1), 1, 1024, small.seed)
    trial = layer.trial(whole, gradients=False)
    fault, off = layer.off(trial, _limit(verdict, 10))
    if off:
        what = fault.message if fault else f"off by {off:.1e}"
        message = f"right for short sequences; for one of n_ctx = 1024 positions: {what}"
        at, code = (fault.at, fault.code) if fault else (None, None)
        yield Fault("context", message, at, code), trial, ()


def _large_scores(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    longer = replace(case, seq=7, config=replace(case.config, n_ctx=max(7, case.config.n_ctx)))
    base = layer.trial(longer, gradients=False)
    large = {name: 20.0 * p for name, p in base.parameters.items() if name.endswith(("W_Q", "W_K"))}
    trial = altered(base, **large)
    fault, off = layer.off(trial, 1e-2 if verdict.lenient else 1e-8)
    message = f"right for small attention scores; where scores are in the hundreds, off by {off:.1e}"
    if off:
        yield fault or Fault("large", message), trial, ()


# Factors that make a layer's numbers as large as a trained GPT-2's: its stream reaches thousands.
_FACTORS = {"W_E": 300.0, "W_pos": 300.0, "W_U": 100.0, "W_V": 30.0}
_LARGE = {
    "embed": "embeddings are in the hundreds",
    "pos-embed": "embeddings are in the hundreds",
    "layer-norm": "inputs are in the hundreds",
    "attention": "values are large",
    "mlp": "numbers of the hidden layer reach {most:.0f}",
    "block": "numbers of the residual stream are in the hundreds, and those of the hidden layer above 10",
    "unembed": "logits are in the hundreds",
    "model": "numbers of the residual stream, and logits, are in the hundreds",
}


def _large_numbers(layer: UnderTest, case: Case, verdict: Verdict) -> Iterator[Hidden]:
    """Try a layer on large numbers: a clamp, or a range that a function is approximated in, shows there."""
    base, rung = layer.trial(case, gradients=False), layer.rung.name
    large = {
        name: factor * p for name, p in base.parameters.items() for end, factor in _FACTORS.items() if _is(name, end)
    }
    # Where tanh is written with exp, right formulas overflow beyond this.
    most = 8.0 if verdict.lenient else 15.0
    if rung == "mlp":
        hidden = base.given @ base.parameters["W_in"] + base.parameters["b_in"]
        factor = most / hidden.abs().max()
        large |= {name: factor * base.parameters[name] for name in ("W_in", "b_in")}
    elif rung in ("block", "model"):  # what they read there is normalised
        large |= {name: most / 2 * p for name, p in base.parameters.items() if _is(name, "W_in")}
    given = 300.0 * base.given if rung in ("layer-norm", "block") else base.given
    trial = layer.fair(altered(base, given=given, **large))
    size = max(1.0, trial.expected.output.abs().max().item())
    fault, off = layer.off(trial, _limit(verdict, 100) * size)
    message = f"right for small numbers; where {_LARGE[rung].format(most=most)}, off by {off:.1e}"
    if off:
        yield fault or Fault("large", message), trial, ()


def _is(name: str, end: str) -> bool:
    return name.rpartition(".")[2] == end
