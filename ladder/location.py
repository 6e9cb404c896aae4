"""Where a layer first departs from GPT-2, by the values of its trace.

Every tensor that the layer makes is compared with every quantity of the formula as a set of values, so that no layout
matters. A step is right if its numbers are a quantity's, or lead to one; the first that is not, and that the output
depends on, is where the layer departs.
"""

import itertools
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .candidate.trace import Event, Trace
from .experiments import part_rung, wrong_parts
from .numbers import close
from .quantities import Quantity, quantities
from .results import Finding
from .rungs import Trial

# Functions that move numbers and do not change them.
_MOVES = frozenset(
    [
        "view",
        "reshape",
        "transpose",
        "permute",
        "contiguous",
        "split",
        "chunk",
        "unbind",
        "unflatten",
        "flatten",
        "squeeze",
        "unsqueeze",
        "expand",
        "narrow",
        "clone",
        "__getitem__",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "mT",
        "T",
        "cat",
        "stack",
        "concat",
        "to",
        "type",
        "double",
        "float",
        "detach",
        "tensor_split",
        "repeat",
        "unfold",
        "roll",
        "flip",
        "expand_as",
        "view_as",
        "reshape_as",
        "index_select",
        "gather",
        "embedding",
        "select",
        "rearrange",
        "__get__",
    ]
)
_DRAWS = frozenset(
    [
        "dropout",
        "dropout_",
        "rand",
        "randn",
        "rand_like",
        "randn_like",
        "bernoulli",
        "bernoulli_",
        "multinomial",
        "feature_dropout",
    ]
)
_TOLERANCE = 1e-9


def _sorted(value: Tensor) -> Tensor:
    flat = value.double().flatten()
    return flat[flat.isfinite()].sort().values


def _within(a: Tensor, b: Tensor) -> bool:
    """Return whether every number of ``a`` is among those of ``b``; both are sorted."""
    if not a.numel() or not b.numel():
        return False
    after = torch.searchsorted(b, a).clamp(max=b.numel() - 1)
    nearest = torch.minimum((b[after] - a).abs(), (b[(after - 1).clamp(min=0)] - a).abs())
    return bool((nearest <= _TOLERANCE * (1 + a.abs())).all())


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= _TOLERANCE * (1 + b.abs())).all())


def _varied(value: Tensor) -> bool:
    """Return whether a set of numbers is worth comparing: masks, zeros and ones are found in everything."""
    return value.numel() >= 3 and value[:: max(1, value.numel() // 50)].unique().numel() >= 3


def factor_of(found: Tensor, right: Tensor) -> float | None:
    """Return ``c`` if the numbers are ``c`` times the right ones, each one; None if they are not, or c is 1."""
    a, b = _sorted(right), _sorted(found)
    if a.shape != b.shape or not _varied(a):
        return None
    for sign, signed in ((1, b), (-1, -b.flip(0))):
        c = float((signed @ a) / (a @ a))
        alike = ((c * a - signed).abs() <= 1e-8 * (1e-6 + signed.abs().max())).all()
        if c > 0 and bool(alike) and (sign < 0 or abs(c - 1) > 1e-9):
            return sign * c
    return None


@dataclass
class _Seen:
    """What is known of an event: the quantities whose numbers it has, and whether the output depends on it."""

    event: Event
    index: int
    numbers: Tensor
    is_: list[Quantity]
    good: bool = False
    depends: bool = False


class Located:
    """Compares a trace with the formula.

    Args:
        trial: the trial that was recorded.
        trace: of the layer.
        random: the events that gave other numbers when the same trial was run again.
    """

    def __init__(self, trial: Trial, trace: Trace, again: Trace | None = None) -> None:
        self.trial, self.trace, self.again = trial, trace, again
        self.steps = quantities(trial)
        self.sets = [_sorted(each.value) for each in self.steps]
        self.given = [_sorted(each) for each in (trial.given, *trial.parameters.values()) if each.is_floating_point()]
        self.seen = [_Seen(event, i, _sorted(event.value), []) for i, event in enumerate(trace.events)]
        self.last = trace.output if trace.output >= 0 else len(self.seen) - 1
        self.wrong = {part for part, _, _ in wrong_parts(trial, trace)}
        self._match()

    def _match(self) -> None:
        parts: dict[str, list[_Seen]] = {}
        for seen in self.seen:
            event = seen.event
            seen.depends = bool(event.parameters) or any(i < 0 or self.seen[i].depends for i in event.inputs)
            moved = (
                event.function in _MOVES
                and bool(event.inputs or event.parameters)
                and all(i < 0 or self.seen[i].good for i in event.inputs)
            )
            if not event.value.is_floating_point() or not _varied(seen.numbers):
                seen.good = moved
                continue
            for quantity, numbers in zip(self.steps, self.sets, strict=True):
                if quantity.visible is not None:
                    if self._is_masked(event.value, seen.numbers, quantity):
                        seen.is_.append(quantity)
                elif _equal(seen.numbers, numbers) or (
                    seen.numbers.numel() > numbers.numel()
                    and _within(numbers, seen.numbers)
                    and self._all_known(seen.numbers)
                ):
                    seen.is_.append(quantity)
                elif seen.numbers.numel() < numbers.numel() and _varied(numbers) and _within(seen.numbers, numbers):
                    parts.setdefault(quantity.key, []).append(seen)
            seen.good = bool(seen.is_) or moved or any(_equal(seen.numbers, own) for own in self.given)
        # One head at a time, or one block of keys: together they are the quantity.
        for quantity, numbers in zip(self.steps, self.sets, strict=True):
            pieces = [seen for seen in parts.get(quantity.key, []) if not seen.good]
            if pieces and _within(numbers, torch.cat([seen.numbers for seen in pieces]).sort().values):
                for seen in pieces:
                    seen.good = True
                    seen.is_.append(quantity)

    def _all_known(self, numbers: Tensor) -> bool:
        """Return whether a larger tensor (queries, keys and values in one) holds nothing but quantities."""
        known = torch.cat(self.sets).sort().values
        return _within(numbers, known)

    def _is_masked(self, value: Tensor, numbers: Tensor, quantity: Quantity) -> bool:
        assert quantity.visible is not None
        right = _sorted(quantity.value[..., quantity.visible])
        if not _within(right, numbers):
            return False
        rest = value.double().flatten()
        low = int((rest < -1e3).sum())
        return rest.numel() - low == right.numel() and _equal(_sorted(rest[rest >= -1e3]), right)

    def leads(self) -> set[int]:
        """Return the events that a right quantity was made from."""
        found: set[int] = set()
        stack = [seen.index for seen in self.seen if seen.is_]
        while stack:
            index = stack.pop()
            if index >= 0 and index not in found:
                found.add(index)
                stack += self.seen[index].event.inputs
        return found

    def leads_to_output(self) -> set[int]:
        """Return the events that the last one was made from."""
        found: set[int] = set()
        stack = [self.last]
        while stack:
            index = stack.pop()
            if index >= 0 and index not in found:
                found.add(index)
                stack += self.seen[index].event.inputs
        return found

    def culprit(self) -> _Seen | None:
        """Return the first event that is no quantity, leads to none, and that the output depends on."""
        excused, used = self.leads(), self.leads_to_output()
        for seen in self.seen:
            bad = seen.index not in excused and not seen.good and seen.depends and seen.index in used
            if bad and seen.event.value.is_floating_point():
                return self._scrambled(seen) or seen
        return self._scrambled(None)

    def _scrambled(self, before: _Seen | None) -> _Seen | None:
        """Return the event that first puts right numbers into a wrong order, on the way to a wrong one."""
        stop = before.index if before is not None else len(self.seen)
        wanted = before.event.inputs if before is not None else [self.last]
        stack, visited, found = list(wanted), set(), None
        while stack:
            index = stack.pop()
            if index < 0 or index in visited or index > stop:
                continue
            visited.add(index)
            seen = self.seen[index]
            if seen.event.function in _MOVES and seen.is_ and not self.arranged(seen):
                sources = [self.seen[i] for i in seen.event.inputs if i >= 0]
                if all(self.arranged(source) for source in sources) and (found is None or seen.index < found.index):
                    found = seen
                stack += seen.event.inputs
            elif seen.event.function in _MOVES:
                stack += seen.event.inputs
        return found

    def arranged(self, seen: _Seen) -> bool:
        """Return whether an event's numbers lie as a quantity's do, with axes exchanged or merged at most."""
        fitting = [quantity for quantity in seen.is_ if quantity.value.numel() == seen.event.value.numel()]
        return not fitting or any(_arranged(seen.event.value, quantity.value) for quantity in fitting)

    def finding(self) -> Finding | None:
        """Return where the layer first departs, and how."""
        if self.again is not None and (random := self._random()) is not None:
            return random
        culprit = self.culprit()
        if culprit is None:
            return self._ends_early()
        event = culprit.event
        # Inside a layer that is right by itself, what it is given is wrong: look at the line that calls it.
        for part, at in event.within:
            if at is not None and part not in self.wrong and part_rung(part) is not None:
                return self._wrong_input(culprit, part, at)
        place = event.made if event.made is not None and event.function not in _MOVES else event.at
        right = self._right(culprit)
        wrong, detail = self._how(culprit)
        at, code = place or event.at or (None, None)
        if event.made is not None and event.at is not None and event.made != event.at and place == event.made:
            detail = (*detail, f"It is called at {_short(event.at[0])}.")
        return Finding(at, code, right, wrong, tuple(detail))

    def _wrong_input(self, culprit: _Seen, part: str, at: tuple[str, str]) -> Finding:
        """Return the call of a layer inside that is right by itself and gives what GPT-2 does not have."""
        detail = []
        for name, given, _ in reversed(self.trace.parts):
            numbers = _sorted(given)
            known = [each.words for each, own in zip(self.steps, self.sets, strict=True) if _equal(own, numbers)]
            if name == part and known:
                detail.append(f"{part} is given {known[-1]} there.")
                break
        missing = self._next(culprit)
        wrong = f"what {part} gives there" + (f" (GPT-2 has {missing} next)" if missing else "")
        return Finding(at[0], at[1], self._right(culprit), wrong, tuple(detail))

    def _ends_early(self) -> Finding | None:
        """Return where the output is taken from, if every step is right and the last is not the formula's last."""
        if self.last < 0 or any(quantity.key == "output" for quantity in self.seen[self.last].is_):
            return None
        last = self.seen[self.last]
        known = [quantity.words for quantity in last.is_]
        at, code = (last.event.within[0][1] if last.event.within else last.event.at) or (None, None)
        missing = self._next(_Seen(last.event, last.index + 1, last.numbers, []))
        detail = (f"GPT-2 has {missing} next.",) if missing else ()
        what = f"the output: it is {known[-1]}" if known else "the output"
        return Finding(at, code, self._right(last), what, detail)

    def _random(self) -> Finding | None:
        assert self.again is not None
        for one, other in zip(self.trace.events, self.again.events, strict=False):
            if one.function != other.function or one.value.shape != other.value.shape:
                return None
            if not torch.equal(one.value.nan_to_num(), other.value.nan_to_num()):
                at, code = one.at or (None, None)
                detail = f"`{one.function}` gives other numbers each time, in eval mode too."
                return Finding(at, code, (), "a random step", (detail,))
        return None

    def _right(self, culprit: _Seen) -> tuple[str, ...]:
        """Return the last steps before the culprit that are right, with their lines."""
        found: dict[str, str] = {}
        for seen in self.seen[: culprit.index]:
            for quantity in seen.is_[:1]:
                if quantity.step and quantity.key != "input" and seen.event.at:
                    found.setdefault(quantity.words, f"{quantity.words} (line {_line(seen.event.at[0])})")
        return tuple(list(found.values())[-4:])

    def _how(self, culprit: _Seen) -> tuple[str, list[str]]:
        """Return what the culprit gives, and sentences about it that were each checked."""
        event = culprit.event
        name = f"`{event.function}`"
        if event.function in _MOVES and {quantity.key for quantity in culprit.is_} == {"input"}:
            said = "The layer's input itself is used there; GPT-2 uses it in products with W_Q, W_K and W_V only."
            return f"the layer's input, moved by {name}", [said] if self.trial.rung == "attention" else []
        if event.function in _MOVES and culprit.is_:
            words = culprit.is_[0].words
            return f"the order of {words}", [
                f"The numbers of {words} are right, but {name} on line {_line_of(event)} puts them into another order: "
                f"the result of shape {list(event.value.shape)} mixes axes."
            ]
        factors = [(quantity, c) for quantity in self.steps if (c := self._factor_of(event, quantity)) is not None]
        if factors:
            # The one whose factor has a name; else the one that comes last.
            quantity, c = next((each for each in factors if self._size_of(*each)), factors[-1])
            return f"{quantity.words}, times a factor", [self._factor(quantity, c, _line_of(event))]
        inputs = [self._called(i) for i in dict.fromkeys(event.inputs)]
        taken = [words for words in inputs if words]
        detail = []
        if taken:
            detail.append(f"{name} on line {_line_of(event)} takes {' and '.join(taken)}.")
        masked = self._mask(culprit)
        if masked:
            return masked
        missing = self._next(culprit)
        found = f"what {name} gives" + (f" (GPT-2 has {missing} next)" if missing else "")
        return found, detail

    def _factor_of(self, event: Event, quantity: Quantity) -> float | None:
        if quantity.key == "input":
            return None
        if quantity.visible is None:
            return factor_of(event.value, quantity.value)
        if event.value.shape != quantity.value.shape:
            return None
        return factor_of(event.value[event.value > -1e4], quantity.value[..., quantity.visible])

    def _size_of(self, quantity: Quantity, c: float) -> str:
        """Return what a factor of queries, keys or scores is, in terms of a size; empty if it is none."""
        if not re.search(r"(raw|scores|masked|Q|K)$", quantity.key):
            return ""
        config, seq = self.trial.config, self.trial.given.shape[1]
        sizes = {"d_head": config.d_head, "d_model": config.d_model, "n_heads": config.n_heads, "seq": seq}
        for name, size in sizes.items():
            for spelled, value in (
                (f"1/sqrt({name})", size**-0.5),
                (f"sqrt({name})", size**0.5),
                (f"1/{name}", 1 / size),
                (name, float(size)),
            ):
                if size > 1 and abs(value - c) < 1e-9 * value:
                    return f"{spelled}, with {name}={size} here"
        return ""

    def _factor(self, quantity: Quantity, c: float, line: str) -> str:
        size = self._size_of(quantity, c)
        sentence = f"Line {line} gives {quantity.words} times {c:.6g}{f' = {size}' if size else ''}."
        if re.search(r"(raw|Q|K)$", quantity.key):
            sentence += f" GPT-2 has q·k times 1/sqrt(d_head), {self.trial.config.attn_scale(0):.6g} here."
        return sentence

    def _called(self, index: int) -> str:
        """Return what an input of an event is, in words; empty if it is not known."""
        if index < 0:
            return "the layer's input"
        seen = self.seen[index]
        line = f" (line {_line_of(seen.event)})"
        for quantity in seen.is_:
            return quantity.words + ("" if quantity.key == "input" and seen.event.at is None else line)
        source = index
        while source >= 0 and self.seen[source].event.function in _MOVES and self.seen[source].event.inputs:
            source = self.seen[source].event.inputs[0]
            if source < 0:
                return f"the layer's input, moved{line}"
            if self.seen[source].is_:
                return self.seen[source].is_[0].words + line
        return ""

    def _mask(self, culprit: _Seen) -> tuple[str, list[str]] | None:
        """Return how a mask is wrong, if the culprit is what masks the right scores."""
        value = culprit.event.value
        for quantity in self.steps:
            if quantity.visible is None or quantity.value.shape != value.shape:
                continue
            kept = (value - quantity.value).abs() <= _TOLERANCE * (1 + quantity.value.abs())
            seq = value.shape[-1]
            shown = kept.flatten(0, -3).all(0)
            if not shown.any() or bool(kept.all()):
                continue
            right = quantity.visible
            line = self._mask_line(culprit)
            said = []
            if bool((shown & ~right).any()):
                query, key = (int(i) for i in (shown & ~right).nonzero()[0])
                said.append(f"Query {query} sees key {key}, a later position.")
            if bool((~shown & right).any()):
                query, key = (int(i) for i in (~shown & right).nonzero()[0])
                what = "its own position" if query == key else f"key {key}, an earlier position"
                said.append(f"Query {query} does not see {what}.")
            if not said:
                fill = value[..., ~right]
                least = quantity.value[..., right].min().item()
                said.append(
                    f"Hidden scores are {fill.max().item():.4g} at most, and visible ones {least:.4g} at least: hidden "
                    "keys still get weight."
                )
            return f"which keys each query sees (line {line}, {seq} positions)", said
        return None

    def _mask_line(self, culprit: _Seen) -> str:
        """Return the lines of a mask: where it is made, if that is another line than where it is used."""
        used = _line_of(culprit.event)
        made = [self.seen[i].event for i in culprit.event.inputs if i >= 0 and not self.seen[i].depends]
        lines = [_line_of(event) for event in made if _line_of(event) != used]
        return f"{used}, with the mask of line {lines[-1]}" if lines else used

    def _next(self, culprit: _Seen) -> str:
        """Return the first step of the formula that was not found, among those after the last that was."""
        found = {"input"} | {quantity.key for seen in self.seen[: culprit.index] for quantity in seen.is_}
        last = max((i for i, each in enumerate(self.steps) if each.key in found), default=-1)
        of = self.steps[last].key.removesuffix("masked raw") if last >= 0 else ""
        if last >= 0 and of != self.steps[last].key and f"{of}scores" not in found:  # masked, and never scaled
            return next(each.words for each in self.steps if each.key == f"{of}scores")
        return next((each.words for each in self.steps[last + 1 :] if each.step and each.key not in found), "")


def _arranged(value: Tensor, right: Tensor) -> bool:
    shape = [size for size in value.shape if size != 1]
    right = right.squeeze()
    value = value.double()
    for order in itertools.permutations(range(right.ndim)):
        turned = right.permute(order)
        if _grouped(list(turned.shape), shape) and close(turned.flatten().double(), value.flatten(), 1e-9):
            return True
    return False


def _grouped(axes: list[int], shape: list[int]) -> bool:
    """Return whether a shape comes from merging neighbouring axes."""
    for size in shape:
        product = 1
        while axes and product < size:
            product *= axes.pop(0)
        if product != size:
            return False
    return not axes


def _line(at: str) -> str:
    return at.rpartition(":")[2]


def _line_of(event: Event) -> str:
    return _line(event.at[0]) if event.at else "?"


def _short(at: str) -> str:
    return f"line {_line(at)}"
