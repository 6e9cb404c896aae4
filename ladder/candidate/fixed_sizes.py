"""Sizes that a layer has whatever it is built for: an MLP of 2048, a context of 256, what ``--set`` has chosen."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from ...assembly.config import GPT2Config

# Which sizes can be read off the parameters of a rung.
_OF_RUNG = {
    "mlp": ("d_mlp",),
    "block": ("d_mlp",),
    "embed": ("d_vocab",),
    "pos-embed": ("n_ctx",),
    "unembed": ("d_vocab",),
    "model": ("d_mlp", "n_ctx", "d_vocab"),
}
_POSITIONS = re.compile(r"pos|wpe", re.I)
_BLOCK = re.compile(r"^(.*?\.)?(\d+)\.")


def fixed_sizes(
    layer: nn.Module, rung: str, config: GPT2Config, asked: Collection[str] = (), chosen: Collection[str] = ()
) -> dict[str, int]:
    """Return the sizes that a layer does not take from the configuration, by our names, as its matrices show them.

    Args:
        asked: the fields of the configuration that it has read. To read a size and have another is a mistake; so is to
            be given a configuration and not to read it, unless values were chosen.
        chosen: names of values that the user has chosen.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(18, 50), nn.Linear(50, 18))
        >>> fixed_sizes(mlp, "mlp", GPT2Config(d_model=18, n_heads=3, d_head=6, d_mlp=72))
        {'d_mlp': 50}
    """
    if "config" in asked and not chosen:
        return {}
    width, heads = config.d_model, config.n_heads * config.d_head
    known = {width, 3 * width, heads, 3 * heads, config.d_mlp, config.n_ctx, config.d_vocab}
    # The other side of each matrix that has one of the model's width.
    others: list[tuple[str, int]] = []
    for name, parameter in layer.named_parameters():
        sides = [size for size in parameter.shape if size != 1]
        if len(sides) == 2 and width in sides:
            others.append((name, sides[0] if sides[1] == width else sides[1]))
    present = {size for _, size in others}
    lacking = [name for name in _OF_RUNG.get(rung, ()) if getattr(config, name) not in present and name not in asked]
    found: dict[str, int] = {}
    blocks = _number_of_blocks(others) if rung == "model" and "n_layers" not in asked else 0
    if blocks not in (0, config.n_layers):
        found["n_layers"] = blocks
    matrices = 2 * (blocks or config.n_layers if rung == "model" else 1)  # of the MLPs
    for ours in lacking:
        mine = [(name, size) for name, size in others if size not in known | set(found.values())]
        if ours != "d_mlp" and {"n_ctx", "d_vocab"} <= set(lacking):
            mine = [(name, size) for name, size in mine if bool(_POSITIONS.search(name)) == (ours == "n_ctx")]
        counts = Counter(size for _, size in mine)
        fitting = [size for size, count in counts.items() if ours != "d_mlp" or count >= matrices]
        if len(fitting) == 1:
            found[ours] = fitting[0]
    return found


def _number_of_blocks(matrices: Sequence[tuple[str, int]]) -> int:
    """Return how many numbers the blocks of a model have, by the names of its matrices; 0 if none are numbered."""
    numbers: dict[str, set[str]] = {}
    for name, _ in matrices:
        if match := _BLOCK.match(name):
            numbers.setdefault(match[1] or "", set()).add(match[2])
    return max(map(len, numbers.values()), default=0)


def d_mlp_that_follows(one: Mapping[str, int], other: Mapping[str, int], widths: tuple[int, int]) -> str:
    """Return what to say of a layer whose ``d_mlp`` is another one beside another ``d_model``; empty if it is not.

    Example:
        >>> d_mlp_that_follows({"d_mlp": 24}, {"d_mlp": 40}, (12, 20))
        "its d_mlp is 2*d_model (24 where d_model is 12, 40 where it is 20); GPT-2's is 4*d_model, or what is asked for"
    """
    if "d_mlp" not in one or "d_mlp" not in other:
        return ""
    first, second = one["d_mlp"], other["d_mlp"]
    what = f"{first / widths[0]:g}*d_model" if first * widths[1] == second * widths[0] else "another in each case"
    where = f"{first} where d_model is {widths[0]}, {second} where it is {widths[1]}"
    return f"its d_mlp is {what} ({where}); GPT-2's is 4*d_model, or what is asked for"
