"""Read the parameters of attention: by names in families and by shapes, every layout that fits.

Where several stay possible (transposes of square matrices, the order of q, k and v, heads interleaved), the caller
tries which is right.
"""

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from .layouts import Given, Layout, Layouts, Parameter, Parameters, Unreadable, segments


def _called(letters: str, more: str) -> re.Pattern[str]:
    before = r"((w|b|weights?|bias|to|fc|linear|lin|proj|attn|self|layer)_?)?"
    after = r"(_?(proj|projection|weights?|bias|linear|lin|w|b|layer|fc|matrix|map|transform|trans|net))?"
    return re.compile(rf"^{before}({letters}){after}$|^({more})$", re.I)


_ROLES = {
    "QKV": _called("qkv|c_attn|in_proj|query_key_value|kqv|attn_qkv|qkv_proj|qkvs?|wqkv", "c_attn"),
    "KV": _called("kv|kvs|key_?value", "w_?kv|b_?kv"),
    "Q": _called("q|query|queries|qs|qry", "w_?q|b_?q"),
    "K": _called("k|key|keys|ks", "w_?k|b_?k"),
    "V": _called("v|value|values|vs|val", "w_?v|b_?v"),
    "O": _called(
        "o|out|output|c_proj|proj|projection|dense|unify_?heads|head_?proj|mix|ff|fc|final|o_proj|combine|project|concat|merge",
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
_OUT_OF_HEAD = {"out in": ["m h"], "in out": ["h m"]}
_OUT = {"out in": ["m (n h)", "m (h n)", "m n h", "n m h"], "in out": ["n h m", "(n h) m", "(h n) m", "h n m"]}


# How many parameters that fit no layout are named.
_SHOWN = 4
# Roles of what makes queries, keys and values.
PROJECTIONS = _ROLES.keys() - {"O"}


def role_of(name: str) -> str | None:
    """Return which of attention's parameters a name means; None if it means none."""
    last = name.rpartition(".")[2]
    if last in ("in_proj_weight", "in_proj_bias"):
        return "QKV"
    return next((role for part in segments(name) for role, known in _ROLES.items() if known.search(part)), None)


def _patterns(table: Mapping[str, list[str]], known: str) -> list[str]:
    return table[known] if known else [*table["in out"], *table["out in"]]


def _without(axis: str, pattern: str) -> str:
    bare = " ".join(pattern.replace(axis, "").split())
    return " ".join(bare.replace("( ", "(").replace(" )", ")").replace("()", "").split())


class _Attention:
    """Reads the parameters of one attention layer.

    Args:
        chosen: roles of parameters whose names do not tell them.
    """

    def __init__(self, found: Parameters, of: str, config: GPT2Config, chosen: Mapping[str, str]) -> None:
        self.of, self.config = of, config
        # Queries and keys may change places: their products, as a set, stay the same.
        self.chosen = "".join(chosen.values())
        self.split = self.chosen.replace("K", "Q")
        # torch's own module reads its parameters in one way only.
        self.is_torchs = any(isinstance(parameter.owner, nn.MultiheadAttention) for parameter in found.values())
        self.lengths = {"n": config.n_heads, "m": config.d_model, "h": config.d_head, "c": 3}
        self.missing: set[str] = set()
        self.matrices: dict[str, list[tuple[int | None, Parameter]]] = {}
        self.biases: dict[str, list[tuple[int | None, Parameter]]] = {}
        # A number before what all names have in common is the block's, not a head's.
        paths = [name.split(".")[:-1] for name in found]
        alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        common = "".join(f"{parts[0]}." for parts in alike) if len(found) > 1 else ""
        largest = 3 * max(config.d_model, config.n_heads * config.d_head)
        named = {name: role_of(name) for name in found}
        others = [parameter for name, parameter in found.items() if named[name] is None]
        lonely = len([each for each in others if each.tensor.ndim > 1]) == 1 and "O" not in named.values()
        unnamed = PROJECTIONS.isdisjoint(named.values())
        for name, parameter in found.items():
            role = chosen.get(name) or named[name] or ("O" if lonely else None)
            if role in (None, "O") and unnamed and config.n_heads * config.d_head * 3 in parameter.shape:
                role = "QKV"  # whatever its name, it is as wide as q, k and v together
            if role is None:
                raise Unreadable(f"{parameter} is none of attention's parameters")
            # The number of a parameter whose role was chosen is its own, not a head's.
            head = None if name in chosen else re.search(r"\.(\d+)(\.|$)", f".{name.removeprefix(common)}")
            last = name.rpartition(".")[2]
            is_bias = (parameter.tensor.numel() <= largest and (parameter.tensor.ndim == 1 or last[:1] == "b")) or (
                parameter.tensor.ndim == 1 and last == "bias"
            )
            kind = self.biases if is_bias else self.matrices
            kind.setdefault(role, []).append((int(head[1]) if head else None, parameter))
        if "KV" in self.matrices:
            self.lengths["c"] = 2
        outs = [parameter for head, parameter in self.matrices.get("O", []) if head is None]
        if len(outs) > 1:
            raise Unreadable(f"{' and '.join(map(str, outs))} are two output projections, and attention has one")
        for kind in (self.matrices, self.biases):
            if len(kind.get("O", [])) == 1:  # the number is that of a place in an nn.Sequential
                kind["O"] = [(None, kind["O"][0][1])]
        self._check_heads()

    def _check_heads(self) -> None:
        """Refuse a list that has not one parameter for each head, and one beside parameters of all heads."""
        separate = [head is not None for role in "QKV" for head, _ in self.matrices.get(role, [])]
        if any(separate) and not all(separate):
            found = self._listed("Q", "K", "V")
            raise Unreadable(f"some of {found} are one head's and others are all heads': have all of them alike")
        for kind in (self.matrices, self.biases):
            for every in kind.values():
                heads = sorted(head for head, _ in every if head is not None)
                if heads and heads != list(range(self.config.n_heads)) and (len(heads) > 1 or kind is self.biases):
                    found = ", ".join(str(parameter) for _, parameter in every)
                    raise Unreadable(f"{found} are not one for each of n_heads={self.config.n_heads} heads")

    def _check_biases(self) -> None:
        """Refuse a bias of another length than its matrix."""
        width = self.config.n_heads * self.config.d_head
        lengths = {"QKV": 3 * width, "KV": 2 * width, "Q": width, "K": width, "V": width, "O": self.config.d_model}
        for role, every in self.biases.items():
            for head, parameter in every:
                right = lengths[role] if head is None or role == "O" else self.config.d_head
                if parameter.tensor.numel() != right:
                    raise Unreadable(f"{parameter} has not the {right} numbers of its bias")

    def layouts(self) -> Layouts:
        """Return every layout."""
        bare = "O" not in self.matrices
        ways = list(self._fused() if {"QKV", "KV"} & self.matrices.keys() else self._separate())
        fills = self.config.n_heads * self.config.d_head == self.config.d_model
        if bare and not (ways and fills and "O" not in self.biases):
            raise Unreadable("it has nothing that could be W_O, as one head of attention has none")
        if not ways:
            raise Unreadable(
                f"the shapes of {self._listed('QKV', 'Q', 'KV', 'K', 'V')} fit no layout of queries, keys and values"
            )
        self._check_biases()
        outs = [""] if bare else self._outs()
        for letter in "QKV":
            if not self._has(self.biases, letter):
                self.missing.add(f"{self.of}b_{letter}")
            if not self._has(self.matrices, letter):
                raise Unreadable(f"it has nothing that could be {self.of}W_{letter}")
        self.missing |= {f"{self.of}b_O"} if "O" not in self.biases else set()
        self.missing |= {f"{self.of}W_O"} if bare else set()
        every = [(order, way, pattern) for order, way in ways for pattern in outs][: 1 if self.is_torchs else None]
        return Layouts(len(every), lambda index: self._layout(*every[index]))

    @staticmethod
    def _has(kind: Mapping[str, object], letter: str) -> bool:
        return any(letter in role for role in kind)

    def _outs(self) -> list[str]:
        head, out = self.matrices["O"][0]
        outs = self._fitting(_patterns(_OUT if head is None else _OUT_OF_HEAD, out.known), out.shape)
        if not outs:
            raise Unreadable(f"{out} fits no layout of W_O")
        return outs

    def _listed(self, *roles: str) -> str:
        found = [str(p) for role in roles for _, p in self.matrices.get(role, [])]
        more = len(found) - _SHOWN
        return ", ".join([*found[:_SHOWN], f"{more} more"] if more > 1 else found) or "its parameters"

    def _fitting(self, patterns: Iterable[str], shape: tuple[int, ...]) -> list[str]:
        def made(pattern: str) -> list[int]:
            parts = re.findall(r"\([^)]*\)|\w", pattern)
            return [math.prod(self.lengths[axis] for axis in part.strip("()").split()) for part in parts]

        # Axes of length 1 make no difference: OpenAI's own code keeps matrices as [1 in out].
        wanted = [size for size in shape if size != 1]
        return [each for each in dict.fromkeys(patterns) if [size for size in made(each) if size != 1] == wanted]

    def _fused(self) -> Iterable[tuple[str, str]]:
        role = "QKV" if "QKV" in self.matrices else "KV"
        parameter = self.matrices[role][0][1]
        fitting = self._fitting(_patterns(_FUSED, parameter.known), parameter.shape)
        orders = ["QKV", "KQV", "QVK", "KVQ", "VQK", "VKQ"]
        if role == "KV":  # beside it, the queries lie as the keys do
            shapes = [each.shape for _, each in self.matrices.get("Q", [])]
            fitting = [each for each in fitting if all(self._fitting([_without("c", each)], shape) for shape in shapes)]
            orders = ["QKV", "QVK"]
        return ((order, pattern) for pattern, order in itertools.product(fitting, orders))

    def _separate(self) -> Iterable[tuple[str, str]]:
        every = [(i, p) for role in "QKV" for i, p in self.matrices.get(role, [])]
        if not every:
            raise Unreadable("it has nothing that could be W_Q, W_K and W_V")
        by_head = every[0][0] is not None
        known = every[0][1].known
        fitting = [set(self._fitting(_patterns(_HEAD if by_head else _SINGLE, known), p.shape)) for _, p in every]
        common = set.intersection(*fitting)
        return (("QKV", pattern) for pattern in _patterns(_HEAD if by_head else _SINGLE, known) if pattern in common)

    def _layout(self, order: str, pattern: str, out: str) -> Layout:
        def fill(given: Given) -> dict[str, Tensor]:
            state: dict[str, Tensor] = {}
            for letter, every in (("W", self.matrices), ("b", self.biases)):
                for role in _ROLES:
                    for head, parameter in every.get(role, []):
                        source, axes, lies = self._source(given, letter, role, head, order, pattern, out)
                        state[parameter.name] = rearrange(source, f"{axes} -> {lies}").reshape(parameter.shape)
            return state

        label, oddity = self._label(order, pattern, out), self._oddity(order, pattern, out)
        split = f"{pattern} {order.index('V')} {self.split}".rstrip()
        key = f"{order} {pattern} {out} {self.chosen}".rstrip()
        return Layout(fill, frozenset(self.missing), label, oddity, split, key)

    def _source(
        self, given: Given, letter: str, role: str, head: int | None, order: str, pattern: str, out: str
    ) -> tuple[Tensor, str, str]:
        """Return the numbers for one parameter, their axes, and how they lie in it."""
        is_matrix = letter == "W"
        if role == "O" and head is not None:  # what the heads add up to
            source = given[f"{self.of}{letter}_O"]
            return (source[head], "h m", out) if is_matrix else (source / len(self.biases["O"]), "m", "m")
        if role == "O":
            return given[f"{self.of}{letter}_O"], "n h m" if is_matrix else "m", out if is_matrix else "m"
        fused = {"QKV", "KV"} & self.matrices.keys()
        if role in ("QKV", "KV"):
            source = torch.stack([given[f"{self.of}{letter}_{each}"] for each in order if each in role])
            # A bias lies as its matrix does; one of separate matrices lies as (c n h).
            bare = _without("m", pattern) if fused else "(c n h)"
            return source, "c n m h" if is_matrix else "c n h", pattern if is_matrix else bare
        source = given[f"{self.of}{letter}_{role}"]
        if head is not None:
            return source[head], "m h" if is_matrix else "h", pattern if is_matrix else "h"
        if "KV" in fused:  # the queries
            pattern = _without("c", pattern)
        # The biases of all heads beside a matrix of each, or beside one of all three, lie as (n h).
        beside_all = "QKV" in fused or any(head is not None for head, _ in self.matrices.get(role, []))
        bare = "(n h)" if beside_all else _without("m", pattern)
        return source, "n m h" if is_matrix else "n h", pattern if is_matrix else bare

    def _label(self, order: str, pattern: str, out: str) -> str:
        last = f", {self._name('O')} is [{out}]" if out else ""
        if "QKV" in self.matrices:
            name = self.matrices["QKV"][0][1].name.removesuffix(".weight")
            return f"{name} holds {', '.join(order.lower())} as [{pattern}]{last}"
        if "KV" in self.matrices:
            order, queries = order.replace("Q", ""), f"{self._name('Q')} is [{_without('c', pattern)}]"
            return f"{queries}, {self._name('KV')} holds {', '.join(order.lower())} as [{pattern}]{last}"
        return f"{self._name('Q')}, {self._name('K')}, {self._name('V')} are [{pattern}]{last}"

    def _name(self, role: str) -> str:
        return self.matrices[role][0][1].name.removesuffix(".weight")

    def _oddity(self, order: str, pattern: str, out: str) -> str:
        found = []
        if "KV" in self.matrices and order != "QKV":
            found.append("the values come before the keys")
        elif order != "QKV":
            found.append(f"the order is {', '.join(order.lower())}")
        axes = "".join(axis for axis in pattern if axis in "cnh")
        if axes.find("h") < axes.find("n"):
            found.append("the numbers of the heads are interleaved")
        if axes.find("h") < axes.find("c"):
            found.append("the numbers of q, k and v are interleaved")
        elif axes.startswith("nc"):
            found.append("each head has its q, k and v side by side")
        if "h n" in out and "n h m" not in out:
            found.append("the output projection expects the heads interleaved")
        return " and ".join(found)


def attention_layouts(found: Parameters, of: str, config: GPT2Config) -> Layouts:
    """Return every way to read the parameters of an attention layer, the likeliest first.

    Args:
        found: the parameters.
        of: what stands before GPT-2's names: ``blocks.0.attn.``.

    Raises:
        Unreadable: they fit no layout.
    """
    every = [_Attention(found, of, config, chosen).layouts() for chosen in _choices(found)]
    counts = list(itertools.accumulate(map(len, every), initial=0))

    def make(index: int) -> Layout:
        which = bisect.bisect_right(counts, index) - 1
        return every[which][index - counts[which]]

    return Layouts(counts[-1], make)


def _choices(found: Parameters) -> list[dict[str, str]]:
    """Return the roles that parameters may have whose names do not tell: in the layer's own order first, then in any.

    They are four matrices of one shape, for queries, keys, values and output; or three, beside an output projection.
    """
    matrices = {name: p for name, p in found.items() if p.tensor.ndim > 1}
    unknown = [name for name in matrices if role_of(name) is None]
    known = {role_of(name) for name in matrices} - {None}
    roles = {(4, False): "QKVO", (3, True): "QKV"}.get((len(unknown), known == {"O"}), "")
    if not roles or (known and known != {"O"}) or len({matrices[name].shape for name in unknown}) > 1:
        return [{}]
    of_path = {name.rpartition(".")[0]: index for index, name in enumerate(unknown)}
    chosen = []
    for order in itertools.permutations(roles):
        of_matrix = dict(zip(unknown, order, strict=True))
        # A bias beside its matrix, in the same module, has its role.
        beside = {
            name: order[of_path[name.rpartition(".")[0]]]
            for name in found
            if name not in matrices and len(of_path) == len(unknown) and name.rpartition(".")[0] in of_path
        }
        chosen.append(of_matrix | beside)
    return chosen
