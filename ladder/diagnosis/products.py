"""Products with GPT-2's weights: which weight a step multiplies by, whatever the user calls it."""

import torch
from torch import Tensor

from ..candidate.trace import Event
from ..formula.quantities import Quantity
from ..formula.same_numbers import equal, sorted_numbers
from ..formula.trace_matching import Matched

# The step that each weight makes, before its bias.
_MADE = {
    "W_Q": "Q0", "W_K": "K0", "W_V": "V0", "W_O": "projected", "W_in": "pre0", "W_out": "projected", "W_U": "logits",
}  # fmt: skip


# What each weight is multiplied by in GPT-2: a step of the same layer, or the layer norm before it.
_READS = {"W_O": "z", "W_out": "post"}
_NORMS = {"attn.": "ln1.output", "mlp.": "ln2.output", "unembed.": "ln_final.output"}


def reads_and_makes(matched: Matched, weight: str) -> tuple[str, Quantity | None]:
    """Return what GPT-2 multiplies by a weight, in words, and the step that this makes; empty and None if unknown."""
    of, _, last = weight.rpartition(".")
    of += "." if of else ""
    steps = {each.key: each for each in matched.steps}
    own = steps.get(f"{of}{_MADE[last].removesuffix('0')}")
    if last in _READS:
        read = steps.get(f"{of}{_READS[last]}")
    else:
        norm = next((f"{of.removesuffix(part)}{norm}" for part, norm in _NORMS.items() if of.endswith(part)), "input")
        read = steps.get(norm)
    return read.words.replace("the input", "the layer's input") if read else "", own


def weight_of(matched: Matched, event: Event, *, transposed: bool = False) -> str:
    """Return the name of the weight that an event multiplies its input by; empty if it is no such product.

    Args:
        transposed: look for products with a weight's transpose.
    """
    given = _given(matched, event)
    if given is None:
        return ""
    own, parameters = sorted_numbers(event.value), matched.trial.parameters
    for name, weight in parameters.items():
        matrix = _matrix(name, weight)
        matrix = matrix.T if transposed and matrix is not None else matrix
        if (
            matrix is None
            or given.shape[-1] != matrix.shape[0]
            or given.shape[:-1].numel() * matrix.shape[1] != own.size
        ):
            continue
        # Of a transpose, no bias of the weight's own fits, but one of the same layer may.
        biases = [each.flatten() for key, each in parameters.items() if key.rpartition(".")[2].startswith("b_")]
        biases = (
            [each for each in biases if each.numel() == matrix.shape[1]]
            if transposed
            else [parameters[key].flatten() for key in [name.replace("W_", "b_")] if key in parameters]
        )
        bare = given.double() @ matrix
        if any(equal(sorted_numbers(bare + each), own) for each in (0.0, *biases)):
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
