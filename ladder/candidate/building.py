"""Build the user's layer: sizes under all their usual names, as a configuration object or as arguments."""

import enum
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from torch import nn

from ...assembly.config import GPT2Config
from .aliases import CLASS_NAMES, SIZES, canonical, decides, flag, flat, foreign, is_plain_flag
from .arguments_in_kwargs import in_kwargs
from .standins import StandIn

FIELDS = (*SIZES, "layer_norm_eps", "init_range", "debug", "act_fn", "scale")
# A dropout that is left on in eval() shows only if its probability is not 0.
DROPOUT = 0.1

# Left at their defaults if they have one: passing them would hide what the layer does by itself.
_OPTIONAL = {"act_fn", "scale", "init_range", "device", "debug", "none", "ratio"}
_CONFIGURATION = re.compile(
    r"^(cfg|conf|config|configuration|args?|hparams?|params|opt|options|settings|hps|c)$|config$", re.I
)
# An argument of such a name, or with such an annotation, is a module, and neither a size nor a configuration.
_MODULE = re.compile(
    r"^(.*_)?(model|module|backbone|network|net|encoder|transformer|tokenizer|lm|(sub_?)?layer|fn|func(tion)?|inner|"
    r"wrapped)$|^f$",
    re.I,
)
_MODULE_TYPE = re.compile(r"^(torch\.)?(nn\.)?Module$|Callable\b", re.I)
# The model's width, where a configuration has ``hidden_dim`` too.
_WIDTHS = ("emb_dim", "embed_dim", "n_embd", "n_embed", "d_model", "embedding_dim", "dim", "model_dim")
# What a file may call GPT-2's activation, if it does not know our name.
_GELU = (
    *("gelu_new", "gelu_tanh", "gelu_pytorch_tanh", "tanh_gelu", "new_gelu", "gelu_approx", "gelu_accurate"),
    *("approx_gelu", "gelu", "GELU"),
)
# What one name means in one layer: (rung, argument) -> size.
_IN_LAYER = {
    ("mlp", "nx"): "d_mlp",
    ("mlp", "nstate"): "d_mlp",
    ("mlp", "hiddendim"): "d_mlp",
    ("mlp", "hiddensize"): "d_mlp",
    ("mlp", "hiddendimension"): "d_mlp",
    ("pos-embed", "numembeddings"): "n_ctx",
    ("mlp", "scaling"): "ratio",
    ("mlp", "mult"): "ratio",
    ("mlp", "multiplier"): "ratio",
    ("attention", "hiddendimension"): "d_head",
    ("block", "hiddendimension"): "d_head",
}


class Refused(Exception):
    """A constructor asks for something that is not known.

    Args:
        name: of the argument.
        is_module: it is another layer, which cannot be given as a value.
    """

    def __init__(self, name: str, is_module: bool = False) -> None:
        if is_module:
            what = "which is another layer"
        elif foreign(name):
            what = f"which GPT-2 does not have ({foreign(name)})"
        else:
            what = f"which is not known: give it with --set {name}=VALUE"
        super().__init__(f"asks for {name}, {what}")
        self.name = name


class Sizes:
    """What a layer is built with, and what it read of it.

    Args:
        config: the sizes and choices.
        chosen: the user's own values (``--set``), by their names.
        asked: filled with our names of what the layer reads; what it does not read makes no difference to it.

    Attributes:
        values: by our names.
        passed: ``(value, the file's default)`` of each argument or field that the file has a default for.
    """

    def __init__(self, config: GPT2Config, chosen: Mapping[str, Any], asked: set[str]) -> None:
        self.chosen, self.asked = chosen, asked
        self.passed: dict[str, tuple[Any, Any]] = {}
        self.values: dict[str, Any] = {name: getattr(config, name) for name in FIELDS if hasattr(config, name)}
        self.values |= {"scale": config.attn_scale(0), "debug": False, "dropout": DROPOUT, "bias": True}
        self.values |= {
            "n_kv_heads": config.n_heads,
            "ratio": config.d_mlp // config.d_model or 1,
            "layer": 0,
            "none": None,
            "device": "cpu",
        }

    def get(self, name: str, rung: str = "", default: Any = inspect.Parameter.empty) -> Any:
        """Return a value by any of its names, and note that it was read.

        Raises:
            KeyError: it is not known.
        """
        if name in self.chosen:
            return self.chosen[name]
        ours = _IN_LAYER.get((rung, flat(name))) or canonical(name)
        if ours is None:
            return self.flag(name, default)
        return self.take(ours, name, default)

    def take(self, ours: str, name: str, default: Any) -> Any:
        """Return a value by our name, and note that it was read; and the file's default for it, if that differs."""
        self.asked.add("n_heads" if ours == "n_kv_heads" else ours)
        value = self.values[ours]
        known = default is not inspect.Parameter.empty
        if known and default != value and ours in ("layer_norm_eps", "bias", "n_kv_heads"):
            self.passed[name] = (value, default)
        return value

    def flag(self, name: str, default: Any = inspect.Parameter.empty, is_bool: bool = False) -> Any:
        """Return what GPT-2 does where a flag decides; of other flags, the file's default.

        Raises:
            KeyError: it is no flag, or may be something else of that name.
        """
        value = flag(name)
        if value is None or not (is_bool or isinstance(default, bool) or is_plain_flag(name)):
            raise KeyError(name)
        known = default is not inspect.Parameter.empty
        if known and not decides(name):
            return default
        if known and default != value:
            self.passed[name] = (value, default)
        return value


class Configuration:
    """The configuration object that a layer is built with: attributes, items and ``.get``, under all usual names.

    Args:
        sizes: what it answers.
        fallback: the file's own configurations, for everything else.
    """

    def __init__(self, sizes: Sizes, fallback: list[Any]) -> None:
        self.__dict__.update(_sizes=sizes, _fallback=fallback, _set={})

    def _find(self, name: str) -> Any:
        if name in self._set:
            return self._set[name]
        own = next((v for v in (_field(each, name) for each in self._fallback) if v is not _MISSING), _MISSING)
        size = "d_mlp" if name not in self._sizes.chosen and self._is_inner(name) else name
        try:
            return self._sizes.get(size, default=inspect.Parameter.empty if own is _MISSING else own)
        except KeyError:
            if own is not _MISSING:
                return own
            raise AttributeError(
                f"the configuration has no {name!r}: give it with --set {name}=VALUE; it has "
                f"{', '.join(FIELDS)}, under their usual names"
            ) from None

    def _is_inner(self, name: str) -> bool:
        """Return whether ``hidden_dim`` is an MLP's width: it is where the configuration has the model's beside it."""
        return flat(name) in ("hiddendim", "hiddensize", "hiddendimension") and any(
            _field(each, name) is not _MISSING and any(_field(each, own) is not _MISSING for own in _WIDTHS)
            for each in self._fallback
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._find(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._set[name] = value

    __setitem__ = __setattr__

    def __getitem__(self, name: str) -> Any:
        try:
            return self._find(name)
        except AttributeError as error:
            raise KeyError(str(error)) from None

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or the default if it is not known."""
        try:
            return self._find(name)
        except AttributeError:
            return default

    def __contains__(self, name: str) -> bool:
        return canonical(name) is not None or flag(name) is not None or name in self._set

    def keys(self) -> Iterator[str]:
        """Return the usual names, for ``**config``."""
        return iter(("n_embd", "n_head", "n_layer", "block_size", "vocab_size"))


_MISSING = object()


def _field(own: Any, name: str) -> Any:
    value = own.get(name, _MISSING) if isinstance(own, Mapping) else getattr(own, name, _MISSING)
    return _MISSING if isinstance(value, types.FunctionType | types.MethodType | property) else value


def own_configurations(namespace: Mapping[str, Any]) -> list[Any]:
    """Return the file's own configurations: dicts, constant classes and configuration classes with their defaults."""
    found: list[Any] = []
    for name, value in namespace.items():
        if inspect.isclass(value) and not issubclass(value, nn.Module | enum.Enum | BaseException):
            fields = [*vars(value), *getattr(value, "__annotations__", {})]
            if sum(canonical(each) is not None for each in fields) >= 2 or re.search("config", name, re.I):
                try:
                    found.append(value())
                except Exception:
                    found.append(value)
        elif isinstance(value, dict) and sum(isinstance(key, str) and canonical(key) is not None for key in value) >= 3:
            found.append(value)
    return found


class Builder:
    """Builds a layer for given sizes.

    Args:
        make: its class, or a function that returns it.
        rung: the rung that it is tried on.
        namespace: of the user's file: its configurations, constants and other classes.

    Raises:
        Refused: its constructor asks for something that is not known.
    """

    def __init__(self, make: Callable[..., Any], rung: str, namespace: MutableMapping[str, Any]) -> None:
        self.make, self.rung, self.namespace = make, rung, namespace
        self.configurations = own_configurations(namespace)
        self._making: list[Callable[..., Any]] = []
        self.constants = self._constants()

    def build(self, sizes: Sizes) -> Any:
        """Call the constructor."""
        self.set_constants(sizes)
        try:
            return self._call(self.make, sizes, self.rung)
        except (LookupError, AttributeError, ValueError, NotImplementedError) as error:
            if sizes.values["act_fn"] != "gelu_new" or "gelu_new" not in str(error):
                raise
            return self._with_its_own_activation(sizes, error)

    def _with_its_own_activation(self, sizes: Sizes, error: Exception) -> Any:
        """Build a layer that has no activation of our name with the first of the file's own that it knows."""
        for name in _GELU[1:]:
            sizes.values["act_fn"] = name
            with suppress(LookupError, AttributeError, ValueError, NotImplementedError):
                return self._call(self.make, sizes, self.rung)
        raise error

    def set_constants(self, sizes: Sizes) -> None:
        """Give module globals such as ``n_embd``, and the fields of constant classes, these sizes."""
        for owner, name in self.constants:
            new = sizes.get(name)
            if isinstance(owner, MutableMapping):
                owner[name] = new
            else:
                setattr(owner, name, new)

    def _constants(self) -> list[tuple[Any, str]]:
        found: list[tuple[Any, str]] = []
        used = _global_names(self.namespace)
        for name, value in list(self.namespace.items()):
            plain = isinstance(value, int | float | str | StandIn) and not isinstance(value, bool)
            if (
                name in used
                and canonical(name) in (*SIZES, "n_kv_heads", "dropout", "layer_norm_eps", "device")
                and plain
                and len(name) > 2
            ):
                found.append((self.namespace, name))
        for own in self.configurations:
            if isinstance(own, Mapping):
                continue
            owner = own if inspect.isclass(own) else type(own)
            if hasattr(owner, "__dataclass_fields__"):
                continue
            for name, value in vars(owner).items():
                if canonical(name) in SIZES and isinstance(value, int | StandIn) and not isinstance(value, bool):
                    found.append((owner, name))
        return found

    def _call(self, make: Callable[..., Any], sizes: Sizes, rung: str) -> Any:
        self._making.append(make)
        try:
            return self._made(make, sizes, rung)
        finally:
            self._making.pop()

    def _made(self, make: Callable[..., Any], sizes: Sizes, rung: str) -> Any:
        arguments = list(inspect.signature(make).parameters.values())
        named = [each for each in arguments if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        given: dict[str, Any] = {}
        positional: list[Any] = []
        for each in [*named, *in_kwargs(make, bool(named))]:
            value = self._argument(each, named, sizes, rung)
            if value is _MISSING:
                continue
            if each.kind == each.POSITIONAL_ONLY:
                positional.append(value)
            else:
                given[each.name] = value
        return make(*positional, **given)

    def _argument(self, each: inspect.Parameter, named: list[inspect.Parameter], sizes: Sizes, rung: str) -> Any:
        required = each.default is each.empty
        name = each.name
        # What the user has chosen, and names that mean something of their own.
        if name in sizes.chosen:
            return sizes.chosen[name]
        if name == "scale" and each.default is False:  # whether to divide by sqrt(d_head): GPT-2 does
            sizes.passed[name] = (True, False)
            return True
        if isinstance(each.default, enum.Enum):
            return next((member for member in type(each.default) if "gelu" in member.name.lower()), _MISSING)
        if rung == "mlp" and flat(name) == "dout" and {flat(other.name) for other in named} >= {"din", "dout"}:
            return sizes.get("d_mlp") if len(named) == 2 else sizes.get("d_model")
        # A size or a choice of GPT-2's.
        ours = _IN_LAYER.get((rung, flat(name))) or canonical(name)
        others = [other.name for other in named if other is not each]
        if (rung, flat(name)) in _IN_LAYER and not any(
            canonical(other) == "d_model" or _CONFIGURATION.search(other) for other in others
        ):
            ours = "d_model"  # the only width that it is given
        typed = self._is_module(each)
        is_module = bool(_MODULE.search(name)) if typed is None else typed
        ours = None if typed and ours in SIZES else ours
        if rung == "layer-norm" and required and not ours and not _CONFIGURATION.search(name) and not is_module:
            ours = "d_model"
        alone = required and len([other for other in named if other.default is other.empty]) == 1
        if ours and not (flat(name) in ("c", "n", "h") and alone) and (required or ours not in _OPTIONAL):
            return sizes.take(ours, name, each.default)
        # A flag, or a configuration.
        with suppress(KeyError):
            return sizes.flag(name, each.default, each.annotation is bool or each.annotation == "bool")
        if foreign(name) and required:
            raise Refused(name)
        if _CONFIGURATION.search(name):
            return Configuration(sizes, self.configurations)
        part, cls = self._part(each)
        if alone and not is_module and not (cls and flat(cls.__name__) == flat(name)):
            return Configuration(sizes, self.configurations)
        if not required:
            return _MISSING
        if cls is None:
            raise Refused(name, is_module)
        try:
            return self._call(cls, sizes, part)
        except Refused as error:
            raise Refused(name, is_module=True) from error

    def _is_module(self, each: inspect.Parameter) -> bool | None:
        """Return whether an argument is a module, by its annotation; None if that does not tell."""
        annotation = each.annotation
        annotation = self.namespace.get(annotation, annotation) if isinstance(annotation, str) else annotation
        if inspect.isclass(annotation) and annotation not in (each.empty, Any, object, Callable):
            return issubclass(annotation, nn.Module)
        return True if _MODULE_TYPE.search(str(each.annotation)) else None

    def _part(self, each: inspect.Parameter) -> tuple[str, type | None]:
        """Return the class of the file that an argument asks for an instance of, by its name, and that class's rung."""
        part = next((part for part, pattern in CLASS_NAMES.items() if re.search(pattern, each.name, re.I)), "")
        if each.annotation in (int, float, bool, str, "int", "float", "bool", "str"):
            return "", None
        # A class whose arguments are being made is none of its own arguments.
        classes = {n: c for n, c in self.namespace.items() if inspect.isclass(c) and c not in self._making}
        likely = [c for n, c in classes.items() if part and re.search(CLASS_NAMES[part], n, re.I)]
        of_that_name = [c for n, c in classes.items() if part and flat(n) == flat(each.name)]
        return part, next(iter([*of_that_name, *likely]), None)


def _global_names(namespace: Mapping[str, Any]) -> set[str]:
    """Return the names that the functions of a file look up, in its globals among others."""
    found: set[str] = set()
    for value in namespace.values():
        methods = vars(value).values() if inspect.isclass(value) else [value]
        for method in methods:
            method = inspect.unwrap(method) if callable(method) else method
            codes = [getattr(method, "__code__", None)]
            while codes:
                code = codes.pop()
                if code is not None:
                    found |= set(code.co_names)
                    codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return found
