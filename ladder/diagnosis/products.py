"""Products with GPT-2's weights: which weight a step multiplies by, whatever the user calls it."""

import torch
from torch import Tensor

from ..candidate.trace import Event
from ..formula.same_numbers import equal, sorted_numbers
from ..formula.trace_matching import Matched

# The step that each weight makes, before its bias.
_MADE = {
    "W_Q": "Q0", "W_K": "K0", "W_V": "V0", "W_O": "projected", "W_in": "pre0", "W_out": "projected", "W_U": "logits",
}  # fmt: skip


def weight_of(matched: Matched, event: Event) -> str:
    """Return the name of the weight that an event multiplies its input by; empty if it is no such product."""
    given = _given(matched, event)
    if given is None:
        return ""
    own, parameters = sorted_numbers(event.value), matched.trial.parameters
    for name, weight in parameters.items():
        matrix = _matrix(name, weight)
        if (
            matrix is None
            or given.shape[-1] != matrix.shape[0]
            or given.shape[:-1].numel() * matrix.shape[1] != own.size
        ):
            continue
        bias = parameters.get(name.replace("W_", "b_"))
        bare = given.double() @ matrix
        if any(equal(sorted_numbers(bare + each), own) for each in (0.0, 0.0 if bias is None else bias.flatten())):
            return name
    return ""


def weights_of(matched: Matched, event: Event) -> list[str]:
    """Return the names of the weights that an event multiplies its input by: one, or those of q, k and v in one."""
    if name := weight_of(matched, event):
        return [name]
    given, parameters = _given(matched, event), matched.trial.parameters
    if given is None:
        return []
    for first in (name for name in parameters if name.endswith("W_Q")):
        names = [f"{first[:-1]}{letter}" for letter in "QKV"]
        matrices = [matrix for name in names if (matrix := _matrix(name, parameters[name])) is not None]
        if given.is_floating_point() and given.shape[-1] == matrices[0].shape[0]:
            bare = [given.double() @ matrix for matrix in matrices]
            biases = [parameters[name.replace("W_", "b_")].flatten() for name in names]
            with_bias = [one + bias for one, bias in zip(bare, biases, strict=True)]
            own = sorted_numbers(event.value)
            if any(equal(sorted_numbers(torch.stack(each)), own) for each in (bare, with_bias)):
                return names
    return []


def input_of(matched: Matched, event: Event) -> int | None:
    """Return the one input of an event that is not made of parameters alone; None if there are others or no such."""
    made = [index for index in event.inputs if index < 0 or is_of_input(matched, index)]
    weights = len(made) < len(event.inputs) or bool(event.parameters)
    return made[0] if len(made) == 1 and weights else None


def _given(matched: Matched, event: Event) -> Tensor | None:
    """Return the numbers of that input."""
    index = input_of(matched, event)
    if index is None:
        return None
    return matched.trial.given if index < 0 else matched.seen[index].event.value


def is_of_input(matched: Matched, index: int) -> bool:
    """Return whether an event is made of the layer's input, and not of parameters alone."""
    return any(-1 in matched.seen[source].event.inputs for source in matched.sources([index]))


def is_due(matched: Matched, weight: str, missing: str) -> bool:
    """Return whether GPT-2's next product after a step, or with it, is that with a weight."""
    start = next((i for i, each in enumerate(matched.steps) if each.words == missing), len(matched.steps))
    last = (each.key.rpartition(".") for each in matched.steps[start:])
    of, due = next(((of + dot, key) for of, dot, key in last if key in _MADE.values()), ("", ""))
    name = weight.removeprefix(of)
    return _MADE.get(name) == due or (due == "Q0" and name in ("W_K", "W_V"))


def _matrix(name: str, weight: Tensor) -> Tensor | None:
    last = name.rpartition(".")[2]
    if last not in _MADE:
        return None
    if last == "W_O":
        return weight.double().flatten(0, 1)
    return weight.double().transpose(0, 1).flatten(1) if weight.ndim == 3 else weight.double()
