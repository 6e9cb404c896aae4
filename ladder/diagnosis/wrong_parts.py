"""The layers inside a wrong layer, each by itself: which of them are wrong."""

from dataclasses import replace

import torch
from torch import Tensor

from ..answers import close
from ..candidate.trace import Trace
from ..formula.quantities import part_rung
from ..rungs import UNANSWERED, Trial, altered


def part_trial(trial: Trial, part: str, part_rung: str, given: Tensor) -> Trial:
    """Return the trial of one layer inside another: its parameters, and the input that it had there; no gradients."""
    prefix = f"{part}."
    parameters = {name.removeprefix(prefix): p for name, p in trial.parameters.items() if name.startswith(prefix)}
    if part_rung == "unembed" and "W_U" not in parameters:  # the model's logits are tied
        parameters["W_U"] = trial.parameters["embed.W_E"].T
    cotangent = torch.zeros(
        (*given.shape[:2], trial.config.d_vocab if part_rung == "unembed" else trial.config.d_model), dtype=trial.dtype
    )
    case = replace(trial.case, batch=given.shape[0], seq=given.shape[1])
    numbers = {"parameters": parameters, "given": given, "cotangent": cotangent, "expected": UNANSWERED}
    return altered(replace(trial, rung=part_rung, case=case, **numbers))


def wrong_parts(trial: Trial, trace: Trace) -> list[tuple[str, Trial, Tensor]]:
    """Return the layers inside a layer that are wrong by themselves: name, trial, and their own output."""
    found: dict[str, tuple[str, Trial, Tensor]] = {}
    for part, given, output in trace.parts:
        kind = part_rung(part)
        if kind is None or kind in ("pos-embed", "embed") or part in found or not given.is_floating_point():
            continue
        inner = part_trial(trial, part, kind, given.to(trial.dtype))
        if output.shape == inner.expected.output.shape and not close(output.to(trial.dtype), inner.expected.output):
            found[part] = (part, inner, output)
    return list(found.values())
