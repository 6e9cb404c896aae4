"""Mistakes that are a number: another eps, another fill of the mask. The number is measured on the user's layer."""

import math
from collections.abc import Iterable, Iterator
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
        if number > _NONE:
            hint = f"Masked scores are {number:g}, so later keys still get weight. Fill with -inf."
            found.append(_number(f"mask fills {number:g}", hint, {"fill": number}))
        else:
            found += _hidden_alike({"fill": number})
    for number in dict.fromkeys(_added(trial, trace)):
        steps = _adding(number)
        if number > _NONE:
            hint = f"The mask adds {number:g} to later keys' scores, so they still get weight. Add -inf."
            found.append(_number(f"mask adds {number:g}", hint, steps[0]))
        else:
            found += _hidden_alike(*steps)
    no_mask = next(each for each in ATTENTION if each.name == "no causal mask")
    for number in dict.fromkeys(_added_to_all(trial, trace)):
        # The softmax is the same as without it, up to the rounding.
        added = {"masked": lambda self, scores, number=number: scores + number}
        found.append(replace(no_mask, spellings=(added,)))
    return found


def _number(name: str, hint: str, steps: Steps) -> Mistake:
    """Return the mistake of a mask whose number hides too little."""
    return Mistake(name, hint, "attention", PlainAttention, (steps,))


def _adding(number: float) -> tuple[Steps, ...]:
    """Return the steps of a mask that adds a number: to the scaled scores, or to scores that are scaled after it."""

    def moved(self: PlainAttention, scores: Tensor) -> Tensor:
        return scores + number * ~self.allowed(scores)

    # Adding a large number rounds the scores, and scaling them after it rounds them again, in one way or the other.
    unscaled = {"scaled": lambda self, scores: scores}
    times = {"masked": lambda self, scores: moved(self, scores) * self.scale}
    over = {"masked": lambda self, scores: moved(self, scores) / math.sqrt(self.d_head)}
    return {"masked": moved}, unscaled | times, unscaled | over


def _hidden_alike(*masks: Steps) -> list[Mistake]:
    """Return the mistakes that show the number of a mask: all of a row, or all that one softmax takes, is hidden.

    Args:
        masks: ways in which the mask hides, each as steps of a layer.
    """
    shows = [each for each in ATTENTION if any(spelling.keys() > {"fill"} for spelling in each.spellings)]
    return [replace(each, spellings=tuple({**each.spellings[0], **steps} for steps in masks)) for each in shows]


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
    """Yield the number beside 0 in a matrix for queries and keys, if there is one alone, as it is added to scores."""
    squares = list(_squares(trial, trace))
    for value in squares:
        numbers = value.unique()
        if numbers.numel() == 2 and 0 in numbers and torch.isfinite(numbers).all():
            number = numbers[numbers != 0].item()
            yield from (each for each in (number, -number) if abs(each) < -_NONE or _is_among(each, squares))


def _added_to_all(trial: Trial, trace: Trace) -> Iterator[float]:
    """Yield the large number that all scores of a trace are moved by."""
    squares = list(_squares(trial, trace))
    for value in squares:
        number = value.flatten()[0].item()
        if -_NONE < abs(number) < torch.inf and bool((value == number).all()):
            yield from (each for each in (number, -number) if _is_among(each, squares))


def _is_among(number: float, scores: Iterable[Tensor]) -> bool:
    """Return whether scores are moved by a large number."""
    return any(each.ndim > 2 and bool(((each - number).abs() < 1e-3 * abs(number)).any()) for each in scores)
