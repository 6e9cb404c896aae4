"""Try the user's layer on its rung: on many cases, on the cases that hide mistakes, and look into it if it is wrong."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .candidate.configuration import SIZES
from .candidate.layer import Reply, Request
from .diagnosis import diagnose, small_stream
from .drawing import Draw, as_gpt2, drawing
from .experiments import shrink
from .location import Located
from .numbers import Answer, Reference, close
from .results import Diagnosis, Fault, Finding, Tried, Verdict
from .rungs import RANGES, Case, Difference, Rung, Trial, altered, distance, make_trial
from .subject import Respond, Subject, in_any_block, own_trial, without

# Long enough for a mask or a table that was made too short.
_LONG = (33, 130)
# Their sums are longer than those of the rungs' own cases, and a layer may order them as it likes: in float32 four
# times as much is allowed. What is wrong shows in float64.
_FLOAT32 = 4
_HEADS = ("d_model", "n_heads", "d_head")
# The sizes that a rung's layer has to do with.
_SIZES_OF: dict[str, tuple[str, ...]] = {
    "embed": ("d_vocab", "d_model"),
    "pos-embed": ("n_ctx", "d_model"),
    "layer-norm": ("d_model",),
    "attention": _HEADS,
    "mlp": ("d_mlp", "d_model"),
    "block": (*_HEADS, "d_mlp"),
    "unembed": ("d_model", "d_vocab"),
    "model": SIZES,
}
# After these, another case would cost a new process.
_FATAL = ("hang", "died", "limit")
# Parameters that GPT-2 does not have, or has only once.
_OPTIONAL = ("b_U", "unembed.b_U", "unembed.W_U")


class Ask(Protocol):
    """A layer under test, wherever it runs."""

    def __call__(self, request: Request) -> Reply:
        """Return the layer's reply."""
        ...


@dataclass(frozen=True)
class _Attempt:
    """The result of one run over the cases: how far off, what is most wrong, and the first trial that shows it."""

    draw: Draw
    verdict: Verdict | None = None
    fault: Fault | None = None
    trial: Trial | None = None
    before: tuple[Tensor, ...] = ()


class LayerTrial:
    """One layer on its rung.

    Args:
        rung: the rung.
        ask: the layer.
        reference: the library to judge by; our own layers if None.
        number: of cases.
        seed: of the cases and of every number in them.
    """

    def __init__(self, rung: Rung, ask: Ask, *, reference: str | None, number: int, seed: int) -> None:
        self.rung, self._ask, self.number, self.seed = rung, ask, number, seed
        self.library = reference
        self.asked: frozenset[str] = frozenset()
        self.missing: frozenset[str] = frozenset()
        self.layout, self.dead, self.wide = 0, False, False
        self.first = Reply()

    # ---- asking ----

    def ask(self, trial: Trial, **how: Any) -> Reply:
        """Ask for the layer's answer to a trial; nothing more is asked of a layer that hung or died."""
        if self.dead:
            return Reply()
        how = {"layout": self.layout, "wide": self.wide and trial.dtype == torch.float64, **how}
        reply = self._ask(
            Request(trial.rung, trial.config, trial.dtype, trial.parameters, trial.given, trial.cotangent, **how)
        )
        self.dead |= reply.fault is not None and reply.fault.kind in _FATAL
        return reply

    def trial(self, case: Case, dtype: torch.dtype) -> Trial:
        """Return the trial of a case, judged by the reference."""
        if self.library is None or self.missing - set(_OPTIONAL):
            trial = own_trial(self.rung, case, dtype, self.missing)
        else:
            trial = make_trial(self.rung, self._reference(), case, dtype)
        return replace(trial, expected=without(trial.expected, self.missing))

    def _reference(self) -> Reference:
        lens, hf = self.rung.references
        return hf if self.missing else lens

    @property
    def reference_name(self) -> str:
        """The name of the reference."""
        return "gptladder" if self.library is None or self.missing - set(_OPTIONAL) else self._reference().library

    # ---- the whole ----

    def run(self, layer: str) -> Tried:
        """Try the layer, and find out what is wrong with it."""
        began = time.perf_counter()
        draw = self._begin()
        fault = self.first.fault
        if (fault and fault.kind in (*_FATAL, "parameters")) or (fault and fault.kind == "build" and fault.names):
            attempt = _Attempt(draw, fault=fault, trial=self.trial(draw(random.Random(self.seed)), torch.float64))
            notes: list[str] = []
        else:
            attempt, notes = self._attempts(draw)
        precise = Diagnosis()
        if attempt.fault is None and attempt.verdict is not None:
            attempt, more = self._hidden(attempt)
            notes += more
        tried = Tried(
            rung=self.rung.name,
            layer=layer,
            verdict=attempt.verdict,
            fault=attempt.fault,
            asked=tuple(sorted(self.asked)),
            missing=tuple(sorted(self.missing - set(_OPTIONAL))),
            reading=self._reading(),
            notes=tuple(dict.fromkeys([*self._first_notes(), *notes])),
            borrowed=self.first.borrowed,
            diagnosis=precise if attempt.fault else None,
        )
        if attempt.fault is not None:
            tried = self._looked_into(tried, attempt)
        tried = self._lacking(tried)
        return replace(tried, seconds=time.perf_counter() - began)

    def _begin(self) -> Draw:
        """Find out what the layer reads and lacks, and how its parameters lie."""
        trial = self.trial(drawing(frozenset(), frozenset())(random.Random(self.seed)), torch.float64)
        self.first = self.ask(trial)
        self.asked, self.missing = self.first.asked, frozenset(map(in_any_block, self.first.missing))
        if self.first.fault and self.first.fault.kind in ("raises", "dtype"):
            self._try_float32()
        draw = drawing(self.asked, self.missing)
        self._choose_layout(draw)
        return draw

    def _try_float32(self) -> None:
        """Find out whether the layer fails in float64 only because a step of it is in float32 whatever the input is."""
        fault = self.first.fault
        assert fault is not None
        draw = drawing(self.asked, self.missing)
        exact, plain = (self.trial(draw(random.Random(self.seed)), dtype) for dtype in (torch.float64, torch.float32))
        if self.ask(exact, wide=True).answer is not None and self.ask(plain).answer is not None:
            self.wide = True
            at = f" at {fault.at}: {fault.code}" if fault.at else ""
            widened = "its float32 steps were widened to judge it"
            note = f"right in float32 arithmetic: in float64 {fault.message}{at}; {widened}"
            self.first = replace(self.first, fault=None, notes=(*self.first.notes, note))

    def _choose_layout(self, draw: Draw) -> None:
        """Choose the way to read the parameters under which the layer is right, if there is one."""
        if len(self.first.layouts) < 2:
            return
        trial = self.trial(as_gpt2(draw(random.Random(self.seed)), frozenset()), torch.float64)
        for layout in range(len(self.first.layouts)):
            reply = self.ask(trial, layout=layout, gradients=False)
            if reply.answer is not None and distance(reply.answer, trial.expected).output <= 1e-4:
                self.layout = layout
                self.first = replace(self.first, notes=reply.notes)
                return
        # No way is right. A mask that forward needs is given in the first way that does not raise.
        for layout in range(len(self.first.layouts)):
            if self.ask(trial, layout=layout, gradients=False).answer is not None:
                self.layout = layout
                return

    def _attempts(self, draw: Draw) -> tuple[_Attempt, list[str]]:
        """Try the layer on all that it reads; if it fails, on GPT-2's own choices alone."""
        attempt = self._attempt(draw, self.number)
        varied = self.asked & {"d_head", "act_fn", "scale"}
        if attempt.fault is None or attempt.fault.kind in _FATAL or not varied:
            return attempt, []

        def draw_gpt2(source: random.Random, *, seq: tuple[int, int] = RANGES["seq"]) -> Case:
            return as_gpt2(draw(source, seq=seq), self.asked & {"layer_norm_eps", "d_mlp"})

        # A few cases tell whether it is worth the while.
        again = self._attempt(draw_gpt2, min(self.number, 3))
        if again.fault is None or attempt.verdict is None:
            again = self._attempt(draw_gpt2, self.number)
        if again.fault is None:
            note = (
                "It is right for GPT-2's own choices (gelu_new, scores divided by sqrt(d_head), n_heads * d_head = "
                f"d_model), but not for others that it reads: {attempt.fault.message}."
            )
            return again, [note]
        # Numbers that are wrong tell more than a fault that only other choices bring about.
        return (again if attempt.verdict is None and again.verdict is not None else attempt), []

    def _attempt(self, draw: Draw, number: int) -> _Attempt:
        """Run over the cases, in float64 and float32."""
        source = random.Random(self.seed)
        largest = {torch.float64: 0.0, torch.float32: 0.0}
        gradient, worst = 0.0, 0
        wrong: dict[str, tuple[Trial, str]] = {}
        exact: list[tuple[Trial, Difference]] = []
        for index in range(number):
            long = index % 5 == 4 or index == number - 1
            case = draw(source, seq=_LONG if long else RANGES["seq"])
            for dtype in largest:
                trial = self.trial(case, dtype)
                reply = self.ask(trial)
                if reply.answer is None:
                    return _Attempt(draw, fault=reply.fault, trial=trial)
                off = distance(reply.answer, trial.expected)
                if dtype == torch.float64:
                    gradient = max(gradient, off.gradient)
                    worst = case.seed if off.output >= largest[dtype] else worst
                    exact.append((trial, off))
                largest[dtype] = max(largest[dtype], off.output)
                kind, message = wrongness(self.rung, trial, reply.answer, off)
                if kind:
                    wrong.setdefault(kind, (trial, message))
        verdict = Verdict(
            rung=self.rung.name,
            reference=self.reference_name,
            cases=number,
            float64=largest[torch.float64],
            float32=largest[torch.float32],
            gradient=gradient,
            tolerance64=_limit(self.rung, torch.float64),
            tolerance32=_limit(self.rung, torch.float32),
            worst=worst,
        )
        if wrong and set(wrong) <= {"output", "gradient"} and self._is_float32(verdict, exact):
            return _Attempt(draw, replace(verdict, lenient=True), trial=next(iter(wrong.values()))[0])
        for kind in ("some nan", "nan", "output", "missing", "gradient", "float32"):
            if kind in wrong:
                trial, message = wrong[kind]
                if kind == "output":
                    message = f"the output is off by {verdict.float64:.1e}, where {verdict.tolerance64:.0e} is allowed"
                return _Attempt(draw, verdict, Fault(kind, message), trial)
        return _Attempt(draw, verdict)

    def _is_float32(self, verdict: Verdict, exact: Sequence[tuple[Trial, Difference]]) -> bool:
        """Return whether all differences are as small as float32 arithmetic makes them."""
        return (
            verdict.float32 <= verdict.tolerance32
            and verdict.float64 <= verdict.tolerance32
            and all(off.gradient <= 10 * verdict.tolerance32 for _, off in exact)
        )

    # ---- what hides a mistake ----

    def _hidden(self, attempt: _Attempt) -> tuple[_Attempt, list[str]]:
        """Try a layer that passed on what hides mistakes: small streams, other calls, full length, large scores."""
        notes: list[str] = []
        verdict = attempt.verdict
        assert verdict is not None
        if verdict.lenient:
            assert attempt.trial is not None
            notes.append(self._float32_note(verdict, attempt.trial))
        source = random.Random(self.seed + 1)
        case = replace(attempt.draw(source), batch=2)
        for check in (self._small, self._called_before, self._full_context, self._large_scores):
            found = check(case, attempt.draw, verdict)
            if found is not None:
                fault, trial, before = found
                return replace(attempt, fault=fault, trial=trial, before=before, verdict=replace(verdict)), notes
        return attempt, notes

    def _off(self, trial: Trial, limit: float, **how: Any) -> tuple[Fault | None, float]:
        reply = self.ask(trial, gradients=False, **how)
        if reply.answer is None:
            return reply.fault, float("inf")
        off = distance(reply.answer, trial.expected).output
        return None, off if off > limit else 0.0

    def _small(self, case: Case, draw: Draw, verdict: Verdict) -> tuple[Fault, Trial, tuple[Tensor, ...]] | None:
        if self.rung.name not in ("layer-norm", "block", "model"):
            return None
        trial = small_stream(self.trial(case, torch.float64))
        trial = replace(trial, expected=without(trial.expected, self.missing))
        fault, off = self._off(trial, verdict.tolerance32 if verdict.lenient else 100 * verdict.tolerance64)
        if not off:
            return None
        message = f"right for large inputs, off by {off:.1e} where the residual stream is small, so that eps counts"
        return fault or Fault("output", message), trial, ()

    def _called_before(
        self, case: Case, draw: Draw, verdict: Verdict
    ) -> tuple[Fault, Trial, tuple[Tensor, ...]] | None:
        limit = verdict.tolerance32 if verdict.lenient else verdict.tolerance64
        long = replace(case, seq=11, config=replace(case.config, n_ctx=max(case.config.n_ctx, 17)))
        trial = self.trial(long, torch.float64)
        for seq in (5, 11, 16):
            earlier = self.rung.input(
                replace(long, seq=seq, batch=3 if seq == 16 else 2), torch.float64, _generator(seq)
            )
            fault, off = self._off(trial, limit, before=(earlier,))
            if fault is not None and fault.kind in _FATAL:  # it says nothing of what the layer computes
                return fault, trial, ()
            if off:
                again, alone = self._off(trial, limit)
                if alone:
                    return None if again is None else (again, trial, ())
                kind = "a shorter" if seq < 11 else "a longer" if seq > 11 else "an equally long"
                what = fault.message if fault else f"the output is off by {off:.1e}"
                message = (
                    f"the first call is right; after {kind} sequence, {what}: the layer keeps something between calls"
                )
                place = (fault.at, fault.code) if fault else (None, None)
                return Fault("state", message, *place), trial, (earlier,)
        return None

    def _full_context(self, case: Case, draw: Draw, verdict: Verdict) -> tuple[Fault, Trial, tuple[Tensor, ...]] | None:
        if self.rung.name not in ("attention", "block", "model", "pos-embed"):
            return None
        small = draw(random.Random(self.seed + 2))
        config = replace(small.config, n_ctx=1024, n_layers=1)
        trial = self.trial(Case(config, 1, 1024, small.seed), torch.float64)
        fault, off = self._off(trial, verdict.tolerance32 if verdict.lenient else 10 * verdict.tolerance64)
        if not off:
            return None
        what = fault.message if fault else f"off by {off:.1e}"
        message = f"right for short sequences; for one of n_ctx = 1024 positions: {what}"
        return Fault("context", message, fault.at if fault else None, fault.code if fault else None), trial, ()

    def _large_scores(self, case: Case, draw: Draw, verdict: Verdict) -> tuple[Fault, Trial, tuple[Tensor, ...]] | None:
        if self.rung.name not in ("attention", "block", "model"):
            return None
        base = self.trial(
            replace(case, seq=7, config=replace(case.config, n_ctx=max(7, case.config.n_ctx))), torch.float64
        )
        large = {name: 20.0 * p for name, p in base.parameters.items() if name.endswith(("W_Q", "W_K"))}
        trial = altered(base, **large)
        fault, off = self._off(trial, 1e-2 if verdict.lenient else 1e-8)
        if not off or fault:
            return None if fault is None else (fault, trial, ())
        message = f"right for small attention scores; where scores are in the hundreds, off by {off:.1e}"
        return Fault("large", message), trial, ()

    def _float32_note(self, verdict: Verdict, trial: Trial) -> str:
        """Return where float32 comes in; whether it is all, was tried."""
        off = f"off by {max(verdict.float64, 0.0):.0e} in float64"
        place = self.ask(trial, look=True, gradients=False).trace.places.get("dtype")
        wide = self.ask(trial, wide=True)
        alone = wide.answer is not None and distance(wide.answer, trial.expected).output <= verdict.tolerance64
        if place and alone:
            return f"Right in float32 arithmetic ({off}): {place[0]} computes in float32: {place[1]}"
        where = f"; float32 comes in at {place[0]}: {place[1]}" if place else ""
        finding = self._finding(trial) if not place else None
        if finding and finding.at:
            where = f"; the first line with other numbers is {finding.at}: {finding.code}"
        return f"Right in float32 ({off}){where}"

    # ---- what is wrong ----

    def _looked_into(self, tried: Tried, attempt: _Attempt) -> Tried:
        """Return the result with the line at which it happened, the mistake that it is, and the smallest case."""
        fault, trial = attempt.fault, attempt.trial
        assert fault is not None
        assert trial is not None
        kind = fault.kind
        diagnosis = None
        if kind in ("nan", "some nan", "missing", "dtype", "input") and not fault.at:
            what = {"some nan": "nan", "missing": "gradient"}.get(kind, kind)
            at, code = self.ask(trial, look=True).trace.places.get(what, (None, None))
            fault = replace(fault, at=at, code=code)
        if kind in ("shape", "type") and not fault.at:
            trace = self.ask(trial, look=True, gradients=False).trace
            events = trace.events[: trace.output + 1]
            at, code = next((event.at for event in reversed(events) if event.at), None) or (None, None)
            fault = replace(fault, at=at, code=code)
        if kind in ("output", "some nan", "gradient") or (kind == "missing" and not fault.at):
            fault, diagnosis = self._diagnosed(fault, trial, attempt)
        elif kind in ("large", "context", "state") and not fault.at:
            finding = self._finding(trial, before=attempt.before)
            diagnosis = Diagnosis(finding=finding) if finding else None
        smallest = dict(diagnosis.smallest) if diagnosis else {}
        if kind in ("raises", "shape", "nan", "some nan") and not smallest:
            smallest = self._shrunk(kind, trial)
        relevant = {"batch", "seq"} | (self.asked & set(_SIZES_OF[self.rung.name]))
        smallest = {name: size for name, size in smallest.items() if name in relevant}
        return replace(tried, fault=fault, diagnosis=diagnosis, smallest=smallest)

    def _diagnosed(self, fault: Fault, trial: Trial, attempt: _Attempt) -> tuple[Fault, Diagnosis | None]:
        first, second = self.ask(trial), self.ask(trial)
        if first.answer and second.answer and not close(first.answer.output, second.answer.output):
            again = (self.ask(trial, look=True, gradients=False).trace for _ in range(2))
            finding = Located(trial, *again).finding()
            message = f"{fault.message}; it gives another output each time, in eval mode too"
            at, code = (finding.at, finding.code) if finding else (None, None)
            return Fault("random", message, at, code), None
        place = self.ask(trial, look=True, gradients=False).trace.places.get("dtype")
        wide = self.ask(trial, wide=True).answer if place else None
        if place and wide is not None and close(wide.output, trial.expected.output):
            message = f"{fault.message}; computed in {trial.dtype} throughout, it would be right: {place[0]} rounds"
            return Fault("half", message, *place), None
        # What rounding does would hide which mistake it is.
        widely = {"wide": True} if place and wide is not None else {}

        def respond(trial: Trial, **how: Any) -> Answer | None:
            answer = self.ask(trial, **widely, **how).answer
            return None if answer is None else without(answer, self.missing)

        others: list[Respond] = [partial(respond, layout=i) for i in range(len(self.first.layouts)) if i != self.layout]
        subject = Subject(
            respond,
            attempt.draw,
            lambda trial: self.ask(trial, look=True, gradients=False, **widely).trace,
            self.missing,
            others,
        )
        found = diagnose(self.rung, subject)
        if found.right:  # only the case that failed shows it
            finding = self._finding(trial)
            found = Diagnosis(finding=finding) if finding else Diagnosis()
        return fault, found

    def _finding(self, trial: Trial, before: tuple[Tensor, ...] = ()) -> Finding | None:
        return Located(trial, self.ask(trial, look=True, gradients=False, before=before).trace).finding()

    def _shrunk(self, kind: str, trial: Trial) -> dict[str, int]:
        """Return the sizes of the smallest case with the same kind of fault; empty if they make no difference."""

        def fails(case: Case) -> bool:
            tried = self.trial(case, trial.dtype)
            reply = self.ask(tried)
            if reply.answer is None:
                return reply.fault is not None and reply.fault.kind == kind
            off = distance(reply.answer, tried.expected)
            return wrongness(self.rung, tried, reply.answer, off)[0] == kind

        least = shrink(trial.case, fails, square="d_head" not in self.asked)
        sizes = {"batch": least.batch, "seq": least.seq}
        sizes |= {name: getattr(least.config, name) for name in SIZES if name in self.asked}
        # If the smallest case fails too, the sizes do not matter: do not report them.
        return sizes if max(sizes.values()) > 2 else {}

    # ---- words ----

    def _lacking(self, tried: Tried) -> Tried:
        """Return the result with the biases that GPT-2 has and the layer has not."""
        if not tried.missing:
            return tried
        names = _biases(tried.missing)
        verb = "is" if len(names) == 1 else "are"
        said = f"{', '.join(names)} {verb} missing (GPT-2 has {'it' if len(names) == 1 else 'them'})"
        mistake = f"{', '.join(names)} missing"
        if tried.fault is None:
            fault = Fault("biases", f"{said}; all else is right", names=tuple(names))
            return replace(tried, fault=fault, diagnosis=Diagnosis(mistakes=(mistake,)))
        fault = replace(tried.fault, message=f"{tried.fault.message}; and {said}")
        diagnosis = tried.diagnosis
        if diagnosis is not None:
            diagnosis = replace(diagnosis, mistakes=(*diagnosis.mistakes, mistake))
        return replace(tried, fault=fault, diagnosis=diagnosis)

    def _reading(self) -> str:
        if not self.first.layouts:
            return ""
        label, _ = self.first.layouts[min(self.layout, len(self.first.layouts) - 1)]
        return "" if label in ("", "by TransformerLens's names", "by the adapter") else label

    def _first_notes(self) -> list[str]:
        """Return what to know of how the layer was built, read and called."""
        notes = list(self.first.notes)
        if self.first.layouts:
            _, oddity = self.first.layouts[min(self.layout, len(self.first.layouts) - 1)]
            if oddity:
                notes.append(f"GPT-2's weights do not fit as they are stored: {oddity}")
        if {"unembed.W_U"} <= self.missing:
            notes.append("its logits are tied to W_E, as GPT-2's are")
        elif self.missing & {"b_U", "unembed.b_U"}:
            notes.append("it has no b_U, as GPT-2 has none")
        for name, (value, default) in self.first.passed.items():
            notes.append(f"it was built with {name}={value!r}; the file's own default is {default!r}")
        return [note[0].upper() + note[1:] + "." if not note.endswith(".") else note for note in notes]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _biases(names: Sequence[str]) -> list[str]:
    """Return the names of missing biases, in the formula's order, once for all blocks."""
    order = "QKVO"
    ordered = sorted(names, key=lambda name: (name.rpartition(".")[0], order.find(name[-1])))
    return list(
        dict.fromkeys(name if not name.startswith("blocks.#.") else name.removeprefix("blocks.#.") for name in ordered)
    )


def _limit(rung: Rung, dtype: torch.dtype) -> float:
    return rung.tolerance(dtype) * (_FLOAT32 if dtype == torch.float32 else 1)


def wrongness(rung: Rung, trial: Trial, found: Answer, off: Difference) -> tuple[str, str]:
    """Return what is wrong with an answer, in a word and in a clause; empty if nothing is."""
    exact, limit = trial.dtype == torch.float64, _limit(rung, trial.dtype)
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
