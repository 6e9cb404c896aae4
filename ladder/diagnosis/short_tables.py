"""A mask or a table that is shorter than a sequence: the line that makes it, if longer sequences raise an error."""

from dataclasses import replace

from ..candidate.trace import Trace
from ..results import Finding
from ..rungs import Case, Trial
from ..under_test import UnderTest


def too_short(layer: UnderTest, trial: Trial, trace: Trace) -> Finding | None:
    """Return the line that makes a tensor of fewer positions than a sequence, if just that length is still answered.

    Args:
        layer: it raises an error on the trial.
        trial: of a sequence that may be too long for the tensor.
        trace: of the layer, up to the error.
    """
    seq, n_ctx = trial.case.seq, trial.config.n_ctx
    depends = set[int]()
    for index, event in enumerate(trace.events):
        if event.parameters or not depends.isdisjoint(event.inputs) or -1 in event.inputs:
            depends.add(index)
            continue
        size = event.value.shape[-1] if event.value.ndim else 0
        if event.at is None or not 1 < size < seq or size != max(event.value.shape):
            continue
        answered = [answers(layer, replace(trial.case, seq=length)) for length in (size, size + 1)]
        if answered == [True, False]:
            wrong = f"what is made there: it has {size} positions, where n_ctx is {n_ctx}"
            detail = f"A sequence of {size} positions is answered, and one of {size + 1} raises the error."
            return Finding(*event.at, (), wrong, (detail,))
    return None


def answers(layer: UnderTest, case: Case) -> bool:
    """Return whether a layer gives an output of the right shape for a case, be it right or wrong."""
    return layer.answer(layer.own_trial(case, gradients=False), gradients=False) is not None
