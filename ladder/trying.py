"""Somebody's layer on its rung: tried on many cases, and looked into where it is wrong."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .candidate.layer import SIZES, Fault, Look, Question, Reply
from .climbing import Tried
from .diagnosis import diagnose
from .experiments import shrink
from .numbers import Answer
from .references import Reference
from .rungs import RANGES, Case, Difference, Rung, Trial, distance, draw_case, make_trial
from .verdicts import Verdict

# Long enough for a mask or a table that was made too short.
_LONG = (33, 130)
# Their sums are longer than those of the rungs' own cases, and a layer may order them as it likes: in float32 four
# times as much is allowed. What is wrong shows in float64.
_FLOAT32 = 4
# GPT-2's own choices. Others are tried on a layer that reads the field of that name.
_GPT2: dict[str, tuple[str, Any]] = {
    "act_fn": ("act_fn", "gelu_new"),
    "scale": ("scale_attn_weights", True),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
}
# The parameters that GPT-2 does not have, and TransformerLens always does.
_UNTIED = ({"b_U"}, {"unembed.W_U", "unembed.b_U"})
# What a layer of one case does to the process: another case would cost a new one.
_FATAL = ("hang", "died")


class Draw(Protocol):
    """Draws a case."""

    def __call__(self, source: random.Random, *, seq: tuple[int, int] = ...) -> Case:
        """A case, with a sequence of this length."""
        ...


class Respond(Protocol):
    """A layer under test, wherever it runs."""

    def __call__(self, question: Question, look: Look = "") -> Reply:
        """What the layer makes of a question."""
        ...


@dataclass(frozen=True)
class _Attempt:
    """What came of one run over the cases: how far off, what is most wrong, and the first trial that shows it."""

    draw: Draw
    verdict: Verdict | None
    fault: Fault | None
    trial: Trial | None


def try_layer(rung: Rung, layer: str, respond: Respond, *, number: int, seed: int) -> Tried:
    """Try a layer on ``number`` cases, and find out what is wrong with it.

    It is tried on what it can vary: one that reads no ``act_fn`` is tried with GPT-2's alone, one that reads no
    ``d_head`` with heads that fill ``d_model``, and so on. One that fails so, but is right for GPT-2's own choices, has
    passed, with a note.
    """
    reference, notes = rung.references[0], []
    trial = make_trial(rung, reference, _drawing(frozenset())(random.Random(seed)), torch.float64)
    first = respond(_question(trial))
    asked = first.asked
    if first.fault and set(first.fault.names) in _UNTIED:
        reference, asked = rung.references[1], asked - {"d_head"}
        lacking = " and no ".join(sorted(first.fault.names, reverse=True))
        notes.append(f"It has no {lacking}, as GPT-2 has none: tried against transformers'.")

    draw = _drawing(asked)
    if first.fault and first.fault.kind in _FATAL:
        attempt = _Attempt(draw, None, first.fault, trial)
    else:
        attempt = _attempt(rung, reference, respond, draw, number, seed)
    if attempt.fault and attempt.fault.kind not in _FATAL and asked & {"d_head", "act_fn", "scale"}:

        def draw_gpt2(source: random.Random, *, seq: tuple[int, int] = RANGES["seq"]) -> Case:
            return _as_gpt2(draw(source, seq=seq), asked & {"layer_norm_eps", "d_mlp"})

        again = _attempt(rung, reference, respond, draw_gpt2, number, seed)
        if again.fault is None:
            notes.append(
                "It is right for GPT-2's own choices (gelu_new, scores divided by sqrt(d_head), n_heads * d_head = "
                f"d_model), but not for others that it reads: {attempt.fault.message}."
            )
        # Numbers that are wrong tell more than a fault that only other choices bring about.
        if again.fault is None or (attempt.verdict is None and again.verdict is not None):
            attempt = again
    note = " ".join(notes)
    tried = Tried(rung.name, layer, attempt.verdict, attempt.fault, asked=tuple(sorted(asked)), note=note)
    return tried if attempt.fault is None else _looked_into(tried, attempt, reference, respond)


def _drawing(asked: frozenset[str]) -> Draw:
    """Draws cases that a layer can be built for that reads these fields."""

    def draw(source: random.Random, *, seq: tuple[int, int] = RANGES["seq"]) -> Case:
        while True:
            case = _as_gpt2(draw_case(source, seq=seq), asked)
            sizes = [
                case.batch,
                case.seq,
                *(getattr(case.config, name) for name in RANGES if hasattr(case.config, name)),
            ]
            if len(set(sizes)) == len(sizes):  # so that no two axes can be taken for one another
                return case

    return draw


def _as_gpt2(case: Case, but: frozenset[str]) -> Case:
    """The case with GPT-2's own choices, but for some fields."""
    config = dataclasses.replace(case.config, **dict(value for name, value in _GPT2.items() if name not in but))
    if "d_head" not in but:
        config = dataclasses.replace(config, d_model=config.n_heads * config.d_head)
    if "d_mlp" not in but:
        config = dataclasses.replace(config, d_mlp=4 * config.d_model)
    return dataclasses.replace(case, config=config)


def _attempt(rung: Rung, reference: Reference, respond: Respond, draw: Draw, number: int, seed: int) -> _Attempt:
    source = random.Random(seed)
    largest = {torch.float64: 0.0, torch.float32: 0.0}
    gradient, worst = 0.0, 0
    wrong: dict[str, tuple[Trial, str]] = {}
    for index in range(number):
        long = index % 5 == 4 or index == number - 1
        case = draw(source, seq=_LONG if long else RANGES["seq"])
        for dtype in largest:
            trial = make_trial(rung, reference, case, dtype)
            reply = respond(_question(trial))
            if reply.answer is None:
                return _Attempt(draw, None, reply.fault, trial)
            off = distance(reply.answer, trial.expected)
            if dtype == torch.float64:
                gradient = max(gradient, off.gradient)
                worst = case.seed if off.output >= largest[dtype] else worst
            largest[dtype] = max(largest[dtype], off.output)
            kind, message = _wrong(trial, reply.answer, off)
            if kind:
                wrong.setdefault(kind, (trial, message))
    verdict = Verdict(
        rung=rung.name,
        reference=reference.library,
        cases=number,
        float64=largest[torch.float64],
        float32=largest[torch.float32],
        gradient=gradient,
        tolerance64=_limit(rung, torch.float64),
        tolerance32=_limit(rung, torch.float32),
        worst=worst,
    )
    for kind in ("some nan", "nan", "output", "missing", "gradient", "float32"):
        if kind in wrong:
            trial, message = wrong[kind]
            if kind == "output" and verdict.float32 <= verdict.tolerance32:
                amount = f"off by {verdict.float64:.1e} in float64"
                kind, message = "precision", f"right in float32, but {amount}: not all of it is computed in float64"
            return _Attempt(draw, verdict, Fault(kind, message), trial)
    return _Attempt(draw, verdict, None, None)


def _limit(rung: Rung, dtype: torch.dtype) -> float:
    return rung.tolerance(dtype) * (_FLOAT32 if dtype == torch.float32 else 1)


def _wrong(trial: Trial, found: Answer, off: Difference) -> tuple[str, str]:
    """What is wrong with an answer, in a word and in a clause; empty where nothing is."""
    exact, limit = trial.dtype == torch.float64, _limit(trial.rung, trial.dtype)
    finite = found.output.isfinite()
    if not finite.any():
        return "nan", "forward returns nothing but NaN or infinity"
    if not finite.all():
        return "some nan", "forward returns NaN or infinity among its numbers"
    if off.output > limit:
        amount = f"off by {off.output:.1e}, where {limit:.0e} is allowed"
        return ("output", f"the output is {amount}") if exact else ("float32", f"right in float64; in float32 {amount}")
    if not exact or off.gradient <= limit:
        return "", ""
    missing = [
        name
        for name, right in trial.expected.gradients.items()
        if name not in found.gradients or (right.abs().max() > limit and not found.gradients[name].any())
    ]
    if missing:
        return "missing", f"the output is right, but no gradient reaches {', '.join(missing)}"
    name = max(off.gradients, key=lambda name: off.gradients[name])
    return "gradient", f"the output is right, but the gradient of {name} is off by {off.gradients[name]:.1e}"


# What `Watch` looks for where there is this fault.
_WATCHED = {
    "nan": "nan",
    "some nan": "nan",
    "missing": "gradient",
    "precision": "dtype",
    "dtype": "dtype",
    "input": "input",
}
# Faults that may depend on the sizes, and are none of the numbers that a diagnosis would shrink.
_SHRUNK = ("raises", "shape", "nan", "some nan")
_DIAGNOSED = ("some nan", "output", "gradient")
_DIAGNOSED_UNLESS_SEEN = ("missing", "precision")


def _looked_into(tried: Tried, attempt: _Attempt, reference: Reference, respond: Respond) -> Tried:
    """With the line at which it happened, the mistake that it is, and the smallest case that shows it."""
    assert attempt.fault is not None
    assert attempt.trial is not None
    fault, trial = attempt.fault, attempt.trial
    rung, kind, dead = trial.rung, fault.kind, fault.kind in _FATAL

    def ask(trial: Trial, look: Look = "") -> Reply:
        nonlocal dead
        reply = Reply() if dead else respond(_question(trial), look)
        dead |= reply.fault is not None and reply.fault.kind in _FATAL
        return reply

    def fails(case: Case) -> bool:
        tried = make_trial(rung, reference, case, trial.dtype)
        reply = ask(tried)
        if reply.answer is None:
            return reply.fault is not None and reply.fault.kind == kind
        return _wrong(tried, reply.answer, distance(reply.answer, tried.expected))[0] == kind

    diagnosis = None
    if kind in _WATCHED:
        at, code = ask(trial, "watch").places.get(_WATCHED[kind], (None, None))
        fault = dataclasses.replace(fault, at=at, code=code)
    wanted = kind in _DIAGNOSED or (kind in _DIAGNOSED_UNLESS_SEEN and not fault.at)
    # A diagnosis compares with the first reference; a layer without what that has could not answer.
    if wanted and reference is rung.references[0]:
        diagnosis = diagnose(
            rung, lambda trial: ask(trial).answer, draw=attempt.draw, taps=lambda trial: ask(trial, "taps").taps
        )
    smallest = diagnosis.smallest if diagnosis else None
    if kind in _SHRUNK and smallest is None:
        least = shrink(trial.case, fails, square="d_head" not in tried.asked)
        # What even the least of everything shows does not depend on sizes: there is nothing to be learnt from them.
        sizes = [least.batch, least.seq, *(getattr(least.config, name) for name in SIZES if name in tried.asked)]
        smallest = least if max(sizes) > 2 else None
    return dataclasses.replace(tried, fault=fault, diagnosis=diagnosis, smallest=smallest)


def _question(trial: Trial) -> Question:
    return Question(
        rung=trial.rung.name,
        config=trial.config,
        dtype=trial.dtype,
        parameters=trial.parameters,
        given=trial.given,
        cotangent=trial.cotangent,
    )
