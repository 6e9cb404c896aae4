"""Read the user's parameters: which of GPT-2's each one is, and how it lies. By names in families, by shapes, and where
several layouts stay possible, all of them: the caller tries which is right.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ...assembly.config import GPT2Config

Given = Mapping[str, Tensor]
Fill = Callable[[Given], dict[str, Tensor]]


class Unreadable(ValueError):
    """Parameters that cannot be taken for GPT-2's; the message says which, in one clause."""


@dataclass(frozen=True)
class Layout:
    """One way to read a layer's parameters.

    Args:
        fill: the layer's state dict, made from TransformerLens's parameters.
        label: how they lie, in words; empty if there is nothing to say.
        oddity: why GPT-2's weights do not fit as they are stored; empty if they do.
    """

    fill: Fill
    label: str = ""
    oddity: str = ""


@dataclass(frozen=True)
class Reading:
    """How a layer's parameters can be read.

    Args:
        layouts: all ways, the likeliest first.
        missing: TransformerLens's names of the parameters that the layer does not have.
    """

    layouts: Sequence[Layout]
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Parameter:
    name: str
    tensor: Tensor
    owner: nn.Module

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def kept(self) -> str:
        """How its module keeps a matrix: ``out in``, ``in out``, or unknown."""
        name = type(self.owner).__name__.lower()
        if "linear" in name or name == "multiheadattention":
            return "out in"
        return "in out" if "conv1d" in name else ""


Parameters = Mapping[str, _Parameter]


def shapes(rung: str, config: GPT2Config, of: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shape of each of GPT-2's parameters on a rung, by TransformerLens's name."""
    c = config
    if rung == "embed":
        found: dict[str, tuple[int, ...]] = {"W_E": (c.d_vocab, c.d_model)}
    elif rung == "pos-embed":
        found = {"W_pos": (c.n_ctx, c.d_model)}
    elif rung == "layer-norm":
        found = {"w": (c.d_model,), "b": (c.d_model,)}
    elif rung == "attention":
        found = {f"W_{each}": (c.n_heads, c.d_model, c.d_head) for each in "QKV"}
        found |= {f"b_{each}": (c.n_heads, c.d_head) for each in "QKV"}
        found |= {"W_O": (c.n_heads, c.d_head, c.d_model), "b_O": (c.d_model,)}
    elif rung == "mlp":
        found = {"W_in": (c.d_model, c.d_mlp), "b_in": (c.d_mlp,), "W_out": (c.d_mlp, c.d_model), "b_out": (c.d_model,)}
    elif rung == "unembed":
        found = {"W_U": (c.d_model, c.d_vocab), "b_U": (c.d_vocab,)}
    elif rung == "block":
        found = {}
        for name, part in PARTS["block"].items():
            found |= shapes(part, c, f"{name}.")
    else:
        found = shapes("embed", c, "embed.") | shapes("pos-embed", c, "pos_embed.")
        for layer in range(c.n_layers):
            found |= shapes("block", c, f"blocks.{layer}.")
        found |= shapes("layer-norm", c, "ln_final.") | shapes("unembed", c, "unembed.")
    return {of + name: shape for name, shape in found.items()}


# The layers that a block is made of, in order, and their rungs.
PARTS = {"block": {"ln1": "layer-norm", "attn": "attention", "ln2": "layer-norm", "mlp": "mlp"}}


def read(layer: nn.Module, rung: str, config: GPT2Config) -> Reading:
    """Find GPT-2's parameters in a layer.

    Raises:
        Unreadable: a parameter that is none of GPT-2's, or a matrix of GPT-2's that is not there.
    """
    owners = dict(layer.named_modules(remove_duplicate=False))
    every = dict(layer.named_parameters(remove_duplicate=False))
    expected = shapes(rung, config)
    _check_blocks(every)
    if every and all(tuple(tensor.shape) == expected.get(name) for name, tensor in every.items()):
        direct = Layout(
            lambda given: {name: given[name] for name in every if name in given}, "by TransformerLens's names"
        )
        missing = frozenset(expected) - set(every)
        _check_matrices(missing, rung)
        return Reading([direct], missing)
    found: dict[str, _Parameter] = {}
    seen: set[int] = set()
    for name, tensor in every.items():
        if id(tensor) not in seen or config.d_vocab in tensor.shape:  # a parameter under two names counts once
            found[name] = _Parameter(name, tensor, owners[name.rpartition(".")[0]])
        seen.add(id(tensor))
    if not found:
        raise Unreadable("it has no parameters")
    reading = _READERS[rung](found, "", config)
    _check_matrices(reading.missing, rung)
    return reading


def _check_blocks(every: Mapping[str, Tensor]) -> None:
    """Refuse a list in which one block stands several times."""
    places: dict[int, list[str]] = {}
    for name, tensor in every.items():
        places.setdefault(id(tensor), []).append(name)
    for names in places.values():
        if len(names) > 1 and len({re.sub(r"\d+", "#", name) for name in names}) == 1:
            one, other = (re.match(r"(.*?\d+)\.", name) for name in names[:2])
            if one and other:
                raise Unreadable(
                    f"{one[1]} and {other[1]} are one and the same block, with one set of parameters ([Block(cfg)] * n "
                    "puts one block n times into the list): make a new block for each layer"
                )


def _check_matrices(missing: Iterable[str], rung: str) -> None:
    lacking = [name for name in missing if ".W_" in f".{name}" and not (rung == "model" and name == "unembed.W_U")]
    lacking += [name for name in missing if name.rpartition(".")[2] == "w"] if rung == "layer-norm" else []
    if lacking:
        raise Unreadable(f"it has nothing that could be {', '.join(sorted(lacking))}")


# ---- attention ----------------------------------------------------------------------------------------------------


def _called(letters: str, more: str) -> re.Pattern[str]:
    before = r"((w|b|weight|bias|to|fc|linear|lin|proj|attn|self|layer)_?)?"
    after = r"(_?(proj|projection|weight|bias|linear|lin|w|b|layer|fc|matrix|map|transform|net))?"
    return re.compile(rf"^{before}({letters}){after}$|^({more})$", re.I)


_ROLES = {
    "QKV": _called("qkv|c_attn|in_proj|query_key_value|kqv|attn_qkv|qkv_proj|qkvs?|wqkv", "c_attn"),
    "Q": _called("q|query|queries|qs|qry", "w_?q|b_?q"),
    "K": _called("k|key|keys|ks", "w_?k|b_?k"),
    "V": _called("v|value|values|vs|val", "w_?v|b_?v"),
    "O": _called(
        "o|out|output|c_proj|proj|projection|dense|unify_?heads|head_?proj|mix|ff|fc|final|o_proj|combine",
        "w_?o|b_?o|w_?out",
    ),
}
# Where q, k and v (c), heads (n), the width of a head (h) and of the model (m) can lie.
_FUSED = {
    "out in": ["(c n h) m", "(n c h) m", "(c h n) m", "(n h c) m", "(h n c) m", "(h c n) m", "c (n h) m", "c n h m"],
    "in out": [
        "m (c n h)",
        "m (n c h)",
        "m (c h n)",
        "m (n h c)",
        "m (h n c)",
        "m (h c n)",
        "m c n h",
        "c n m h",
        "n m (c h)",
        "n c m h",
        "c m (n h)",
    ],
}
_SINGLE = {"out in": ["(n h) m", "(h n) m", "n h m"], "in out": ["n m h", "m (n h)", "m n h", "m (h n)", "n (m) h"]}
_HEAD = {"out in": ["h m"], "in out": ["m h"]}
_OUT = {"out in": ["m (n h)", "m (h n)", "m n h", "n m h"], "in out": ["n h m", "(n h) m", "(h n) m", "h n m"]}


def _segments(name: str) -> list[str]:
    return [part for part in reversed(name.split(".")) if part.lower() not in ("weight", "bias") and not part.isdigit()]


def _role(name: str) -> str | None:
    last = name.rpartition(".")[2]
    if last in ("in_proj_weight", "in_proj_bias"):
        return "QKV"
    return next((role for part in _segments(name) for role, known in _ROLES.items() if known.search(part)), None)


def _patterns(table: Mapping[str, list[str]], kept: str) -> list[str]:
    return table[kept] if kept else [*table["in out"], *table["out in"]]


def _without_m(pattern: str) -> str:
    return " ".join(pattern.replace("m", "").replace("( ", "(").replace(" )", ")").replace("()", "").split())


class _Attention:
    """Reads the parameters of one attention layer."""

    def __init__(self, found: Parameters, of: str, config: GPT2Config) -> None:
        self.of, self.config = of, config
        self.lengths = {"n": config.n_heads, "m": config.d_model, "h": config.d_head, "c": 3}
        self.missing: set[str] = set()
        self.matrices: dict[str, list[tuple[int | None, _Parameter]]] = {}
        self.biases: dict[str, list[tuple[int | None, _Parameter]]] = {}
        # A number before what all names have in common is the block's, not a head's.
        paths = [name.split(".")[:-1] for name in found]
        alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        common = "".join(f"{parts[0]}." for parts in alike) if len(found) > 1 else ""
        largest = 3 * max(config.d_model, config.n_heads * config.d_head)
        others = [parameter for name, parameter in found.items() if _role(name) is None]
        lonely = len([each for each in others if each.tensor.ndim > 1]) == 1 and not any(_role(n) == "O" for n in found)
        for name, parameter in found.items():
            role = _role(name) or ("O" if lonely else None)
            if role is None:
                raise Unreadable(f"{name} {list(parameter.shape)} is none of attention's parameters")
            head = re.search(r"\.(\d+)\.", f".{name.removeprefix(common)}") if role != "O" else None
            is_bias = parameter.tensor.numel() <= largest and (
                parameter.tensor.ndim == 1 or "b" in name.rpartition(".")[2][:1]
            )
            kind = self.biases if is_bias else self.matrices
            kind.setdefault(role, []).append((int(head[1]) if head else None, parameter))

    def read(self) -> Reading:
        """Return every layout."""
        ways = list(self._fused() if "QKV" in self.matrices else self._separate())
        if not ways:
            raise Unreadable(
                f"the shapes of {self._listed('QKV', 'Q', 'K', 'V')} fit no layout of queries, keys and values"
            )
        if "O" not in self.matrices:
            raise Unreadable("it has nothing that could be W_O")
        out = self.matrices["O"][0][1]
        outs = [(pattern, out) for pattern in self._fitting(_patterns(_OUT, out.kept), out.shape)]
        if not outs:
            raise Unreadable(f"{out.name} {list(out.shape)} fits no layout of W_O")
        for letter in "QKV":
            if letter not in self.biases and "QKV" not in self.biases:
                self.missing.add(f"{self.of}b_{letter}")
            if letter not in self.matrices and "QKV" not in self.matrices:
                raise Unreadable(f"it has nothing that could be {self.of}W_{letter}")
        if "O" not in self.biases:
            self.missing.add(f"{self.of}b_O")
        layouts = [self._layout(order, way, pattern) for order, way in ways for pattern, _ in outs]
        return Reading(layouts, frozenset(self.missing))

    def _listed(self, *roles: str) -> str:
        found = [p for role in roles for _, p in self.matrices.get(role, [])]
        return ", ".join(f"{p.name} {list(p.shape)}" for p in found) or "its parameters"

    def _fitting(self, patterns: Iterable[str], shape: tuple[int, ...]) -> list[str]:
        def made(pattern: str) -> tuple[int, ...]:
            parts = re.findall(r"\([^)]*\)|\w", pattern)
            return tuple(math.prod(self.lengths[axis] for axis in part.strip("()").split()) for part in parts)

        return [pattern for pattern in dict.fromkeys(patterns) if made(pattern) == shape]

    def _fused(self) -> Iterable[tuple[str, str]]:
        parameter = self.matrices["QKV"][0][1]
        fitting = self._fitting(_patterns(_FUSED, parameter.kept), parameter.shape)
        orders = ["QKV", "KQV", "QVK", "KVQ", "VQK", "VKQ"]
        return ((order, pattern) for pattern, order in itertools.product(fitting, orders))

    def _separate(self) -> Iterable[tuple[str, str]]:
        every = [(i, p) for role in "QKV" for i, p in self.matrices.get(role, [])]
        if not every:
            raise Unreadable("it has nothing that could be W_Q, W_K and W_V")
        by_head = every[0][0] is not None
        kept = every[0][1].kept
        fitting = [set(self._fitting(_patterns(_HEAD if by_head else _SINGLE, kept), p.shape)) for _, p in every]
        common = set.intersection(*fitting)
        return (("QKV", pattern) for pattern in _patterns(_HEAD if by_head else _SINGLE, kept) if pattern in common)

    def _layout(self, order: str, pattern: str, out: str) -> Layout:
        of, biases, matrices = self.of, self.biases, self.matrices

        def fill(given: Given) -> dict[str, Tensor]:
            state: dict[str, Tensor] = {}
            every = [(role, *each) for role in ("QKV", "Q", "K", "V") for each in matrices.get(role, [])]
            for role, index, parameter in every:
                if role == "QKV":
                    source = torch.stack([given[f"{of}W_{letter}"] for letter in order])
                    state[parameter.name] = rearrange(source, f"c n m h -> {pattern}", c=3)
                elif index is None:
                    state[parameter.name] = rearrange(given[f"{of}W_{role}"], f"n m h -> {pattern}")
                else:
                    state[parameter.name] = rearrange(given[f"{of}W_{role}"][index], f"m h -> {pattern}")
            for role in ("QKV", "Q", "K", "V"):
                for index, parameter in biases.get(role, []):
                    if role == "QKV":
                        # A bias lies as its matrix does; one of separate matrices lies as (c n h).
                        bare = _without_m(pattern) if "QKV" in matrices else "(c n h)"
                        source = torch.stack([given[f"{of}b_{letter}"] for letter in order])
                        state[parameter.name] = rearrange(source, f"c n h -> {bare}").reshape(parameter.shape)
                    elif index is None:
                        bare = _without_m(pattern) if "QKV" not in matrices else "(n h)"
                        state[parameter.name] = rearrange(given[f"{of}b_{role}"], f"n h -> {bare}").reshape(
                            parameter.shape
                        )
                    else:
                        state[parameter.name] = given[f"{of}b_{role}"][index].reshape(parameter.shape)
            parameter = matrices["O"][0][1]
            state[parameter.name] = rearrange(given[f"{of}W_O"], f"n h m -> {out}")
            for _, parameter in biases.get("O", []):
                state[parameter.name] = given[f"{of}b_O"].reshape(parameter.shape)
            return state

        return Layout(fill, self._label(order, pattern, out), self._oddity(order, pattern, out))

    def _label(self, order: str, pattern: str, out: str) -> str:
        if "QKV" in self.matrices:
            name = self.matrices["QKV"][0][1].name.removesuffix(".weight")
            return f"{name} holds {', '.join(order.lower())} as [{pattern}], {self._name('O')} is [{out}]"
        return f"{self._name('Q')}, {self._name('K')}, {self._name('V')} are [{pattern}], {self._name('O')} is [{out}]"

    def _name(self, role: str) -> str:
        return self.matrices[role][0][1].name.removesuffix(".weight")

    def _oddity(self, order: str, pattern: str, out: str) -> str:
        said = []
        if order != "QKV":
            said.append(f"the order is {', '.join(order.lower())}")
        if re.search(r"h n|n c|h c|n h c", pattern):
            said.append("the numbers of the heads are interleaved")
        if "h n" in out and "n h m" not in out:
            said.append("the output projection expects the heads interleaved")
        return " and ".join(said)


def _attention(found: Parameters, of: str, config: GPT2Config) -> Reading:
    return _Attention(found, of, config).read()


# ---- the other layers ---------------------------------------------------------------------------------------------

_FIRST = re.compile(
    r"^(c_fc|fc_?1|fc_?in|linear_?1|lin_?1|l1|w_?1|w_?in|b_?in|.*(up|inner|expand|first|hidden|in)(_.*)?)$", re.I
)
_SECOND = re.compile(
    r"^(c_proj|fc_?2|fc_?out|linear_?2|lin_?2|l2|w_?2|w_?out|b_?out|.*(down|outer|contract|second|out)(_.*)?)$", re.I
)


def _mlp(found: Parameters, of: str, config: GPT2Config) -> Reading:
    picked: dict[str, _Parameter] = {}
    for name, parameter in found.items():
        shape = parameter.shape
        if parameter.tensor.ndim == 2 and sorted(shape) == sorted((config.d_mlp, config.d_model)):
            if parameter.kept:
                first: bool | None = shape[0 if parameter.kept == "out in" else 1] == config.d_mlp
            else:
                known = [part for part in _segments(name) or [name] if _FIRST.search(part) or _SECOND.search(part)]
                first = bool(_FIRST.search(known[0])) if known else "W_in" not in picked
            role = "W_in" if first else "W_out"
        elif parameter.tensor.numel() == config.d_mlp:
            role = "b_in"
        elif parameter.tensor.numel() == config.d_model:
            role = "b_out"
        else:
            role = ""
        if not role or role in picked:
            raise Unreadable(f"{name} {list(shape)} is none of an MLP's parameters")
        picked[role] = parameter
    return _picked(picked, of, ("W_in", "b_in", "W_out", "b_out"))


def _norm(found: Parameters, of: str, config: GPT2Config) -> Reading:
    picked: dict[str, _Parameter] = {}
    for name, parameter in found.items():
        last = name.rpartition(".")[2].lower()
        if re.search(r"^(w|weight|scale|gamma|g|gain|alpha|a_?2|a|multiplier)$", last):
            role = "w"
        elif re.search(r"^(b|bias|shift|beta|offset|b_?2)$", last):
            role = "b"
        else:
            role = "w" if bool((parameter.tensor == 1).all()) else "b"
        if parameter.tensor.numel() != config.d_model or role in picked:
            raise Unreadable(f"{name} {list(parameter.shape)} is none of a LayerNorm's parameters")
        picked[role] = parameter
    return _picked(picked, of, ("w", "b"))


def _table(role: str) -> Callable[[Parameters, str, GPT2Config], Reading]:
    def reader(found: Parameters, of: str, config: GPT2Config) -> Reading:
        rows = {"W_E": config.d_vocab, "W_pos": config.n_ctx}[role]
        own = sorted(size for size in (rows, config.d_model) if size != 1)
        fitting = {n: p for n, p in found.items() if sorted(size for size in p.shape if size != 1) == own}
        if len(fitting) != 1 or len(found) != 1:
            listed = ", ".join(f"{n} {list(p.shape)}" for n, p in found.items())
            raise Unreadable(f"{of}{role} is one table [{rows} {config.d_model}]; the layer has {listed}")
        return _picked({role: next(iter(fitting.values()))}, of, (role,))

    return reader


def _unembed(found: Parameters, of: str, config: GPT2Config) -> Reading:
    picked: dict[str, _Parameter] = {}
    for name, parameter in found.items():
        if sorted(parameter.shape) == sorted((config.d_vocab, config.d_model)):
            role = "W_U"
        elif parameter.tensor.numel() == config.d_vocab:
            role = "b_U"
        else:
            role = ""
        if not role or role in picked:
            raise Unreadable(f"{name} {list(parameter.shape)} is none of an output projection's parameters")
        picked[role] = parameter
    return _picked(picked, of, ("W_U", "b_U"))


def _picked(picked: Mapping[str, _Parameter], of: str, roles: Iterable[str]) -> Reading:
    """Return the one layout of parameters whose roles are known: the shape says which way a matrix lies."""

    def fill(given: Given) -> dict[str, Tensor]:
        state = {}
        for role, parameter in picked.items():
            right = given[of + role]
            turned = (
                right.ndim == 2 and tuple(right.shape) != parameter.shape and tuple(right.T.shape) == parameter.shape
            )
            state[parameter.name] = right.T if turned else right.reshape(parameter.shape)
        return state

    named = [(p.name.removesuffix(".weight"), role) for role, p in picked.items() if role.startswith("W_")]
    label = ", ".join(f"{name} is {role}" for name, role in named if name.rpartition(".")[2] != role)
    return Reading([Layout(fill, label)], frozenset(of + role for role in roles if role not in picked))


def _joined(readings: Sequence[Reading]) -> Reading:
    """Return the layouts of several parts together."""

    def join(layouts: Sequence[Layout]) -> Layout:
        def fill(given: Given) -> dict[str, Tensor]:
            return {name: tensor for layout in layouts for name, tensor in layout.fill(given).items()}

        odd = " and ".join(dict.fromkeys(layout.oddity for layout in layouts if layout.oddity))
        return Layout(fill, "; ".join(dict.fromkeys(layout.label for layout in layouts if layout.label)), odd)

    ways = itertools.islice(itertools.product(*[reading.layouts for reading in readings]), 300)
    return Reading([join(way) for way in ways], frozenset().union(*[reading.missing for reading in readings]))


def _block(found: Parameters, of: str, config: GPT2Config) -> Reading:
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

    norms = [names for path, names in groups.items() if is_norm(path, names)]
    rest = [name for name in found if name not in wide and not any(name in names for names in norms)]
    if len(norms) != 2 or not wide or not rest:
        raise Unreadable(
            f"a block has two LayerNorms, attention and an MLP; this one has {len(norms)} LayerNorms, {len(wide)} "
            f"parameters of an MLP (d_mlp={config.d_mlp}) and {len(rest)} of attention"
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

    if second(norms[0]) > second(norms[1]):
        norms.reverse()

    def some(names: Iterable[str]) -> Parameters:
        return {name: found[name] for name in names}

    return _joined(
        [
            _norm(some(norms[0]), f"{of}ln1.", config),
            _attention(some(rest), f"{of}attn.", config),
            _norm(some(norms[1]), f"{of}ln2.", config),
            _mlp(some(wide), f"{of}mlp.", config),
        ]
    )


def _model(found: Parameters, of: str, config: GPT2Config) -> Reading:
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
    blocks = Reading(
        [
            _joined([Reading([each]) for each in alike]).layouts[0]
            for alike in zip(*[r.layouts for r in per_block], strict=True)
        ],
        frozenset().union(*[reading.missing for reading in per_block]),
    )
    rest = {name: p for name, p in found.items() if not re.match(rf"{re.escape(before)}\d+\.", name)}
    tables = {name: p for name, p in rest.items() if config.d_vocab in p.shape and p.tensor.ndim == 2}
    tied = len({id(p.tensor) for p in tables.values()}) == 1
    heads = [name for name in tables if re.search(r"head|unemb|W_U|decoder|proj|out|classif|logit", name, re.I)]
    if not tied and len(heads) != 1:
        heads = list(tables)[-1:]
    embeds = dict(itertools.islice(tables.items(), 1)) if tied else {n: p for n, p in tables.items() if n not in heads}
    norm = {n: p for n, p in rest.items() if p.tensor.ndim == 1 and p.tensor.numel() == config.d_model}
    bias = {n: p for n, p in rest.items() if p.tensor.ndim == 1 and p.tensor.numel() == config.d_vocab}
    positions = {n: p for n, p in rest.items() if config.n_ctx in p.shape and n not in tables}
    extra = set(rest) - set(tables) - set(norm) - set(bias) - set(positions)
    if extra:
        raise Unreadable(
            f"{', '.join(f'{n} {list(rest[n].shape)}' for n in sorted(extra))}: none of GPT-2's parameters"
        )
    if not embeds or not positions:
        lacking = "embed.W_E" if not embeds else f"pos_embed.W_pos (a table of n_ctx={config.n_ctx} rows)"
        raise Unreadable(f"it has nothing that could be {lacking}")
    parts = [_table("W_E")(embeds, "embed.", config), _table("W_pos")(positions, "pos_embed.", config), blocks]
    parts.append(_norm(norm, "ln_final.", config))
    head = {**({} if tied else {n: tables[n] for n in heads}), **bias}
    parts.append(
        _unembed(head, "unembed.", config)
        if head
        else Reading([Layout(lambda given: {})], frozenset({"unembed.W_U", "unembed.b_U"}))
    )
    return _joined(parts)


_READERS: dict[str, Callable[[Parameters, str, GPT2Config], Reading]] = {
    "embed": _table("W_E"),
    "pos-embed": _table("W_pos"),
    "layer-norm": _norm,
    "attention": _attention,
    "mlp": _mlp,
    "block": _block,
    "unembed": _unembed,
    "model": _model,
}
