"""A mask or a table that is shorter than a sequence: the line that makes it, if longer sequences raise an error."""

from dataclasses import replace

from ..candidate.trace import Trace
from ..results import Finding
from ..rungs import Trial
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
        answered = [_answers(layer, trial, length) for length in (size, size + 1)]
        if answered == [True, False]:
            wrong = f"what is made there: it has {size} positions, where n_ctx is {n_ctx}"
            detail = f"A sequence of {size} positions is answered, and one of {size + 1} raises the error."
            return Finding(*event.at, (), wrong, (detail,))
    return None


def _answers(layer: UnderTest, trial: Trial, seq: int) -> bool:
    asked = layer.own_trial(replace(trial.case, seq=seq), gradients=False)
    return layer.answer(asked, gradients=False) is not None
