"""A position embedding that is wrong: the line that makes its positions, or that takes other rows of the table."""

import torch

from ..candidate.trace import Event
from ..formula.next_step import next_step
from ..formula.trace_matching import MOVES, Matched, Seen
from ..results import Finding
from .in_words import found_at, line_of
from .origins import moved_from


def wrong_positions(matched: Matched, culprit: Seen) -> Finding | None:
    """Return where the positions become wrong, if the culprit takes rows of their table; None if it does not."""
    missing = next_step(matched, culprit.index, culprit.event.inputs)
    of_table = missing == "the position embedding" or matched.trial.rung == "pos-embed"
    # The rows may be numbers of the table, though too few: what adds them is the first wrong step then.
    paths = [moved_from(matched, index) for index in culprit.event.inputs if index >= 0]
    ends = [path[-1] for path in paths if not path[-1].is_]
    rows = [seen.event for seen in ends if seen.event.function in MOVES and seen.event.parameters]
    looked_up = culprit.event if culprit.event.parameters else rows[0] if len(rows) == 1 else None
    if not of_table or looked_up is None:
        return None
    origin = None
    for index in sorted(matched.sources(i for i in looked_up.inputs if i >= 0)):
        event = matched.seen[index].event
        if event.value.is_floating_point() or event.value.dtype == torch.bool or event.at is None:
            continue
        right = torch.arange(event.value.shape[-1])
        if origin is None and not bool((event.value == right).all()):
            origin = event
        elif bool((event.value == right).all()):  # what came before was on the way to it
            origin = None
    if origin is None:
        if looked_up is culprit.event:
            return None
        used = next((path[0].event for path in paths if path[-1].event is looked_up), looked_up)
        return _other_rows(matched, culprit, looked_up, used)
    seq, detail = matched.trial.case.seq, []
    if origin.value.shape[-1] == seq:
        rows = origin.value.reshape(-1, seq)
        sequence, wrong = ((rows != torch.arange(seq)).nonzero()[0]).tolist()
        inside = f" of sequence {sequence}, counted from 0," if sequence else ""
        detail.append(f"Position {wrong}{inside} is counted as {rows[sequence, wrong]} there.")
    return found_at(matched, culprit, origin.at, "the positions", detail)


def _other_rows(matched: Matched, culprit: Seen, looked_up: Event, used: Event) -> Finding | None:
    """Return the line that takes rows of the table of positions, if they are others than the first ones.

    Args:
        used: what the culprit takes: these rows, as they were moved.
    """
    table = next((each for name, each in matched.trial.parameters.items() if name.endswith("W_pos")), None)
    seq = matched.trial.case.seq
    if table is None or looked_up.at is None or looked_up.value.shape[-1] != table.shape[-1]:
        return None
    taken = looked_up.value.reshape(-1, table.shape[-1])
    alike = (taken[:, None] == table.double()).all(-1)
    if not (alike.sum(-1) == 1).all():
        return None
    numbers = alike.int().argmax(-1).tolist()
    if len(numbers) == 1 and seq > 1:
        detail = f"Line {line_of(culprit.event)} uses that row for each of {seq} positions."
        wrong = f"the position embedding: row {numbers[0]}, counted from 0, alone"
        return found_at(matched, culprit, looked_up.at, wrong, [detail])
    inside = ""
    if used.value.shape == (matched.trial.case.batch, seq, table.shape[-1]):  # each sequence has its own
        alike = (used.value.double()[:, :, None] == table.double()).all(-1).int()
        every = alike.argmax(-1).tolist()
        sequence = next((i for i, each in enumerate(every) if each != list(range(seq))), 0)
        numbers, inside = every[sequence], f" of sequence {sequence}, counted from 0,"
    first = next((i for i, number in enumerate(numbers[:seq]) if number != i), None)
    if first is None or len(numbers) < seq:
        return None
    detail = f"In the place of position {first}{inside} it has row {numbers[first]} of the table, counted from 0."
    return found_at(matched, culprit, looked_up.at, "the rows of the table of positions", [detail])
