"""A right step that no later one uses, where GPT-2 goes on with it: it was dropped, or made a second time."""

from ..candidate.trace import Place
from ..formula.next_step import next_step
from ..formula.trace_matching import MOVES, Matched, Seen
from ..results import Finding
from .in_words import found_at, in_its_place, line_of, number_of


def unused_step(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line of a right step that the culprit should have taken, if nothing takes it."""
    return _dropped(matched, culprit) or _made_again(matched, culprit)


def _dropped(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line whose result the culprit leaves out, though it is made of what the culprit takes."""
    sources = matched.sources(culprit.event.inputs)
    taken = {index for each in sources for index in matched.seen[each].event.inputs} | sources
    held = {quantity.key for index in sources for quantity in matched.seen[index].is_}
    last = max((i for i, each in enumerate(matched.steps) if each.key in held), default=-1)
    for seen in reversed(_unused(matched, culprit)):
        later = [each for each in matched.steps[last + 1 :] if each in seen.is_]
        made_of = {i for i in seen.event.inputs if i < 0 or matched.seen[i].depends}
        # What a whole layer gives, or an activation by hand, is made of what the culprit takes in many steps.
        whole = any(each.key.endswith(("output", "post")) for each in later)
        whole = whole and sources <= matched.sources([seen.index])
        if not later or not made_of or not (whole or made_of <= taken) or seen.event.function == culprit.event.function:
            continue
        made, goes_on = _outside(seen, culprit), _outside(culprit, seen)
        wrong = f"{later[-1 if whole else 0].words}, made on line {number_of(made)}: that result is not used"
        detail = f"Line {number_of(goes_on)} goes on without it."
        return found_at(matched, seen, made, wrong, [detail])
    return None


def _outside(seen: Seen, other: Seen) -> Place | None:
    """Return the line of an event; or that which calls the layer inside that it is in, and the other event is not."""
    inner = [at for one, at in seen.event.within if one not in {part for part, _ in other.event.within}]
    return inner[0] if inner and inner[0] else seen.event.at


def _made_again(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that makes a step once more, in the place of the next one."""
    before = [matched.seen[index] for index in culprit.event.inputs if index >= 0 and matched.seen[index].depends]
    for again in before:
        for seen in _unused(matched, culprit):
            alike = seen.event.function == again.event.function and seen.event.inputs == again.event.inputs
            if alike and seen.is_ and seen.is_ == again.is_ and seen.event.at != again.event.at and again.event.at:
                missing = next_step(matched, culprit.index, culprit.event.inputs, culprit.event.function)
                words, line = seen.is_[0].words, line_of(seen.event)
                wrong = f"what line {line_of(again.event)} gives: {words} again{in_its_place(missing)}"
                detail = f"Line {line} has made that already, and its result is not used."
                return found_at(matched, again, again.event.at, wrong, [detail])
    return None


def _unused(matched: Matched, culprit: Seen) -> list[Seen]:
    """Return the right steps before the culprit that nothing uses, in order."""
    free = (seen for seen in matched.unused if seen.index < culprit.index and seen.is_ and seen.event.at)
    # What works in place, or moves numbers, has its result elsewhere too.
    return [
        seen
        for seen in free
        if seen.event.function not in MOVES and not seen.event.function.endswith("_") and seen.index != matched.last
    ]
