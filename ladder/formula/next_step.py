"""Which step of the formula comes next, after those that a part of a layer is made from."""

from collections.abc import Iterable, Sequence

import numpy as np

from .same_numbers import within
from .trace_matching import FILLS, JOINS, Matched, Seen

# What functions that compute several steps in one end with.
_FUSED = {
    "scaled_dot_product_attention": "z",
    "multi_head_attention_forward": "output",
    "layer_norm": "output",
    "softmax of rows": "pattern",
    "std": "scale",
    "var": "variance",
}


def next_step(matched: Matched, before: int, made_from: Iterable[int], function: str = "") -> str:
    """Return the first step of the formula that is not there yet, after those that something is made from.

    Args:
        before: the steps that an event before this one is are there.
        made_from: events.
        function: if it computes several steps in one, the last of them is returned.
    """
    found = {"input"} | {quantity.key for seen in matched.seen[:before] for quantity in seen.is_}
    made_from = list(made_from)
    sources = [matched.seen[index] for index in matched.sources(made_from)]
    # What is made of parameters alone may belong to any step.
    behind, begun = _held(matched, sources) if made_from else (found, set[str]())
    if function not in (*JOINS, *FILLS):  # it works on one head after another, say
        behind, begun = behind | (begun & found), begun - found
    if bias := _bias_next(matched, behind, behind | found):
        return bias
    last = max((i for i, each in enumerate(matched.steps) if each.key in behind), default=-1)
    # Of a step that is there in part, the rest comes next; rows of scores that are shorter need no other mask.
    last = max([last, *(i - 1 for i, each in enumerate(matched.steps) if each.key in begun)])
    if function == "softmax" and any(key.endswith("scores") for key in begun):
        function = "softmax of rows"
    key = matched.steps[last].key if last >= 0 else ""
    of = key.removesuffix("masked raw")
    if key in behind and of != key and {f"{of}scores", f"{of}masked"}.isdisjoint(found):  # masked, and never scaled
        return next(each.words for each in matched.steps if each.key == f"{of}scores")
    ending = _FUSED.get(function, "")
    # What a whole layer gave was made by steps that are not always seen.
    complete = {key.removesuffix("output") for key in found if key.endswith("output")}
    later = [each for each in matched.steps[last + 1 :] if each.step and (each.key not in found or each.key in begun)]
    later = [each for each in later if each.key[: each.key.rfind(".") + 1] not in complete]
    missing = next((each for each in later if each.key.endswith(ending)), None)
    if missing is None:
        return ""
    # If one tensor is to become all of them, all are missing.
    fused = {f"{missing.key[:-1]}{letter}" for letter in "QKV"} if missing.key.endswith("V") else set()
    fused = fused if fused.isdisjoint(found) and {f"{each}0" for each in fused} <= behind else set()
    return missing.words.replace("the values", "the queries, keys and values") if fused else missing.words


def _bias_next(matched: Matched, behind: set[str], found: set[str]) -> str:
    """Return the step that adds a bias to queries or values, if something is made of these without it, and of more."""
    bare = [each[:-1] for each in behind if each.endswith(("Q0", "V0"))]
    lacking = [each for each in bare if each not in found]
    if not lacking or len(bare) > 1 or behind == {"input", f"{lacking[0]}0"}:
        return ""
    return next((each.words for each in matched.steps if each.key == lacking[0]), "")


def _held(matched: Matched, sources: Sequence[Seen]) -> tuple[set[str], set[str]]:
    """Return the keys of the steps that events hold together, and of those that they hold in part."""
    whole, part = {"input"}, set[str]()
    for quantity, numbers in zip(matched.steps, matched.sets, strict=True):
        pieces = [each for each in sources for known in (*each.is_, *each.part_of) if known is quantity]
        if any(piece.numbers.size >= numbers.size for piece in pieces):
            whole.add(quantity.key)
        elif pieces:
            every = np.sort(np.concatenate([piece.numbers for piece in pieces]))
            (whole if within(numbers, every) else part).add(quantity.key)
    return whole, part
