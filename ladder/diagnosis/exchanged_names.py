"""Which line exchanges queries, keys and values: it gives them each other's names."""

import re

from ..candidate.trace import Trace
from ..formula.trace_matching import Matched
from ..layout_choice import named_orders, order_read
from ..results import Diagnosis, Finding
from ..rungs import Trial
from ..under_test import UnderTest

_EXCHANGES = re.compile(r"(queries|keys) and (keys|values) exchanged$|(queries|keys|values) from W_")
_SPLITS = re.compile(r"\b(split|chunk|unbind|tensor_split)\(")
_NAMED = re.compile(r"\s*((q|k|v)\w*) *=[^=]", re.I)
_PARTS = {"q": "queries", "k": "keys", "v": "values"}


def exchanged_names(layer: UnderTest, found: Diagnosis, trial: Trial, trace: Trace) -> Finding | None:
    """Return the line that gives queries, keys or values another's name, if they are exchanged.

    Args:
        layer: in which they are.
        found: names the mistakes.
        trial: the trial that was recorded.
        trace: of the layer.
    """
    if not any(map(_EXCHANGES.search, found.mistakes)):
        return None
    # One line splits a tensor of all three.
    lie_as = order_read(layer.reading) or "q, k, v"
    for (at, code), order in named_orders(trace.events):
        if order != lie_as and _SPLITS.search(code):
            wrong = f"the order of the parts: they lie as {lie_as}, and line {at.rpartition(':')[2]} names them {order}"
            return Finding(at, code, (), wrong)
    # Each is made on a line of its own.
    for seen in Matched(trial, trace).seen:
        named = _NAMED.match(seen.event.at[1]) if seen.event.at else None
        is_ = {key[0].lower() for each in seen.is_ if re.fullmatch("[QKV]0?", key := each.key.rpartition(".")[2])}
        if seen.event.at and named and len(is_) == 1 and (letter := is_.pop()) != named[2].lower():
            at, code = seen.event.at
            # Before a bias is added, it may be any.
            bare = all(each.key.endswith("0") for each in seen.is_)
            what = f"it is made with W_{letter.upper()}" if bare else f"it is the {_PARTS[letter]}"
            return Finding(at, code, (), f"`{named[1]}` on line {at.rpartition(':')[2]}: {what}")
    return None
