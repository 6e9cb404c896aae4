"""Rotary positions: queries or keys that are turned by an angle that grows with the position."""

import re

import torch

from ..answers import close
from ..formula.trace_matching import Matched, Seen
from ..results import Finding
from .in_words import found_at


def rotary_positions(matched: Matched, culprit: Seen) -> Finding | None:
    """Return the line that turns queries or keys, if one does: position 0 is as it was, and no vector's length changes.

    Args:
        culprit: the first wrong event.
    """
    if matched.trial.case.seq < 2:
        return None
    for quantity in (each for each in matched.steps if re.search(r"(^|\.)[QK]$", each.key)):
        right = quantity.value
        for seen in matched.seen[culprit.index :]:
            value = seen.event.value
            if seen.good or seen.event.at is None or value.numel() != right.numel() or not seen.depends:
                continue
            for own in (value, value.transpose(1, 2) if value.ndim > 2 else value):
                if own.shape != right.shape or not close(own[:, 0], right[:, 0]) or close(own, right):
                    continue
                if close(torch.linalg.vector_norm(own, dim=-1), torch.linalg.vector_norm(right, dim=-1), 1e-9):
                    wrong = f"{quantity.words}, which are turned by an angle that depends on the position"
                    detail = "GPT-2 does not turn them (rotary positions): it adds W_pos to the token embedding."
                    return found_at(matched, culprit, seen.event.at, wrong, [detail])
    return None
