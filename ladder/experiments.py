"""Experiments on a wrong layer: its smallest case, the layers inside it, the rows that an embedding gives."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .candidate.trace import Trace
from .numbers import Answer, close
from .rungs import Case, Trial, altered


def row_facts(trial: Trial, output: Tensor) -> tuple[str, ...]:
    """Return which row of its table the first wrong token or position got."""
    table = next(iter(trial.parameters.values()))
    for where in itertools.product(range(trial.case.batch), range(trial.case.seq)):
        row, right = output[where], trial.expected.output[where]
        if close(row, right):
            continue
        index = int(trial.given[where]) if trial.rung == "embed" else where[1]
        what = "Token" if trial.rung == "embed" else "Position"
        same_row = [i for i, each in enumerate(table) if close(row, each)]
        ratio = row / right
        if same_row:
            return (f"{what} {index} gets row {same_row[0]} of the table, not row {index}.",)
        if close(ratio, ratio[:1].expand_as(ratio)):
            return (f"{what} {index} gets its own row times {ratio[0]:.6g}.",)
        return (f"{what} {index} gets a vector that is no row of the table.",)
    return ()


# ---- the smallest case ----------------------------------------------------------------------------------------------


def sized(case: Case, **sizes: int) -> Case:
    """Return the case with other sizes; ``d_mlp`` stays ``4 * d_model`` if it was: the layer may count on it."""
    outer = {name: sizes.pop(name) for name in ("batch", "seq") if name in sizes}
    changed = replace(case.config, **sizes)
    if case.config.d_mlp == 4 * case.config.d_model and "d_mlp" not in sizes:
        changed = replace(changed, d_mlp=4 * changed.d_model)
    return replace(case, **outer, config=changed)


def shrink(case: Case, fails: Callable[[Case], bool], square: bool) -> Case:
    """Return the smallest case that still fails, one size after another.

    Args:
        square: keep ``d_model = n_heads * d_head``. ``d_mlp = 4 * d_model`` is kept if it is so.
    """

    def smaller(case: Case, name: str, size: int) -> Case:
        sizes = {name: size}
        if square and name in ("n_heads", "d_head"):
            heads = {"n_heads": case.config.n_heads, "d_head": case.config.d_head} | sizes
            sizes["d_model"] = heads["n_heads"] * heads["d_head"]
        return sized(case, **sizes)

    least = {"d_model": 2, "d_head": 1 + square, "d_vocab": 2}
    names = ["n_layers", "batch", "seq", "n_heads", "d_head", "d_vocab", "n_ctx"]
    if not square:
        names.append("d_model")
    if case.config.d_mlp != 4 * case.config.d_model:
        names.append("d_mlp")
    for name in names:
        now = getattr(case, name) if name in ("batch", "seq") else getattr(case.config, name)
        start = max(case.seq, 1) if name == "n_ctx" else least.get(name, 1)
        for size in range(start, now):
            if fails(candidate := smaller(case, name, size)):
                case = candidate
                break
    return case


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
    numbers = {"parameters": parameters, "given": given, "cotangent": cotangent, "expected": Answer(given, {})}
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
