"""The layer that is diagnosed, as the diagnosis knows it: by its answers, and by what it lacks."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .candidate.trace import Trace
from .numbers import Answer, same
from .rungs import Case, Rung, Trial, altered, draw_case, make_trial

Respond = Callable[[Trial], Answer | None]


@dataclass(frozen=True)
class Subject:
    """A layer to be diagnosed.

    Args:
        respond: its answer to a trial in float64; None if it gave none (it crashed, or could not be built for this
            configuration). A trial may have parameters and input of its own making.
        draw: draws cases that the layer can be built for. Of a case it draws, the diagnosis may also try
            ``act_fn="gelu_new"``, ``scale_attn_weights=True``, and other sizes; if all that it draws have
            ``d_model = n_heads * d_head``, so will those.
        trace: what the layer computes on a trial, if that can be recorded.
        missing: parameters that it does not have (`in_any_block`); they are 0 in every trial.
    """

    respond: Respond
    draw: Callable[[random.Random], Case] = draw_case
    trace: Callable[[Trial], Trace] | None = None
    missing: frozenset[str] = frozenset()

    def trial(self, rung: Rung, case: Case) -> Trial:
        """Return the trial of a case, judged by our own layer."""
        return own_trial(rung, case, torch.float64, self.missing)


def own_trial(rung: Rung, case: Case, dtype: torch.dtype, missing: frozenset[str] = frozenset()) -> Trial:
    """Draw the numbers of a case, judged by our own layer, for a layer that lacks some of the parameters."""
    trial = make_trial(rung, rung.own, case, dtype)
    lacking = {name: 0.0 for name in trial.parameters if in_any_block(name) in missing}
    if not lacking:
        return trial
    trial = altered(trial, given=None, **lacking)
    kept = {name: gradient for name, gradient in trial.expected.gradients.items() if name not in lacking}
    return replace(trial, expected=replace(trial.expected, gradients=kept))


def without(found: Answer, missing: frozenset[str]) -> Answer:
    """Return the answer less the gradients of parameters that a layer does not have."""
    return replace(found, gradients={n: g for n, g in found.gradients.items() if in_any_block(n) not in missing})


def in_any_block(name: str) -> str:
    """Return the name of a parameter whatever block it is in: what one block lacks, all lack."""
    return re.sub(r"^blocks\.\d+\.", "blocks.#.", name)


def is_right(found: Answer, trial: Trial) -> bool:
    """Return whether an answer is the expected one, and no gradient is missing."""
    return same(found, trial.expected) and found.gradients.keys() >= trial.expected.gradients.keys()
