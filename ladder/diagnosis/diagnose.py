"""Diagnosis: which mistake a wrong layer makes, and where it first departs from the right one.

A mistake is not guessed at from how large an error is: the wrong layer that makes it is run on the same numbers, and it
is named when its outputs and gradients are the layer's own, to rounding, on every case. The cases are chosen so that
each mistake in the catalogue shows, and no two look alike.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from ...components.caching import run_with_cache
from ..answers import Answer, close, same
from ..candidate.trace import Trace
from ..cases import small_stream, with_other_input, without
from ..formula.quantities import quantities
from ..results import Diagnosis, Finding, listed
from ..rungs import Build, Case, Trial, altered
from ..tolerance import parameters_in_words
from ..under_test import UnderTest
from .exchanged_names import exchanged_names
from .key_bias import beside_key_bias, with_key_bias
from .norm_places import norms_after_addition
from .smallest_case import shrink, sized, sizes_of
from .which_line import locate
from .which_mistake import MistakeSearch


def diagnose(layer: UnderTest, *, seed: int = 0, wide: bool = False, small: bool = True) -> Diagnosis | None:
    """Find out what a layer does wrong; None if its answers are right on every case.

    Args:
        layer: the layer.
        seed: of the cases.
        wide: widen its steps of lower precision, so that rounding does not hide which mistake it is.
        small: look for a small case that shows it.
    """
    drawn = _drawn(layer, seed)
    answered: list[tuple[Trial, Answer]] = []
    wrong: list[tuple[Trial, Answer]] = []
    answers, raised = 0, False
    for chosen in (_ordinary_trials, _trials_of_every_choice, _trials_of_as_many_heads):
        if chosen is _trials_of_as_many_heads and not raised:
            return None
        replies = list(layer.ask_each(map(layer.fair, chosen(layer, drawn)), wide=wide))
        raised |= any(reply.answer is None for _, reply in replies)
        answered = [(trial, without(found, layer.missing)) for trial, reply in replies if (found := reply.answer)]
        answers += len(answered)
        wrong = [(trial, found) for trial, found in answered if not _is_right(found, trial)]
        if wrong:
            break
    else:
        return None if answers else Diagnosis()

    # If the output is wrong, that is what to look at; a gradient that is wrong besides is wrong for the same reason.
    failing, first = next((pair for pair in wrong if not close(pair[1].output, pair[0].expected.output)), wrong[0])
    output_wrong = not close(first.output, failing.expected.output)
    trace = layer.trace(failing, wide=wide)
    search = MistakeSearch(layer.rung, layer.missing, answered, failing, trace)
    named = search.named()
    found, build = named or (Diagnosis(facts=_facts(failing, first)), None)
    if named is None and (late := norms_after_addition(trace)):
        found = replace(found, facts=(late, *found.facts))
    found = with_key_bias(found, failing, trace) if failing.rung == "attention" else found
    if chosen is _trials_of_as_many_heads:  # heads and positions look alike there, but by a mistake's name
        return found if named else Diagnosis()
    finding = exchanged_names(layer, found, failing, trace)
    if finding is None and output_wrong:
        finding = locate(failing, trace, leaks=_leaks(layer, failing, first, wide))
        finding = beside_key_bias(finding, found)
    softmax = len(found.mistakes) == 1 and found.mistakes[0].startswith("softmax over the ")
    if softmax and finding and finding.wrong.startswith("which keys each query sees"):
        # The name explains every answer, so that no answer shows what the mask does.
        finding = replace(finding, wrong=f"{finding.wrong}: a mistake of its own, which the wrong softmax hides")
    if not named and finding is None and search.parts:
        finding = Finding(None, None, (), f"the output of {search.parts[0][0]}")
    return replace(
        found,
        finding=finding,
        smallest=_smallest(layer, failing, first, wide) if small else {},
        sizes=sizes_of(failing.case),
        patterns=_patterns(failing, trace, build),
    )


def _is_right(found: Answer, trial: Trial) -> bool:
    """Return whether an answer is the expected one, and no gradient is missing."""
    return same(found, trial.expected) and found.gradients.keys() >= trial.expected.gradients.keys()


def _leaks(layer: UnderTest, trial: Trial, found: Answer, wide: bool) -> bool:
    """Return whether another last position changes the layer's output before it."""
    if trial.rung not in ("attention", "block", "model") or trial.case.seq < 2:
        return False
    other = replace(trial, given=with_other_input(trial, (slice(None), -1)))
    changed = layer.answer(other, wide=wide, gradients=False)
    return changed is not None and not close(changed.output[:, :-1], found.output[:, :-1])


def _drawn(layer: UnderTest, seed: int) -> list[Case]:
    source = random.Random(seed)
    drawn = [layer.draw(source) for _ in range(60)]
    # Cases that can show every mistake come first: a wrong mask shows only with several positions, a softmax over the
    # batch only with a batch. Of a mean over each sequence, three numbers can be compared, and two are too few. What is
    # added twice looks like what is added for each of two heads.
    drawn.sort(key=lambda case: (case.batch < 3 or case.seq < 4, case.config.n_heads < 3))
    return drawn


def _smallest(layer: UnderTest, failing: Trial, answer: Answer, wide: bool) -> dict[str, int]:
    """Return the sizes of a small case that shows what a failing trial does: NaN, another output, a gradient."""
    case, finite = failing.case, bool(answer.output.isfinite().all())
    output_wrong = not close(answer.output, failing.expected.output)

    def fails(case: Case) -> bool:
        trial = showing(layer.own_trial(case, gradients=not output_wrong))
        found = layer.answer(trial, wide=wide, gradients=not output_wrong)
        if found is None:
            return False
        if not finite:
            return not bool(found.output.isfinite().all())
        return not (close(found.output, trial.expected.output) if output_wrong else _is_right(found, trial))

    square = all(c.config.d_model == c.config.n_heads * c.config.d_head for c in (case, *_drawn(layer, 1)[:5]))
    if not fails(case):
        return {}
    return sizes_of(shrink(case, fails, square, layer.fixed))


def _ordinary_trials(layer: UnderTest, drawn: Sequence[Case]) -> Iterator[Trial]:
    """Yield trials of GPT-2's own choices."""
    plain = {"act_fn": "gelu_new", "scale_attn_weights": True, "layer_norm_eps": 1e-5, "n_layers": 3}
    cases = [
        replace(case, config=replace(case.config, **(plain | {"n_ctx": case.seq + 2 + index} | dict(layer.fixed))))
        for index, case in enumerate(drawn[:3])
    ]
    # A transposed matrix raises an error unless it is square: so in one case d_model = n_heads * d_head.
    config = cases[0].config
    cases.append(sized(cases[0], d_model=config.n_heads * config.d_head))
    first = showing(layer.own_trial(cases[0]))
    yield first
    yield from (showing(layer.own_trial(case)) for case in cases[1:])
    if layer.rung.name in ("layer-norm", "block", "model"):
        yield small_stream(first)


def _trials_of_every_choice(layer: UnderTest, drawn: Sequence[Case]) -> Iterator[Trial]:
    """Yield trials that have among them every value that is drawn of each choice."""
    chosen = {
        (name, getattr(case.config, name)): case
        for case in reversed(drawn)
        for name in ("act_fn", "scale_attn_weights", "layer_norm_eps")
    }
    return (showing(layer.own_trial(case)) for case in chosen.values())


def _trials_of_as_many_heads(layer: UnderTest, drawn: Sequence[Case]) -> Iterator[Trial]:
    """Yield trials with as many heads as positions: a layer that confuses both raises an error for all others."""
    if layer.rung.name not in ("attention", "block", "model"):
        return
    for case in drawn[:3]:
        heads = case.config.n_heads
        yield showing(layer.own_trial(replace(case, seq=heads, config=replace(case.config, n_ctx=heads + 2))))
    # With one position, attention between heads still mixes these.
    yield showing(layer.own_trial(replace(drawn[0], seq=1)))


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


def _facts(trial: Trial, found: Answer) -> tuple[str, ...]:
    if close(found.output, trial.expected.output):
        return ()  # the fault names the gradients
    facts: list[str] = []
    unread = [
        name
        for name, right in trial.expected.gradients.items()
        if name != "input" and right.any() and (name not in found.gradients or not found.gradients[name].any())
    ]
    if unread:
        named = parameters_in_words(unread, trial.expected.gradients)
        them = "them" if " and " in named else "it"
        facts.append(f"No gradient reaches {named}: the output does not depend on {them}.")
    if trial.rung == "attention":
        facts += _unread_heads(trial, found)
    if trial.rung in ("embed", "pos-embed") and found.output.shape == trial.expected.output.shape:
        facts += _row_facts(trial, found.output)

    return tuple(facts)


def _unread_heads(trial: Trial, found: Answer) -> list[str]:
    """Return which heads of attention the output does not depend on, if it does depend on others."""
    unread: dict[str, list[str]] = {}
    for name, right in trial.expected.gradients.items():
        own = found.gradients.get(name) if name in ("W_Q", "W_K", "W_V", "W_O") else None
        if own is not None and own.any():
            heads = [str(head) for head, each in enumerate(own) if not each.any() and right[head].any()]
            if heads:
                unread.setdefault(f"head {heads[0]}" if len(heads) == 1 else f"heads {listed(heads)}", []).append(name)
    return [
        f"No gradient reaches {listed(names)} of {heads}, counted from 0: the output does not depend on them."
        for heads, names in unread.items()
    ]


def _row_facts(trial: Trial, output: Tensor) -> tuple[str, ...]:
    """Return which row of its table the first wrong token or position got."""
    table = next(iter(trial.parameters.values()))
    for where in itertools.product(range(trial.case.batch), range(trial.case.seq)):
        row, right = output[where], trial.expected.output[where]
        if close(row, right):
            continue
        index = int(trial.given[where]) if trial.rung == "embed" else where[1]
        what = "Token" if trial.rung == "embed" else "Position"
        inside = f" in sequence {where[0]}, counted from 0," if where[0] else ""
        same_row = [i for i, each in enumerate(table) if close(row, each)]
        ratio = row / right
        if same_row:
            return (f"{what} {index}{inside} gets row {same_row[0]} of the table, not row {index}.",)
        if close(ratio, ratio[:1].expand_as(ratio)):
            return (f"{what} {index}{inside} gets its own row times {ratio[0]:.6g}.",)
        return (f"{what} {index}{inside} gets a vector that is no row of the table.",)
    return ()


def _patterns(trial: Trial, trace: Trace, build: Build | None) -> dict[str, Tensor]:
    """Return the right pattern, and the layer's own: from its trace, else from a layer with its mistake."""
    if trial.rung != "attention":
        return {}
    right = next(each.value for each in quantities(trial) if each.key == "pattern")
    for event in reversed(trace.events):
        if event.function in ("softmax", "softmax_") and event.value.shape == right.shape:
            return {"the right one": right[0], "yours": event.value[0]}
    if build is None:
        return {}
    layer = build(trial.config, trial.dtype)
    layer.load_state_dict(dict(trial.parameters))
    _, cache = run_with_cache(layer, trial.given)
    wrong = cache.get("hook_pattern")
    if wrong is None or wrong.shape != right.shape:
        return {}
    return {"the right one": right[0], "of a layer with your mistake": wrong[0]}
