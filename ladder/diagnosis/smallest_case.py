"""A small case that a layer still fails: its sizes are made smaller, one after another."""

from collections.abc import Callable, Collection
from dataclasses import replace

from ..candidate.aliases import SIZES
from ..rungs import Case


def sized(case: Case, **sizes: int) -> Case:
    """Return the case with other sizes; ``d_mlp`` stays ``4 * d_model`` if it was: the layer may count on it."""
    outer = {name: sizes.pop(name) for name in ("batch", "seq") if name in sizes}
    changed = replace(case.config, **sizes)
    if case.config.d_mlp == 4 * case.config.d_model and "d_mlp" not in sizes:
        changed = replace(changed, d_mlp=4 * changed.d_model)
    return replace(case, **outer, config=changed)


def sizes_of(case: Case) -> dict[str, int]:
    """Return the sizes of a case, by their names."""
    return {"batch": case.batch, "seq": case.seq} | {name: getattr(case.config, name) for name in SIZES}


def shrink(case: Case, fails: Callable[[Case], bool], square: bool, fixed: Collection[str] = ()) -> Case:
    """Return a small case that still fails: each size is the least with which it does, one after another.

    Args:
        square: keep ``d_model = n_heads * d_head``. ``d_mlp = 4 * d_model`` is kept if it is so.
        fixed: sizes that the layer has in any case.
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
    for name in [each for each in names if each not in fixed]:
        now = getattr(case, name) if name in ("batch", "seq") else getattr(case.config, name)
        start = max(case.seq, 1) if name == "n_ctx" else least.get(name, 1)
        for size in range(start, now):
            if fails(candidate := smaller(case, name, size)):
                case = candidate
                break
    return case
