"""A function of the user's that is right and is given what is wrong: the line that calls it is to be looked at."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from ..formula.next_step import next_step
from ..formula.same_numbers import equal, sorted_numbers
from ..formula.trace_matching import Matched, Seen
from ..results import Finding, listed
from .how_wrong import multiplied
from .in_words import found_at, in_its_place, line_of, taken_in_words
from .products import input_of, is_due, weights_of


def wrong_call(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that calls a function of the user's with a wrong step, if that computes what it should of it."""
    event = culprit.event
    if event.caller is None or event.at is None or event.caller[0] == event.at[0]:
        return None
    return _of_weight(matched, culprit, event.caller) or _of_formula(matched, culprit, event.caller)


def _of_weight(matched: Matched, culprit: Seen, caller: tuple[str, str]) -> Finding | None:
    """Return the call of a function that multiplies by the right weight: it is the one that GPT-2 has next."""
    event = culprit.event
    missing = next_step(matched, culprit.index, event.inputs, event.function)
    index = input_of(matched, event)
    inside = index is None or (index >= 0 and matched.seen[index].event.caller == caller)
    weights = [] if inside else weights_of(matched, event)
    if not weights or not is_due(matched, weights[0], missing):
        return None
    detail = f"Line {line_of(event)} multiplies that by {listed(weights)}."
    wrong = f"the call there, on {multiplied(matched, event)}{in_its_place(missing.removeprefix('the mean of '))}"
    return found_at(matched, culprit, caller, wrong, [detail])


def _of_formula(matched: Matched, culprit: Seen, caller: tuple[str, str]) -> Finding | None:
    """Return the call of a function that gives the activation, softmax or layer norm of what it is given."""
    event = culprit.event
    given = {index for index in event.inputs if index >= 0 and matched.seen[index].depends}
    if len(given) != 1 or event.parameters:
        return None
    index = given.pop()
    made_of = matched.seen[index].event
    # It must be made outside that function: in ``forward`` itself, or by an earlier call of the function.
    again = made_of.caller == caller and int(line_of(event)) < int(line_of(made_of))
    if made_of.caller is not None and not again:
        return None
    inside = [seen for seen in matched.seen[culprit.index :] if seen.event.caller == caller]
    inside = [seen for seen in inside if index in matched.sources(seen.event.inputs)]
    for words, right in _right_functions(matched, matched.seen[index].event.value):
        numbers = sorted_numbers(right)
        made = next((seen for seen in inside if equal(seen.numbers, numbers)), None)
        if made is not None and (taken := taken_in_words(matched, index)):
            missing = next_step(matched, culprit.index, event.inputs, event.function)
            wrong = f"the call there, on {taken}{in_its_place(missing.removeprefix('the mean of '))}"
            detail = f"Line {line_of(made.event)} gives {words} of that, as it should."
            return found_at(matched, culprit, caller, wrong, [detail])
    return None


def _right_functions(matched: Matched, given: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield what GPT-2's functions without weights give, each with its name."""
    if not given.is_floating_point() or given.ndim < 2 or given.shape[-1] < 2:
        return
    approximate = "tanh" if matched.trial.config.act_fn == "gelu_new" else "none"
    relu = matched.trial.config.act_fn == "relu"
    yield "the activation", F.relu(given) if relu else F.gelu(given, approximate=approximate)
    yield "the softmax", given.softmax(-1)
    yield "the layer norm", F.layer_norm(given, given.shape[-1:], eps=matched.trial.config.layer_norm_eps)
