"""For each kind of fault: the line where it happens, which mistake it is, and a small case that shows it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..answers import close
from ..candidate.aliases import SIZES
from ..cases import heads_fill_the_model
from ..results import Diagnosis, Fault, Tried
from ..rungs import Case, Trial, distance
from ..tolerance import wrongness
from ..under_test import UnderTest
from .diagnose import diagnose
from .gradients import cut, wrong_backward
from .kept_state import kept_state
from .short_tables import answers, too_short
from .smallest_case import shrink, sizes_of
from .which_line import locate
from .which_mistake import named_by_output

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
# What the trace notes the first line of, by the kind of the fault.
_NOTED = {"nan": "nan", "some nan": "nan", "missing": "gradient", "dtype": "dtype", "input": "input"}


def explained(layer: UnderTest, tried: Tried, fault: Fault, trial: Trial) -> Tried:
    """Return the result with the line of its fault, the mistake, and a small case.

    Args:
        fault: what is wrong.
        trial: shows it.
    """
    kind, diagnosis = fault.kind, None
    gradient = (wrong_backward(layer, trial) or cut(layer, trial)) if kind in ("gradient", "missing") else None
    if gradient and kind == "missing":
        fault = replace(fault, at=gradient.at, code=gradient.code)
        diagnosis = Diagnosis(finding=gradient)
    if kind in _NOTED and not fault.at:
        at, code = layer.trace(trial).places.get(_NOTED[kind], (None, None))
        fault = replace(fault, at=at, code=code)
    if kind in ("shape", "type") and not fault.at:
        trace = layer.trace(trial)
        lines = [event.at for event in trace.events[: trace.output + 1] if event.at]
        # Inside a block or a model, a layer is not at fault for what is done with its output.
        returned = trace.places.get("returned") if layer.rung.name in ("block", "model") else None
        at, code = returned or (lines[-1] if lines else (None, None))
        fault = replace(fault, at=at, code=code)
    if kind in ("output", "some nan", "gradient") or (kind == "missing" and not fault.at):
        fault, diagnosis = _diagnosed(layer, fault, trial)
        if gradient and diagnosis:
            diagnosis = replace(diagnosis, finding=gradient)
    elif kind in ("raises", "shape"):
        fault, diagnosis = _raised(layer, fault, trial)
    elif kind == "nan":  # every mistake that gives nothing but NaN gives the layer's answers: none is named
        finding = locate(trial, layer.trace(trial))
        diagnosis = Diagnosis(finding=finding) if finding and finding.at else None
    elif kind == "context" and not fault.at:
        diagnosis = _too_long(layer, trial)
    elif kind == "state":
        finding = kept_state(layer, trial)
        diagnosis = Diagnosis(finding=finding) if finding else None
    elif kind in ("large", "training") and not fault.at:
        finding = locate(trial, layer.trace(trial, training=kind == "training"))
        named = _named_where_large(layer, trial) if kind == "large" else None
        diagnosis = replace(named or Diagnosis(), finding=finding) if named or finding else None
    smallest = dict(diagnosis.smallest) if diagnosis else {}
    if kind in ("raises", "shape", "nan", "some nan") and not smallest:
        smallest = _shrunk(layer, kind, trial)
    relevant = {"batch", "seq"} | (layer.asked & set(_SIZES_OF[layer.rung.name]))
    smallest = {name: size for name, size in smallest.items() if name in relevant}
    if diagnosis:
        sizes = diagnosis.sizes or sizes_of(trial.case)
        sizes = {name: size for name, size in sizes.items() if name in relevant}
        diagnosis = replace(diagnosis, sizes=sizes)
    return replace(tried, fault=fault, diagnosis=diagnosis, smallest=smallest)


def _named_where_large(layer: UnderTest, trial: Trial) -> Diagnosis | None:
    """Return which mistake a layer makes that is right where numbers are small, if its output there shows it."""
    found = layer.answer(trial, gradients=False)
    return None if found is None else named_by_output(layer.rung, trial, found.output)


def _diagnosed(layer: UnderTest, fault: Fault, trial: Trial) -> tuple[Fault, Diagnosis | None]:
    """Return the fault, made clearer if rounding or a random step explains it, and the diagnosis otherwise."""
    first, second = layer.ask(trial), layer.ask(trial)
    if first.answer and second.answer and not close(first.answer.output, second.answer.output):
        finding = locate(trial, layer.trace(trial), layer.trace(trial))
        message = f"{fault.message}; it gives another output each time, in eval mode too"
        at, code = (finding.at, finding.code) if finding else (None, None)
        return Fault("random", message, at, code), None
    place = layer.trace(trial).places.get("dtype")
    wide = layer.ask(trial, wide=True).answer if place else None
    if fault.kind == "output" and place and wide is not None and _is_rounding(layer, trial):
        message = f"{fault.message}; computed in {trial.dtype} throughout, it would be right: {place[0]} rounds"
        return Fault("half", message, *place), None
    # What rounding does would hide which mistake it is.
    found = diagnose(layer, wide=wide is not None)
    if fault.kind == "output":
        trained = layer.answer(trial, training=True, gradients=False)
        if trained is not None and close(trained.output, trial.expected.output):
            fault = replace(fault, message=f"{fault.message}; in training mode, without dropout, it is right")
    return fault, found or _only_there(layer, trial)  # or only the case that failed shows it


def _raised(layer: UnderTest, fault: Fault, trial: Trial) -> tuple[Fault, Diagnosis | None]:
    """Return fault and diagnosis of a layer that gives no answer; its wrong answers to other sizes show more."""
    other = diagnose(layer, small=False)
    if other and (other.mistakes or (other.finding and other.finding.at)):
        if other.finding is None:
            other = replace(other, finding=locate(trial, layer.trace(trial), raised=True))
        where = f" (seq={trial.case.seq}, n_ctx={trial.config.n_ctx})" if fault.kind == "shape" else ""
        return replace(fault, message=f"{fault.message}{where}; for some other sizes its answer is wrong"), other
    if fault.kind == "shape":
        alone = _only_alone(layer, trial)
        return replace(fault, message=f"for {alone}, {fault.message}") if alone else fault, None
    trace = layer.trace(trial)
    finding = too_short(layer, trial, trace) or locate(trial, trace, raised=True)
    facts = _raised_by_length(layer, trial)
    return fault, Diagnosis(finding=finding, facts=facts) if finding or facts else None


def _only_alone(layer: UnderTest, trial: Trial) -> str:
    """Return the axis of one, in words, without which the layer gives an output of the right shape; empty if none."""
    for axis, words in (("batch", "a batch of one"), ("seq", "a sequence of one")):
        more = replace(trial.case, **{axis: 2}, config=replace(trial.config, n_ctx=max(2, trial.config.n_ctx)))
        if getattr(trial.case, axis) == 1 and answers(layer, more):
            return words
    return ""


def _raised_by_length(layer: UnderTest, trial: Trial) -> tuple[str, ...]:
    """Return that a layer refuses sequences of n_ctx positions, in a sentence; nothing if it does not."""
    seq, n_ctx = trial.case.seq, trial.config.n_ctx
    longer = replace(trial.case, config=replace(trial.config, n_ctx=n_ctx + 1))
    if seq != n_ctx or not answers(layer, longer):
        return ()
    return (f"With n_ctx={n_ctx}, a sequence of that length raises it; with n_ctx={n_ctx + 1}, the same one does not.",)


def _is_wrong(layer: UnderTest, case: Case) -> bool:
    trial = layer.own_trial(case, gradients=False)
    found = layer.answer(trial, gradients=False)
    return found is not None and not close(found.output, trial.expected.output)


def _only_there(layer: UnderTest, trial: Trial) -> Diagnosis:
    """Return the diagnosis of a layer that is wrong on a trial, but not on those that are made for diagnosis."""
    case = trial.case
    if not _is_wrong(layer, case):
        return Diagnosis(finding=locate(trial, layer.trace(trial)))
    sizes = _least(layer, case, lambda smaller: _is_wrong(layer, smaller))
    short = replace(case, seq=sizes["seq"])  # in all else as it was: in small tensors many numbers are alike
    trial = layer.own_trial(short, gradients=False) if _is_wrong(layer, short) else trial
    return Diagnosis(finding=locate(trial, layer.trace(trial)), smallest=sizes, sizes=sizes_of(trial.case))


def _least(layer: UnderTest, case: Case, fails: Callable[[Case], bool]) -> dict[str, int]:
    """Return the sizes of a small case that fails."""
    return sizes_of(shrink(case, fails, heads_fill_the_model(layer.asked, layer.missing), layer.fixed))


def _too_long(layer: UnderTest, trial: Trial) -> Diagnosis:
    """Return the diagnosis of a layer that is right for short sequences alone."""

    def is_right(seq: int) -> bool:
        asked = layer.own_trial(replace(trial.case, seq=seq), gradients=False)
        found = layer.answer(asked, gradients=False)
        return found is not None and close(found.output, asked.expected.output)

    right, wrong = 1, trial.case.seq
    while wrong - right > 1:
        seq = (right + wrong) // 2
        right, wrong = (seq, wrong) if is_right(seq) else (right, seq)
    fact = f"With n_ctx = {trial.config.n_ctx}, a sequence of {right} positions is right, and one of {wrong} is not."
    # One head or one layer, if it may have one: of large tensors the trace keeps none.
    config = trial.config
    if "n_heads" in layer.asked:
        config = replace(config, n_heads=1, d_head=config.d_head if "d_head" in layer.asked else config.d_model)
    small = layer.own_trial(replace(trial.case, config=config, seq=wrong), gradients=False)
    finding = locate(small, layer.trace(small)) if layer.off(small, 1e-9)[1] else None
    return Diagnosis(finding=finding, facts=(fact,) if right > 1 else ())


def _is_rounding(layer: UnderTest, trial: Trial) -> bool:
    """Return whether a layer is right if no step of it rounds: on the trial that it failed, and on others."""
    source = random.Random(layer.seed + 4)
    for tried in (trial, *(layer.trial(layer.draw(source), gradients=False) for _ in range(5))):
        answer = layer.ask(tried, wide=True, gradients=False).answer
        if answer is None or not close(answer.output, tried.expected.output):
            return False
    return True


def _shrunk(layer: UnderTest, kind: str, trial: Trial) -> dict[str, int]:
    """Return the sizes of a small case with the same kind of fault; empty if they make no difference."""

    def fails(case: Case) -> bool:
        tried = layer.trial(case, trial.dtype)
        reply = layer.ask(tried)
        if reply.answer is None:
            return reply.fault is not None and reply.fault.kind == kind
        return wrongness(layer.rung, tried, reply.answer, distance(reply.answer, tried.expected))[0] == kind

    sizes = _least(layer, trial.case, fails)
    # If the smallest case fails too, the sizes do not matter: do not report them.
    read = {"batch", "seq"} | (layer.asked & set(SIZES))
    return sizes if max(sizes[name] for name in read) > 2 else {}


def lacking(tried: Tried) -> Tried:
    """Return the result with the biases that GPT-2 has and the layer has not."""
    if not tried.missing:
        return tried
    names = _biases(tried.missing)
    sentence = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing (GPT-2 has "
    sentence += f"{'it' if len(names) == 1 else 'them'})"
    mistake = f"{', '.join(names)} missing"
    if tried.fault is None:
        fault = Fault("biases", f"{sentence}; all else is right", names=tuple(names))
        return replace(tried, fault=fault, diagnosis=Diagnosis(mistakes=(mistake,)))
    fault = replace(tried.fault, message=f"{tried.fault.message}; and {sentence}")
    diagnosis = tried.diagnosis
    if diagnosis is not None:
        # The layer is judged with these biases at 0, so what is wrong besides has another cause.
        diagnosis = replace(diagnosis, mistakes=(*diagnosis.mistakes, mistake), others=not diagnosis.mistakes)
    return replace(tried, fault=fault, diagnosis=diagnosis)


def _biases(names: Sequence[str]) -> list[str]:
    """Return the names of missing biases, in the formula's order, once for all blocks."""
    ordered = sorted(names, key=lambda name: (name.rpartition(".")[0], "QKVO".find(name[-1])))
    return list(dict.fromkeys(name.removeprefix("blocks.#.") for name in ordered))
