"""Match a trace with the formula: which tensors of a layer are which of GPT-2's quantities, as sets of numbers.

No layout matters: a tensor is a quantity if it holds the same numbers, whatever their order.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..answers import close
from ..candidate.trace import STATISTICS, Event, Trace
from ..rungs import Trial
from .arrangement import HEAD_AXES, arrangement, grouped, lies_like
from .quantities import Quantity, part_rung, quantities
from .same_numbers import TOLERANCE, Numbers, equal, factor_of, sorted_numbers, varied, within
from .softmax_steps import ROW_NUMBERS, SoftmaxSteps
from .sums import Sum, sums

# Functions that move numbers and do not change them.
_MOVES = """
    view reshape transpose permute contiguous split chunk unbind unflatten flatten squeeze unsqueeze expand narrow clone
    __getitem__ swapaxes swapdims movedim moveaxis mT T cat stack concat to type double float detach tensor_split repeat
    unfold roll flip expand_as view_as reshape_as index_select gather embedding select rearrange __get__
"""
MOVES = frozenset(_MOVES.split())
JOINS = ("cat", "concat", "stack")
# Functions that put numbers into a part of a tensor.
FILLS = ("__setitem__", "index_put_", "index_copy_", "copy_")


@dataclass
class Seen:
    """An event of the trace, and what is known of it.

    Args:
        numbers: its finite numbers, sorted.
        is_: the quantities that it holds.
        good: its numbers are right: those of a quantity, of a parameter, or right ones moved.
        depends: it depends on the layer's input or parameters.
        part_of: quantities that its numbers are some of: those of one head, say.
    """

    event: Event
    index: int
    numbers: Numbers
    is_: list[Quantity]
    good: bool = False
    depends: bool = False
    part_of: list[Quantity] = field(default_factory=list)


class Matched:
    """A trace matched with the formula.

    Args:
        trial: the trial that was recorded.
        trace: of the layer.
        like: another trace of the same trial, whose quantities are taken over.
        whole: the layer gave its output; otherwise it raised an error after the last event.
        leaks: it was seen that a later position changes the output of an earlier one.
    """

    def __init__(
        self, trial: Trial, trace: Trace, *, like: "Matched | None" = None, whole: bool = True, leaks: bool = False
    ) -> None:
        self.trial, self.trace, self.leaks = trial, trace, leaks
        if like is not None:
            self.steps, self.sets, self.known, self.softmax = like.steps, like.sets, like.known, like.softmax
        else:
            self.steps = quantities(trial)
            self.sets = [sorted_numbers(each.value if each.visible is None else _visible(each)) for each in self.steps]
            self.known = np.sort(np.concatenate(self.sets))
            self.softmax = SoftmaxSteps(self.steps)
        self.seen = [Seen(event, i, sorted_numbers(event.value), []) for i, event in enumerate(trace.events)]
        self.last = trace.output if trace.output >= 0 else len(self.seen) - 1
        self.whole = whole
        used = {index for event in trace.events for index in event.inputs}
        self.unused = [seen for seen in self.seen if seen.index not in used]
        self._sums: list[Sum] | None = None
        self._match()

    @np.errstate(all="ignore")  # masks may be as large as numbers go
    def _match(self) -> None:
        given = (self.trial.given, *self.trial.parameters.values())
        own = [sorted_numbers(each) for each in given if each.is_floating_point()]
        parts: dict[str, list[Seen]] = {}
        for seen in self.seen:
            event = seen.event
            seen.depends = bool(event.parameters) or any(i < 0 or self.seen[i].depends for i in event.inputs)
            moved = event.function in MOVES and bool(event.inputs or event.parameters)
            moved = moved and not event.foreign and all(i < 0 or self.seen[i].good for i in event.inputs)
            if event.value.isnan().any():  # the numbers beside it may look right
                continue
            if event.value.is_floating_point() and varied(seen.numbers):
                for quantity, numbers in zip(self.steps, self.sets, strict=True):
                    as_what = _compared(seen, quantity, numbers, self.known)
                    match "" if as_what and _is_of_another(event, quantity) else as_what:
                        case "whole":
                            seen.is_.append(quantity)
                        case "part":
                            parts.setdefault(quantity.key, []).append(seen)
                        case "repeated":  # some of its numbers stand for the others
                            moved = moved and event.function not in JOINS
                moved = moved or any(equal(seen.numbers, each) for each in own)
            seen.good = bool(seen.is_) or moved
        # One head at a time, or one block of keys: together they are the quantity.
        whole = {seen.index for seen in self.seen if seen.good}
        for quantity, numbers in zip(self.steps, self.sets, strict=True):
            # Scores that are hidden are infinite: what is left of them does not show the mask.
            pieces = [
                seen
                for seen in parts.get(quantity.key, [])
                if seen.index not in whole
                if quantity.visible is not None or seen.numbers.size == seen.event.value.numel()
            ]
            complete = bool(pieces) and within(numbers, np.sort(np.concatenate([seen.numbers for seen in pieces])))
            for seen in pieces:
                # Rows of the table of positions, but not all: they may be the wrong ones.
                if complete or quantity.key != "pos_embed":
                    seen.part_of.append(quantity)
                    seen.good = True
                seen.is_ += [quantity] if complete else []
        for seen in self.seen:
            seen.good = seen.good or self._filled(seen) or self._is_of_softmax(seen)
            # If a bias is missing, queries with it and without it are the same numbers; masked scores are scores too.
            for known in (seen.is_, seen.part_of):
                known.sort(key=lambda quantity: (not quantity.step, quantity.visible is None))

    def _filled(self, seen: Seen) -> bool:
        """Return whether right numbers were put into a part of a tensor, and more will be: there it is not complete."""
        event = seen.event
        if event.function not in FILLS or len(event.inputs) != 2 or min(event.inputs) < 0:
            return False
        into, value = (self.seen[index] for index in event.inputs)
        began = into.good or not bool(into.event.value.any())
        again = any(each.event.function in FILLS and seen.index in each.event.inputs[:1] for each in self.seen)
        return began and value.good and again

    def _is_of_softmax(self, seen: Seen) -> bool:
        """Return whether an event is a step of a softmax by hand: scores, weights, or a number for each row."""
        event = seen.event
        sources = [self.seen[index] for index in event.inputs if index >= 0]
        if any(quantity.key.endswith("pattern") for each in sources for quantity in (*each.is_, *each.part_of)):
            return False  # it is complete
        if self.softmax.is_step(event.function, event.value):
            return True
        rows = sources[0].event.value.double() if len(sources) == 1 and sources[0].good else None
        if event.function not in ROW_NUMBERS or rows is None or not self.softmax.is_step("", rows):
            return False
        right = ROW_NUMBERS[event.function](rows).flatten()
        return right.numel() == event.value.numel() and close(event.value.double().flatten(), right, TOLERANCE)

    @property
    def found(self) -> set[str]:
        """The keys of the quantities that were found."""
        return {quantity.key for seen in self.seen for quantity in seen.is_}

    def sources(self, indices: Iterable[int], *, numbers: bool = False) -> set[int]:
        """Return these events and all that they were made from; or those alone whose ``numbers`` they have."""
        found: set[int] = set()
        stack = list(indices)
        while stack:
            index = stack.pop()
            if index < 0 or index in found:
                continue
            event = self.seen[index].event
            if not numbers or event.value.dtype != torch.bool:
                found.add(index)
                stack += event.inputs
        return found

    def culprit(self) -> Seen | None:
        """Return the first wrong event: no step of the formula, nor before one, and the output depends on it."""
        # The largest score of each row is some score, also of scores that are masked wrongly.
        leading = self.sources(
            seen.index
            for seen in self.seen
            if seen.is_ or (seen.part_of and seen.event.function not in ("amax", "max"))
        )
        # What a mask was made from shows in the step that uses it.
        used = self.sources([self.last] if self.whole else range(len(self.seen)), numbers=self.whole)
        suspects = [
            seen
            for seen in self.seen
            if seen.index in used and seen.index not in leading and seen.depends and not seen.good
            if seen.event.value.is_floating_point()
            # Queries may be scaled in place of scores; before an error, the scores that show it are not there.
            if self.whole or self.factor(seen.event) is None
            # A loop adds one head, or one part, after another: the sum so far is right, whatever comes later.
            if not self.partial_sum(seen)
        ]
        # Ones and zeros (of one-hot tokens) only if there is nothing else: they may be right steps of another way.
        telling = (
            seen for seen in suspects if varied(seen.numbers) or self._is_wrong_statistic(seen) or caps(seen.event)
        )
        first = next(telling, suspects[0] if suspects else None)
        return self._scrambled(first) or (first and self._capped(first)) or first

    def _capped(self, before: Seen) -> Seen | None:
        """Return the event that limits numbers on the way to another, if that is seen only after some steps."""
        capping = (self.seen[i] for i in sorted(self.sources(before.event.inputs)))
        capping = (seen for seen in capping if caps(seen.event) and seen.depends and not seen.good)
        inputs = ((seen, self.seen[seen.event.inputs[0]]) for seen in capping if seen.event.inputs[0] >= 0)
        return next((seen for seen, given in inputs if given.good), None)

    def _is_wrong_statistic(self, seen: Seen) -> bool:
        """Return whether an event is a mean or a deviation of everything, or of each sequence, and none of GPT-2's."""
        few = 0 < seen.numbers.size < 3 and seen.event.function in STATISTICS
        return few and not within(seen.numbers, self.known)

    def counted(self, seen: Seen) -> tuple[Sum, list[float]] | None:
        """Return the sum of the formula whose terms an event is made of, and how many times each is in it."""
        if self._sums is None:
            self._sums = list(sums(self.trial, self.steps))
        found = ((each, each.counts(seen.event.value)) for each in self._sums)
        return next(((each, counts) for each, counts in found if counts is not None), None)

    def partial_sum(self, seen: Seen) -> str:
        """Return which terms of a sum an event is the sum of, in words; empty if it is no such sum."""
        found = self.counted(seen)
        return found[0].words(found[1]) if found else ""

    def _scrambled(self, before: Seen | None) -> Seen | None:
        """Return the event that first puts right numbers into a wrong order, on the way to a wrong one."""
        stop = before.index if before is not None else len(self.seen)
        every = [self.last] if self.whole else range(len(self.seen))
        stack = list(before.event.inputs if before is not None else every)
        visited: set[int] = set()
        found = None
        while stack:
            index = stack.pop()
            if index < 0 or index in visited or index > stop:
                continue
            visited.add(index)
            seen = self.seen[index]
            arranged = self.arranged(seen)
            if arranged and seen.event.function not in MOVES:
                continue
            if not arranged:
                sources = [self.seen[i] for i in seen.event.inputs if i >= 0]
                if all(self.arranged(source) for source in sources) and (found is None or index < found.index):
                    found = seen
            stack += seen.event.inputs
        return found

    def arranged(self, seen: Seen) -> bool:
        """Return whether an event's numbers lie as a quantity's do, with axes exchanged or merged at most."""
        known = [lies_like(seen.event.value, quantity) for quantity in (*seen.is_, *seen.part_of)]
        return not any(each is False for each in known) or True in known

    def turned(self, seen: Seen, quantity: Quantity) -> bool:
        """Return whether an event has the scores with keys along their rows."""
        value, right = seen.event.value, quantity.value
        alike = quantity.key.endswith(("raw", "scores")) and value.shape == right.shape
        return alike and not close(value, right) and close(value.mT, right)

    def axes(self, seen: Seen) -> str:
        """Return the axes of queries, keys, values, scores or z in an event, in words; empty if it is none of them."""
        for quantity in seen.is_:
            names = next((axes for keys, axes in HEAD_AXES.items() if re.search(keys, quantity.key)), ())
            if names and quantity.value.numel() == seen.event.value.numel():
                if min(quantity.value.shape) < 2:
                    return ""
                order = arrangement(seen.event.value, quantity.value)
                return (
                    "" if order is None else f"[{', '.join(grouped(seen.event.value, quantity.value, order, names))}]"
                )
        return ""

    def factor(self, event: Event) -> tuple[Quantity, float] | None:
        """Return the quantity that an event is a constant multiple of, and the constant."""
        found = [(each, c) for each in self.steps if (c := _factor(event, each)) is not None]
        if not found:  # one head at a time: what the same line gives for all of them
            alike = [e.value for e in self.trace.events if (e.at, e.function) == (event.at, event.function)]
            every = torch.cat([value.double().flatten() for value in alike])
            found = [(each, c) for each in self.steps if (c := _factor(replace(event, value=every), each)) is not None]
        # With one position, masked scores are scores.
        found = [
            each for i, each in enumerate(found) if not any(close(each[0].value, other.value) for other, _ in found[:i])
        ]
        # Of those that it is made of, if it is: the one whose factor has a name; else the one that comes last.
        made_of = {each.key for index in self.sources(event.inputs) for each in self.seen[index].is_}
        near = [each for each in found if each[0].key in made_of]
        named = next((each for each in near or found if size_of(self.trial, *each)), None)
        return named or (near[-1] if near else next(iter(found), None))


def size_of(trial: Trial, quantity: Quantity, c: float) -> str:
    """Return what a factor of a step of attention is, in terms of a size; empty if it is none."""
    width = trial.config.d_model
    if quantity.key.endswith(("mean", "variance")) and width > 2 and math.isclose(c, width / (width - 1), rel_tol=1e-9):
        return f"d_model/(d_model - 1), with d_model={width} here"
    if not re.search(r"(raw|scores|masked|pattern|z|Q|K|V)$", quantity.key):
        return ""
    config, seq = trial.config, trial.given.shape[1]
    # 2 or 3 times too much, or too little, is a number of the user's, whatever size looks like it here.
    by_hand = [c, c * math.sqrt(config.d_head)]
    if any(math.isclose(value**power, each) for value in by_hand for power in (1, -1) for each in (2, 3)):
        return ""
    sizes = {"d_head": config.d_head, "d_model": config.d_model, "n_heads": config.n_heads, "seq": seq}
    for name, size in sizes.items():
        powers = {f"1/sqrt({name})": -0.5, f"sqrt({name})": 0.5, f"1/{name}": -1, name: 1}
        for spelled, power in powers.items():
            if size > 1 and math.isclose(size**power, c, rel_tol=1e-9):
                return f"{spelled}, with {name}={size} here"
    root = round(c**-2)
    if quantity.key.endswith("raw") and root > 1 and math.isclose(root**-0.5, c, rel_tol=1e-9):
        whole = math.isqrt(root)
        return f"1/{whole}" if whole**2 == root else f"1/sqrt({root})"
    return ""


def _is_of_another(event: Event, quantity: Quantity) -> bool:
    """Return whether a step is of another layer of its kind than an event ran in: of ln1, in the call of ln_final."""
    around = {part_rung(part): part for part, _ in event.within}
    names = quantity.key.split(".")
    parts = (".".join(names[:i]) for i in range(1, len(names)))
    return any(around.get(kind, part) != part for part in parts if (kind := part_rung(part)) is not None)


def caps(event: Event) -> bool:
    """Return whether an event limits how large numbers are."""
    return event.function.startswith(("clamp", "clip"))


def _compared(seen: Seen, quantity: Quantity, numbers: Numbers, known: Numbers) -> str:
    """Return whether an event holds the ``whole`` of a quantity or a ``part`` of it; empty if neither."""
    if quantity.visible is not None:
        return _compared_masked(seen, quantity.visible.numpy(), numbers)
    if equal(seen.numbers, numbers):
        return "whole"
    if seen.numbers.size > numbers.size:
        # A larger tensor (queries, keys and values in one) must hold nothing but quantities.
        return "whole" if within(numbers, seen.numbers) and within(seen.numbers, known) else ""
    if not within(seen.numbers, numbers) or not varied(numbers):
        return ""
    return "part" if seen.numbers.size < numbers.size else "repeated"


def _visible(quantity: Quantity) -> Tensor:
    return quantity.value[..., quantity.visible]


def _compared_masked(seen: Seen, visible: npt.NDArray[np.bool_], numbers: Numbers) -> str:
    """Like `_compared`, for masked scores: where a query may not look, any very negative number is right."""
    shown = seen.numbers[seen.numbers.searchsorted(-1e3) :]
    if shown.size * visible.size != seen.event.value.numel() * np.count_nonzero(visible):
        return ""
    if shown.size == numbers.size:
        return "whole" if equal(shown, numbers) else ""
    return "part" if shown.size < numbers.size and within(shown, numbers) else ""


def _factor(event: Event, quantity: Quantity) -> float | None:
    if quantity.key == "input":
        return None
    if quantity.visible is None:
        return factor_of(event.value, quantity.value)
    if event.value.numel() != quantity.value.numel():
        return None
    return factor_of(event.value[event.value > -1e4], quantity.value[..., quantity.visible])
