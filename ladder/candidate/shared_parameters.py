"""Parameters that stand in several places of a layer, and those that it does not know of."""

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn

from .layouts import Repeated


def tie_shared(layer: nn.Module) -> list[tuple[str, str]]:
    """Make one parameter of each two that share their numbers (``head.weight.data = wte.weight.data``).

    Each has a gradient of its own, and ``.to(dtype)`` gives each numbers of its own.

    Returns:
        Their names.
    """
    first: dict[tuple[int, torch.Size], str] = {}
    shared = []
    for name, parameter in list(layer.named_parameters(remove_duplicate=False)):
        where = parameter.data_ptr()
        one = first.setdefault((where, parameter.shape), name)
        if where and layer.get_parameter(one) is not parameter:
            path, _, last = name.rpartition(".")
            setattr(layer.get_submodule(path), last, layer.get_parameter(one))
            shared.append((one, name))
    return shared


def check_repeated(every: Mapping[str, Tensor], owners: Mapping[str, nn.Module]) -> None:
    """Refuse a list in which one module stands several times, or modules of one set of parameters."""
    for names in _several(every):
        if len({re.sub(r"\d+", "#", name) for name in names}) > 1:
            continue
        one, other = (re.match(r"(.*?\d+)(\.|$)", name) for name in names[:2])
        if not (one and other and one[1] != other[1]):
            continue
        first, second = owners.get(one[1]), owners.get(other[1])
        what = f"{one[1]} and {other[1]}"
        if first is None or second is None:
            raise Repeated(f"{what} are one and the same parameter: make a new one for each")
        if first is second:
            kind = type(first).__name__
            in_list = one[1].rpartition(".")[2].isdigit()
            why = f" ([{kind}(...)] * n puts one {kind} n times into the list)" if in_list else ""
            raise Repeated(
                f"{what} are one and the same {kind}, with one set of parameters{why}: make a new {kind} for each place"
            )
        raise Repeated(
            f"{what} are two modules that share one parameter, {names[0]} and {names[1]} (copy.copy copies a module "
            "without its parameters; copy.deepcopy copies them too): make a new module for each place"
        )


def repeated(layer: nn.Module, names: Container[str]) -> str:
    """Return what is wrong if parameters of these names are those of one module in several places; else nothing."""
    every = {name: each for name, each in layer.named_parameters(remove_duplicate=False) if name in names}
    try:
        check_repeated(every, dict(layer.named_modules(remove_duplicate=False)))
    except Repeated as error:
        return str(error)
    return ""


def unregistered(layer: nn.Module) -> str:
    """Return what to say of modules and parameters in a plain list or dict, which a module does not know of."""
    for path, module in layer.named_modules():
        for name, value in vars(module).items():
            held = list(value) if isinstance(value, list | tuple) else []
            held = list(value.values()) if isinstance(value, dict) and not name.startswith("_") else held
            of = f"{path}.{name}" if path else name
            kind = type(value).__name__
            if any(isinstance(each, nn.Module) for each in held):
                right = "nn.ModuleDict" if isinstance(value, dict) else "nn.ModuleList"
                return f" ({of} is a plain {kind} of modules, whose parameters are not registered: make it an {right})"
            if any(isinstance(each, nn.Parameter) for each in held):
                right = "nn.ParameterDict" if isinstance(value, dict) else "nn.ParameterList"
                return f" ({of} is a plain {kind} of parameters, which are not registered: make it an {right})"
    return ""


def shared(every: Mapping[str, Tensor]) -> str:
    """Return what to say of a parameter that stands under two names, and counts once."""
    names = next(iter(_several(every)), None)
    return f" ({names[0]} and {names[1]} are one parameter: make one for each)" if names else ""


def _several(every: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    places: dict[int, list[str]] = {}
    for name, tensor in every.items():
        places.setdefault(id(tensor), []).append(name)
    return [names for names in places.values() if len(names) > 1]


def changed_parameters(layer: nn.Module, filled: Mapping[str, Tensor]) -> str:
    """Return that a layer changed its own parameters when it was called, in a clause; empty if it did not."""
    now = dict(layer.named_parameters())
    changed = [name for name, before in filled.items() if name in now and not torch.equal(now[name], before)]
    shown = ", ".join(changed[:3]) + (" and others" if len(changed) > 3 else "")
    does = "has" if len(changed) == 1 else "have"
    return f"forward changes its own parameters: {shown} {does} other numbers afterwards" if changed else ""
