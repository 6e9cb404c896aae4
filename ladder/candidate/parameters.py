"""Read the user's parameters: which of GPT-2's each one is, and how it lies. By names in families and by shapes."""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from ...assembly.config import GPT2Config
from .attention_parameters import attention_layouts, role_of
from .grouping import housed, restacked, unstacked
from .layouts import (
    Given,
    Layout,
    Layouts,
    Parameter,
    Parameters,
    Unlearned,
    Unreadable,
    joined,
    segments,
    shapes,
    together,
)
from .shared_parameters import check_repeated, shared, unregistered

# How a name of a matrix may end: ``c_fc_w``, ``fc1_kernel``.
_ENDS = r"(_(w|b|weight|bias|kernel|matrix))?$"
_FIRST = re.compile(
    rf"^(c_fc|fc_?1|fc_?in|linear_?1|lin_?1|l1|w_?1|w_?in|b_?in|.*(up|inner|expand|first|hidden|in)(_.*)?){_ENDS}", re.I
)
_SECOND = re.compile(
    rf"^(c_proj|fc_?2|fc_?out|linear_?2|lin_?2|l2|w_?2|w_?out|b_?out|.*(down|outer|contract|second|out)(_.*)?){_ENDS}",
    re.I,
)
# The two of a layer norm: ``ln_1_g``, ``beta``, ``a_2``.
_NORM = {
    role: re.compile(rf"(^|_|ln_?\d?|norm_?\d?)({words})(_?[12])?$", re.I)
    for role, words in {
        "w": "w|weight|scale|gamma|g|gain|alpha|a|multiplier",
        "b": "b|bias|shift|beta|offset",
    }.items()
}


# How many parameters that fit nothing are named.
_SHOWN = 4


def _assign(picked: dict[str, Parameter], role: str, parameter: Parameter, layer: str) -> None:
    """Give a parameter its role; refuse one that has none, or whose role is taken."""
    if not role or role in picked:
        raise Unreadable(f"{parameter} is none of {layer}'s parameters")
    picked[role] = parameter


def _mlp(found: Parameters, of: str, config: GPT2Config) -> list[Layout]:
    matrices = [p for p in found.values() if sorted(_lengths(p)) == sorted((config.d_mlp, config.d_model))]
    first = [_is_first(parameter, config) for parameter in matrices]
    if len(matrices) > 2 or (len(matrices) == 2 and None not in first and first[0] == first[1]):
        raise Unreadable(f"{matrices[-1]} is none of an MLP's parameters")
    biases: dict[str, Parameter] = {}
    for parameter in found.values():
        if not any(parameter is matrix for matrix in matrices):
            role = {config.d_mlp: "b_in", config.d_model: "b_out"}.get(parameter.tensor.numel())
            if role is None or role in biases:
                raise Unreadable(f"{parameter} is none of an MLP's parameters")
            biases[role] = parameter
    names = ["W_out", "W_in"] if first[:1] == [False] or first[1:] == [True] else ["W_in", "W_out"]
    # As a rule the matrix that is defined first comes first. If neither names nor modules tell, both orders are tried.
    orders = [names, names[::-1]] if first == [None, None] else [names]
    roles = ("W_in", "b_in", "W_out", "b_out")
    layouts: list[Layout] = []
    for order in orders:
        every = dict(zip(order, matrices, strict=False)) | biases
        layouts += _picked({role: every[role] for role in roles if role in every}, of, roles)
    return layouts


def _is_first(parameter: Parameter, config: GPT2Config) -> bool | None:
    """Return whether a matrix is an MLP's first, by its module or its name; None if neither tells."""
    if parameter.kept:
        return _lengths(parameter)[0 if parameter.kept == "out in" else 1] == config.d_mlp
    for part in segments(parameter.name) or [parameter.name]:
        if _FIRST.search(part) or _SECOND.search(part):
            return bool(_FIRST.search(part))
    return None


def _lengths(parameter: Parameter) -> tuple[int, ...]:
    """Return a parameter's shape without axes of length 1: a convolution of one position has a third axis."""
    return tuple(size for size in parameter.shape if size != 1)


def _norm(found: Parameters, of: str, config: GPT2Config) -> list[Layout]:
    roles: dict[str, str | None] = {}
    for name, parameter in found.items():
        last = name.rpartition(".")[2]
        known = next((role for role, pattern in _NORM.items() if pattern.search(last)), None)
        roles[name] = known or ("w" if bool((parameter.tensor == 1).all()) else None)
    # If neither names nor numbers tell, every order of what is left is tried.
    unknown = [name for name, role in roles.items() if role is None]
    left = [role for role in _NORM if role not in roles.values()]
    layouts: list[Layout] = []
    for order in itertools.permutations(left, len(unknown)):
        picked: dict[str, Parameter] = {}
        for name, role in (roles | dict(zip(unknown, order, strict=True))).items():
            fits = role and found[name].tensor.numel() == config.d_model
            _assign(picked, role if role and fits else "", found[name], "a LayerNorm")
        layouts += _picked(picked, of, ("w", "b"))
    if not layouts:
        raise Unreadable(f"{found[unknown[-1]]} is none of a LayerNorm's parameters")
    return layouts


def _table(role: str) -> Callable[[Parameters, str, GPT2Config], list[Layout]]:
    def reader(found: Parameters, of: str, config: GPT2Config) -> list[Layout]:
        rows = {"W_E": config.d_vocab, "W_pos": config.n_ctx}[role]
        own = sorted(size for size in (rows, config.d_model) if size != 1)
        fitting = {n: p for n, p in found.items() if sorted(size for size in p.shape if size != 1) == own}
        if len(fitting) != 1 or len(found) != 1:
            has = ", ".join(map(str, found.values()))
            raise Unreadable(f"{of}{role} is one table [{rows} {config.d_model}]; the layer has {has}")
        return _picked({role: next(iter(fitting.values()))}, of, (role,))

    return reader


def _unembed(found: Parameters, of: str, config: GPT2Config) -> list[Layout]:
    picked: dict[str, Parameter] = {}
    for parameter in found.values():
        if sorted(parameter.shape) == sorted((config.d_vocab, config.d_model)):
            role = "W_U"
        elif parameter.tensor.numel() == config.d_vocab:
            role = "b_U"
        else:
            role = ""
        _assign(picked, role, parameter, "an output projection")
    return _picked(picked, of, ("W_U", "b_U"))


def _picked(picked: Mapping[str, Parameter], of: str, roles: Iterable[str]) -> list[Layout]:
    """Return the one layout of parameters whose roles are known: the shape shows which way a matrix lies."""

    def fill(given: Given) -> dict[str, Tensor]:
        state = {}
        for role, parameter in picked.items():
            right = given[of + role]
            shape = _lengths(parameter)
            turned = right.ndim == 2 and tuple(right.shape) != shape and tuple(right.T.shape) == shape
            state[parameter.name] = (right.T if turned else right).reshape(parameter.shape)
        return state

    named = [(p.name.removesuffix(".weight"), role) for role, p in picked.items() if role.startswith("W_")]
    label = ", ".join(f"{name} is {role}" for name, role in named if name.rpartition(".")[2] != role)
    key = " ".join(f"{role}={'.'.join(p.name.split('.')[-2:])}" for role, p in picked.items())
    return [Layout(fill, frozenset(of + role for role in roles if role not in picked), label, key=key)]


def _block(found: Parameters, of: str, config: GPT2Config) -> Layouts:
    found = housed(found, config)
    # The parameters of each module, and those that are as wide as an MLP.
    groups: dict[str, list[str]] = {}
    for name in found:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    vectors = {name for name, p in found.items() if p.tensor.ndim == 1}
    wide = {name for names in groups.values() if any(config.d_mlp in found[n].shape for n in names) for name in names}

    def is_norm(path: str, names: list[str]) -> bool:
        kind = type(found[names[0]].owner).__name__.lower()
        small = (
            set(names) <= vectors - wide
            and len(names) <= 2
            and all(found[n].tensor.numel() == config.d_model for n in names)
        )
        return small and bool(re.search(r"norm|ln", path.lower() + kind))

    queries = [name for name in found if role_of(name) == "Q" and found[name].tensor.ndim > 1]
    owners = list(dict.fromkeys(re.split(r"\.\d+\.", name)[0].rpartition(".")[0] for name in queries))
    if len(queries) > 1 and len(owners) > 1:
        listing = " and ".join(f"{owner}.*" for owner in owners)
        raise Unreadable(f"it has {len(owners)} attentions ({listing}), and a block has one")
    # Two modules are the layer norms; what is neither theirs nor the MLP's is attention's.
    norms = [names for path, names in groups.items() if is_norm(path, names)]
    rest = [name for name in found if name not in wide and not any(name in names for names in norms)]
    if len(norms) != 2 or not wide or not rest:
        raise Unreadable(
            f"a block has two LayerNorms, attention and an MLP; of this one's modules {len(norms)} can be LayerNorms; "
            f"{len(wide)} parameters are in a module with a side of d_mlp={config.d_mlp}, and {len(rest)} are not"
        )

    def second(names: list[str]) -> int:
        name = names[0].split(".")[-2]
        return (
            1
            if re.search(r"2|ff|mlp|post|second|feed", name, re.I)
            else -1
            if re.search(r"1|att|pre|first|input", name, re.I)
            else 0
        )

    # By their names, or else as they stand, one norm is the first.
    if second(norms[0]) > second(norms[1]):
        norms.reverse()

    def some(names: Collection[str]) -> Parameters:
        # In the layer's own order, which tells what comes first where names do not.
        return {name: parameter for name, parameter in found.items() if name in names}

    return joined(
        [
            _norm(some(norms[0]), f"{of}ln1.", config),
            attention_layouts(some(rest), f"{of}attn.", config),
            _norm(some(norms[1]), f"{of}ln2.", config),
            _mlp(some(wide), f"{of}mlp.", config),
        ]
    )


def _some(parameters: Sequence[Parameter]) -> str:
    """Return the names of parameters, of many the first only."""
    more = len(parameters) - _SHOWN
    shown = ", ".join(map(str, parameters[:_SHOWN] if more > 1 else parameters))
    return f"{shown} and {more} more" if more > 1 else shown


def _model(found: Parameters, of: str, config: GPT2Config) -> Layouts:
    # The blocks: what stands under a number and is as wide as an MLP.
    numbers: dict[str, set[int]] = {}
    for name, parameter in found.items():
        match = re.match(r"^(.*?\.)?(\d+)\.", name)
        if match and config.d_mlp in parameter.shape:
            numbers.setdefault(match[1] or "", set()).add(int(match[2]))
    if not numbers:
        raise Unreadable(f"it has no numbered blocks with an MLP (d_mlp={config.d_mlp})")
    before = next(iter(numbers))
    indices = sorted(numbers[before])
    if len(indices) != config.n_layers:
        raise Unreadable(f"it has {len(indices)} blocks {before}N where n_layers is {config.n_layers}")
    per_block = []
    for layer, index in enumerate(indices):
        own = {name: p for name, p in found.items() if name.startswith(f"{before}{index}.")}
        per_block.append(_block(own, f"blocks.{layer}.", config))
    # All blocks are of one class: they lie alike.
    blocks = Layouts(min(map(len, per_block)), lambda index: together([block[index] for block in per_block]))
    # What stands outside the blocks: tables, the head, the last norm, a bias, positions.
    in_blocks = tuple(f"{before}{index}." for index in indices)  # a last layer norm may stand behind them in one list
    rest = {name: p for name, p in found.items() if not name.startswith(in_blocks)}
    tables = {name: p for name, p in rest.items() if config.d_vocab in p.shape and p.tensor.ndim == 2}
    tied = len({id(p.tensor) for p in tables.values()}) == 1
    heads = [name for name in tables if re.search(r"head|unemb|W_U|decoder|proj|out|classif|logit", name, re.I)]
    if not tied and len(heads) != 1:
        heads = list(tables)[-1:]
    embeds = dict(itertools.islice(tables.items(), 1)) if tied else {n: p for n, p in tables.items() if n not in heads}
    norm = {n: p for n, p in rest.items() if p.tensor.ndim == 1 and p.tensor.numel() == config.d_model}
    bias = {n: p for n, p in rest.items() if p.tensor.ndim == 1 and p.tensor.numel() == config.d_vocab}
    positions = {n: p for n, p in rest.items() if config.n_ctx in p.shape and p.tensor.ndim > 1 and n not in tables}
    # Nothing may be left over, and nothing may be missing but the head of a tied model.
    extra = set(rest) - set(tables) - set(norm) - set(bias) - set(positions)
    for name in extra:
        if not positions and re.search(r"pos|wpe", name, re.I) and config.d_model in rest[name].shape[1:]:
            raise Unreadable(f"{rest[name]} has not the n_ctx={config.n_ctx} rows of pos_embed.W_pos")
    if extra:
        raise Unreadable(f"{_some([rest[n] for n in sorted(extra)])}: none of GPT-2's parameters")
    norms = list(dict.fromkeys(name.rpartition(".")[0] or name for name in norm))
    if len(norms) > 1 and len(norm) > len(_NORM):
        raise Unreadable(f"{', '.join(norms)} stand outside the blocks; GPT-2 has one layer norm there, ln_final")
    if not embeds or not positions:
        lacking = "embed.W_E" if not embeds else f"pos_embed.W_pos (a table of n_ctx={config.n_ctx} rows)"
        raise Unreadable(f"it has nothing that could be {lacking}")
    parts: list[Sequence[Layout]] = [
        _table("W_E")(embeds, "embed.", config),
        _table("W_pos")(positions, "pos_embed.", config),
        blocks,
        _norm(norm, "ln_final.", config),
    ]
    head = {**({} if tied else {n: tables[n] for n in heads}), **bias}
    parts.append(
        _unembed(head, "unembed.", config)
        if head
        else [Layout(lambda given: {}, frozenset({"unembed.W_U", "unembed.b_U"}))]
    )
    return joined(parts)


_READERS: dict[str, Callable[[Parameters, str, GPT2Config], Sequence[Layout]]] = {
    "embed": _table("W_E"),
    "pos-embed": _table("W_pos"),
    "layer-norm": _norm,
    "attention": attention_layouts,
    "mlp": _mlp,
    "block": _block,
    "unembed": _unembed,
    "model": _model,
}


# What of GPT-2 is learned, and is often computed in other models. (A class of attention without parameters is a part.)
_LEARNED = {
    "pos-embed": "GPT-2's positions are a table that is learned, W_pos [n_ctx, d_model]",
    "layer-norm": "GPT-2's layer norm has a gain w and a bias b, which are learned",
}


def read(layer: nn.Module, rung: str, config: GPT2Config, asked: Collection[str] = ("n_heads",)) -> Sequence[Layout]:
    """Find GPT-2's parameters in a layer: every layout that fits, the likeliest first.

    Args:
        asked: the fields of the configuration that it has read: what reads no number of heads is one head, which is no
            attention without an output projection.

    Raises:
        Unreadable: a parameter that is none of GPT-2's, or a matrix of GPT-2's that is not there.
        Unlearned: no parameter at all, where GPT-2's layer is sometimes computed.
    """
    owners = dict(layer.named_modules(remove_duplicate=False))
    every = dict(layer.named_parameters(remove_duplicate=False))
    expected = shapes(rung, config)
    check_repeated(every, owners)
    if every and all(tuple(tensor.shape) == expected.get(name) for name, tensor in every.items()):
        missing = frozenset(expected) - set(every)
        _check_matrices(missing, rung)
        as_given = "by TransformerLens's names"
        return [Layout(lambda given: {name: given[name] for name in every if name in given}, missing, as_given)]
    found: Parameters = {}
    seen: set[int] = set()
    for name, tensor in every.items():
        if id(tensor) not in seen or config.d_vocab in tensor.shape:  # a parameter under two names counts once
            found[name] = Parameter(name, tensor, owners[name.rpartition(".")[0]])
        seen.add(id(tensor))
    try:
        return _layouts(found, rung, config, asked)
    except Unreadable as error:
        why = _misspelled(layer) or unregistered(layer) or (shared(every) if rung != "model" else "")
        raise type(error)(f"{error}{why}") from error


def _misspelled(layer: nn.Module) -> str:
    """Return what to say of a constructor that Python does not call, if the layer's class has one."""
    own = {name for cls in type(layer).__mro__ if not cls.__module__.startswith("torch.") for name in vars(cls)}
    name = next((each for each in ("_init_", "__init", "__init_", "_init__", "__int__") if each in own), None)
    return f": its class defines {name}, which is not called when it is made; it must be __init__" if name else ""


def _layouts(found: Parameters, rung: str, config: GPT2Config, asked: Collection[str]) -> Sequence[Layout]:
    if not found and rung in _LEARNED:
        raise Unlearned(f"it has no parameters; {_LEARNED[rung]}")
    if not found:
        raise Unreadable("it has no parameters")
    found, pieces = unstacked(found, config, rung)
    layouts = restacked(_READERS[rung](found, "", config), pieces)
    _check_matrices(layouts[0].missing, rung)
    if "n_heads" not in asked and any(name.endswith("W_O") for name in layouts[0].missing):
        raise Unreadable("it has nothing that could be W_O, as one head of attention has none")
    return layouts


def _check_matrices(missing: Iterable[str], rung: str) -> None:
    lacking = [name for name in missing if ".W_" in f".{name}" and name != "unembed.W_U" and name[-3:] != "W_O"]
    lacking += [name for name in missing if name.rpartition(".")[2] == "w"] if rung == "layer-norm" else []
    if lacking:
        raise Unreadable(f"it has nothing that could be {', '.join(sorted(lacking))}")
