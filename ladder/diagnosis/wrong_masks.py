"""How a causal mask is wrong, and the line that makes it wrong, by the values of a trace."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..candidate.trace import Event
from ..formula.next_step import next_step
from ..formula.same_numbers import TOLERANCE, common, equal, sorted_numbers, within
from ..formula.trace_matching import Matched, Seen
from ..results import Finding
from .in_words import found_at, line_of

# What adding a number to scores may change in them, as a share of that number.
_ROUNDING = 1e-15

# What a mask does wrong, sentences about it, and the step that first makes it wrong, if that is known.
MaskFault = tuple[str, list[str], Event | None]


def mask_fault(matched: Matched, culprit: Seen) -> MaskFault | None:
    """Return how a mask is wrong, if the culprit is what masks the right scores; None if it is something else."""
    if culprit.event.function == "scaled_dot_product_attention":
        return _given_mask(matched, culprit.event) or _no_mask(matched, culprit.event)
    if culprit.event.function == "multi_head_attention_forward":
        return _of_module(matched, culprit.event)
    if row := _given_row(matched, culprit):
        return row
    for quantity in matched.steps:
        right, value = quantity.visible, culprit.event.value
        # Of all heads, or of one.
        each_head = quantity.value.unbind(1) if right is not None else ()
        alike = [each for each in (quantity.value, *each_head) if each.shape == value.shape]
        if right is None or not alike:
            continue
        lowered = _lowered_rows(value, quantity.value)
        value = value - lowered
        rounding = _ROUNDING * lowered.abs()
        every_kept = [(value - each).abs() <= TOLERANCE * (1 + each.abs()) + rounding for each in alike]
        kept = max(every_kept, key=lambda each: int(each.sum()))
        shown, every = kept.flatten(0, -3).all(0), value.flatten(0, -3)
        # A key is hidden by a very negative number, or by any number that is the same in all heads and sequences.
        hidden = (every < -1e3).all(0) | ((every == every[0]).all(0) & (len(every) > 1))
        changed = right & ~shown & ~hidden  # scores that are neither right nor hidden: that is no mask
        if bool(changed.any()) or not shown.any() or bool(kept.all() & (lowered == 0).all()):
            continue
        detail = seen_wrongly(shown, right)
        if not detail:
            most, least = value[..., ~right].max().item(), value[..., shown & right].min().item()
            amounts = f"Hidden scores are {most:.4g} at most, and visible ones {least:.4g} at least"
            detail.append(f"{amounts}: hidden keys still get weight.")
        inverted = bool((shown ^ right)[:-1].all())  # a last query that sees nothing may get weights all the same
        origin = _origin(matched, culprit.event, inverted)
        lines = _lines(matched, culprit.event, origin)
        return f"which keys each query sees (line {lines})", detail, origin
    return _given_mask(matched, culprit.event)


def _lowered_rows(value: Tensor, scores: Tensor) -> Tensor:
    """Return how much lower than the scores each row is as a whole: the softmax of such a row hides nothing."""
    if value.shape != scores.shape:
        return torch.zeros(())
    added = value - scores
    least, most = added.aminmax(dim=-1, keepdim=True)
    whole = (most < -1e3) & (most > -1e12) & (most - least <= _ROUNDING * most.abs())
    return most.where(whole, torch.zeros_like(most))


def _no_mask(matched: Matched, event: Event) -> MaskFault | None:
    """Return that torch's attention hides nothing, if it gives what it would give without a mask."""
    steps = {each.key: each.value for each in matched.steps}
    for key in (key for key in steps if key.endswith("scores")):
        values = steps[f"{key.removesuffix('scores')}V"].transpose(1, 2)
        if equal(sorted_numbers(steps[key].softmax(-1) @ values), sorted_numbers(event.value)):
            return f"which keys each query sees (line {line_of(event)})", ["Every query sees every key there."], None
    return None


def _of_module(matched: Matched, event: Event) -> MaskFault | None:
    """Return how the mask is wrong that torch's whole attention is given, if the rest of what it gives is right."""
    steps = {each.key: each.value for each in matched.steps}
    masks = [seen.event.value for seen in (matched.seen[i] for i in event.inputs if i >= 0) if not seen.depends]
    masks = [square for mask in masks if (square := _square(mask)) is not None]
    own = sorted_numbers(event.value)
    for of in (key.removesuffix("scores") for key in steps if key.endswith("scores")):
        scores, values = steps[f"{of}scores"], steps[f"{of}V"].transpose(1, 2)
        for mask in (None, *(each for each in masks if each.shape == scores.shape[-2:])):
            boolean = mask is not None and mask.dtype == torch.bool  # True is hidden for this module
            added = 0 if mask is None else mask.double()
            masked = scores.masked_fill(mask, -torch.inf) if boolean and mask is not None else scores + added
            z = (masked.softmax(-1) @ values).transpose(1, 2)
            weights, bias = matched.trial.parameters[f"{of}W_O"], matched.trial.parameters[f"{of}b_O"]
            if not equal(sorted_numbers(torch.einsum("bqnh,nhm->bqm", z, weights.double()) + bias), own):
                continue
            right = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            hidden = mask if boolean and mask is not None else (masked - scores)[0, 0] < -1e3
            origin = None if mask is None else _origin(matched, event, torch.equal(hidden, right))
            detail = ["Every query sees every key there."] if not hidden.any() else seen_wrongly(~hidden, right)
            lines = line_of(event) if mask is None else _lines(matched, event, origin)
            return f"which keys each query sees (line {lines})", detail, origin
    return None


def _given_mask(matched: Matched, event: Event) -> MaskFault | None:
    """Return how the mask is wrong that a function is given beside queries and keys, torch's attention say."""
    for seen in (matched.seen[i] for i in event.inputs if i >= 0):
        square = None if seen.depends else _square(seen.event.value)
        right = next((each.visible for each in matched.steps if each.visible is not None), None)
        if square is None or right is None or square.shape != right.shape:
            continue
        # Of booleans, True is visible for torch's attention; numbers are added to the scores.
        shown = square if square.dtype == torch.bool else square > -1e3
        if event.function != "scaled_dot_product_attention" and (
            shown is square or bool((shown & (square != 0)).any())
        ):
            continue
        if detail := seen_wrongly(shown, right):
            origin = _origin(matched, event, torch.equal(shown, ~right))
            return f"which keys each query sees (line {_lines(matched, event, origin)})", detail, origin
    return None


def _given_row(matched: Matched, culprit: Seen) -> MaskFault | None:
    """Return which later key is among the scores of one query, if the culprit takes these: a loop over queries."""
    taken = [matched.seen[i] for i in culprit.event.inputs if i >= 0]
    if len(taken) != 1 or taken[0].is_:
        return None
    for quantity in taken[0].part_of:
        if quantity.visible is not None or not quantity.key.endswith(("raw", "scores")):
            continue
        own = taken[0].numbers
        by_query = [sorted_numbers(each) for each in quantity.value.unbind(-2)]
        query = next((i for i, each in enumerate(by_query) if within(own, each)), None)
        if query is None:
            continue
        right = torch.ones(quantity.value.shape[-2:], dtype=torch.bool).tril()
        shown = right.clone()
        for key, each in enumerate(quantity.value[..., query, :].unbind(-1)):
            shown[query, key] = common(sorted_numbers(each), own) > 0
        detail = seen_wrongly(shown, right)[:1]
        if not detail:
            continue
        made = _first_scores(matched, taken[0])
        ran = taken[0].event.at, taken[0].event.function
        earlier = (seen for seen in matched.seen[: taken[0].index] if (seen.event.at, seen.event.function) == ran)
        if any(within(seen.numbers, by_query[query]) for seen in earlier):
            what = f"which query the scores are of (line {line_of(made.event)})"
            return what, [f"They are of query {query}, as when that line ran before."], made.event
        return f"which keys each query sees (line {line_of(made.event)})", detail, made.event
    return None


def _first_scores(matched: Matched, seen: Seen) -> Seen:
    """Return the first of the events that scores come from that is itself a part of the scores."""
    while seen.event.inputs and seen.event.inputs[0] >= 0:
        before = matched.seen[seen.event.inputs[0]]
        if not before.part_of or not before.part_of[0].key.endswith(("raw", "scores")):
            break
        seen = before
    return seen


def seen_wrongly(shown: Tensor, right: Tensor) -> list[str]:
    """Return a query that sees what it may not, and one that does not see what it may, in sentences."""
    detail = []
    if bool((shown & ~right).any()):
        query, key = (int(i) for i in (shown & ~right).nonzero()[0])
        detail.append(f"Query {query} sees key {key}, a later position.")
    if bool((~shown & right).any()):
        query, key = (int(i) for i in (~shown & right).nonzero()[0])
        what = "its own position" if query == key else f"key {key}, an earlier position"
        detail.append(f"Query {query} does not see {what}.")
    return detail


def _lines(matched: Matched, event: Event, origin: Event | None) -> str:
    """Return the line that uses a mask, and the one that makes it, if that is another."""
    used = line_of(event)
    made = [origin] if origin else [matched.seen[i].event for i in event.inputs if i >= 0]
    others = [each for each in made if each.at and line_of(each) != used and not _depends(matched, each)]
    kind = "buffer" if others and others[-1].function == "buffer" else "mask"
    return f"{used}, with the {kind} of line {line_of(others[-1])}" if others else used


def _depends(matched: Matched, event: Event) -> bool:
    return next(seen.depends for seen in matched.seen if seen.event is event)


def _origin(matched: Matched, event: Event, inverted: bool) -> Event | None:
    """Return the step that first makes a wrong mask, from a right one or from none; if it is inverted, see below."""
    sources = matched.sources(i for i in event.inputs if i >= 0 and not matched.seen[i].depends)
    right: set[int] = set()
    wrong, last = None, None
    for index in sorted(sources):
        step = matched.seen[index].event
        square = _square(step.value)
        if square is None or square.shape[0] < 2:
            continue
        nonzero = square != 0
        made_of = matched.sources(step.inputs)
        if _shows_own_key(square) is not None:
            right.add(index)
            last, wrong = None, None if wrong in made_of else wrong  # it was put right
        elif bool(nonzero.any() and not nonzero.all()) or not right.isdisjoint(made_of):
            wrong = index if wrong is None else wrong
        else:
            last = step
    if wrong is not None:
        return matched.seen[wrong].event if matched.seen[wrong].event.at else None
    if inverted and right:
        return _inverts(matched, right)
    return last if last and last.at and bool((last.value < -1e3).any()) else None


def _inverts(matched: Matched, masks: set[int]) -> Event | None:
    """Return the step that turns a mask round last; if it is also used as it was before, the one that makes it."""
    squares = ((seen, _square(seen.event.value)) for seen in matched.seen if not seen.depends)
    shows = {seen.index: _shows_own_key(square) for seen, square in squares if square is not None}
    used = {shows[i] for seen in matched.seen if seen.depends for i in seen.event.inputs if shows.get(i) is not None}
    before = {index: [i for i in matched.seen[index].event.inputs if i in masks] for index in masks}
    turned = [index for index in masks if any(shows.get(i) is not shows[index] for i in before[index])]
    # A comparison decides which keys are hidden, also if it is one (``mask == 1``) that turns nothing round.
    turned += [index for index in masks if matched.seen[index].event.function in ("eq", "__eq__", "ne", "__ne__")]
    event = matched.seen[max(turned) if turned and len(used) == 1 else min(masks)].event
    return event if event.at else None


def _shows_own_key(square: Tensor) -> bool | None:
    """Return whether a causal mask is not 0 where a query may look (True), or where it may not; None if it is none."""
    visible, nonzero = torch.ones(square.shape, dtype=torch.bool).tril(), square != 0
    if torch.equal(nonzero, visible):
        return True
    return False if torch.equal(nonzero, ~visible) else None


def _square(value: Tensor) -> Tensor | None:
    """Return a mask's two last axes, if they are as long, and the mask is the same along all others."""
    if value.ndim < 2 or value.shape[-1] != value.shape[-2]:
        return None
    every = value.flatten(0, -3) if value.ndim > 2 else value[None]
    return every[0] if bool((every == every[0]).all()) else None


def idle_mask(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line whose mask hides nothing, if masked scores are what is missing and later positions are seen."""
    if not matched.leaks:
        return None
    seq = matched.trial.case.seq
    if not next_step(matched, culprit.index, culprit.event.inputs, culprit.event.function).startswith("the masked"):
        return None
    for index in sorted(matched.sources(culprit.event.inputs), reverse=True):
        event = matched.seen[index].event
        taken = [matched.seen[i] for i in event.inputs if i >= 0]
        scores = [each for each in taken if any(quantity.key.endswith(("raw", "scores")) for quantity in each.is_)]
        mask = [each for each in taken if not each.depends and each.event.value.shape[-2:] == event.value.shape[-2:]]
        scores = scores[:1] or [each for each in [matched.seen[index]] if _is_scores_beside(each, taken)]
        hides = [each for each in mask if (each.event.value < -1e3).any()] if scores == [matched.seen[index]] else mask
        every = event.value.shape[-2:] == (seq, seq)  # of some keys, there may be none to hide
        if every and scores and hides and event.at and torch.equal(scores[0].event.value, event.value):
            wrong = f"which keys each query sees (line {line_of(event)})"
            return found_at(matched, matched.seen[index], event.at, wrong, ["The mask there hides nothing."])
    return None


def _is_scores_beside(seen: Seen, taken: Sequence[Seen]) -> bool:
    """Return whether an event makes scores of queries and keys, and takes something else beside these: a mask."""
    made = seen.good and any(quantity.key.endswith(("raw", "scores")) for quantity in seen.is_)
    return made and sum(each.depends for each in taken) == 2
