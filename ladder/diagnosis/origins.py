"""The earlier line that made a step wrong: it counts twice, mixes two, takes another head, leaves out a part."""

import re

from ..formula.next_step import next_step
from ..formula.same_numbers import common, equal, sorted_numbers, varied, within
from ..formula.trace_matching import FILLS, MOVES, Matched, Seen
from ..results import Finding, listed
from .in_words import called, found_at, in_its_place, line_of
from .running_softmax import running_softmax
from .wrong_masks import idle_mask


def origin_of(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that made a step wrong, if it is another than the step's own and the numbers show it."""
    for cause in _CAUSES:
        if (finding := cause(matched, culprit)) is not None:
            return finding
    return None


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
    return found_at(matched, last, last.event.at, f"the sum, with {sum_.bias} in it several times", [detail])


def _mixed(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the slice that holds numbers of several of queries, keys and values, if the culprit takes such a one."""
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
        if len(held) < 2 or sum(held.values()) != size or not like_one or seen.event.at is None:
            continue
        shares = listed([f"{count} are of {words}" for words, count in held.items()])
        detail = f"Of its {size} numbers, {shares}. GPT-2 takes each of them alone."
        return found_at(matched, seen, seen.event.at, f"what {called(seen.event)} gives", [detail])
    return None


def _not_normalised(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line of a softmax by hand that ends before its division, if the culprit multiplies values by that."""
    paths = [moved_from(matched, index) for index in culprit.event.inputs if index >= 0]
    values = [path for path in paths if any(re.search(r"(^|\.)V$", each.key) for each in path[0].is_)]
    for path in paths if len(paths) == 2 and len(values) == 1 else []:
        weights = path[-1]
        while (before := weights.event.inputs[:1]) and before[0] >= 0 and weights.event.function != "exp":
            if not equal(matched.seen[before[0]].numbers, weights.numbers):  # a dropout in eval mode changes nothing
                break
            weights = matched.seen[before[0]]
            path.append(weights)
        known = bool(weights.is_ or weights.part_of) or weights.event.function != "exp" or not weights.event.at
        if known or not matched.softmax.is_step("exp", weights.event.value):
            continue
        own = {seen.index for seen in path}
        others = (seen for seen in matched.seen if seen.index not in {culprit.index, *own})
        if not any(own & set(seen.event.inputs) for seen in others):
            missing = next_step(matched, culprit.index, culprit.event.inputs)
            wrong = f"what {called(weights.event)} gives: it is not divided by its sum over the keys"
            return found_at(matched, weights, weights.event.at, wrong + in_its_place(missing))
    return None


def _unfilled(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the loop that puts right numbers into a tensor, if it leaves out some of that."""
    event = culprit.event
    if event.function not in FILLS or event.loop is None or len(event.inputs) != 2 or min(event.inputs) < 0:
        return None
    into, value = (matched.seen[index] for index in event.inputs)
    if not value.good or (bool(into.event.value.any()) and not into.good):
        return None
    runs = [each for each in matched.trace.events if (each.at, each.function) == (event.at, event.function)]
    for axis, size in enumerate(event.value.shape):
        empty = [i for i, part in enumerate(runs[-1].value.unbind(axis)) if not part.any()]
        if empty and len(empty) < size:
            times = len(runs)
            kinds = {matched.trial.case.seq: "position", matched.trial.config.n_heads: "head"}
            place = f"the place of {kinds.get(size, f'axis {axis}, number')} {empty[0]}, counted from 0, stays 0"
            if times >= size:  # enough for all, but some go into one place
                wrong = f"where line {line_of(event)} puts what it computes"
                return found_at(matched, culprit, event.at, wrong, [f"It runs {times} times, and {place}."])
            detail = f"What line {line_of(event)} puts there is right, and {place}."
            return found_at(matched, culprit, event.loop, "what this loop leaves out", [detail])
    return None


def _of_some_positions(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that takes a statistic of a layer norm of some positions, if it is used for more than these."""
    for seen in (matched.seen[i] for i in culprit.event.inputs if i >= 0):
        for quantity in seen.part_of:
            statistic = quantity.key.rpartition(".")[2] in ("mean", "variance", "variance+eps", "scale", "1/scale")
            few = statistic and not seen.is_ and culprit.event.value.numel() > seen.event.value.shape[-1]
            if few and seen.event.at and not seen.event.loop:
                detail = f"It has {seen.event.value.numel()} numbers, and GPT-2 has one for each position: "
                detail += f"{quantity.value.numel()} here."
                return found_at(matched, seen, seen.event.at, f"{quantity.words}, of some positions only", [detail])
    return None


def _cut_short(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the slice that leaves out numbers of queries, keys, values or the input, if no other takes the rest."""
    taken = [seen for seen in matched.seen if -1 in seen.event.inputs]
    every = matched.trial.given.numel()
    if len(taken) == 1 and _is_slice(taken[0], every) and taken[0].index in matched.sources(culprit.event.inputs):
        return _left_out(matched, taken[0], "the input", every)
    for index in culprit.event.inputs:
        path = moved_from(matched, index) if index >= 0 else []
        whole = next((seen for seen in path if any(q.key[-1] in "QKV" and q.step for q in seen.is_)), None)
        cut = [seen for seen in path[: path.index(whole)] if not seen.is_][-1:] if whole else []
        if whole is None or not cut or not _is_slice(cut[0], whole.event.value.numel()):
            continue
        others = [seen for seen in matched.seen if seen.event.inputs[:1] == cut[0].event.inputs[:1]]
        if sum(seen.event.function == "__getitem__" for seen in others) == 1:
            return _left_out(matched, cut[0], whole.is_[0].words, whole.event.value.numel())
    return None


def _is_slice(seen: Seen, every: int) -> bool:
    event = seen.event
    return event.function == "__getitem__" and event.at is not None and not event.loop and event.value.numel() < every


def _left_out(matched: Matched, cut: Seen, words: str, every: int) -> Finding:
    detail = (
        f"Line {line_of(cut.event)} takes {cut.event.value.numel()} of {every} numbers, and no other line the rest."
    )
    return found_at(matched, cut, cut.event.at, f"{words}: some of the numbers are left out", [detail])


# Functions that exchange axes.
_PERMUTES = ("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "T", "rearrange")


def _wrong_axes(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that orders the axes of queries and keys, if their product is not one of positions."""
    event = culprit.event
    fused = event.function == "scaled_dot_product_attention"
    if (not fused and event.function not in ("matmul", "__matmul__", "bmm", "baddbmm")) or len(event.inputs) < 2:
        return None
    known = ((index, matched.axes(matched.seen[index])) for index in event.inputs[:2] if index >= 0)
    index, axes = next(((index, axes.strip("[]").split(", ")) for index, axes in known if axes), (-1, []))
    second = index == event.inputs[1] and not fused
    if len(axes) < 3 or axes[-1 if second else -2] == "seq" or matched.seen[index].is_[0].key[-1] not in "QK":
        return None
    queries = matched.seen[index]
    path = [matched.seen[index] for index in sorted(matched.sources([queries.index]), reverse=True)]
    moved = [seen for seen in path if seen.event.function in _PERMUTES and seen.event.at]
    moved = moved or [seen for seen in path if seen.event.function in MOVES and seen.event.at]
    moved = [seen for seen in moved if fused or line_of(seen.event) != line_of(event)] or moved
    # An input whose axes are exchanged comes first: what follows it may be as it should be.
    first = [seen for seen in moved if any(quantity.key == "input" for quantity in seen.is_)]
    if not moved:
        return None
    chosen = (first or moved)[-1 if first else 0]
    wrong = f"the axes: line {line_of(event)} takes {queries.is_[0].words} as [{', '.join(axes)}]"
    detail = f"Its products are of {axes[-1 if second else -2]}, where GPT-2 has a product for each position (seq)."
    return found_at(matched, chosen, chosen.event.at, wrong, [detail])


def _of_two_heads(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that takes another head's part, if the culprit multiplies the parts of two heads."""
    found: list[tuple[Seen, str, int]] = []
    for seen in (matched.seen[i] for i in culprit.event.inputs if i >= 0):
        for quantity in matched.steps:
            axis = {"Q": 2, "K": 2, "V": 2, "pattern": 1}.get(quantity.key.rpartition(".")[2])
            if axis is not None and seen.good:
                every = enumerate(quantity.value.unbind(axis))
                heads = [head for head, each in every if within(seen.numbers, sorted_numbers(each))]
                found += [(seen, quantity.words, heads[0])] if len(heads) == 1 else []
    if len(found) != 2 or found[0][2] == found[1][2]:
        return None
    event = culprit.event
    earlier = (seen.event for seen in matched.seen[: culprit.index] if seen.event.at == event.at)
    same = [each for each in earlier if each.function == event.function and each.value.shape == event.value.shape]
    before = len(same)
    # A loop that has come to a head takes that one's; if not, weights come before values.
    first = "pattern" in found[0][1] or (before if before in (found[0][2], found[1][2]) else 0) == found[0][2]
    one, other = found if first else found[::-1]
    taken = other[0]
    for seen in moved_from(matched, taken.index):
        taken = seen if seen.numbers.size == taken.numbers.size else taken
    wrong = f"the head: {other[1]} there are of head {other[2]}, and {one[1]} beside them of head {one[2]}"
    return found_at(matched, taken, taken.event.at, wrong, [f"Line {line_of(culprit.event)} takes them together."])


# Steps that one line may give instead of each other, if it does not do the same for every head.
_ALIKE = {"raw", "scores", "masked", "masked raw", "pattern"}


def _unlike_others(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that gave one step when it ran before, for another head, and gives another step here."""
    event = culprit.event
    same = (seen for seen in matched.seen if (seen.event.at, seen.event.function) == (event.at, event.function))
    other = next((seen for seen in same if seen.good and seen.index < culprit.index), None)
    found, one = None, culprit
    while other is not None and one.event.at == other.event.at and one.event.function == other.event.function:
        keys = [{each.key.rpartition(".")[2] for each in (*seen.is_, *seen.part_of)} for seen in (one, other)]
        if one.good and all(keys) and keys[0] | keys[1] <= _ALIKE and keys[0].isdisjoint(keys[1]):
            found = one, other
        inputs = [seen.event.inputs[:1] for seen in (one, other)]
        if not all(each and each[0] >= 0 for each in inputs):
            break
        one, other = (matched.seen[each[0]] for each in inputs)
    if found is None:
        return None
    one, other = found
    here, there = (([*seen.part_of, *seen.is_])[0].words for seen in found)
    wrong = f"what line {line_of(one.event)} gives there: a part of {here}"
    return found_at(matched, one, one.event.at, wrong, [f"When it ran before, it gave a part of {there}."])


def _in_loop(matched: Matched, culprit: Seen) -> Finding | None:
    """Return what a loop adds up wrongly, or the loop itself, if its first run makes no step of the formula."""
    loop = culprit.event.loop
    inside = [seen for seen in matched.seen if seen.event.loop == loop]
    lines: dict[tuple[object, str], list[Seen]] = {}
    for seen in inside:
        lines.setdefault((seen.event.at, seen.event.function), []).append(seen)
    if loop is None or len({at for at, _ in lines}) < 2 or len(lines[culprit.event.at, culprit.event.function]) < 2:
        return None
    # What is added to what the same line gave before: the last of these is its result.
    own = {line: {seen.index for seen in each} for line, each in lines.items()}
    sums = [each[-1] for line, each in lines.items() if not own[line].isdisjoint(each[-1].event.inputs)]
    first = (moved_from(matched, each[0].index)[-1] for each in lines.values() if each[0].good)
    if any(quantity.key != "input" for seen in first for quantity in (*seen.is_, *seen.part_of)):
        return None
    right = [seen for seen in sums if seen.is_ or matched.factor(seen.event)]
    wrong = [seen for seen in sums if seen not in right]
    if right and wrong:
        sizes = (each for each in matched.steps if each.step and each.value.numel() == wrong[0].event.value.numel())
        missing = next((each.words for each in sizes if each.key not in matched.found), "")
        words = f"what line {line_of(wrong[0].event)} adds up in its loop{in_its_place(missing)}"
        return found_at(matched, inside[0], wrong[0].event.at, words)
    missing = next_step(matched, culprit.index, culprit.event.inputs)
    return found_at(matched, culprit, loop, f"what this loop makes{in_its_place(missing)}")


def _running_softmax(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the loop over parts of the keys in which the culprit takes a row's own number off a part of the scores.

    Any number will do there, as long as what the loop adds up goes with it: the line itself need not be wrong.
    """
    event, loop = culprit.event, culprit.event.loop
    if loop is None or event.function not in ("sub", "sub_", "subtract") or len(event.inputs) != 2:
        return None
    scores, shift = (matched.seen[index] if index >= 0 else None for index in event.inputs)
    if scores is None or shift is None or shift.event.value.shape != (*scores.event.value.shape[:-1], 1):
        return None
    before = [matched.seen[index] for index in matched.sources([scores.index])]  # masked, it is no step by itself
    alike = (each for each in before if each.event.value.shape == scores.event.value.shape)
    if not any(quantity.key.endswith(("raw", "scores")) for each in alike for quantity in (*each.is_, *each.part_of)):
        return None
    missing = next_step(matched, culprit.index, event.inputs, "scaled_dot_product_attention")
    return found_at(matched, culprit, loop, f"what this loop adds up{in_its_place(missing)}")


def _undone(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that undoes a step, taking a bias off again, say, if the culprit goes on with what that gives."""
    order = {each.key: i for i, each in enumerate(matched.steps)}
    for seen in (matched.seen[i] for i in culprit.event.inputs if i >= 0):
        last = max((order[each.key] for each in seen.is_), default=len(order))
        taken = [q for i in seen.event.inputs if i >= 0 for q in matched.seen[i].is_ if order[q.key] > last]
        if taken and seen.event.parameters and seen.event.at:
            wrong = f"what {called(seen.event)} gives: {seen.is_[0].words}"
            detail = f"Line {line_of(seen.event)} makes that of {taken[0].words}, which GPT-2 has after it."
            return found_at(matched, seen, seen.event.at, wrong, [detail])
    return None


def _scaled_twice(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that scales keys, say, if the culprit multiplies them by queries that are scaled already."""
    scaled: list[tuple[Seen, str]] = []
    for index in (index for index in culprit.event.inputs if index >= 0):
        made = moved_from(matched, index)[-1]
        words = [each.words for each in made.is_ if re.search(r"(^|\.)[QK]0? scaled$", each.key)]
        known = any(each.step for each in made.is_)
        scaled += [(made, words[0])] if words and not known and made.event.at else []
    if len(scaled) != 2 or scaled[0][1] == scaled[1][1]:
        return None
    (first, words), (second, others) = sorted(scaled, key=lambda each: each[0].index)
    wrong = f"{others}, beside {words} (line {line_of(first.event)})"
    detail = f"Line {line_of(culprit.event)} multiplies them. GPT-2 has 1/sqrt(d_head) in their product once."
    return found_at(matched, second, second.event.at, wrong, [detail])


def _misnamed(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that makes keys of queries, say, if the culprit multiplies these, and else all is right.

    It is another line than those of the product and of the queries: ``k = q.view(…)``.
    """
    if len(culprit.event.inputs) != 2 or min(culprit.event.inputs) < 0:
        return None
    paths = [moved_from(matched, index) for index in culprit.event.inputs]
    first, second = (next((q for q in path[0].is_ if q.step), None) for path in paths)
    names = {"Q": "queries", "K": "keys", "V": "values"}
    letters = [each.key.rpartition(".")[2] if each else "" for each in (first, second)]
    instead = {("Q", "Q"): "K", ("K", "K"): "Q", ("pattern", "Q"): "V", ("pattern", "K"): "V"}
    wanted = instead.get((letters[0], letters[1]))
    if wanted is None:
        return None
    at = 0 if wanted == "Q" else 1
    used = matched.sources([culprit.event.inputs[1 - at]])  # rightly: then the culprit's own line takes the wrong one
    path = [seen for seen in paths[at] if seen.index not in used]
    lines = {line_of(culprit.event), line_of(paths[at][-1].event)}
    own = matched.sources([culprit.event.inputs[at]])
    made, others = paths[at][-1].event, paths[1 - at][-1].event
    if made is not others:  # made twice
        lines.discard(line_of(made))
    for seen in reversed(path):
        if len([each for each in seen.is_ if each.step]) != 1:  # queries, keys and values in one
            continue
        users = {each.index for each in matched.seen if seen.index in each.event.inputs}
        if users <= own | {culprit.index} and line_of(seen.event) not in lines and seen.event.at:
            where = f"line {line_of(culprit.event)}"
            wrong = f"the {names[wanted]} of {where}: they are made of {names[letters[at]]}"
            by_helper = seen.event is made and made.at == others.at and made.caller is not None
            return found_at(matched, seen, made.caller if by_helper else seen.event.at, wrong)
    if not path:
        wrong = f"the {names[wanted]} there: they are made of {names[letters[at]]}"
        return found_at(matched, culprit, culprit.event.at, wrong)
    return None


def moved_from(matched: Matched, index: int) -> list[Seen]:
    """Return an event and those before it, back to the one that made its numbers: the rest moved them."""
    path = [matched.seen[index]]
    while path[-1].event.function in MOVES and path[-1].event.inputs and path[-1].event.inputs[0] >= 0:
        path.append(matched.seen[path[-1].event.inputs[0]])
    return path


# In this order: what is most specific comes first.
_CAUSES = (
    _miscounted,
    _undone,
    idle_mask,
    _scaled_twice,
    running_softmax,
    _running_softmax,
    _mixed,
    _misnamed,
    _not_normalised,
    _unfilled,
    _of_some_positions,
    _cut_short,
    _of_two_heads,
    _unlike_others,
    _in_loop,
    _wrong_axes,
)
