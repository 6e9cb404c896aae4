"""The layers inside a wrong layer, each by itself: which of them are wrong."""

import re
from dataclasses import replace

import torch
from torch import Tensor

from ..answers import close
from ..candidate.trace import Trace
from ..rungs import UNANSWERED, Trial, altered


def part_trial(trial: Trial, part: str, part_rung: str, given: Tensor) -> Trial:
    """Return the trial of one layer inside another: its parameters, and the input that it had there; no gradients."""
    prefix = f"{part}."
    parameters = {name.removeprefix(prefix): p for name, p in trial.parameters.items() if name.startswith(prefix)}
    cotangent = torch.zeros(
        (*given.shape[:2], trial.config.d_vocab if part_rung == "unembed" else trial.config.d_model), dtype=trial.dtype
    )
    case = replace(trial.case, batch=given.shape[0], seq=given.shape[1])
    numbers = {"parameters": parameters, "given": given, "cotangent": cotangent, "expected": UNANSWERED}
    return altered(replace(trial, rung=part_rung, case=case, **numbers))


def part_rung(part: str) -> str | None:
    """Return the rung of a part by its name in our model: ``blocks.0.attn`` is attention."""
    known = {"ln1": "layer-norm", "ln2": "layer-norm", "ln_final": "layer-norm", "attn": "attention", "mlp": "mlp"}
    known |= {"embed": "embed", "pos_embed": "pos-embed", "unembed": "unembed"}
    return known.get(part.rpartition(".")[2]) or ("block" if re.fullmatch(r"blocks\.\d+", part) else None)


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
