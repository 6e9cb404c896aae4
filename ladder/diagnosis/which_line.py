"""Where a layer first departs from GPT-2, by the values of its trace; every sentence was checked on them."""

import torch

from ..answers import close
from ..candidate.trace import Event, Trace
from ..formula.same_numbers import equal, sorted_numbers
from ..formula.trace_matching import MOVES, Matched, Seen, line_of, size_of
from ..results import Finding, listed
from ..rungs import Trial
from .origins import found_at, in_its_place, origin_of, wrong_positions
from .wrong_masks import mask_fault
from .wrong_parts import part_rung, wrong_parts

# What torch's modules compute with their weights alone: nothing that they were built with can make it wrong.
_BY_WEIGHTS = ("linear", "embedding", "conv1d", "conv2d", "bilinear")


_RESHAPES = ("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "rearrange")


def locate(trial: Trial, trace: Trace, again: Trace | None = None, *, raised: bool = False) -> Finding | None:
    """Return where a layer first departs from GPT-2, and how; None if every step is right.

    Args:
        trial: the trial that was recorded.
        trace: of the layer.
        again: of the layer, the same trial run a second time: what differs is random.
        raised: the layer raised an error, and gave no output.
    """
    if again is not None and (random := _random(trace, again)) is not None:
        return random
    if not trace.whole:  # what is right before a step, or missing, is then not known
        return None
    matched = Matched(trial, trace, whole=not raised)
    culprit = matched.culprit()
    if culprit is None:
        return _before_error(matched) if raised else _ends_early(matched)
    event = culprit.event
    if (positions := wrong_positions(matched, culprit)) is not None:
        return positions
    # Inside a layer that is right by itself, what it is given is wrong: look at the line that calls it.
    wrong = {part for part, _, _ in wrong_parts(trial, trace)}
    for part, at in event.within:
        if at is not None and part not in wrong and part_rung(part) is not None:
            return _wrong_input(matched, culprit, part, at)
    if (origin := origin_of(matched, culprit) or _part_ends_early(matched, culprit, wrong)) is not None:
        return origin
    if (elsewhere := _right_elsewhere(matched, culprit)) is not None:
        return elsewhere
    if mask := mask_fault(matched, culprit):
        what, detail, made = mask
        return found_at(matched, culprit, made.at if made else event.at, what, detail)
    what, detail = _how(matched, culprit)
    if (turned := _transposed(matched, event)) is not None:  # the step before is wrong already
        event = turned.event
    # Where torch's module was built, unless what is wrong is what it was given.
    following = matched.next_step(culprit.index, event.inputs)
    given = event.function in _BY_WEIGHTS or "before the activation" in following
    given |= event.function == "softmax" and "pattern" not in following
    moved = event.made is None or event.function in MOVES or given or _right_once(matched, event)
    if not moved and event.at is not None and event.made != event.at:
        detail.append(f"It is called at line {line_of(event)}.")
    return found_at(matched, culprit, event.at if moved else event.made, what, detail)


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
            detail = f"`{first.function}` gives other numbers each time, in eval mode too."
            return Finding(at, code, (), "a random step", (detail,))
    return None


def _before_error(matched: Matched) -> Finding | None:
    """Return what is right before an error, and the axes of what was made last, if that was split into heads."""
    right = matched.right_steps(len(matched.seen))
    last = next((seen for seen in reversed(matched.seen) if seen.is_ or seen.depends), None)
    axes = matched.axes(last) if last else ""
    if not right or last is None or not axes:
        return Finding(None, None, right, "") if right else None
    detail = f"{_capital(last.is_[0].words)} are {axes} there (line {line_of(last.event)})."
    return Finding(None, None, right, "", (detail,))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _ends_early(matched: Matched) -> Finding | None:
    """Return where the output is taken from, if every step is right and the last is not the formula's last."""
    if matched.last < 0 or any(quantity.key == "output" for quantity in matched.seen[matched.last].is_):
        return None
    last = matched.seen[matched.last]
    place = matched.trace.places.get("returned") or last.event.at
    if not last.is_ and (some := matched.partial_sum(last)):
        detail = ("GPT-2 adds all of them, and the bias once.",)
        # A loop that adds one after another leaves out those that it does not reach.
        return found_at(matched, last, last.event.loop or place, f"the output: it is {some}", detail)
    if last.is_ and (unused := _unused(matched, last)):
        what = f"the output: it is {last.is_[-1].words}"
        return found_at(matched, unused, unused.event.at, what, [_not_used(unused)])
    missing = matched.next_step(last.index + 1, [last.index])
    what = f"the output: it is {last.is_[-1].words}" if last.is_ else "the output"
    detail = (f"GPT-2 has {missing} next.",) if missing and last.is_ else ()
    return found_at(matched, last, place, what, detail)


def _unused(matched: Matched, last: Seen) -> Seen | None:
    """Return the last step that is made of an event alone and that nothing uses."""
    used = {index for seen in matched.seen for index in seen.event.inputs}
    ends = (seen for seen in matched.seen if seen.is_ and seen.event.inputs == (last.index,) and seen.event.at)
    ends = (seen for seen in ends if seen.index not in used and seen.index != matched.last and seen.event.parameters)
    return max(ends, key=lambda seen: seen.index, default=None)


def _not_used(unused: Seen) -> str:
    return f"{_capital(unused.is_[0].words)} is made of that on line {line_of(unused.event)}, and not used."


def _wrong_input(matched: Matched, culprit: Seen, part: str, at: tuple[str, str]) -> Finding:
    """Return the call of a layer inside that is right by itself and gives what GPT-2 does not have."""
    detail = []
    for name, given, _ in reversed(matched.trace.parts):
        known = [each.words for each in matched.steps if equal(sorted_numbers(each.value), sorted_numbers(given))]
        if name == part and known:
            detail.append(f"{part} is given {known[-1]} there.")
            break
    missing = matched.next_step(culprit.index, culprit.event.inputs)
    wrong = f"what {part} gives there" + in_its_place(missing)
    return found_at(matched, culprit, at, wrong, detail)


def _part_ends_early(matched: Matched, culprit: Seen, wrong: set[str]) -> Finding | None:
    """Return the last line of a wrong layer inside, all of whose steps are right, if it leaves out GPT-2's last."""
    around = {part for part, _ in culprit.event.within}
    for seen in (matched.seen[index] for index in culprit.event.inputs if index >= 0):
        chain = [seen]
        while (before := chain[-1].event.inputs[:1]) and before[0] >= 0 and matched.seen[before[0]].is_ == seen.is_:
            chain.append(matched.seen[before[0]])
        for last in chain:
            part = next((part for part, _ in last.event.within if part in wrong - around), None)
            missing = matched.next_step(last.index + 1, [last.index])
            if part and last.is_ and missing:
                what = f"what {part} gives: it is {last.is_[0].words}"
                if unused := _unused(matched, last):
                    return found_at(matched, unused, unused.event.at, what, [_not_used(unused)])
                return found_at(matched, last, last.event.at, what, [f"GPT-2 has {missing} next."])
    return None


def _right_elsewhere(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that calls a function of the user's, if another line calls it and then it gives what is right."""
    event = culprit.event
    if event.caller is None or event.at is None or event.caller[0] == event.at[0]:
        return None
    right = [
        seen.event
        for seen in matched.seen
        if seen.good and (seen.event.at, seen.event.function) == (event.at, event.function)
        if seen.event.caller is not None and seen.event.caller != event.caller
    ]
    if not right or right[0].caller is None:
        return None
    missing = matched.next_step(culprit.index, event.inputs, event.function)
    wrong = f"what line {line_of(event)} gives there" + in_its_place(missing)
    other = right[0].caller[0].rpartition(":")[2]
    detail = f"Line {line_of(event)} gives what is right when line {other} calls it."
    return found_at(matched, culprit, event.caller, wrong, [detail, *_how(matched, culprit)[1]])


def _how(matched: Matched, culprit: Seen) -> tuple[str, list[str]]:
    """Return what the culprit gives, and sentences about it that were each checked."""
    event = culprit.event
    name, line = f"`{event.function}`", line_of(event)
    products = [seen.event for seen in matched.seen if culprit.index in seen.event.inputs and seen.event.parameters]
    if event.function in MOVES and {quantity.key for quantity in culprit.is_} == {"input"} and not products:
        sentence = "The layer's input itself is used there; GPT-2 uses it in products with W_Q, W_K and W_V only."
        return f"the layer's input, moved by {name}", [sentence] if matched.trial.rung == "attention" else []
    if known := not matched.arranged(culprit) and (*culprit.is_, *culprit.part_of):
        words = known[0].words
        moved = f"The numbers of {words} are right, but {name} on line {line} puts them into another order"
        mixed = f": the result of shape {list(event.value.shape)} mixes axes" if event.function in _RESHAPES else ""
        return f"the order of {words}", [f"{moved}{mixed}.", *_exchanged(matched, event)]
    complete = [seen for seen in matched.seen[: culprit.index] if any(q.key == "output" for q in seen.is_)]
    if complete and complete[-1].index in matched.sources([culprit.index]):
        return f"what {name} gives", [f"The output is complete before it, on line {line_of(complete[-1].event)}."]
    if factor := matched.factor(event):
        quantity, c = factor
        size = size_of(matched.trial, quantity, c)
        # A factor that is no short number comes from a size, d_head as a rule.
        sized = quantity.key.endswith("scores") and abs(c - round(c, 3)) > 1e-9
        here = f", where d_head is {matched.trial.config.d_head}" if sized else ""
        sentence = f"Line {line} gives {quantity.words} times {c:.6g}{f' = {size}' if size else here}."
        if quantity.key.endswith(("raw", "Q", "K")):
            sentence += f" GPT-2 has q·k times 1/sqrt(d_head), {matched.trial.config.attn_scale(0):.6g} here."
        return f"{quantity.words}, times a factor", [sentence]
    if bias := _bias_again(matched, culprit):
        return f"what {name} gives", [f"Line {line} {bias}."]
    taken = dict.fromkeys(words for i in event.inputs if (words := _called(matched, i)))
    taken |= dict.fromkeys(f"`{each}`" for each in event.parameters if event.function not in _BY_WEIGHTS)
    missing = matched.next_step(culprit.index, event.inputs, event.function)
    what = f"what {name} gives" + in_its_place(missing)
    turned = _transposed(matched, event)
    if turned is not None:
        scores = f"{turned.is_[0].words} (line {line_of(turned.event)})"
        what += f"; the rows of {scores} are keys, and GPT-2's are queries"
    return what, [f"{name} on line {line} takes {' and '.join(taken)}."] if taken else []


def _bias_again(matched: Matched, culprit: Seen) -> str:
    """Return that a bias is added a second time, or subtracted, if the culprit does so and all else in it is right."""
    steps = {each.key: each for each in matched.steps}
    for step in matched.steps:
        of, last = step.key[: step.key.rfind(".") + 1], step.key.rpartition(".")[2]
        before, bias = {
            "Q": ("Q0", "b_Q"), "K": ("K0", "b_K"), "V": ("V0", "b_V"), "pre": ("pre0", "b_in"),
        }.get(last, ("", ""))  # fmt: skip
        if last == "output":
            before = "gained" if f"{of}gained" in steps else "projected"
            bias = next((name for name in ("b_O", "b_out", "b") if f"{of}{name}" in matched.trial.parameters), "")
        bare = steps.get(f"{of}{before}")
        if not bias or bare is None:
            continue
        added = step.value - bare.value
        for wrong, words in ((step.value + added, "adds {} a second time"), (bare.value - added, "subtracts {}")):
            if added.any() and equal(sorted_numbers(wrong), culprit.numbers):
                return words.format(f"{of}{bias}")
    return ""


def _exchanged(matched: Matched, event: Event) -> list[str]:
    """Return which position has the numbers of which, in a sentence, if an event exchanges whole positions."""
    source = matched.trial.given if event.inputs[:1] == (-1,) else None
    if event.inputs and event.inputs[0] >= 0:
        source = matched.seen[event.inputs[0]].event.value
    if source is None or source.shape != event.value.shape:
        return []
    for axis, size in enumerate(source.shape):
        if size != matched.trial.case.seq:
            continue
        own, before = event.value.movedim(axis, 0), source.movedim(axis, 0)
        came_from = [next((j for j in range(size) if torch.equal(own[i], before[j])), None) for i in range(size)]
        moved = next((i for i, j in enumerate(came_from) if i != j), None)
        if None not in came_from and moved is not None:
            return [f"Position {moved} has the numbers of position {came_from[moved]} there, of {size} positions."]
    return []


def _transposed(matched: Matched, event: Event) -> Seen | None:
    """Return the first event of those that it takes that has scores with keys along their rows; None if none has."""
    for seen in (matched.seen[i] for i in sorted(matched.sources(event.inputs))):
        for quantity in seen.is_:
            value, right = seen.event.value, quantity.value
            turned = value.shape == right.shape and not close(value, right) and close(value.mT, right)
            if turned and quantity.key.endswith(("raw", "scores")):
                return seen
    return None


def _called(matched: Matched, index: int) -> str:
    """Return what an input of an event is, in words; empty if it is not known."""
    if index < 0:
        return "the layer's input"
    event, first = matched.seen[index].event, index
    line = f" (line {line_of(event)})"
    while index >= 0:
        seen = matched.seen[index]
        if seen.event.function == "buffer" and seen.event.value.is_floating_point():
            return f"the buffer of line {line_of(seen.event)}"
        if not seen.is_ and (some := matched.partial_sum(seen)):
            return some + line
        if not seen.is_ and seen.part_of:
            return f"a part of {seen.part_of[0].words} (line {line_of(seen.event)})"
        if seen.is_:
            taken = matched.seen[first]
            axes = matched.axes(taken)
            words = seen.is_[0].words + (f" as {axes}" if axes else "")
            fused = [each.words for each in seen.is_ if each.step and seen.event.value.numel() > each.value.numel()]
            if len(fused) > 1 and taken is not seen:
                words = f"numbers of {listed(fused)}"
            elif taken.event.value.numel() < min(quantity.value.numel() for quantity in seen.is_):
                words = f"a part of {words}"
            return words + ("" if seen.is_[0].key == "input" and seen.event.at is None else line)
        if seen.event.function not in MOVES or not seen.event.inputs:
            return ""
        index = seen.event.inputs[0]
    return f"the layer's input, moved{line}"
