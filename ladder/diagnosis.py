"""Diagnosis: which mistake a wrong layer makes, or where it first departs from the right one.

A mistake is not guessed at from how large an error is: the wrong layer that makes it is run on the same numbers, and it
is named when its outputs and gradients are the layer's own, to rounding, on every case. The cases are chosen so that
each mistake in the catalogue shows, and no two look alike.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..components.shapes import typecheck
from .experiments import (
    Experiments,
    Respond,
    Taps,
    altered,
    close,
    first_tap,
    inner,
    is_right,
    pattern_trial,
    read_pattern,
    read_right,
    same,
    shrink,
    sized,
)
from .mistakes import INSIDE, MISTAKES
from .mistakes.mistake import with_steps
from .numbers import Answer
from .rungs import Build, Case, Rung, Trial, answer, draw_case, make_trial


@dataclass(frozen=True)
class Pattern:
    """Attention weights to look at, ``[n_heads query_pos key_pos]``, and whose they are."""

    whose: str
    weights: Tensor


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a layer after it was tried on cases chosen to tell mistakes apart.

    Args:
        rung: the name of the rung.
        right: its answers were right on every case; there is then nothing else to say.
        mistakes: the catalogued mistakes that give its very answers, output and gradients: one, as a rule; two that it
            makes together; none.
        hint: what is wrong and how to mend it, in plain sentences.
        departs: where it first departs from the right layer, and from what; None where a mistake says it better.
        smallest: the smallest case that it still fails.
        patterns: on the attention rung, the right pattern on one trial and the layer's own.
    """

    rung: str
    right: bool
    mistakes: tuple[str, ...]
    hint: str
    departs: str | None = None
    smallest: Case | None = None
    patterns: tuple[Pattern, ...] = ()


def diagnose(
    rung: Rung,
    respond: Respond,
    *,
    draw: Callable[[random.Random], Case] = draw_case,
    taps: Taps | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Find out what a layer does wrong.

    Args:
        respond: the layer's answer to a trial in float64; None where it gave none (it crashed, or could not be built
            for this configuration). A trial may have parameters and input of its own making (a bias set to 0, one
            token): answer what is in it.
        draw: draws cases that the layer can be built for. Of a case it draws, the diagnosis may also try
            ``act_fn="gelu_new"``, ``scale_attn_weights=True``, and other sizes; where all that it draws have
            ``d_model = n_heads * d_head``, so will those.
        taps: what submodules or hooks of the layer gave in a trial, by name, where it has any.
        seed: of the cases.
    """
    source = random.Random(seed)
    drawn = [draw(source) for _ in range(60)]
    # First those in which every mistake shows that can: a mask needs positions, a softmax over the batch a batch.
    drawn.sort(key=lambda case: case.batch < 2 or case.seq < 4 or case.config.n_heads < 2)
    square = all(case.config.d_model == case.config.n_heads * case.config.d_head for case in drawn)

    answers = 0
    for chosen in (_ordinary_trials, _trials_of_every_choice):
        answered = [(trial, found) for trial in chosen(rung, drawn) if (found := respond(trial)) is not None]
        answers += len(answered)
        wrong = [(trial, found) for trial, found in answered if not is_right(found, trial)]
        if wrong:
            break
    else:
        if not answers:
            return Diagnosis(rung.name, False, (), "It gave no answer to any trial.")
        return Diagnosis(rung.name, True, (), "It is right.")

    # Where the output is wrong, that is what to look at; a gradient that is wrong besides is wrong for the same reason.
    failing, first = next((pair for pair in wrong if not close(pair[1].output, pair[0].expected.output)), wrong[0])
    output_wrong = not close(first.output, failing.expected.output)
    again = respond(failing)
    if again is None or not same(again, first):
        hint = (
            "It answers differently to the same numbers: something random is at work, such as dropout that stays on in "
            "eval()."
        )
        return Diagnosis(rung.name, False, (), hint)

    def fails(case: Case) -> bool:
        trial = _showing(make_trial(rung, rung.references[0], case, torch.float64))
        found = respond(trial)
        if found is None:
            return False
        return not (close(found.output, trial.expected.output) if output_wrong else is_right(found, trial))

    smallest = shrink(failing.case, fails, square) if fails(failing.case) else None
    found = Diagnosis(rung.name, False, (), "", smallest=smallest)
    mistakes, hint, build = _named(rung, answered)
    if mistakes:
        return replace(found, mistakes=mistakes, hint=hint, patterns=_patterns(respond, failing, taps, build))
    tapped = first_tap(failing, taps(failing)) if taps else None
    findings = [*([tapped] if tapped else []), *Experiments(respond, failing).findings()]
    tried = sum(mistake.rung == rung.name for mistake in MISTAKES) + len(INSIDE.get(rung.name, ()))
    return replace(
        found,
        hint=f"It is none of the {tried} mistakes known for this rung.",
        departs=" ".join(findings) or None,
        patterns=_patterns(respond, failing, taps, None),
    )


def _ordinary_trials(rung: Rung, drawn: Sequence[Case]) -> list[Trial]:
    """Trials of GPT-2's own choices."""
    cases = [
        replace(
            case,
            config=replace(
                case.config,
                act_fn="gelu_new",
                scale_attn_weights=True,
                layer_norm_eps=1e-5,
                n_layers=3,
                n_ctx=case.seq + 2 + index,
            ),
        )
        for index, case in enumerate(drawn[:3])
    ]
    # A matrix that is square shows as transposed.
    config = cases[0].config
    cases.append(replace(cases[0], config=sized(config, d_model=config.n_heads * config.d_head)))
    trials = [_showing(make_trial(rung, rung.references[0], case, torch.float64)) for case in cases]
    if rung.name in ("layernorm", "block", "model"):
        # A residual stream so small that the least eps counts.
        small = {name: 1e-3 * value for name, value in trials[0].parameters.items() if name.endswith(_WRITING)}
        given = trials[0].given if rung.takes_tokens else 1e-3 * trials[0].given
        trials.append(altered(trials[0], given=given, **small))
    return trials


# What writes into the residual stream.
_WRITING = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")


def _trials_of_every_choice(rung: Rung, drawn: Sequence[Case]) -> list[Trial]:
    """Trials that have among them every value that `draw` draws of each choice."""
    chosen = {
        (name, getattr(case.config, name)): case
        for case in reversed(drawn)
        for name in ("act_fn", "scale_attn_weights", "layer_norm_eps")
    }
    return [_showing(make_trial(rung, rung.references[0], case, torch.float64)) for case in chosen.values()]


def _showing(trial: Trial) -> Trial:
    """The trial with tokens in it that mistakes are made about: the first and the last of the vocabulary."""
    if not trial.rung.takes_tokens:
        return trial
    tokens = trial.given.clone()
    tokens[-1, -1] = trial.config.d_vocab - 1
    tokens[0, 0] = 0
    if trial.rung.name == "pos-embed":  # so that W_pos can be indexed with them
        tokens %= trial.config.n_ctx
    return altered(trial, given=tokens)


def _named(rung: Rung, answered: Sequence[tuple[Trial, Answer]]) -> tuple[tuple[str, ...], str, Build | None]:
    """The mistakes that give these very answers, a hint, and a layer that makes them."""
    if all(same(found, trial.expected) for trial, found in answered):  # a gradient is missing, nothing else
        return (), "", None

    def reproduces(build: Build) -> bool:
        with typecheck(False):  # every one is a new layer, whose shapes would be checked anew
            return all(same(answer(build(trial.config, trial.dtype), trial), found) for trial, found in answered)

    own = [mistake for mistake in MISTAKES if mistake.rung == rung.name]
    for mistakes in (own, INSIDE.get(rung.name, ())):
        fitting = [(mistake, build) for mistake in mistakes for build in mistake.builds if reproduces(build)]
        if fitting:
            told = dict.fromkeys(mistake for mistake, _ in fitting)
            either = "Either of these gives its answers. " if len(told) > 1 else ""
            hint = either + " ".join(mistake.hint for mistake in told)
            return tuple(mistake.name for mistake in told), hint, fitting[0][1]
    for one, other in itertools.combinations(own, 2):
        for first, second in itertools.product(one.spellings, other.spellings):
            if first.keys().isdisjoint(second) and reproduces(build := with_steps(one.base, {**first, **second})):
                return (one.name, other.name), f"Two mistakes at once. {one.hint} {other.hint}", build
    return (), "", None


def _patterns(respond: Respond, failing: Trial, taps: Taps | None, build: Build | None) -> tuple[Pattern, ...]:
    """The right pattern, and the layer's own: from its hook, else from its mistake, else read off its output."""
    if failing.rung.name != "attention":
        return ()
    read = pattern_trial(failing)
    right = Pattern("the right one", read_right(read))
    for name, value in (taps(read) if taps else {}).items():
        if name.rpartition(".")[2].removeprefix("hook_") in ("pattern", "attn_pattern") and value.ndim == 4:
            return right, Pattern(f"yours, as {name} gives it", value[0])
    if build is not None:
        own = inner(build(read.config, read.dtype), read).get("hook_pattern")
        return (right, Pattern("of a layer with your mistake", own[0])) if own is not None else ()
    found = read_pattern(respond, read)
    return () if found is None else (right, Pattern("yours, read off its output", found))
