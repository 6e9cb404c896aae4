"""Parameters put into modules as GPT-2 has them, if the user's layer has other modules or none.

The names that say where a parameter stands are changed, the parameters' own names are not.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...assembly.config import GPT2Config
from .attention_parameters import PROJECTIONS, role_of
from .layouts import Given, Layout, Layouts, Parameter, Parameters

# A matrix and its bias have one name but for this part of it.
_KIND = re.compile(r"weight|kernel|matrix|bias|w|b", re.I)
# A model without blocks has at least two layer norms, attention and an MLP for each.
_LISTS = 4


def unstacked(found: Parameters, config: GPT2Config, rung: str) -> tuple[Parameters, dict[str, list[str]]]:
    """Return the parameters, those that hold several of GPT-2's matrices in pieces; and the pieces' names.

    Example:
        >>> W = Parameter("W", torch.zeros(4, 6, 6), torch.nn.Module())
        >>> pieces = unstacked({"W": W}, GPT2Config(d_model=6, n_heads=3, d_head=2), "attention")[0]
        >>> [(name, str(piece)) for name, piece in pieces.items()][0]
        ('0.W', 'W[0] [6, 6]')
    """
    if rung == "model":
        found = _by_layer(found, config)
        wide = any(re.match(r"(.*\.)?\d+\.", name) and config.d_mlp in p.shape for name, p in found.items())
        stacks = {} if wide else {n: p for n, p in found.items() if _holds(p, config.n_layers, config)}
        if any(config.d_mlp in p.shape for p in stacks.values()):
            return _split(found, stacks)
    sides = sorted((config.d_model, config.n_heads * config.d_head))
    whole = {n: p for n, p in found.items() if p.tensor.ndim == 3 and sorted(p.shape[1:]) == sides}
    whole = {n: p for n, p in whole.items() if p.shape[0] in (3, 4) and role_of(n) is None}
    beside = {n.rpartition(".")[0]: p.shape[0] for n, p in whole.items()}
    biases = {
        n: p
        for n, p in found.items()
        if p.tensor.ndim == 2 and role_of(n) is None and beside.get(n.rpartition(".")[0]) == p.shape[0]
    }
    return _split(found, whole | biases)


def _holds(parameter: Parameter, layers: int, config: GPT2Config) -> bool:
    """Return whether a parameter may hold one of every layer."""
    table = {config.d_vocab, config.n_ctx} & set(parameter.shape) and parameter.tensor.ndim == 2
    return parameter.tensor.ndim > 1 and parameter.shape[0] == layers and not table


def _split(found: Parameters, stacks: Parameters) -> tuple[Parameters, dict[str, list[str]]]:
    pieces: dict[str, Parameter] = {}
    names: dict[str, list[str]] = {}
    for key, parameter in found.items():
        path, dot, last = key.rpartition(".")
        if key not in stacks:
            pieces[key] = parameter
            continue
        names[parameter.name] = [f"{parameter.name}[{index}]" for index in range(len(parameter.tensor))]
        for index, (name, part) in enumerate(zip(names[parameter.name], parameter.tensor, strict=True)):
            pieces[f"{path}{dot}{index}.{last}"] = Parameter(name, part, parameter.owner)
    return pieces, names


def restacked(layouts: Sequence[Layout], pieces: Mapping[str, list[str]]) -> Sequence[Layout]:
    """Return layouts of parameters in pieces as layouts of the parameters."""
    if not pieces:
        return layouts

    def make(index: int) -> Layout:
        layout = layouts[index]

        def fill(given: Given) -> dict[str, Tensor]:
            state = layout.fill(given)
            whole = {name: torch.stack([state.pop(each) for each in names]) for name, names in pieces.items()}
            return state | whole

        return replace(layout, fill=fill)

    return Layouts(len(layouts), make)


def _by_layer(found: Parameters, config: GPT2Config) -> Parameters:
    """Return the parameters of lists side by side (``ln_1.0``, ``qkv.0``) under the number of the layer."""
    lists: dict[str, set[int]] = {}
    parts = {name: match.groups() for name in found if (match := re.match(r"(.*?)\.(\d+)(\..*|$)", name))}
    for before, index, _ in parts.values():
        lists.setdefault(before, set()).add(int(index))
    if list(lists.values()).count(set(range(config.n_layers))) < _LISTS:
        return found
    return {
        f"{parts[name][1]}.{parts[name][0]}{parts[name][2]}" if name in parts else name: parameter
        for name, parameter in found.items()
    }


def housed(found: Parameters, config: GPT2Config) -> Parameters:
    """Return a block's parameters, and those that are its own as in modules ``attn``, ``mlp``, ``ln1``, ``ln2``."""
    paths = [name.split(".")[:-1] for name in found]
    alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    block = "".join(f"{parts[0]}." for parts in alike)
    loose = {name.removeprefix(block): p for name, p in found.items() if "." not in name.removeprefix(block)}
    # Matrices by their shapes, and vectors with the matrix that has their name; the rest are the layer norms'.
    homes: dict[str, str] = {}
    of_stem: dict[str, str] = {}
    for name, parameter in loose.items():
        lengths = [size for size in parameter.shape if size != 1]
        if len(lengths) > 1 and config.d_model in lengths:
            homes[name] = "mlp" if config.d_mlp in lengths and role_of(name) not in PROJECTIONS else "attn"
            of_stem[_KIND.sub("", name, count=1)] = homes[name]
    norms = []
    for name, parameter in loose.items():
        if name not in homes:
            attends = role_of(name) in PROJECTIONS
            home = "attn" if attends else "mlp" if parameter.tensor.numel() == config.d_mlp else ""
            homes[name] = of_stem.get(_KIND.sub("", name, count=1)) or home
            norms += [] if homes[name] else [name]
    numbered = {name[-1] for name in norms} == {"1", "2"} or {re.sub(r"\D", "", name) for name in norms} == {"1", "2"}
    for place, name in enumerate(norms):
        second = "2" in name if numbered else place >= len(norms) / 2
        homes[name] = "ln2" if second else "ln1"

    def key(name: str) -> str:
        last = name.removeprefix(block)
        return f"{block}{homes[last]}.{last}" if last in homes else name

    return {key(name): parameter for name, parameter in found.items()}
