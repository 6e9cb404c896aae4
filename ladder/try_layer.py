"""Try the user's layer on its rung: on many cases, on special ones, and look into it if it is wrong."""

import random
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from .answers import Answer, difference
from .cases import Draw, as_gpt2, with_other_tables
from .diagnosis.faults import explained, lacking
from .diagnosis.which_line import locate
from .low_precision import low_precision
from .own_faults import own_faults
from .results import Diagnosis, Fault, Tried, Verdict
from .rungs import RANGES, Case, Rung, Trial, distance
from .special_cases import OVERFLOW, hidden_faults, overflow_note
from .tolerance import limit, wrongness
from .under_test import FATAL, OPTIONAL, Ask, UnderTest, as_sentence

# Long enough for a mask or a table that was made too short.
_LONG = (33, 130)
# What is wrong, the worst first.
_KINDS = ("some nan", "nan", "output", "missing", "gradient", "float32")

# Of one run over the cases: how far off, what is most wrong, and the trial that shows it.
Attempt = tuple[Verdict | None, Fault | None, Trial | None]


def try_layer(
    rung: Rung,
    ask: Ask,
    name: str,
    *,
    reference: str | None = None,
    number: int = 25,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Tried:
    """Try a layer on its rung, and find out what is wrong with it.

    Args:
        rung: the rung.
        ask: the layer.
        name: of the layer, in the report.
        reference: the library to judge by; our own layers if None.
        number: of cases.
        seed: of the cases and of every number in them.
        dtype: a lower precision to try it at too.
    """
    began = time.perf_counter()
    layer = UnderTest(rung, ask, reference, seed)
    tried = Tried(rung.name, name, verdict=None)
    trial: Trial | None = None  # shows what is wrong
    interrupted: list[str] = []
    with own_faults(interrupted.append):
        trial = _judge(layer, tried, number, dtype)
    for why in interrupted:
        right = tried.verdict if tried.fault is None else None
        message = f"right on the {right.cases} cases, but not tried further: {why}" if right else why
        tried.fault = Fault("internal", message)
    # What is known of the layer, whether it is right or wrong.
    notes = list(map(as_sentence, layer.notes))
    if layer.widened:
        right_so_far = "" if tried.fault else "right in float32 arithmetic: "
        notes.append(as_sentence(right_so_far + layer.widened))
    tried.notes = tuple(dict.fromkeys([*notes, *tried.notes]))
    tried.missing = tuple(sorted(layer.missing - set(OPTIONAL)))
    tried.reading, tried.borrowed = layer.reading, layer.first.borrowed
    # If it is wrong, where and how.
    if tried.fault is not None and tried.diagnosis is None:
        tried.diagnosis = Diagnosis()
    if tried.fault is not None and trial is not None:
        undiagnosed: list[str] = []
        with own_faults(undiagnosed.append):
            tried = explained(layer, tried, tried.fault, trial)
        added = [f"The verdict stands, but what is wrong was not found out: {why}." for why in undiagnosed]
        tried.notes = (*tried.notes, *added)
    return replace(lacking(tried), seconds=time.perf_counter() - began)


def _judge(layer: UnderTest, tried: Tried, number: int, dtype: torch.dtype | None) -> Trial | None:
    """Try the layer on the cases; if it is right on them, on what hides mistakes, and at a lower precision.

    Returns:
        The trial that shows the fault; None if there is no fault, or it is known where and how.
    """
    # What it reads and lacks; then the rung's cases, unless it gives no answer at all.
    layer.begin()
    tried.fault = fault = layer.first.fault
    if fault and (fault.kind in (*FATAL, "parameters") or (fault.kind == "build" and fault.names)):
        return layer.trial(layer.new_case())
    if fault and fault.kind == "refused":
        return None
    (tried.verdict, tried.fault, trial), tried.notes = _attempts(layer, number)
    if tried.fault is None and tried.verdict is not None:
        rounded = trial
        tried.fault, trial = None, None
        for fault, shows_it in hidden_faults(layer, tried.verdict):
            if fault.kind != OVERFLOW:
                tried.fault, trial = fault, shows_it
                break
            tried.notes += (overflow_note(layer, shows_it),)
        if tried.fault is None and tried.verdict.lenient and rounded is not None:
            tried.notes += (_float32_note(layer, tried.verdict, rounded),)
    if tried.fault is None and dtype is not None:
        tried.fault, finding, note = low_precision(layer, dtype, number)
        tried.notes += (note,) if note else ()
        tried.diagnosis = Diagnosis(finding=finding) if finding else None
    if tried.fault is None and layer.widened and layer.first.precision:
        low = layer.first.precision
        tried.fault = Fault("half", f"it computes in {low}; computed in float64 throughout, it would be right")
    return trial


# GPT-2's own choices, of what a layer may read.
_CHOICES = {
    "act_fn": "gelu_new",
    "scale": "scores divided by sqrt(d_head)",
    "d_head": "n_heads * d_head = d_model",
}


def _attempts(layer: UnderTest, number: int) -> tuple[Attempt, tuple[str, ...]]:
    """Try the layer on all that it reads; if it fails, on GPT-2's own choices alone. Return notes, too."""
    attempt = verdict, fault, _ = _attempt(layer, number)
    if fault is not None and fault.kind == "parameters" and not _follows_d_head(layer):
        layer.leave_out("d_head")
        attempt = verdict, fault, _ = _attempt(layer, number)
    varied = [choice for name, choice in _CHOICES.items() if name in layer.asked]
    if fault is None or fault.kind in FATAL or not varied:
        return attempt, ()
    everything = layer.draw
    layer.draw = _as_gpt2(everything, layer.asked & {"layer_norm_eps", "d_mlp"} | layer.fixed.keys())
    # A few cases show whether all are worth the time.
    again = _attempt(layer, min(number, 3))
    if again[1] is None or verdict is None:
        again = _attempt(layer, number)
    if again[1] is None:
        choices = f"GPT-2's own choices ({', '.join(varied)})"
        if verdict is None:
            return again, (f"Only {choices} were tried: with others that it reads, {fault.message}.",)
        return again, (f"With {choices} its output is right; with others that it reads, {fault.message}.",)
    if verdict is None and (again[0] is not None or fault.kind == "parameters"):
        # Numbers that are wrong show more than a fault that only other choices bring about.
        return again, ()
    layer.draw = everything
    return attempt, ()


def _follows_d_head(layer: UnderTest) -> bool:
    """Return whether the layer's matrices follow d_head: they may not, though a message of its constructor reads it."""
    if "d_head" not in layer.asked:
        return True
    source = random.Random(layer.seed + 5)
    drawn = (layer.draw(source) for _ in range(10))
    others = [case for case in drawn if case.config.d_model != case.config.n_heads * case.config.d_head]
    return any(layer.ask(layer.trial(case, gradients=False), gradients=False).answer for case in others[:3])


def _as_gpt2(draw: Draw, but: frozenset[str]) -> Draw:
    def draw_gpt2(source: random.Random, seq: tuple[int, int] = RANGES["seq"]) -> Case:
        return with_other_tables(as_gpt2(draw(source, seq), but))

    return draw_gpt2


def _trials(layer: UnderTest, number: int) -> Iterator[Trial]:
    """Yield the trials of ``number`` cases, each in float64 and in float32."""
    source = random.Random(layer.seed)
    for index in range(number):
        long = index % 5 == 4 or index == number - 1
        case = layer.draw(source, _LONG if long else RANGES["seq"])
        for dtype in (torch.float64, torch.float32):
            yield layer.trial(case, dtype)


def _attempt(layer: UnderTest, number: int) -> Attempt:
    """Run over the cases, in float64 and float32."""
    largest = {torch.float64: 0.0, torch.float32: 0.0}
    gradient, worst = 0.0, 0
    wrong: dict[str, tuple[Trial, str]] = {}
    exact: list[tuple[Trial, Answer, tuple[float, float]]] = []
    # How far off it is at most, and for each kind of fault the trial that shows it best.
    for trial, reply in layer.ask_each(_trials(layer, number)):
        if reply.answer is None:
            return None, reply.fault, trial
        off, dtype = distance(reply.answer, trial.expected), trial.dtype
        if dtype == torch.float64:
            gradient = max(gradient, off[1])
            worst = trial.case.seed if off[0] >= largest[dtype] else worst
            exact.append((trial, reply.answer, off))
        largest[dtype] = max(largest[dtype], off[0])
        kind, message = wrongness(layer.rung, trial, reply.answer, off)
        # The worst output; of gradients, the message that names most parameters.
        more = kind in wrong and (off[0] >= largest[dtype] if kind == "output" else len(message) > len(wrong[kind][1]))
        if kind and (kind not in wrong or more):
            wrong[kind] = (trial, message)
    verdict = Verdict(
        rung=layer.rung.name,
        reference=layer.reference,
        cases=number,
        float64=largest[torch.float64],
        float32=largest[torch.float32],
        gradient=gradient,
        tolerance64=limit(layer.rung, torch.float64),
        tolerance32=limit(layer.rung, torch.float32),
        worst=worst,
    )
    if "output" in wrong and max(verdict.float32, verdict.float64) <= verdict.tolerance32:
        # Some step computes in float32: what else is wrong shows by float32's tolerance.
        verdict, shown = replace(verdict, lenient=True), wrong["output"][0]
        judged = ((trial, wrongness(layer.rung, trial, found, off, lenient=True)) for trial, found, off in exact)
        wrong = {kind: (trial, message) for trial, (kind, message) in judged if kind}
        if not wrong:
            return verdict, None, shown
    # The worst of what is wrong.
    for kind in _KINDS:
        if kind in wrong:
            trial, message = wrong[kind]
            if kind == "output":
                message = f"the output is off by {verdict.float64:.1e}, where {verdict.tolerance64:.0e} is allowed"
            return verdict, Fault(kind, message), trial
    return verdict, None, None


def _float32_note(layer: UnderTest, verdict: Verdict, trial: Trial) -> str:
    """Return the line that computes in float32, and whether the layer is right once everything is float64."""
    amount = f"off by {verdict.float64:.0e} in float64"
    place = layer.trace(trial).places.get("dtype")
    wide = layer.ask(trial, wide=True).answer
    alone = wide is not None and difference(wide.output, trial.expected.output) <= verdict.tolerance64
    if place and alone:
        return f"Right in float32 arithmetic ({amount}): {place[0]} computes in float32: {place[1]}"
    where = f"; float32 comes in at {place[0]}: {place[1]}" if place else ""
    finding = None if place else locate(trial, layer.trace(trial))
    if finding and finding.at:
        where = f"; the first line with other numbers is {finding.at}: {finding.code}"
    return f"Right in float32 ({amount}){where}"
