"""Layer norms that are applied after the addition to the stream (post-norm), whatever else a block does wrong."""

from torch import Tensor

from ..answers import close
from ..candidate.trace import Trace

# What each layer norm of a block comes before in GPT-2.
_BEFORE = {"ln1": "attn", "ln2": "mlp"}


def norms_after_addition(trace: Trace) -> str:
    """Return that a block's layer norms are given the sum of a layer's input and output; empty if they are not."""
    found: list[str] = []
    for norm, layer in _BEFORE.items():
        calls = [(part.rpartition(".")[0], part.rpartition(".")[2], *numbers) for part, *numbers in trace.parts]
        sums = [(block, given + out) for block, part, given, out in calls if part == layer and given.shape == out.shape]
        norms = [(block, given) for block, part, given, _ in calls if part == norm and given.is_floating_point()]
        if sums and norms and any(one == other and _same(a, b) for one, a in sums for other, b in norms):
            found.append(norm)
    if not found:
        return ""
    if len(found) == 2:
        where = "ln1 and ln2 come after the additions (post-norm): each is given a layer's input plus its output"
    else:
        layer = {"ln1": "attention", "ln2": "the MLP"}[found[0]]
        where = f"{found[0]} comes after the addition (post-norm): it is given the input of {layer} plus its output"
    return f"{where}. GPT-2 has x + attn(ln1(x)), and then x + mlp(ln2(x))."


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and close(one, other)
