"""Steps, lines and functions of a user's layer in words, for the sentences of a diagnosis."""

import re
from collections.abc import Sequence

from ..candidate.trace import Event, Place
from ..formula.in_code import fix_of
from ..formula.quantities import Quantity
from ..formula.same_numbers import factor_of
from ..formula.trace_matching import MOVES, Matched, Seen
from ..results import Finding, listed

# How functions are written that have an operator.
_OPERATORS = {
    "add": "+", "radd": "+", "iadd": "+=", "sub": "-", "rsub": "-", "mul": "*", "rmul": "*", "imul": "*=", "div": "/",
    "truediv": "/", "rtruediv": "/", "itruediv": "/=", "true_divide": "/", "reciprocal": "/", "matmul": "@",
    "pow": "**", "rpow": "**",
}  # fmt: skip


def line_of(event: Event) -> str:
    """Return the number of an event's line."""
    return number_of(event.at)


def number_of(place: Place | None) -> str:
    """Return the number of a line."""
    return place[0].rpartition(":")[2] if place else "?"


def called(event: Event) -> str:
    """Return what an event's function is called, as far as its line shows it; otherwise the line."""
    code, name = " ".join(place[1] for place in (event.at, event.made) if place), event.function.strip("_")
    if name and re.search(rf"\b{name.replace('_', '')}\b", code.replace("_", ""), re.IGNORECASE):
        return f"`{name}`"
    operator = _OPERATORS.get(name, "")
    return f"`{operator}`" if operator and operator in code else f"line {line_of(event)}"


def on_line(event: Event) -> str:
    """Return the beginning of a sentence about an event: ```*` on line 5``, or ``Line 5``."""
    name = called(event)
    return f"{name} on line {line_of(event)}" if name.startswith("`") else capital(name)


def capital(words: str) -> str:
    """Return words with a capital letter."""
    return words[:1].upper() + words[1:]


def in_its_place(missing: str) -> str:
    """Return the step that GPT-2 has in the place of a wrong one, in brackets; empty if it is not known."""
    return f" (GPT-2 has {missing} next)" if missing else ""


def found_at(
    matched: Matched, before: Seen, place: tuple[str, str] | None, wrong: str, detail: Sequence[str] = ()
) -> Finding:
    """Return that something is wrong at a place, and what is right before an event."""
    at, code = place or (None, None)
    file = at.rpartition(":")[0] if at else ""
    fix = fix_of(wrong, tuple(detail), matched.trial.rung)
    # Of an embedding, only the output is a step.
    right = () if matched.trial.rung in ("embed", "pos-embed") else right_steps(matched, before.index, file)
    return Finding(at, code, right, wrong, tuple(detail), fix)


def together(steps: Sequence[Quantity]) -> str:
    """Return several steps in words: ``the queries, keys and values (block 1)``."""
    words = [each.words.removeprefix("the ").partition(" ") for each in steps]
    if len({rest for _, _, rest in words}) > 1:
        return listed([each.words for each in steps])
    return " ".join(filter(None, ("the", listed([name for name, _, _ in words]), words[0][2])))


def right_steps(matched: Matched, before: int, file: str = "") -> tuple[str, ...]:
    """Return the last steps before an event that are right, with their lines, and with files other than this."""
    found: dict[str, str] = {}
    whole: set[str] = set()
    for seen in matched.seen[:before]:
        steps = [each for each in seen.is_ if each.step and each.key != "input" and not matched.turned(seen, each)]
        # Queries, keys and values in one tensor; of equal steps, the first is enough.
        held = [each for each in steps if each.value.numel() < seen.event.value.numel()] or steps[:1]
        words = together(held) if held else ""
        if not seen.is_ and seen.part_of and seen.part_of[0].step and seen.part_of[0].key not in ("input", *whole):
            words = f"a part of {seen.part_of[0].words}"
        if words and seen.event.at and not whole.issuperset(each.key for each in held or seen.part_of[:1]):
            whole |= {each.key for each in held}
            own, _, line = seen.event.at[0].rpartition(":")
            found.setdefault(words, f"line {line}" if own == file or not file else f"{own}:{line}")
    parts = {f"a part of {each.words}" for each in matched.steps if each.key in whole}
    return tuple([f"{words} ({line})" for words, line in found.items() if words not in parts][-4:])


def taken_in_words(matched: Matched, index: int) -> str:
    """Return what an input of an event is; empty if it is not known."""
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
            return _step_in_words(matched, seen, matched.seen[first]) + (
                "" if seen.is_[0].key == "input" and seen.event.at is None else line
            )
        if not seen.good and (times := _times(matched, seen)):
            return times + line
        if seen.event.function not in MOVES or not seen.event.inputs:
            moved = seen.event.function in MOVES and seen.event.parameters
            shape = list(matched.seen[first].event.value.shape)
            return f"numbers of `{seen.event.parameters[0]}` as {shape}{line}" if moved else ""
        index = seen.event.inputs[0]
    return f"numbers of the layer's input{line}"


def _times(matched: Matched, seen: Seen) -> str:
    """Return the step that an event multiplies by a constant, and the constant; empty if it does something else."""
    steps = [quantity for index in seen.event.inputs if index >= 0 for quantity in matched.seen[index].is_]
    found = ((each, factor_of(seen.event.value, each.value)) for each in steps if each.visible is None)
    return next((f"{each.words} times {factor:.6g}" for each, factor in found if factor is not None), "")


def _step_in_words(matched: Matched, seen: Seen, taken: Seen) -> str:
    """Return the step that an event holds, or what is ``taken`` of it, with its axes if these are known."""
    kind = seen.is_[0].step
    held = [each for each in seen.is_ if each.step == kind and seen.event.value.numel() > each.value.numel()]
    if len(held) > 1 and taken is not seen:
        return f"numbers of {together(held)}"
    axes = matched.axes(taken)
    words = (together(held) if held else seen.is_[0].words) + (f" as {axes}" if axes else "")
    few = taken.event.value.numel() < min(quantity.value.numel() for quantity in seen.is_)
    return f"a part of {words}" if few and not axes else words
