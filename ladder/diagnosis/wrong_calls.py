"""A function of the user's that is right and is given what is wrong: the line that calls it is to be looked at."""

import re
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from ..formula.next_step import next_step
from ..formula.same_numbers import equal, sorted_numbers
from ..formula.trace_matching import Matched, Seen
from ..results import Finding, listed
from .how_wrong import multiplied
from .in_words import called, found_at, in_its_place, line_of, taken_in_words
from .origins import moved_from
from .products import input_of, is_due, is_of_input, weights_of


def bias_left_out(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line of a product whose bias is left out, if the culprit takes what it gives."""
    taken = [index for index in culprit.event.inputs if index >= 0 and matched.seen[index].depends]
    if culprit.event.parameters or not all(is_of_input(matched, index) for index in taken):
        return None  # it may add another bias
    for index in taken:
        made = moved_from(matched, index)[-1]
        keys = {each.key for each in made.is_ if each.step or each.key.endswith("0")}
        bare = next((each for each in made.is_ if re.search(r"(^|\.)([QKV]|pre)0$", each.key)), None)
        if bare is None or made.event.at is None or keys != {bare.key} or bare.key[:-1] in matched.found:
            continue
        size = culprit.event.value.numel()
        later = [seen for seen in matched.seen[culprit.index :] if culprit.index in matched.sources([seen.index])]
        if any(seen.event.parameters and seen.event.value.numel() == size for seen in later if seen is not culprit):
            continue  # it may be added there
        detail = f"Line {line_of(culprit.event)} goes on with them, and GPT-2 adds their bias before that."
        wrong = f"what {called(made.event)} gives: {bare.words}"
        return found_at(matched, made, made.event.at, wrong, [detail])
    return None


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
    inside = index is None or (index >= 0 and event.calls[-1] in matched.seen[index].event.calls)
    weights = [] if inside else weights_of(matched, event)
    if not weights or not is_due(matched, weights[0], missing):
        return None
    detail = f"Line {line_of(event)} multiplies that by {listed(weights)}."
    wrong = f"the call there, on {multiplied(matched, event)}{in_its_place(missing.removeprefix('the mean of '))}"
    return found_at(matched, culprit, caller, wrong, [detail])


def _of_formula(matched: Matched, culprit: Seen, caller: tuple[str, str]) -> Finding | None:
    """Return the call of a function that gives the activation, softmax or layer norm of what it is given."""
    event = culprit.event
    given = _given_to_call(matched, culprit)
    inside = [seen for seen in matched.seen[culprit.index :] if event.calls[-1] in seen.event.calls and seen.depends]
    if len(given) != 1 or any(seen.event.parameters for seen in inside):
        return None
    index, made = given.pop(), inside[-1]  # what it gives: a larger function may go on after an activation
    value = matched.trial.given if index < 0 else matched.seen[index].event.value
    for words, right in _right_functions(matched, value):
        if equal(made.numbers, sorted_numbers(right)) and (taken := taken_in_words(matched, index)):
            missing = next_step(matched, culprit.index, event.inputs, event.function)
            wrong = f"the call there, on {taken}{in_its_place(missing.removeprefix('the mean of '))}"
            detail = f"Line {line_of(made.event)} gives {words} of that, as it should."
            return found_at(matched, culprit, caller, wrong, [detail])
    return None


def _given_to_call(matched: Matched, culprit: Seen) -> set[int]:
    """Return what the call of the user's function in which the culprit is was given, as far as the culprit takes it."""
    given, stack = set[int](), [culprit.index]
    while stack:
        event = matched.seen[stack.pop()].event
        for index in event.inputs:
            inside = index >= 0 and culprit.event.calls[-1] in matched.seen[index].event.calls
            if inside:
                stack.append(index)
            elif index < 0 or matched.seen[index].depends:
                given.add(index)
    return given


def _right_functions(matched: Matched, given: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield what GPT-2's functions without weights give, each with its name."""
    if not given.is_floating_point() or given.ndim < 2 or given.shape[-1] < 2:
        return
    approximate = "tanh" if matched.trial.config.act_fn == "gelu_new" else "none"
    relu = matched.trial.config.act_fn == "relu"
    yield "the activation", F.relu(given) if relu else F.gelu(given, approximate=approximate)
    yield "the softmax", given.softmax(-1)
    yield "the layer norm", F.layer_norm(given, given.shape[-1:], eps=matched.trial.config.layer_norm_eps)
