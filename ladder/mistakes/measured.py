"""Mistakes that are a number: another eps, another fill of the mask. The number is measured on the user's layer."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..candidate.trace import Trace
from ..rungs import Trial
from .attention import ATTENTION
from .layer_norm import PlainLayerNorm
from .mistake import Mistake, Steps
from .plain_attention import PlainAttention

# exp() of numbers below is 0: they hide what they are filled in for.
_NONE = -700


def measured_eps(trial: Trial, output: Tensor) -> list[Mistake]:
    """Return the mistake of another eps, if that is what the output of a layer norm is made with.

    Args:
        trial: of a layer norm.
        output: the layer's own.
    """
    x, w, b = trial.given, trial.parameters["w"], trial.parameters["b"]
    if output.shape != x.shape or not output.isfinite().all():
        return []
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    # y = centred / sqrt(variance + eps) * w + b, solved for eps where that is well conditioned.
    ratio = (centred * w / (output - b)) ** 2 - variance
    large = (centred * w).abs() > 0.3 * variance.sqrt()
    own = ratio[large & ratio.isfinite()]
    if own.numel() < 3:
        return []
    eps = float(f"{own.median().item():.6g}")
    right = trial.config.layer_norm_eps
    if eps <= 0 or (own - eps).abs().max() > 1e-4 * eps + 1e-9 or abs(eps - right) < 1e-4 * right:
        return []
    hint = f"layer_norm_eps is {eps:g} there, where the configuration has {right:g}. "
    hint += "Use the configuration's (GPT-2's is 1e-5)."
    spelling = {"deviation": lambda self, x: (self.variance(x) + eps).sqrt()}
    return [Mistake(f"eps is {eps:g}", hint, "layer-norm", PlainLayerNorm, (spelling,))]


def measured_fills(trial: Trial, trace: Trace) -> list[Mistake]:
    """Return mistakes of masks that fill, or add, the numbers that hidden scores have in a trace of attention."""
    found: list[Mistake] = []
    for number in dict.fromkeys(_fills(trial, trace)):
        hint = f"Masked scores are {number:g}, so later keys still get weight. Fill with -inf."
        found += _masks(f"mask fills {number:g}", hint, number, {"fill": number})
    for number in dict.fromkeys(_added(trial, trace)):
        steps = {"masked": lambda self, scores, number=number: scores + number * ~self.allowed(scores)}
        hint = f"The mask adds {number:g} to later keys' scores, so they still get weight. Add -inf."
        found += _masks(f"mask adds {number:g}", hint, number, steps)
    return found


def _masks(name: str, hint: str, number: float, steps: Steps) -> list[Mistake]:
    """Return the mistake of a number that hides too little; of one that hides, masks that hide the wrong keys."""
    if number > _NONE:
        return [Mistake(name, hint, "attention", PlainAttention, (steps,))]
    # A row that is hidden whole shows the number.
    wrong = [each for each in ATTENTION if any("fill" in spelling for spelling in each.spellings)]
    wrong = [each for each in wrong if "allowed" in each.spellings[0]]
    return [replace(each, spellings=({**each.spellings[0], **steps},)) for each in wrong]


def _squares(trial: Trial, trace: Trace) -> Iterator[Tensor]:
    seq = trial.case.seq
    for event in trace.events:
        if event.value.is_floating_point() and event.value.shape[-2:] == (seq, seq) and event.value.ndim > 1:
            yield event.value.double()


def _fills(trial: Trial, trace: Trace) -> Iterator[float]:
    """Yield the numbers that many scores of a trace have."""
    for value in _squares(trial, trace):
        numbers, counts = value[value.isfinite()].unique(return_counts=True)
        if value.ndim > 2 and counts.numel() and counts.max() > value.numel() // 4 and numbers.numel() > 2:
            yield numbers[counts.argmax()].item()


def _added(trial: Trial, trace: Trace) -> Iterator[float]:
    """Yield the number beside 0 in a matrix for queries and keys, if there is one alone."""
    for value in _squares(trial, trace):
        numbers = value.unique()
        if numbers.numel() == 2 and 0 in numbers and torch.isfinite(numbers).all():
            yield from (sign * numbers[numbers != 0].item() for sign in (1, -1))
