"""What a layer is built with: sizes under all their usual names, as a configuration object or one by one."""

import enum
import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ...assembly.config import GPT2Config
from ..results import listed
from .aliases import SIZES, canonical, decides, flag, flat, foreign, is_plain_flag
from .masks import ConstructorsMask

FIELDS = (*SIZES, "layer_norm_eps", "init_range", "debug", "act_fn", "scale")
# A dropout that is left on in eval() shows only if its probability is not 0.
DROPOUT = 0.1

# The model's width, where a configuration has ``hidden_dim`` too.
_WIDTHS = ("emb_dim", "embed_dim", "n_embd", "n_embed", "d_model", "embedding_dim", "dim", "model_dim")
# Fields of one letter, as in comments on shapes.
_LETTERS = {"C": "d_model", "D": "d_model", "E": "d_model", "V": "d_vocab", "L": "n_layers", "T": "n_ctx"}
# Fields that hold a part of a configuration: ``config["MODEL"]["n_embd"]``.
_SECTION = re.compile(
    r"^(model|data(set)?|transformer|gpt_?2?|arch(itecture)?|network|net|train(ing|er)?|tokenizer|attention|attn|mlp|"
    r"block|decoder|cfg|config|params|h(yper)?_?params|hyper_?parameters)(s|_?(config|cfg|params|args))?$",
    re.I,
)
# What one name means in one layer: (rung, argument) -> size.
IN_LAYER = {
    ("mlp", "nx"): "d_mlp",
    ("mlp", "nstate"): "d_mlp",
    ("mlp", "hiddendim"): "d_mlp",
    ("mlp", "hiddensize"): "d_mlp",
    ("mlp", "hiddendimension"): "d_mlp",
    ("mlp", "hiddenunits"): "d_mlp",
    ("embed", "nembeddings"): "d_vocab",
    ("pos-embed", "nembeddings"): "n_ctx",
    ("mlp", "dim2"): "d_mlp",
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
        names: of the arguments.
        is_module: it is another layer, which cannot be given as a value.
    """

    def __init__(self, *names: str, is_module: bool = False) -> None:
        if is_module:
            what = "which is another layer"
        elif foreign(names[0]):
            what = f"which GPT-2 does not have ({foreign(names[0])})"
        else:
            what = f"which {'is' if len(names) == 1 else 'are'} not known: {_how_to_give(names)}"
        super().__init__(f"asks for {listed(names)}, {what}")
        self.names = names
        self.can_be_set = not is_module and not foreign(names[0])


def _how_to_give(names: Sequence[str]) -> str:
    pronoun = "it" if len(names) == 1 else "them"
    return f"give {pronoun} with {' '.join(f'--set {name}=VALUE' for name in names)}"


def is_unknown_field(error: BaseException) -> bool:
    """Return whether an error was raised by a configuration that does not have a field."""
    return isinstance(error, AttributeError | KeyError) and isinstance(getattr(error, "obj", None), Configuration)


def explain_unknown(error: BaseException, names: Sequence[str]) -> None:
    """Put every field that a configuration does not have into its error."""
    error.args = (
        f"the configuration has no {', '.join(map(repr, names))}: {_how_to_give(names)}; it has "
        f"{', '.join(FIELDS)}, under their usual names",
    )


class Sizes:
    """What a layer is built with, and what it read of it.

    Args:
        config: the sizes and choices.
        chosen: the user's own values (``--set``), by their names.
        asked: filled with our names of what the layer reads; what it does not read makes no difference to it.

    Attributes:
        values: by our names.
        passed: ``(value, the file's default)`` of each argument or field that the file has a default for.
        mask: the causal mask that the constructor takes, if it does.
        fixed: the number of heads, if the user has chosen it.
    """

    def __init__(self, config: GPT2Config, chosen: Mapping[str, Any], asked: set[str]) -> None:
        self.config, self.chosen, self.asked = config, chosen, asked
        self.passed: dict[str, tuple[Any, Any]] = {}
        self.mask = ConstructorsMask()
        self.fixed: dict[str, int] = {}
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
            return self.own_choice(name)
        ours = IN_LAYER.get((rung, flat(name))) or canonical(name)
        if ours is None:
            return self.flag(name, default)
        return self.take(ours, name, default)

    def own_choice(self, name: str) -> Any:
        """Return the value that the user has chosen for a name."""
        value = self.chosen[name]
        if canonical(name) == "n_heads" and isinstance(value, int):
            self.fixed["n_heads"] = value
        return value

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
        own = next((v for v in (_field(each, name) for each in self._fallback) if v is not MISSING), MISSING)
        size = "d_mlp" if name not in self._sizes.chosen and self._is_inner(name) else name
        try:
            return self._sizes.get(size, default=inspect.Parameter.empty if own is MISSING else own)
        except KeyError:
            if own is not MISSING:
                return own
            if name in _LETTERS:
                return self._sizes.take(_LETTERS[name], name, inspect.Parameter.empty)
            if _SECTION.search(name):
                return self
            error = AttributeError(name=name, obj=self)
            explain_unknown(error, [name])
            raise error from None

    def _is_inner(self, name: str) -> bool:
        """Return whether ``hidden_dim`` is an MLP's width: it is where the configuration has the model's beside it."""
        return flat(name) in ("hiddendim", "hiddensize", "hiddendimension") and any(
            _field(each, name) is not MISSING and any(_field(each, own) is not MISSING for own in _WIDTHS)
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
            missing = KeyError(str(error))
            missing.__dict__.update(name=name, obj=self)
            raise missing from None

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or the default if it is not known."""
        try:
            return self._find(name)
        except AttributeError:
            return default

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._answers(name)

    def _answers(self, name: str) -> bool:
        return canonical(name) is not None or flag(name) is not None or name in self._set

    def keys(self) -> Iterator[str]:
        """Return the usual names, for ``**config``."""
        return iter(("n_embd", "n_head", "n_layer", "block_size", "vocab_size"))


def of_own_class(made: Any, configuration: Configuration) -> Any:
    """Return a configuration of the file's own class (transformers' models take no other) that answers as ours does.

    Args:
        made: an instance, built with our sizes.
        configuration: answers what it holds and what its ``attribute_map`` leads to, where we know the name.
    """
    every = [*vars(made), *getattr(made, "attribute_map", {})]
    fields = {name for name in every if canonical(name) not in (None, "none")}

    def read(self: Any, name: str) -> Any:
        return getattr(configuration, name) if name in fields else object.__getattribute__(self, name)

    made.__class__ = type(type(made).__name__, (type(made),), {"__getattribute__": read})
    return made


MISSING = object()


def _field(own: Any, name: str) -> Any:
    value = own.get(name, MISSING) if isinstance(own, Mapping) else getattr(own, name, MISSING)
    return MISSING if isinstance(value, types.FunctionType | types.MethodType | property) else value


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
