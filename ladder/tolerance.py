"""Tolerance: how far a user's layer may be off, and what is wrong with an answer that is further off."""

from collections.abc import Iterable, Sequence

import torch

from .answers import Answer, difference
from .results import listed
from .rungs import Rung, Trial

# Users' layers are tried on longer sums than the rungs' own cases, and may order them as they like: in float32 four
# times as much is allowed. What is wrong shows in float64.
_FLOAT32 = 4


def limit(rung: Rung, dtype: torch.dtype) -> float:
    """Return how far a user's layer may be off."""
    return rung.tolerance(dtype) * (_FLOAT32 if dtype == torch.float32 else 1)


def wrongness(
    rung: Rung, trial: Trial, found: Answer, off: tuple[float, float], *, lenient: bool = False
) -> tuple[str, str]:
    """Return what is wrong with an answer, in a word and in a clause; empty if nothing is.

    Args:
        off: how far the output and any gradient are off.
        lenient: allow in float64 what is allowed in float32; of a gradient, ten times as much.
    """
    exact, most = trial.dtype == torch.float64, limit(rung, torch.float32 if lenient else trial.dtype)
    finite = found.output.isfinite()
    if not finite.any():
        return "nan", "forward returns nothing but NaN or infinity"
    if not finite.all():
        return "some nan", "forward returns NaN or infinity among its numbers"
    output, gradient = off
    if output > most:
        amount = f"off by {output:.1e}, where {most:.0e} is allowed"
        return ("output", f"the output is {amount}") if exact else ("float32", f"right in float64; in float32 {amount}")
    if lenient:
        most *= 10
    if not exact or gradient <= most:
        return "", ""
    expected = trial.expected.gradients
    missing = [
        name
        for name, right in expected.items()
        if name not in found.gradients or (right.abs().max() > most and not found.gradients[name].any())
    ]
    # With one position, that of the input may be 0 because those of the values are; it is not missing for itself.
    missing = [name for name in missing if name != "input"] or missing
    if missing:
        return "missing", f"the output is right, but no gradient reaches {parameters_in_words(missing, expected)}"
    far = {name: difference(found.gradients.get(name), right) for name, right in trial.expected.gradients.items()}
    name = max(far, key=lambda name: far[name])
    return "gradient", f"the output is right, but the gradient of {name} is off by {gradient:.1e}"


def parameters_in_words(names: Sequence[str], every: Iterable[str]) -> str:
    """Return the names of parameters as a list; a layer in place of its parameters if all of them are among these.

    Example:
        >>> parameters_in_words(["ln1.w", "ln1.b", "mlp.b_in"], ["ln1.w", "ln1.b", "mlp.b_in", "mlp.b_out"])
        'ln1 (all of it) and mlp.b_in'
    """
    found: dict[str, None] = {}
    for name in names:
        pieces = name.split(".")
        layers = (".".join(pieces[:i]) + "." for i in range(1, len(pieces)))
        whole = (each for each in layers if all(other in names for other in every if other.startswith(each)))
        layer = next((each for each in whole if sum(other.startswith(each) for other in names) > 1), None)
        found[f"{layer[:-1]} (all of it)" if layer else name] = None
    return listed(list(found))
