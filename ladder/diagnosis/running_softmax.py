"""Attention over one block of keys after another (an online softmax): which running sum goes wrong, and where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..candidate.trace import Event
from ..formula.next_step import next_step
from ..formula.trace_matching import MOVES, Matched, Seen
from ..results import Finding, listed
from .in_words import called, found_at, in_its_place, line_of
from .wrong_masks import seen_wrongly

_COMPARES = {"gt": torch.gt, "lt": torch.lt, "ge": torch.ge, "le": torch.le}


@dataclass(frozen=True)
class _Block:
    """The scores of some queries and keys, and what the loop computes of them.

    Args:
        rows: the queries.
        keys: the keys.
        events: the scores first, up to the next block's.
    """

    rows: range
    keys: range
    events: list[Seen]


def running_softmax(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line whose sum over blocks of keys is wrong, or that hides wrong keys of a block."""
    keys = [each.key for each in matched.steps if each.key.endswith("scores")]
    for key in keys if culprit.depends else ():
        running = _Running(matched, key.removesuffix("scores"), culprit)
        if len(running.blocks) > 1 and running.blocks[0].events[0].index < culprit.index:
            return running.fault(culprit)
    return None


class _Running:
    """What a loop over blocks of keys adds up, beside what it should be for the keys so far.

    Args:
        matched: the trace.
        of: the attention's place in the model.
        culprit: the first step that is wrong or unknown.
    """

    def __init__(self, matched: Matched, of: str, culprit: Seen) -> None:
        steps = {each.key: each.value.double() for each in matched.steps if each.key.startswith(of)}
        self.matched = matched
        self.scores, self.values = steps[f"{of}scores"], steps[f"{of}V"].transpose(1, 2)
        self.seq = self.scores.shape[-1]
        self.visible = torch.ones(self.seq, self.seq, dtype=torch.bool).tril()
        self.blocks = self._blocks(f"{of}scores", culprit)
        self.keys: list[int] = []  # so far, with the present block's

    def fault(self, culprit: Seen) -> Finding | None:
        """Return the first wrong mask or sum; after the loop, if all of these are right."""
        carried, forms = self._carried(), dict[tuple[object, str], str]()
        before: dict[tuple[object, str], Seen] = {}
        shifts = torch.ones(())
        for block in self.blocks:
            if set(block.keys) & set(self.keys):
                return None
            self.keys += block.keys
            weights = self._weights(block)
            if weights is None:
                return None
            if (fault := self._mask_fault(block, weights)) is not None:
                return fault
            shift = self._shift(block, weights)
            if shift is None:
                return None
            for seen in [seen for line, seen in self._last_of_each(block).items() if line in carried]:
                line = seen.event.at, seen.event.function
                if block is self.blocks[0]:
                    forms[line] = next((form for form in _FORMS if self._is(form, seen, shift)), "")
                elif forms.get(line) and not self._is(forms[line], seen, shift):
                    return self._wrong_sum(seen, before[line], forms[line], shift / shifts, weights)
                before[line] = seen
            shifts = shift
        if len(set(forms.values()) - {"", "maximum"}) < 1:
            return None
        after = self._after_loop()
        if after is None or "" in forms.values():
            return None
        missing = next_step(self.matched, culprit.index, culprit.event.inputs, "scaled_dot_product_attention")
        lines = dict.fromkeys(line_of(seen.event) for line, seen in before.items() if forms[line] != "maximum")
        detail = [f"The sums over the keys before it are right (line {listed(list(lines))})."]
        return found_at(
            self.matched, after, after.event.at, f"what {called(after.event)} gives{in_its_place(missing)}", detail
        )

    # ---- blocks and what is carried from one to the next ----

    def _blocks(self, key: str, culprit: Seen) -> list[_Block]:
        """Return the blocks of keys that the first queries see."""
        scores = [seen for seen in self.matched.seen if any(each.key == key for each in (*seen.part_of, *seen.is_))]
        found = [(seen, where) for seen in scores if (where := self._window(seen.event)) is not None]
        # Masks that hide nothing, and moves, give the same scores again.
        found = [each for i, each in enumerate(found) if i == 0 or each[1] != found[i - 1][1]]
        of_rows = [each for each in found if each[1][0] == found[0][1][0]]
        if len(of_rows) < 2 or of_rows != found[: len(of_rows)]:
            return []
        starts = [seen.index for seen, _ in of_rows]
        run = {(seen.event.at, seen.event.function) for seen in self.matched.seen[starts[0] : starts[-1]]}
        last = [seen for seen in self.matched.seen if (seen.event.at, seen.event.function) in run][-1].index
        last = found[len(of_rows)][0].index - 1 if len(found) > len(of_rows) else last
        ends = [*starts[1:], last + 1]
        blocks = zip(of_rows, starts, ends, strict=True)
        return [_Block(*where, self.matched.seen[start:end]) for (_, where), start, end in blocks]

    def _window(self, event: Event) -> tuple[range, range] | None:
        """Return which queries and keys an event has the scaled scores of, if not of all keys."""
        value, (batch, heads) = event.value, self.scores.shape[:2]
        if not value.is_floating_point() or value.ndim < 2 or value.shape[-1] >= self.seq or event.inputs == ():
            return None
        queries, keys = value.shape[-2:]
        if queries > self.seq or value.numel() != batch * heads * queries * keys:
            return None
        value = value.reshape(batch, heads, queries, keys)
        for row in range(self.seq - queries + 1):
            for key in range(self.seq - keys + 1):
                rows, columns = range(row, row + queries), range(key, key + keys)
                if torch.allclose(value, self._part(self.scores, rows, columns), rtol=1e-9, atol=1e-9):
                    return rows, columns
        return None

    def _carried(self) -> set[tuple[object, str]]:
        """Return the lines whose results are used in a later run of the loop, or after it; each with its function."""
        lines = set[tuple[object, str]]()
        for one, other in zip(self.blocks, self.blocks[1:], strict=False):
            first = one.events[0].index
            made = (seen for seen in one.events[1:] if first in self.matched.sources([seen.index]))
            own = {seen.index: seen.event for seen in made}
            later = {i for seen in self.matched.seen[other.events[0].index :] for i in seen.event.inputs}
            lines |= {(own[i].at, own[i].function) for i in own.keys() & later}
        return lines

    def _last_of_each(self, block: _Block) -> dict[tuple[object, str], Seen]:
        return {(seen.event.at, seen.event.function): seen for seen in block.events}

    def _after_loop(self) -> Seen | None:
        """Return the first step after the loop that computes with what it added up."""
        inside = {seen.index for block in self.blocks for seen in block.events}
        for seen in self.matched.seen[self.blocks[-1].events[-1].index + 1 :]:
            if seen.event.function not in MOVES and seen.event.at and inside & self.matched.sources([seen.index]):
                return seen
        return None

    # ---- what they should be ----

    def _part(self, value: Tensor, rows: Sequence[int], keys: Sequence[int]) -> Tensor:
        return value[..., list(rows), :][..., list(keys)]

    def _exponentials(self, rows: Sequence[int], keys: Sequence[int]) -> Tensor:
        hidden = ~self._part(self.visible, rows, keys)
        return self._part(self.scores, rows, keys).masked_fill(hidden, -torch.inf).exp()

    def _is(self, form: str, seen: Seen, shift: Tensor) -> bool:
        """Return whether an event is a sum over the keys so far, in the rows whose shift is known."""
        rows, known = self.blocks[0].rows, shift.isfinite()
        weights = self._exponentials(rows, self.keys)
        total, gathered = weights.sum(-1, keepdim=True), weights @ self.values[..., self.keys, :]
        scores = self._part(self.scores, rows, self.keys)
        right = {
            "sum of the weights": total * shift,
            "sum of the weights times the values": gathered * shift,
            "mean of the values": gathered / total,
            "logarithm of the sum of the weights": total.log(),
            "maximum": scores.masked_fill(~self._part(self.visible, rows, self.keys), -torch.inf).amax(-1, True),
        }[form]
        if seen.event.value.numel() != right.numel():
            return False
        value, kept = seen.event.value.double().reshape(right.shape), known.expand_as(right)
        return torch.allclose(value[kept], right[kept], rtol=1e-9, atol=1e-12)

    # ---- one block ----

    def _weights(self, block: _Block) -> Seen | None:
        """Return the exponentials of a block's scores, masked if they are masked afterwards."""
        weights = None
        for seen in block.events:
            function = seen.event.function.strip("_")
            if weights is None and function == "exp" and block.events[0].index in self._chain(seen):
                weights = seen
            elif weights and function in ("masked_fill", "where", "mul", "tril") and weights.index in self._chain(seen):
                weights = seen if seen.event.value.shape == weights.event.value.shape else weights
        return weights

    def _chain(self, seen: Seen) -> Iterator[int]:
        """Yield an event, and what each takes first of what depends on the input."""
        index = seen.index
        while index >= 0:
            yield index
            inputs = self.matched.seen[index].event.inputs
            index = next((i for i in inputs if i >= 0 and self.matched.seen[i].depends), -1)

    def _shift(self, block: _Block, weights: Seen) -> Tensor | None:
        """Return by which factor of each row weights differ from exp(score): NaN where it is not known."""
        right = self._exponentials(block.rows, block.keys)
        ratio = weights.event.value.double().reshape(right.shape) / right
        ratio = torch.where(right > 0, ratio, torch.nan)
        shift = ratio.nanmean(-1, keepdim=True)
        off = (ratio - shift).abs() / shift.abs()
        return shift if not bool((off > 1e-9).any()) and bool(shift.isfinite().any()) else None

    def _mask_fault(self, block: _Block, weights: Seen) -> Finding | None:
        """Return the line whose mask hides other keys of the block than those of later positions."""
        scores = self._part(self.scores, block.rows, block.keys)

        def shown(value: Tensor, hides: float) -> Tensor:
            return (value.double().reshape(scores.shape) > hides).flatten(0, 1).all(0)

        right = self._part(self.visible, block.rows, block.keys)
        own = shown(weights.event.value, 0.0)
        if torch.equal(own, right):
            return None
        every = self.visible.clone()
        every[block.rows.start : block.rows.stop, block.keys.start : block.keys.stop] = own
        made = [seen for seen in block.events if seen.event.value.shape == weights.event.value.shape and seen.depends]
        made = [seen for seen in made if seen.index <= weights.index and seen.event.at]
        masked = next((seen for seen in made if torch.equal(shown(seen.event.value, -1e3), own)), weights)
        line, detail = line_of(masked.event), seen_wrongly(every, self.visible)
        if (counted := self._counted_anew(block, masked)) is not None:
            numbers = f"{block.keys.start} to {block.keys[-1]}" if len(block.keys) > 1 else f"{block.keys.start}"
            detail.append(f"The keys there are {numbers}; line {line_of(counted.event)} counts them from 0.")
            return found_at(self.matched, masked, counted.event.at, f"which keys each query sees (line {line})", detail)
        return found_at(self.matched, masked, masked.event.at, f"which keys each query sees (line {line})", detail)

    def _counted_anew(self, block: _Block, masked: Seen) -> Seen | None:
        """Return the line that counts the keys of a later block from 0, if the mask is right with their own numbers."""
        right, size = self._part(self.visible, block.rows, block.keys), len(block.keys)
        for mask in (self.matched.seen[i] for i in masked.event.inputs if i >= 0 and not self.matched.seen[i].depends):
            compare, inputs = _COMPARES.get(mask.event.function.strip("_")), mask.event.inputs
            if compare is None or len(inputs) != 2 or min(inputs) < 0 or block.keys.start == 0:
                continue
            given = [self.matched.seen[i] for i in inputs]
            for which, seen in enumerate(given):
                numbers = seen.event.value
                if numbers.numel() != size or not torch.equal(numbers.flatten(), torch.arange(size).to(numbers)):
                    continue
                moved = [each.event.value for each in given]
                moved[which] = numbers + block.keys.start
                again = compare(*moved)
                if again.shape == right.shape and (torch.equal(again, right) or torch.equal(again, ~right)):
                    made = [self.matched.seen[i] for i in sorted(self.matched.sources([seen.index]))]
                    return next((each for each in made if each.event.at), None)
        return None

    def _wrong_sum(self, seen: Seen, before: Seen, form: str, factor: Tensor, weights: Seen) -> Finding:
        """Return the line of a sum that was right for the keys before: its own, or that of the factor it takes."""
        line, first = line_of(seen.event), self.blocks[0].keys.start
        block = next(each for each in self.blocks if seen.index <= each.events[-1].index)
        detail = [f"For keys {first} to {block.keys.start - 1} it is right."]
        wrong = f"the {form} for keys {first} to {block.keys[-1]} (line {line})"
        own = self.matched.sources([seen.index])
        inside = [each for each in block.events if each.index in own and each.event.value.numel() == factor.numel()]
        products = [each for each in block.events if each.index in own and before.index in each.event.inputs]
        rescales = next((each for each in products if each.event.function.strip("_") in ("mul", "imul")), None)
        if rescales is not None:
            taken = [each for each in inside if each.index in rescales.event.inputs and each is not before]
            known = factor.isfinite()
            for each in taken:
                value = each.event.value.double().reshape(factor.shape)
                if not torch.allclose(value[known], factor[known], rtol=1e-9, atol=1e-12) and each.event.at:
                    detail.append(
                        f"Line {line_of(rescales.event)} multiplies that by what line {line_of(each.event)} gives."
                    )
                    return found_at(self.matched, seen, each.event.at, wrong, detail)
        elif (
            seen.event.function.strip("_") in ("add", "iadd")
            and before.index in seen.event.inputs
            and not torch.allclose(factor[factor.isfinite()], torch.ones(()).to(factor), rtol=1e-9)
        ):
            made = line_of(weights.event)
            detail.append(f"Another maximum is taken off the scores there (line {made}) than off those before:")
            detail[-1] += f" line {line} must rescale what it had."
        return found_at(self.matched, seen, seen.event.at, wrong, detail)


_FORMS = (
    "maximum",
    "sum of the weights",
    "sum of the weights times the values",
    "mean of the values",
    "logarithm of the sum of the weights",
)
