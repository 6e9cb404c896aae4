"""A missing or wrong gradient behind a right output: the line that cuts it, or that derives it wrongly."""

from ..answers import same
from ..candidate.trace import Trace
from ..formula.in_code import fix_of
from ..formula.same_numbers import equal, sorted_numbers, varied
from ..results import Finding, listed
from ..rungs import Trial
from ..under_test import UnderTest
from .in_words import line_of


def wrong_backward(layer: UnderTest, trial: Trial) -> Finding | None:
    """Return the line of a derivative that the user wrote, if it is not that of the function that it is for."""
    place = layer.trace(trial, gradients=True).places.get("backward")
    what = "the gradient that this `backward` gives: it is not the derivative of what its `forward` computes"
    return Finding(*place, (), what) if place else None


def cut(layer: UnderTest, trial: Trial) -> Finding | None:
    """Return the line that cuts the gradient, if every gradient is right as soon as it does not; or several lines."""
    trace = layer.trace(trial)
    cuts, noted = trace.cuts[:8], trace.places.get("gradient")
    decorator = noted if noted and noted[1].startswith("@") else None  # it cuts on every line of its function
    for lines in [[each] for each in cuts] + ([cuts] if len(cuts) > 1 else []):
        answer = layer.answer(trial, attach=tuple(at for at, _ in lines))
        if answer is None or not same(answer, trial.expected):
            continue
        detail = "With the cut taken out, every gradient is right."
        if len(lines) > 1:
            detail += f" It is cut on lines {listed([at.rpartition(':')[2] for at, _ in lines])}."
        wrong = "the gradient, which is cut there"
        return Finding(*(decorator or lines[0]), (), wrong, (detail,), fix_of(wrong, (), layer.rung.name))
    return _made_anew(layer.rung.name, trace)


def _made_anew(rung: str, trace: Trace) -> Finding | None:
    """Return the line that makes a tensor of Python's or NumPy's numbers, if they are those of a step before it."""
    used, stack = set[int](), [trace.output]
    while stack:
        index = stack.pop()
        if index >= 0 and index not in used:
            used.add(index)
            stack += trace.events[index].inputs
    for index in sorted(used):
        event = trace.events[index]
        numbers = sorted_numbers(event.value)
        if event.inputs or event.parameters or event.foreign or event.at is None or not varied(numbers):
            continue
        before = (each for each in reversed(trace.events[:index]) if each.at and (each.inputs or each.parameters))
        same_numbers = next((each for each in before if equal(sorted_numbers(each.value), numbers)), None)
        if same_numbers is not None:
            wrong = "the gradient, which is cut there"
            made, line = line_of(event), line_of(same_numbers)
            detail = f"Line {made} makes a new tensor of the numbers that line {line} gives."
            return Finding(*event.at, (), wrong, (detail,), fix_of(wrong, (), rung))
    return None
