"""Where a layer first departs from GPT-2, by the values of its trace; every sentence was checked on them."""

import re
from collections.abc import Sequence

import torch

from ..answers import close
from ..candidate.trace import Event, Trace
from ..formula.same_numbers import common, equal, sorted_numbers, varied
from ..formula.trace_matching import MOVES, Matched, Seen, line_of
from ..results import Finding, listed
from ..rungs import Trial
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
    if (positions := _wrong_positions(matched, culprit)) is not None:
        return positions
    # Inside a layer that is right by itself, what it is given is wrong: look at the line that calls it.
    wrong = {part for part, _, _ in wrong_parts(trial, trace)}
    for part, at in event.within:
        if at is not None and part not in wrong and part_rung(part) is not None:
            return _wrong_input(matched, culprit, part, at)
    if special := _miscounted(matched, culprit) or _mixed(matched, culprit):
        return special
    if mask := mask_fault(matched, culprit):
        what, detail, origin = mask
        return _found(matched, culprit, origin.at if origin else event.at, what, detail)
    what, detail = _how(matched, culprit)
    if (turned := _transposed(matched, event)) is not None:  # the step before is wrong already
        event = turned.event
    # Where torch's module was built, unless what is wrong is what it was given.
    following = matched.next_step(culprit.index, event.inputs)
    given = event.function in _BY_WEIGHTS or "before the activation" in following
    given |= event.function == "softmax" and "pattern" not in following
    moved = event.made is None or event.function in MOVES or given
    if not moved and event.at is not None and event.made != event.at:
        detail.append(f"It is called at line {line_of(event)}.")
    return _found(matched, culprit, event.at if moved else event.made, what, detail)


def _found(
    matched: Matched, before: Seen, place: tuple[str, str] | None, wrong: str, detail: Sequence[str] = ()
) -> Finding:
    """Return that something is wrong at a place, and what is right before an event."""
    at, code = place or (None, None)
    return Finding(at, code, matched.right_steps(before.index), wrong, tuple(detail))


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
        return _found(matched, last, place, f"the output: it is {some}", detail)
    missing = matched.next_step(last.index + 1, [last.index])
    what = f"the output: it is {last.is_[-1].words}" if last.is_ else "the output"
    detail = (f"GPT-2 has {missing} next.",) if missing and last.is_ else ()
    return _found(matched, last, place, what, detail)


def _wrong_input(matched: Matched, culprit: Seen, part: str, at: tuple[str, str]) -> Finding:
    """Return the call of a layer inside that is right by itself and gives what GPT-2 does not have."""
    detail = []
    for name, given, _ in reversed(matched.trace.parts):
        known = [each.words for each in matched.steps if equal(sorted_numbers(each.value), sorted_numbers(given))]
        if name == part and known:
            detail.append(f"{part} is given {known[-1]} there.")
            break
    missing = matched.next_step(culprit.index, culprit.event.inputs)
    wrong = f"what {part} gives there" + (f" (GPT-2 has {missing} next)" if missing else "")
    return _found(matched, culprit, at, wrong, detail)


def _wrong_positions(matched: Matched, culprit: Seen) -> Finding | None:
    """Return where the positions become wrong, if the culprit takes rows of their table; None if it does not."""
    missing = matched.next_step(culprit.index, culprit.event.inputs)
    of_table = missing == "the position embedding" or matched.trial.rung == "pos-embed"
    if not of_table or not culprit.event.parameters:
        return None
    origin = None
    for index in sorted(matched.sources(i for i in culprit.event.inputs if i >= 0)):
        event = matched.seen[index].event
        if event.value.is_floating_point() or event.value.dtype == torch.bool or event.at is None:
            continue
        right = torch.arange(event.value.shape[-1])
        if origin is None and not bool((event.value == right).all()):
            origin = event
        elif bool((event.value == right).all()):  # what came before was on the way to it
            origin = None
    if origin is None:
        return None
    seq, detail = matched.trial.case.seq, []
    if origin.value.shape[-1] == seq:
        row = origin.value.reshape(-1, seq)[0].tolist()
        wrong = next((i for i, each in enumerate(row) if i != each), None)
        detail += [] if wrong is None else [f"Position {wrong} is {row[wrong]} there."]
    return _found(matched, culprit, origin.at, "the positions", detail)


def _miscounted(matched: Matched, culprit: Seen) -> Finding | None:
    """Return where a bias is added that is in the culprit several times, if all else in that sum is right."""
    found = matched.counted(culprit)
    if not found or found[1][-1] < 2 or any(count not in (0, 1) for count in found[1][:-1]):
        return None
    sum_, (*_, times) = found
    adding = [
        seen
        for seen in (matched.seen[i] for i in sorted(matched.sources([culprit.index])))
        if seen.event.parameters and (inside := matched.counted(seen)) and inside[1][-1] and seen.event.at
    ]
    if not adding:
        return None
    last = adding[-1]
    detail = f"{sum_.bias} is in the sum {times:g} times (line {line_of(culprit.event)}). GPT-2 adds it once."
    return _found(matched, last, last.event.at, f"the sum, with {sum_.bias} in it several times", [detail])


def _mixed(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the slice that holds numbers of two of queries, keys and values, if the culprit takes such a one."""
    whole = [each for each in matched.steps if re.search(r"(^|\.)[QKV]$", each.key)]
    for index in culprit.event.inputs:
        seen = matched.seen[index] if index >= 0 else None
        if seen is None or not seen.good or seen.is_ or seen.part_of or not varied(seen.numbers):
            continue
        # The step that chose these numbers: those after it moved them.
        while seen.event.inputs and (source := seen.event.inputs[0]) >= 0:
            if matched.seen[source].numbers.size != seen.numbers.size:
                break
            seen = matched.seen[source]
        size, one = seen.numbers.size, matched.trial.config.n_heads
        held = {each.words: common(seen.numbers, sorted_numbers(each.value)) for each in whole}
        held = {words: count for words, count in held.items() if count}
        like_one = any(size in (each.value.numel(), each.value.numel() // one) for each in whole)
        if len(held) != 2 or sum(held.values()) != size or not like_one or seen.event.at is None:
            continue
        shares = " and ".join(f"{count} are of {words}" for words, count in held.items())
        detail = f"Of its {size} numbers, {shares}. GPT-2 takes each of them alone."
        return _found(matched, seen, seen.event.at, f"what `{seen.event.function}` gives", [detail])
    return None


def _how(matched: Matched, culprit: Seen) -> tuple[str, list[str]]:
    """Return what the culprit gives, and sentences about it that were each checked."""
    event = culprit.event
    name, line = f"`{event.function}`", line_of(event)
    if event.function in MOVES and {quantity.key for quantity in culprit.is_} == {"input"}:
        sentence = "The layer's input itself is used there; GPT-2 uses it in products with W_Q, W_K and W_V only."
        return f"the layer's input, moved by {name}", [sentence] if matched.trial.rung == "attention" else []
    if event.function in MOVES and culprit.is_:
        words = culprit.is_[0].words
        moved = f"The numbers of {words} are right, but {name} on line {line} puts them into another order"
        mixed = f": the result of shape {list(event.value.shape)} mixes axes" if event.function in _RESHAPES else ""
        return f"the order of {words}", [f"{moved}{mixed}."]
    complete = [seen for seen in matched.seen[: culprit.index] if any(q.key == "output" for q in seen.is_)]
    if complete and complete[-1].index in matched.sources([culprit.index]):
        return f"what {name} gives", [f"The output is complete before it, on line {line_of(complete[-1].event)}."]
    if factor := matched.factor(event):
        quantity, c = factor
        size = matched.size_of(quantity, c)
        sentence = f"Line {line} gives {quantity.words} times {c:.6g}{f' = {size}' if size else ''}."
        if quantity.key.endswith(("raw", "Q", "K")):
            sentence += f" GPT-2 has q·k times 1/sqrt(d_head), {matched.trial.config.attn_scale(0):.6g} here."
        return f"{quantity.words}, times a factor", [sentence]
    taken = dict.fromkeys(words for i in event.inputs if (words := _called(matched, i)))
    taken |= dict.fromkeys(f"`{each}`" for each in event.parameters if event.function not in _BY_WEIGHTS)
    missing = matched.next_step(culprit.index, event.inputs, event.function)
    what = f"what {name} gives" + (f" (GPT-2 has {missing} next)" if missing else "")
    turned = _transposed(matched, event)
    if turned is not None:
        scores = f"{turned.is_[0].words} (line {line_of(turned.event)})"
        what += f"; the rows of {scores} are keys, and GPT-2's are queries"
    return what, [f"{name} on line {line} takes {' and '.join(taken)}."] if taken else []


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
