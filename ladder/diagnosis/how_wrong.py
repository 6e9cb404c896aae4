"""How the first wrong step of a layer is wrong, in sentences that were each checked on its numbers."""

import itertools
import re

import torch

from ..candidate.trace import STATISTICS, Event
from ..formula.next_step import next_step
from ..formula.quantities import Quantity, part_rung
from ..formula.same_numbers import equal, factor_of, sorted_numbers
from ..formula.trace_matching import MOVES, Matched, Seen, caps, size_of
from ..results import listed
from .in_words import called, in_its_place, line_of, on_line, right_steps, taken_in_words
from .products import input_of, reads_and_makes, weight_of

# What torch's modules compute with their weights alone: nothing that they were built with can make it wrong.
BY_WEIGHTS = ("linear", "embedding", "conv1d", "conv2d", "bilinear")

# What takes its module's parameters, and no others.
_WITH_ITS_OWN = (*BY_WEIGHTS, "multi_head_attention_forward")

# The steps of GELU as it is written most often.
_GELU_BY_CUBE = (
    "x³ in GELU", "0.044715 x³ in GELU", "x + 0.044715 x³ in GELU", "sqrt(2/pi) (x + 0.044715 x³) in GELU",
    "tanh(…) in GELU", "1 + tanh(…) in GELU",
)  # fmt: skip

# Functions that a wrong axis may be given to.
_ALONG_AXES = ("sum", "mean", "max", "amax", "prod", "norm", "cumsum", "logsumexp", "var", "std")
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "rearrange")


def how(matched: Matched, culprit: Seen) -> tuple[str, list[str]]:
    """Return what the culprit gives, and sentences about it that were each checked."""
    event = culprit.event
    gives = f"what {called(event)} gives"
    products = [seen.event for seen in matched.seen if culprit.index in seen.event.inputs and seen.event.parameters]
    if event.function in MOVES and {quantity.key for quantity in culprit.is_} == {"input"} and not products:
        sentence = "The layer's input itself is used there; GPT-2 uses it in products with W_Q, W_K and W_V only."
        return f"the layer's input, moved by {called(event)}", [sentence] if matched.trial.rung == "attention" else []
    if known := not matched.arranged(culprit) and (*culprit.is_, *culprit.part_of):
        words = known[0].words
        moved = f"The numbers of {words} are right, but {called(event)} puts them into another order"
        mixed = f": the result of shape {list(event.value.shape)} mixes axes" if event.function in _RESHAPES else ""
        return f"the order of {words}", [f"{moved}{mixed}.", *_exchanged(matched, event)]
    before = matched.seen[: culprit.index]
    if matched.trial.rung in ("embed", "pos-embed") and not any(i < 0 for i in event.inputs):
        # Made of the table alone: what takes it beside the output changes that.
        users = [seen for seen in _users(matched, culprit) if seen.event.at == event.at and len(seen.event.inputs) > 1]
        for user in users:
            if any(q.key == "output" for i in user.event.inputs if i >= 0 for q in matched.seen[i].is_):
                return how(matched, user)
    complete = [each for each in before if any(q.key == "output" and _holds(each, q) for q in each.is_)]
    if complete and complete[-1].index in matched.sources([culprit.index]):
        return gives, [f"The output is complete before it, on line {line_of(complete[-1].event)}."]
    missing = next_step(matched, culprit.index, event.inputs, event.function)
    if other := _other_layer(matched, culprit, missing):
        return other, []
    if event.function not in STATISTICS:  # a layer norm begins with its mean
        missing = missing.removeprefix("the mean of ")
    elif missing == "the mean":  # what a mean gives is not that: say of what it is
        missing = "the mean over d_model"
    if missing.startswith("the hidden layer after the activation"):
        missing = _next_in_gelu(matched, event) or missing
    if _takes_bare_hidden(matched, culprit):
        return f"what {called(event)} takes: the hidden layer before b_in{in_its_place(missing)}", []
    if factor := _factor_in_words(matched, culprit):
        words, sentence, due = factor
        return f"{gives}: {words} times a factor{in_its_place(due or missing)}", [sentence]
    if bias := _bias_again(matched, culprit):
        return gives, [f"Line {line_of(event)} {bias}."]
    if weight := weight_of(matched, event):
        reads, own = reads_and_makes(matched, weight)
        # What the weight makes is missing, unless a step before that is.
        words = [each.words for each in matched.steps]
        if own and own.key not in matched.found and missing in words[words.index(own.words) :]:
            missing = own.words
        return gives + in_its_place(missing), [
            f"{on_line(event)} multiplies {multiplied(matched, event)} by {weight}.",
            *([f"GPT-2 multiplies {reads} by {weight}."] if reads else []),
        ]
    if weight := weight_of(matched, event, transposed=True):
        given = multiplied(matched, event)
        return gives + in_its_place(missing), [f"{on_line(event)} multiplies {given} by {weight} transposed."]
    if matched.trial.rung in ("embed", "pos-embed"):  # rows are taken there, and which ones is seen in the output
        return gives, []
    taken = dict.fromkeys(words for i in event.inputs if (words := taken_in_words(matched, i)))
    taken |= dict.fromkeys(f"`{each}`" for each in event.parameters if event.function not in _WITH_ITS_OWN)
    # That it takes what was right last is no news, nor are the axes of that, but where it goes along one of them.
    last = {"the layer's input", *right_steps(matched, culprit.index)}
    bare = {each if event.function in _ALONG_AXES else re.sub(r" as \[[^]]*\]", "", each) for each in taken}
    known = not event.parameters and len(taken) == 1 and last.issuperset(bare)
    sentences = [f"{on_line(event)} takes {listed(list(taken))}."] if taken and not known else []
    return gives + in_its_place(missing), sentences + _numbers_in_words(matched, event)


def _following_in_gelu(quantity: Quantity) -> str:
    """Return the step of GELU that comes after one, in words; empty if that is the last, or none of them."""
    own = quantity.key.rpartition("mlp.")[2]
    following = next((after for before, after in itertools.pairwise(_GELU_BY_CUBE) if before == own), "")
    return quantity.words.replace(own, following) if following else ""


def _next_in_gelu(matched: Matched, event: Event) -> str:
    """Return the step of GELU that comes after the last one that an event takes, in words; empty if it takes none."""
    taken = [each for i in event.inputs if i >= 0 for each in matched.seen[i].is_ if _following_in_gelu(each)]
    last = max(taken, key=matched.steps.index, default=None)
    return _following_in_gelu(last) if last else ""


def _takes_bare_hidden(matched: Matched, culprit: Seen) -> bool:
    """Return whether an event begins the activation, of the hidden layer before its bias."""
    steps = [each for i in culprit.event.inputs if i >= 0 for each in matched.seen[i].is_]
    keys = {each.key.rpartition(".")[2] for each in steps}
    return "pre0" in keys and "pre" not in keys and not culprit.event.parameters


def _other_layer(matched: Matched, culprit: Seen, missing: str) -> str:
    """Return which layer is called in the place of which, if an event has the right numbers in the wrong layer."""
    due = next((each for each in matched.steps if each.words == missing and "." in each.key), None)
    if due is None or not equal(sorted_numbers(due.value), culprit.numbers):
        return ""
    layer = due.key.rpartition(".")[0]
    parts = [part for part, _ in culprit.event.within if part_rung(part) == part_rung(layer) and part != layer]
    return f"the call of {parts[-1]}, where GPT-2 calls {layer}" if parts else ""


def _holds(seen: Seen, quantity: Quantity) -> bool:
    return seen.event.value.numel() >= quantity.value.numel()


def _factor_in_words(matched: Matched, culprit: Seen) -> tuple[str, str, str] | None:
    """Return the step that a culprit is a constant multiple of, a sentence on the factor, and GPT-2's own multiple.

    The last is empty if it is not known; it is None if the culprit is no multiple of a step.
    """
    factor, line = matched.factor(culprit.event), line_of(culprit.event)
    if factor is None:
        return None
    quantity, c = factor
    whole = not any(seen.event.at == culprit.event.at for seen in _users(matched, culprit))
    line = f"Line {line}" if whole else on_line(culprit.event)
    size = size_of(matched.trial, quantity, c)
    # A factor that is no short number comes from a size, d_head as a rule.
    odd = quantity.key.endswith("raw") and abs(c - round(c, 3)) > 1e-9 and "here" not in size
    here = f", where d_head is {matched.trial.config.d_head}" if odd else ""
    sentence = f"{line} gives {quantity.words} times {c:.6g}{f' = {size}' if size else ''}{here}."
    if quantity.key.endswith(("raw", "Q", "K")):
        sentence += f" GPT-2 has q·k times 1/sqrt(d_head), {matched.trial.config.attn_scale(0):.6g} here."
    elif quantity.key.endswith("x² in GELU") and "0.044715" not in quantity.key and _x_is_added(matched, culprit):
        return quantity.words, f"{sentence} GPT-2 adds 0.044715 x³ to x.", "0.044715 x³ in GELU"
    elif "in GELU" in quantity.key:
        later = matched.steps[matched.steps.index(quantity) + 1 :]
        multiples = ((each, factor_of(each.value, quantity.value)) for each in later if "in GELU" in each.key)
        due, right = next(((each, own) for each, own in multiples if own is not None), (None, None))
        if due and right:
            return quantity.words, f"{sentence} GPT-2 has that times {right:.6g}.", due.words
        return quantity.words, sentence, _following_in_gelu(quantity)
    return quantity.words, sentence, ""


def _x_is_added(matched: Matched, culprit: Seen) -> bool:
    """Return whether the hidden layer itself is added to an event: to x³, in GPT-2."""
    added = [seen for seen in _users(matched, culprit) if "add" in seen.event.function]
    beside = [matched.seen[index] for seen in added for index in seen.event.inputs if index >= 0]
    return any(quantity.key.endswith("pre") for each in beside for quantity in each.is_)


def _users(matched: Matched, used: Seen) -> list[Seen]:
    return [seen for seen in matched.seen if used.index in seen.event.inputs]


def last_multiple(matched: Matched, culprit: Seen) -> Seen:
    """Return the last event of the culprit's line that is a multiple of the same step; the culprit if none is."""
    factor = matched.factor(culprit.event)
    while factor:
        users = [seen for seen in _users(matched, culprit) if seen.event.at == culprit.event.at]
        following = matched.factor(users[0].event) if len(users) == 1 and not users[0].good else None
        if following is None or following[0] is not factor[0]:
            break
        culprit = users[0]
    return culprit


# Functions that GPT-2 applies to no step of attention, nor to its hidden layer.
_BENDING = ("tanh", "sigmoid", "relu", "softplus", "silu", "sin", "cos", "erf")


def bent(matched: Matched, culprit: Seen) -> Seen:
    """Return the function that bends a multiple of a step, as a cap on scores does; else the culprit.

    The factor alone may be harmless: the function, and another factor after it, decide.
    """
    factor, users = matched.factor(culprit.event), _users(matched, culprit)
    if factor is None or "in GELU" in factor[0].key or len(users) != 1:
        return culprit
    return users[0] if users[0].event.function.strip("_") in _BENDING and not users[0].good else culprit


def _numbers_in_words(matched: Matched, event: Event) -> list[str]:
    """Return sentences on how many numbers an event gives, and how large they are, if that is what is wrong."""
    value, given = event.value, matched.trial.given
    positions = given.numel() // given.shape[-1] if given.is_floating_point() else given.numel()
    if event.function in STATISTICS and value.numel() < positions:
        few = f"It has {value.numel()} number{'s' * (value.numel() > 1)}"
        return [f"{few}, and GPT-2 has one for each position: {positions} here."]
    if caps(event) and event.inputs and event.inputs[0] >= 0:
        before = matched.seen[event.inputs[0]].event.value
        least, most, low, high = (f"{each.item():.4g}" for each in (*before.aminmax(), *value.aminmax()))
        return [f"Of numbers from {least} to {most} it makes numbers from {low} to {high}."]
    if event.value.ndim > 1 and bool((value >= 0).all()) and not bool(value.sum(-1).all()):
        empty = int((value.sum(-1) == 0).sum())
        return [f"Every number is 0 in {empty} of its {value.sum(-1).numel()} rows."]
    return []


def _bias_again(matched: Matched, culprit: Seen) -> str:
    """Return that a bias is added a second time, or subtracted, if the culprit does so and all else in it is right."""
    steps = {each.key: each for each in matched.steps}
    for step in matched.steps:
        of, last = step.key[: step.key.rfind(".") + 1], step.key.rpartition(".")[2]
        before, bias = {
            "Q": ("Q0", "b_Q"), "K": ("K0", "b_K"), "V": ("V0", "b_V"), "pre": ("pre0", "b_in"),
        }.get(last, ("", ""))  # fmt: skip
        if last == "output":
            before = "gained" if f"{of}gained" in steps else "projected"
            bias = next((name for name in ("b_O", "b_out", "b") if f"{of}{name}" in matched.trial.parameters), "")
        bare = steps.get(f"{of}{before}")
        if not bias or bare is None:
            continue
        added = step.value - bare.value
        for wrong, words in ((step.value + added, "adds {} a second time"), (bare.value - added, "subtracts {}")):
            if added.any() and equal(sorted_numbers(wrong), culprit.numbers):
                return words.format(f"{of}{bias}")
    return ""


def _exchanged(matched: Matched, event: Event) -> list[str]:
    """Return which position has the numbers of which, in a sentence, if an event exchanges whole positions."""
    source = matched.trial.given if event.inputs[:1] == (-1,) else None
    if event.inputs and event.inputs[0] >= 0:
        source = matched.seen[event.inputs[0]].event.value
    if source is None or source.shape != event.value.shape:
        return []
    for axis, size in enumerate(source.shape):
        if size != matched.trial.case.seq:
            continue
        own, before = event.value.movedim(axis, 0), source.movedim(axis, 0)
        came_from = [next((j for j in range(size) if torch.equal(own[i], before[j])), None) for i in range(size)]
        moved = next((i for i, j in enumerate(came_from) if i != j), None)
        if None not in came_from and moved is not None:
            return [f"Position {moved} has the numbers of position {came_from[moved]} there, of {size} positions."]
    return []


def multiplied(matched: Matched, event: Event) -> str:
    """Return what an event multiplies by a weight, in words."""
    index = input_of(matched, event)
    return (taken_in_words(matched, index) if index is not None else "") or "numbers of no step of GPT-2"
