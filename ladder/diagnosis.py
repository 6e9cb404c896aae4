"""Diagnosis: which mistake a wrong layer makes, and where it first departs from the right one.

A mistake is not guessed at from how large an error is: the wrong layer that makes it is run on the same numbers, and it
is named when its outputs and gradients are the layer's own, to rounding, on every case. The cases are chosen so that
each mistake in the catalogue shows, and no two look alike.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..components.shapes import typecheck
from .candidate.trace import Trace
from .experiments import Located, leaks, row_facts, shrink, sized, wrong_parts
from .mistakes import INSIDE, MISTAKES, Mistake
from .mistakes.mistake import with_steps
from .mistakes.wiring import with_parts
from .numbers import Answer, close, same
from .results import Diagnosis, Finding, Pattern
from .rungs import Build, Case, Rung, Trial, altered, answer, draw_case, make_trial

Respond = Callable[[Trial], Answer | None]


@dataclass(frozen=True)
class Subject:
    """A layer to be diagnosed.

    Args:
        respond: its answer to a trial in float64; None if it gave none (it crashed, or could not be built for this
            configuration). A trial may have parameters and input of its own making.
        draw: draws cases that the layer can be built for. Of a case it draws, the diagnosis may also try
            ``act_fn="gelu_new"``, ``scale_attn_weights=True``, and other sizes; if all that it draws have
            ``d_model = n_heads * d_head``, so will those.
        trace: what the layer computes on a trial, if that can be recorded.
        missing: parameters that it does not have (`in_any_block`); they are 0 in every trial.
        other: its answers if its parameters are read in other ways.
    """

    respond: Respond
    draw: Callable[[random.Random], Case] = draw_case
    trace: Callable[[Trial], Trace] | None = None
    missing: frozenset[str] = frozenset()
    other: Sequence[Respond] = ()

    def trial(self, rung: Rung, case: Case) -> Trial:
        """Return the trial of a case, judged by our own layer."""
        return own_trial(rung, case, torch.float64, self.missing)


def own_trial(rung: Rung, case: Case, dtype: torch.dtype, missing: frozenset[str] = frozenset()) -> Trial:
    """Draw the numbers of a case, judged by our own layer, for a layer that lacks some of the parameters."""
    trial = make_trial(rung, rung.own, case, dtype)
    lacking = {name: 0.0 for name in trial.parameters if in_any_block(name) in missing}
    if not lacking:
        return trial
    trial = altered(trial, **lacking)
    kept = {name: gradient for name, gradient in trial.expected.gradients.items() if name not in lacking}
    return replace(trial, expected=replace(trial.expected, gradients=kept))


def without(found: Answer, missing: frozenset[str]) -> Answer:
    """Return the answer less the gradients of parameters that a layer does not have."""
    return replace(found, gradients={n: g for n, g in found.gradients.items() if in_any_block(n) not in missing})


def in_any_block(name: str) -> str:
    """Return the name of a parameter whatever block it is in: what one block lacks, all lack."""
    return re.sub(r"^blocks\.\d+\.", "blocks.#.", name)


def is_right(found: Answer, trial: Trial) -> bool:
    """Return whether an answer is the expected one, and no gradient is missing."""
    return same(found, trial.expected) and found.gradients.keys() >= trial.expected.gradients.keys()


def diagnose(
    rung: Rung, subject: Subject | Respond, *, seed: int = 0, draw: Callable[..., Case] | None = None
) -> Diagnosis:
    """Find out what a layer does wrong.

    Args:
        subject: the layer, or its answers alone.
        seed: of the cases.
        draw: in place of the subject's.
    """
    if not isinstance(subject, Subject):
        subject = Subject(subject)
    subject = replace(subject, draw=draw or subject.draw)
    drawn = _drawn(subject, seed)
    answered: list[tuple[Trial, Answer]] = []
    wrong: list[tuple[Trial, Answer]] = []
    answers = 0
    for chosen in (_ordinary_trials, _trials_of_every_choice):
        trials = chosen(rung, drawn, subject)
        answered = [(trial, found) for trial in trials if (found := subject.respond(trial)) is not None]
        answers += len(answered)
        wrong = [(trial, found) for trial, found in answered if not is_right(found, trial)]
        if wrong:
            break
    else:
        return Diagnosis(right=bool(answers))

    # If the output is wrong, that is what to look at; a gradient that is wrong besides is wrong for the same reason.
    failing, first = next((pair for pair in wrong if not close(pair[1].output, pair[0].expected.output)), wrong[0])
    output_wrong = not close(first.output, failing.expected.output)
    trace = subject.trace(failing) if subject.trace else None
    found = Diagnosis(smallest=_smallest(rung, subject, failing.case, output_wrong))
    named = Naming(rung, subject, answered, wrong_parts(failing, trace) if trace else None).named()
    finding = Located(failing, trace).finding() if trace and output_wrong else None
    patterns = _patterns(failing, trace, named.build if named else None)
    if named:
        return replace(
            found,
            mistakes=named.names,
            what=named.what,
            fix=named.fix,
            finding=finding,
            patterns=patterns,
        )
    facts = _facts(failing, first, subject)
    return replace(found, finding=_in_parts(failing, trace, finding), facts=facts, patterns=patterns)


def _drawn(subject: Subject, seed: int) -> list[Case]:
    source = random.Random(seed)
    drawn = [subject.draw(source) for _ in range(60)]
    # First those in which every mistake shows that can: a mask needs positions, a softmax over the batch a batch.
    drawn.sort(key=lambda case: case.batch < 2 or case.seq < 4 or case.config.n_heads < 2)
    return drawn


def _smallest(rung: Rung, subject: Subject, case: Case, output_wrong: bool) -> dict[str, int]:
    def fails(case: Case) -> bool:
        trial = showing(subject.trial(rung, case))
        found = subject.respond(trial)
        if found is None:
            return False
        return not (close(found.output, trial.expected.output) if output_wrong else is_right(found, trial))

    square = all(c.config.d_model == c.config.n_heads * c.config.d_head for c in (case, *_drawn(subject, 1)[:5]))
    if not fails(case):
        return {}
    least = shrink(case, fails, square)
    sizes = ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "n_layers")
    return {"batch": least.batch, "seq": least.seq} | {name: getattr(least.config, name) for name in sizes}


def _ordinary_trials(rung: Rung, drawn: Sequence[Case], subject: Subject) -> list[Trial]:
    """Return trials of GPT-2's own choices."""
    plain = {"act_fn": "gelu_new", "scale_attn_weights": True, "layer_norm_eps": 1e-5, "n_layers": 3}
    cases = [
        replace(case, config=replace(case.config, **plain, n_ctx=case.seq + 2 + index))
        for index, case in enumerate(drawn[:3])
    ]
    # A matrix that is square shows as transposed.
    config = cases[0].config
    cases.append(sized(cases[0], d_model=config.n_heads * config.d_head))
    trials = [showing(subject.trial(rung, case)) for case in cases]
    if rung.name in ("layer-norm", "block", "model"):
        trials.append(small_stream(trials[0]))
    return [_less(trial, subject.missing) for trial in trials]


def small_stream(trial: Trial) -> Trial:
    """Return the trial with a residual stream so small that even the least eps counts."""
    small = {name: 1e-3 * value for name, value in trial.parameters.items() if name.endswith(_WRITING)}
    given = 1e-3 * trial.given if trial.given.is_floating_point() else trial.given
    return altered(trial, given=given, **small)


# What writes into the residual stream.
_WRITING = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")


def _less(trial: Trial, missing: frozenset[str]) -> Trial:
    return replace(trial, expected=without(trial.expected, missing))


def _trials_of_every_choice(rung: Rung, drawn: Sequence[Case], subject: Subject) -> list[Trial]:
    """Return trials that have among them every value that is drawn of each choice."""
    chosen = {
        (name, getattr(case.config, name)): case
        for case in reversed(drawn)
        for name in ("act_fn", "scale_attn_weights", "layer_norm_eps")
    }
    return [_less(showing(subject.trial(rung, case)), subject.missing) for case in chosen.values()]


def showing(trial: Trial) -> Trial:
    """Return the trial with tokens in it that mistakes are made about: the first and the last of the vocabulary."""
    if trial.given.is_floating_point():
        return trial
    tokens = trial.given.clone()
    tokens[-1, -1] = trial.config.d_vocab - 1
    tokens[0, 0] = 0
    if trial.rung == "pos-embed":  # so that W_pos can be indexed with them
        tokens %= trial.config.n_ctx
    return altered(trial, given=tokens)


@dataclass(frozen=True)
class Named:
    """The mistakes that explain a layer's answers.

    Args:
        mistakes: the catalogued mistakes; several of one kind give the same answers.
        build: a layer that makes them.
        names: how they are called.
    """

    mistakes: tuple[Mistake, ...]
    build: Build
    either: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the mistakes."""
        names = tuple(each.name for each in self.mistakes)
        return (" or ".join(names),) if self.either else names

    @property
    def what(self) -> tuple[str, ...]:
        """What is wrong, a text for each."""
        either = ("Either of these gives the layer's answers.",) if self.either else ()
        return (*either, *(each.what for each in self.mistakes))

    @property
    def fix(self) -> tuple[str, ...]:
        """How to fix it, a text for each."""
        return tuple(each.fix for each in self.mistakes if each.fix)


class Naming:
    """Looks for the mistakes of the catalogue that give a layer's very answers.

    Args:
        rung: the layer's.
        subject: the layer.
        answered: trials with its answers.
        parts: the layers inside it that are wrong by themselves, with their own trial and output; None if not known.
    """

    def __init__(
        self,
        rung: Rung,
        subject: Subject,
        answered: Sequence[tuple[Trial, Answer]],
        parts: list[tuple[str, Trial, Tensor]] | None,
    ) -> None:
        self.rung, self.subject, self.answered, self.parts = rung, subject, answered, parts
        self.strict = True
        self.own = [mistake for mistake in MISTAKES if mistake.rung == rung.name]

    def named(self) -> Named | None:
        """Return the mistakes; None if the catalogue does not explain the answers."""
        with typecheck(False):  # every one is a new layer, whose shapes would be checked anew
            found = (
                self._one(self.own)
                or self._in_parts()
                or (self._one(INSIDE.get(self.rung.name, ())) if not self.parts else None)
                or self._two()
            )
            if found is None:
                # A parameter that is read without effect has a gradient of zeros, and so has one that is never read.
                self.strict = False
                found = self._one(self.own) or self._otherwise_read()
            return found

    def _reproduces(self, build: Build) -> bool:
        for trial, found in self.answered:
            made = without(answer(build(trial.config, trial.dtype), trial), self.subject.missing)
            read = not self.strict or made.gradients.keys() == found.gradients.keys()
            if not (read and same(made, found)):
                return False
        return True

    def _one(self, mistakes: Sequence[Mistake]) -> Named | None:
        fitting = [(each, build) for each in mistakes for build in each.builds if self._reproduces(build)]
        if not fitting:
            return None
        told = tuple(dict.fromkeys(each for each, _ in fitting))
        return Named(told, fitting[0][1], either=len(told) > 1)

    def _two(self) -> Named | None:
        """Return two mistakes that are made together."""
        for one, other in itertools.combinations(self.own, 2):
            for first, second in itertools.product(one.spellings, other.spellings):
                if first.keys().isdisjoint(second) and self._reproduces(
                    build := with_steps(one.base, {**first, **second})
                ):
                    return Named((one, other), build)
        return None

    def _in_parts(self) -> Named | None:
        """Return the mistakes of the layers inside, each found by itself, if together they explain the answers."""
        if not self.parts:
            return None
        # A part that contains a wrong part is wrong for that reason, or wired wrongly as well.
        inner = [part for part in self.parts if not any(other[0].startswith(f"{part[0]}.") for other in self.parts)]
        options = [list(self._of_part(trial, output)) for _, trial, output in inner]
        if not all(options):
            return None
        base = self.own[0].base
        for wiring in (None, *self.own):
            for spelling in wiring.spellings if wiring else ({},):
                for chosen in itertools.islice(itertools.product(*options), 20):
                    builds = {path: build for (path, _, _), (_, build) in zip(inner, chosen, strict=True)}
                    if self._reproduces(build := with_parts(base, builds, spelling)):
                        mistakes = _grouped(
                            [(path, each) for (path, _, _), (each, _) in zip(inner, chosen, strict=True)]
                        )
                        return Named((*((wiring,) if wiring else ()), *mistakes), build)
        return None

    def _of_part(self, trial: Trial, output: Tensor) -> Iterator[tuple[Mistake, Build]]:
        """Yield the mistakes that give a part's own output."""
        own = [each for each in MISTAKES if each.rung == trial.rung]
        for each in own:
            for build in each.builds:
                if close(answer(build(trial.config, trial.dtype), trial).output, output.to(trial.dtype)):
                    yield each, build

    def _otherwise_read(self) -> Named | None:
        """Return a mistake that gives the layer's answers if its parameters are read in another way."""
        if not self.subject.other or not self.answered:
            return None
        trial = self.answered[0][0]
        made = [
            (each, build, answer(build(trial.config, trial.dtype), trial).output)
            for each in self.own
            for build in each.builds
        ]
        for respond in self.subject.other:
            found = respond(trial)
            if found is None:
                continue
            for each, build, output in made:
                if close(output, found.output):
                    answered = [(t, a) for t, _ in self.answered if (a := respond(t)) is not None]
                    if Naming(self.rung, self.subject, answered, None)._reproduces(build):
                        return Named((each,), build)
        return None


_PLACES = {"attn": "the block's attention", "mlp": "the block's MLP", "ln1": "ln1", "ln2": "ln2"}


def _grouped(found: Sequence[tuple[str, Mistake]]) -> list[Mistake]:
    """Return mistakes inside a layer with their places, once for what all blocks do alike."""
    places: dict[str, list[str]] = {}
    mistakes = {each.name: each for _, each in found}
    for path, each in found:
        places.setdefault(each.name, []).append(path)
    named = []
    for name, paths in places.items():
        lasts = {path.rpartition(".")[2] for path in paths}
        blocks = {path.split(".")[1] for path in paths if path.startswith("blocks.")}
        if lasts == {"ln1", "ln2"} and not blocks:
            where = "both layer norms"
        elif lasts >= {"ln1", "ln2", "ln_final"}:
            where = "every layer norm"
        elif lasts == {"ln1", "ln2"}:
            where = "every block's layer norms"
        elif blocks and len(lasts) == 1:
            last = next(iter(lasts))
            what = {"attn": "attention", "mlp": "MLP"}.get(last, last)
            whole = "every block" if last.isdigit() else f"every block's {what}"
            where = whole if len(blocks) > 1 else f"block {next(iter(blocks))}'s {what}"
        else:
            where = " and ".join(_PLACES.get(last, last) for last in sorted(lasts))
        each = mistakes[name]
        named.append(replace(each, name=f"{where}: {name}", hint=f"In {where}: {each.hint}"))
    return named


def _in_parts(trial: Trial, trace: Trace | None, finding: Finding | None) -> Finding | None:
    """Return the finding; inside the first layer that is wrong by itself, if the whole one led nowhere."""
    if finding is not None or trace is None:
        return finding
    for part, _, _ in wrong_parts(trial, trace):
        return Finding(None, None, (), f"the output of {part}")
    return None


def _facts(trial: Trial, found: Answer, subject: Subject) -> tuple[str, ...]:
    facts: list[str] = []
    if close(found.output, trial.expected.output):
        expected = trial.expected.gradients
        lacking = [name for name in expected if name not in found.gradients or not found.gradients[name].any()]
        wrong = [n for n, right in expected.items() if n not in lacking and not close(found.gradients[n], right)]
        if lacking:
            facts.append(f"No gradient reaches {_listed(lacking)}: unused, or cut from the graph.")
        if any(name.endswith("b_K") for name in lacking):
            facts.append("(b_K cannot show in the output: it moves all of a query's scores alike.)")
        if wrong:
            facts.append(f"The gradient of {_listed(wrong)} is wrong, though the output is right.")
        return tuple(facts)
    unread = [
        name
        for name, right in trial.expected.gradients.items()
        if name != "input" and right.any() and (name not in found.gradients or not found.gradients[name].any())
    ]
    if unread:
        them = "it" if len(unread) == 1 else "them"
        facts.append(f"No gradient reaches {_listed(unread)}: the output does not depend on {them}.")
    if trial.rung in ("embed", "pos-embed") and found.output.shape == trial.expected.output.shape:
        facts += row_facts(trial, found.output)

    def output(trial: Trial) -> Tensor | None:
        answered = subject.respond(trial)
        return None if answered is None else answered.output

    return (*facts, *leaks(trial, output))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _patterns(trial: Trial, trace: Trace | None, build: Build | None) -> tuple[Pattern, ...]:
    """Return the right pattern, and the layer's own: from its trace, else from a layer with its mistake."""
    if trial.rung != "attention":
        return ()
    from .quantities import quantities

    right = next(each.value for each in quantities(trial) if each.key == "pattern")
    for event in reversed(trace.events if trace else []):
        if event.function in ("softmax", "softmax_") and event.value.shape == right.shape:
            return Pattern("the right one", right[0]), Pattern("yours", event.value[0])
    if build is None:
        return ()
    taps: dict[str, Tensor] = {}
    layer = build(trial.config, trial.dtype)
    layer.load_state_dict(dict(trial.parameters))
    hooks: Mapping[str, torch.nn.Module] = dict(layer.named_modules())
    if "hook_pattern" not in hooks:
        return ()
    handle = hooks["hook_pattern"].register_forward_hook(lambda module, args, out: taps.update(pattern=out.detach()))
    with torch.no_grad():
        layer(trial.given)
    handle.remove()
    if "pattern" not in taps or taps["pattern"].shape != right.shape:
        return ()
    return Pattern("the right one", right[0]), Pattern("of a layer with your mistake", taps["pattern"][0])
