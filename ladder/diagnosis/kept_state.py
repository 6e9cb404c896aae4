"""A layer that is right at its first call and wrong at its second: what it keeps in between, and on which line."""

import itertools

from ..answers import close
from ..results import Finding, listed
from ..rungs import Trial
from ..under_test import UnderTest
from .in_words import number_of
from .which_line import locate

_MOST = 6  # names: of each alone, of two together, of all


def kept_state(layer: UnderTest, trial: Trial) -> Finding | None:
    """Return the line that keeps what makes a later call wrong, if the call is right as soon as that is put back.

    Args:
        layer: it is right without the trial's earlier calls.
        trial: shows that it is wrong after them.
    """
    reply = layer.ask(trial, look=True, gradients=False)
    finding = locate(trial, reply.trace, kept=True) if reply.answer else None
    places = dict(reply.trace.kept[-_MOST:])
    sizes = dict.fromkeys((1, 2, len(places)))
    for names in itertools.chain.from_iterable(itertools.combinations(places, size) for size in sizes):
        answer = layer.answer(trial, restore=names, gradients=False) if names else None
        if answer is None or not close(answer.output, trial.expected.output):
            continue
        them = listed([f"`{name}`" for name in names])
        was, goes = ("it was", "goes") if len(names) == 1 else ("they were", "go")
        detail = [f"With {them} as {was} before the first call, the second call is right."]
        if finding and finding.at and finding.wrong:
            detail.append(f"It is first seen on line {number_of((finding.at, ''))}: {finding.wrong}.")
        return Finding(*places[names[-1]], (), f"{them}, which {goes} from one call into the next", tuple(detail))
    return finding
