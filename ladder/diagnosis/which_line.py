"""Where a layer first departs from GPT-2, by the values of its trace; every sentence was checked on them."""

import re

import torch

from ..candidate.trace import Event, Trace
from ..formula.next_step import next_step
from ..formula.quantities import Quantity, part_rung
from ..formula.same_numbers import equal, sorted_numbers
from ..formula.trace_matching import MOVES, Matched, Seen
from ..results import Finding
from ..rungs import Trial
from .how_wrong import BY_WEIGHTS, bent, how, last_multiple
from .in_words import called, capital, found_at, in_its_place, line_of, on_line, right_steps
from .origins import moved_from, origin_of
from .rotary import rotary_positions
from .unused_steps import unused_step
from .wrong_calls import bias_left_out, wrong_call
from .wrong_masks import mask_fault
from .wrong_parts import wrong_parts
from .wrong_positions import wrong_positions


def locate(
    trial: Trial,
    trace: Trace,
    again: Trace | None = None,
    *,
    raised: bool = False,
    kept: bool = False,
    leaks: bool = False,
) -> Finding | None:
    """Return where a layer first departs from GPT-2, and how; None if every step is right.

    Args:
        trial: the trial that was recorded.
        trace: of the layer.
        again: of the layer, the same trial run a second time: what differs is random.
        raised: the layer raised an error, and gave no output.
        kept: what the layer keeps between calls makes it wrong.
        leaks: it was seen that a later position changes the output of an earlier one.
    """
    if again is not None and (random := _random(trace, again)) is not None:
        return random
    if not trace.whole:  # what is right before a step, or missing, is then not known
        return None
    matched = Matched(trial, trace, whole=not raised, leaks=leaks)
    culprit = matched.culprit()
    if culprit is None:
        return _before_error(matched) if raised else _ends_early(matched)
    event = culprit.event
    if (positions := wrong_positions(matched, culprit)) is not None:
        return positions
    if (turned := rotary_positions(matched, culprit)) is not None:
        return turned
    if (unused := unused_step(matched, culprit)) is not None:
        return unused
    # Inside a layer that is right by itself, what it is given is wrong: look at the line that calls it.
    wrong = {part for part, _, _ in wrong_parts(trial, trace)}
    for part, at in event.within:
        if at is not None and part not in wrong and part_rung(part) is not None:
            return _wrong_input(matched, culprit, part, at)
    if (origin := origin_of(matched, culprit) or _part_ends_early(matched, culprit, wrong)) is not None:
        return origin
    if (elsewhere := _right_elsewhere(matched, culprit)) is not None:
        return elsewhere
    if (bare := bias_left_out(matched, culprit)) is not None:
        return bare
    scaled = _scaled_before(matched, culprit)
    if scaled is None and (call := wrong_call(matched, culprit)) is not None:
        return call
    if mask := mask_fault(matched, culprit):
        what, detail, made = mask
        return found_at(matched, culprit, made.at if made else event.at, what, detail)
    if (turned := _transposed(matched, event)) is not None:  # the step before is wrong already
        wrong = f"{turned.is_[0].words}: their rows are keys, and GPT-2's are queries"
        if turned.event.caller and turned.event.at and turned.event.caller[0] != turned.event.at[0]:
            caller = turned.event.caller[0].rpartition(":")[2]
            wrong += f" (line {line_of(turned.event)}, called by line {caller})"
        return found_at(matched, turned, turned.event.at, wrong)
    culprit = bent(matched, last_multiple(matched, scaled or culprit))
    event = culprit.event
    if unscaled := _masked_unscaled(matched, culprit):
        return unscaled
    if event.foreign and not event.inputs and not kept:
        missing = next_step(matched, culprit.index, event.inputs, event.function)
        wrong = f"what {called(event)} is given, or what it does with that{in_its_place(missing)}"
        return found_at(matched, culprit, event.at, wrong, ["The steps that made what it is given were not seen."])
    what, detail = how(matched, culprit)
    if kept and event.foreign:
        detail.append(f"{on_line(event)} takes a tensor that the layer keeps.")
    # Where torch's module was built, unless what is wrong is what it was given.
    following = next_step(matched, culprit.index, event.inputs)
    given = event.function in BY_WEIGHTS or "before the activation" in following
    given |= event.function == "softmax" and "pattern" not in following
    given |= len(_taken_by_module(matched, event)) > 1  # queries, keys and values are made of one tensor
    moved = event.made is None or event.function in MOVES or given or _right_once(matched, event)
    told = any(f"line {line_of(event)}" in each.lower() for each in detail)
    if not moved and event.at is not None and event.made != event.at and not told:
        detail.append(f"It is called at line {line_of(event)}.")
    return found_at(matched, culprit, event.at if moved else event.made, what, detail)


def _taken_by_module(matched: Matched, event: Event) -> set[int]:
    """Return the tensors that torch's whole attention makes queries, keys and values of, if an event is that."""
    if event.function != "multi_head_attention_forward":
        return set()
    paths = (moved_from(matched, index) for index in event.inputs if index >= 0 and matched.seen[index].depends)
    first = [path[-1] for path in paths]
    inputs = {-1} if -1 in event.inputs else set[int]()
    return inputs | {-1 if -1 in seen.event.inputs and seen.event.function in MOVES else seen.index for seen in first}


def _right_once(matched: Matched, event: Event) -> bool:
    """Return whether the module that an event ran in gave what is right when another line called it."""
    ran = (seen for seen in matched.seen if seen.good and seen.event.made == event.made)
    return any(seen.event.function == event.function and seen.event.at != event.at for seen in ran)


def _random(one: Trace, other: Trace) -> Finding | None:
    """Return the first step that gave other numbers the second time."""
    for first, second in zip(one.events, other.events, strict=False):
        if first.function != second.function or first.value.shape != second.value.shape:
            return None
        if not torch.equal(first.value.nan_to_num(), second.value.nan_to_num()):
            at, code = first.at or (None, None)
            detail = f"{on_line(first)} gives other numbers each time, in eval mode too."
            return Finding(at, code, (), "a random step", (detail,))
    return None


def _before_error(matched: Matched) -> Finding | None:
    """Return what is right before an error, and the axes of what was made last, if that was split into heads."""
    right = right_steps(matched, len(matched.seen))
    last = next((seen for seen in reversed(matched.seen) if seen.is_ or seen.depends), None)
    axes = matched.axes(last) if last else ""
    if not right or last is None or not axes:
        return Finding(None, None, right, "") if right else None
    detail = f"{capital(last.is_[0].words)} are {axes} there (line {line_of(last.event)})."
    return Finding(None, None, right, "", (detail,))


def _ends_early(matched: Matched) -> Finding | None:
    """Return where the output is taken from, if every step is right and the last is not the formula's last."""
    if matched.last < 0 or any(quantity.key == "output" for quantity in matched.seen[matched.last].is_):
        return None
    last = matched.seen[matched.last]
    if matched.trace.output < 0:  # what gave the output was not seen
        missing = next_step(matched, last.index + 1, [last.index])
        what = f"what comes after {last.is_[-1].words}{in_its_place(missing)}" if last.is_ else ""
        return found_at(matched, last, last.event.at, what) if what else None
    if (positions := wrong_positions(matched, last)) is not None:
        return positions
    place = matched.trace.places.get("returned") or last.event.at
    if not last.is_ and (some := matched.partial_sum(last)):
        detail = ["GPT-2 adds all of them, and the bias once."]
        if (again := _begun_anew(matched, last)) is not None:
            return found_at(matched, last, last.event.at, f"the output: it is {some}", [*detail, again])
        # A loop that adds one after another leaves out those that it does not reach.
        return found_at(matched, last, last.event.loop or place, f"the output: it is {some}", detail)
    if last.is_ and (unused := _unused(matched, last)):
        what = f"the output: it is {last.is_[-1].words}"
        return found_at(matched, unused, unused.event.at, what, [_not_used(unused)])
    missing = next_step(matched, last.index + 1, [last.index])
    what = f"the output: it is {last.is_[-1].words}" if last.is_ else "the output"
    detail = (f"GPT-2 has {missing} next.",) if missing and last.is_ else ()
    return found_at(matched, last, place, what, detail)


def _begun_anew(matched: Matched, last: Seen) -> str | None:
    """Return that a line in a loop forgets what it gave before, in a sentence; None if it goes on from that."""
    ran = [(seen.event.at, seen.event.function) for seen in matched.seen]
    runs = [i for i, each in enumerate(ran) if each == ran[last.index]]
    if last.event.loop is None or len(runs) < 2 or not matched.sources([last.index]).isdisjoint(runs[:-1]):
        return None
    return f"Line {line_of(last.event)} runs {len(runs)} times there, and does not take what it gave before."


def _unused(matched: Matched, last: Seen) -> Seen | None:
    """Return the last step that is made of an event, and that nothing uses."""
    ends = (seen for seen in matched.unused if seen.is_ and seen.event.at and seen.index != matched.last)
    ends = (seen for seen in ends if seen.event.function not in MOVES and last.index in matched.sources([seen.index]))
    ends = (seen for seen in ends if not any(each in last.is_ for each in seen.is_))
    return max(ends, key=lambda seen: seen.index, default=None)


def _not_used(unused: Seen) -> str:
    return f"{capital(unused.is_[0].words)} is made of that on line {line_of(unused.event)}, and not used."


def _wrong_input(matched: Matched, culprit: Seen, part: str, at: tuple[str, str]) -> Finding:
    """Return the call of a layer inside that is right by itself and gives what GPT-2 does not have."""
    # The first call that gives no step.
    steps = [(each, sorted_numbers(each.value)) for each in matched.steps]
    calls = ((given, sorted_numbers(output)) for name, given, output in matched.trace.parts if name == part)
    call = (sorted_numbers(given) for given, output in calls if not any(equal(numbers, output) for _, numbers in steps))
    numbers = next(call, None)
    known = [each for each, own in steps if numbers is not None and equal(own, numbers)]
    wrong = f"the call of {part} there" + (f", on {known[-1].words}" if known else "")
    missing = next_step(matched, culprit.index, culprit.event.inputs)
    if known and (before := _before_call(matched, culprit, known[-1], missing)) is not None:
        return before
    # A layer norm begins with its mean.
    instead = _called_on(matched, part, missing) or in_its_place(missing.removeprefix("the mean of "))
    return found_at(matched, culprit, at, wrong + instead)


def _called_on(matched: Matched, part: str, missing: str) -> str:
    """Return what GPT-2 calls a layer on, in brackets, if the step that is missing is that layer's own."""
    keys = [each.key for each in matched.steps]
    first = next((i for i, key in enumerate(keys) if key.startswith(f"{part}.")), 0)
    own = any(each.words == missing and each.key.startswith(f"{part}.") for each in matched.steps)
    return f" (GPT-2 calls it on {matched.steps[first - 1].words})" if own and first else ""


def _before_call(matched: Matched, culprit: Seen, given: Quantity, missing: str) -> Finding | None:
    """Return the line before a layer inside is called, if that leaves out what GPT-2 does to what is given."""
    depth = len(culprit.event.within) - 1
    making = [seen.event for seen in matched.seen[: culprit.index] if given in seen.is_]
    places = [(event.within[depth] if len(event.within) > depth else ("", event.at)) for event in making[-1:]]
    name, at = places[0] if places else ("", None)
    if at is None:
        return None
    # ``x = self.attn(self.ln1(x))``: x was the stream, and is no longer.
    overwritten = re.match(r"(\w+) = .*\b\1\b", at[1])
    if overwritten and missing.startswith("the stream after "):
        wrong = f"`{overwritten[1]}`, which becomes {given.words} alone{in_its_place(missing)}"
        return found_at(matched, culprit, at, wrong)
    # Blocks that do not run: the call of the last one that does.
    block = re.search(r"block (\d+)\)?$", missing)
    ran = {part.rpartition(".")[2] for part, _, _ in matched.trace.parts if part_rung(part) == "block"}
    if block and part_rung(name) == "block" and name.endswith(f".{int(block[1]) - 1}") and block[1] not in ran:
        wrong = f"the blocks: {name} is the last that runs, of {matched.trial.config.n_layers}"
        return found_at(matched, culprit, at, wrong)
    return None


def _part_ends_early(matched: Matched, culprit: Seen, wrong: set[str]) -> Finding | None:
    """Return the last line of a wrong layer inside, all of whose steps are right, if it leaves out GPT-2's last."""
    around = {part for part, _ in culprit.event.within}
    for seen in (matched.seen[index] for index in culprit.event.inputs if index >= 0):
        chain = [seen]
        while (before := chain[-1].event.inputs[:1]) and before[0] >= 0 and matched.seen[before[0]].is_ == seen.is_:
            chain.append(matched.seen[before[0]])
        for last in chain:
            part = next((part for part, _ in last.event.within if part in wrong - around), None)
            missing = next_step(matched, last.index + 1, [last.index])
            if part and last.is_ and missing:
                # What runs inside a connection around a layer norm is no step of that norm.
                own = any(each.key.startswith(f"{part}.") for each in last.is_)
                what = f"what {part if own else called(last.event)} gives: it is {last.is_[0].words}"
                if unused := _unused(matched, last):
                    return found_at(matched, unused, unused.event.at, what, [_not_used(unused)])
                return found_at(matched, last, last.event.at, what, [f"GPT-2 has {missing} next."])
    return None


def _right_elsewhere(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that calls a function of the user's, if that gives what is right when it is called otherwise."""
    event = culprit.event
    if event.caller is None or event.at is None or event.caller[0] == event.at[0]:
        return None
    right = [
        seen.event
        for seen in matched.seen
        if seen.good and matched.arranged(seen) and (seen.event.at, seen.event.function) == (event.at, event.function)
        if seen.event.caller is not None
    ]
    others = [each.caller[0].rpartition(":")[2] for each in right if each.caller and each.caller != event.caller]
    line = line_of(event)
    if others:
        detail = f"Line {line} gives what is right when line {others[0]} calls it."
    elif right and (given := _given_unknown(matched, culprit)) is not None:
        detail = f"Line {line} gives what is right when it is run with other numbers. Those here are no step of GPT-2."
        return found_at(
            matched, culprit, given.event.at, f"what line {line_of(given.event)} gives line {line}", [detail]
        )
    else:
        return None
    missing = next_step(matched, culprit.index, event.inputs, event.function)
    wrong = f"what line {line} gives there" + in_its_place(missing)
    return found_at(matched, culprit, event.caller, wrong, [detail, *how(matched, culprit)[1]])


def _given_unknown(matched: Matched, culprit: Seen) -> Seen | None:
    """Return what a function of the user's in which an event is was given, if these numbers are no step."""
    stack = list(culprit.event.inputs)
    while stack:
        index = stack.pop()
        seen = matched.seen[index] if index >= 0 else None
        if seen and seen.event.caller == culprit.event.caller:
            stack += seen.event.inputs
        elif seen and seen.depends and not seen.is_ and not seen.part_of:
            return seen
    return None


def _scaled_before(matched: Matched, culprit: Seen) -> Seen | None:
    """Return the first step that gives queries, keys or scores times a factor, if scaled scores are what is missing."""
    if "scaled scores" not in next_step(matched, culprit.index, culprit.event.inputs, culprit.event.function):
        return None
    for seen in (matched.seen[index] for index in sorted(matched.sources(culprit.event.inputs))):
        factor = None if seen.good or not seen.depends else matched.factor(seen.event)
        if factor and factor[0].key.endswith(("Q", "K", "raw")):
            return seen
    return None


def _masked_unscaled(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that makes masked scores in one step, without scaling them, if a softmax takes these."""
    taken = [matched.seen[i] for i in culprit.event.inputs if i >= 0]
    of = [each.key.removesuffix("masked raw") for seen in taken for each in seen.is_ if each.key.endswith("masked raw")]
    if culprit.event.function != "softmax" or not of or not matched.found.isdisjoint({f"{of[0]}raw", f"{of[0]}scores"}):
        return None
    made = moved_from(matched, taken[0].index)[-1]
    missing = f"the scaled scores{made.is_[0].words.removeprefix('the masked unscaled scores')}" if made.is_ else ""
    wrong = f"what {called(made.event)} gives: the masked scores, not scaled{in_its_place(missing)}"
    return found_at(matched, made, made.event.at, wrong)


def _transposed(matched: Matched, event: Event) -> Seen | None:
    """Return the first step before a softmax that has scores with keys along their rows; None if there is none."""
    sources = [matched.seen[i] for i in sorted(matched.sources(event.inputs))]
    if any(quantity.key.endswith("pattern") for seen in sources for quantity in seen.is_):
        return None
    return next((seen for seen in sources if any(matched.turned(seen, each) for each in seen.is_)), None)
