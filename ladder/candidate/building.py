"""Build the user's layer: which argument of a constructor gets what."""

import enum
import inspect
import re
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any

from torch import nn

from .aliases import CLASS_NAMES, SIZES, canonical, flat, foreign
from .arguments_in_kwargs import in_kwargs
from .configuration import (
    IN_LAYER,
    MISSING,
    Configuration,
    Refused,
    Sizes,
    explain_unknown,
    is_unknown_field,
    of_own_class,
    own_configurations,
)
from .file_globals import CONFIGURATION_NAME, FileGlobals
from .layouts import Unreadable
from .masks import ConstructorsMask, is_mask
from .parameters import read
from .size_words import is_of_qkv, side

# Left at their defaults if they have one: passing them would hide what the layer does by itself.
_OPTIONAL = {"act_fn", "scale", "init_range", "device", "debug", "none", "ratio"}
# An argument of such a name, or with such an annotation, is a module, and neither a size nor a configuration.
_MODULE = re.compile(
    r"^(.*_)?(model|module|backbone|network|net|encoder|transformer|tokenizer|lm|(sub_?)?layer|fn|func(tion)?|inner|"
    r"wrapped)$|^f$",
    re.I,
)
_MODULE_TYPE = re.compile(r"^(torch\.)?(nn\.)?Module$|Callable\b", re.I)
# What a file may call GPT-2's activation, if it does not know our name.
_GELU = (
    *("gelu_new", "gelu_tanh", "gelu_pytorch_tanh", "tanh_gelu", "new_gelu", "gelu_approx", "gelu_accurate"),
    *("approx_gelu", "gelu", "GELU"),
)
# An MLP's width beside the model's; where there is no other, the model's.
_HIDDEN = ("hidden", "dhidden", "dimhidden", "dhid", "hiddenfeatures")
# Layers whose input and output are as wide as the model.
_AS_WIDE = ("attention", "mlp", "block", "layer-norm")


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
        # Other meanings of arguments, by name: those that could be tried, and those that are.
        self._doubtful: dict[str, str] = {}
        self._meanings: dict[str, str] = {}
        self.globals = FileGlobals(namespace, self.configurations)

    def build(self, sizes: Sizes) -> Any:
        """Call the constructor."""
        self.globals.set(sizes)
        try:
            layer = self._call(self.make, sizes, self.rung)
        except (LookupError, AttributeError, ValueError, NotImplementedError, AssertionError) as error:
            if is_unknown_field(error):
                explain_unknown(error, self._unknown_fields(sizes, error))
                raise
            if (other := self._of_other_meanings(sizes)) is not None:
                return other
            if sizes.values["act_fn"] != "gelu_new" or "gelu_new" not in str(error):
                raise
            layer = self._with_its_own_activation(sizes, error)
        if sizes.mask.name and not (isinstance(layer, nn.Module) and sizes.mask.find(layer)):
            sizes.mask = ConstructorsMask(wanted=False)  # it is a part of something else: the default must do
            return self.build(sizes)
        if self._doubtful and not self._fits(layer, sizes) and (other := self._of_other_meanings(sizes)) is not None:
            return other
        return layer

    def _of_other_meanings(self, sizes: Sizes) -> Any:
        """Return the layer built with other meanings of its arguments; None if that fits nothing."""
        if self._doubtful and not self._meanings:
            self._meanings = self._doubtful
            with suppress(Exception):
                other = self._call(self.make, sizes, self.rung)
                if self._fits(other, sizes):
                    return other
            self._meanings, self._doubtful = {}, {}
        return None

    def _unknown_fields(self, sizes: Sizes, error: Any) -> list[str]:
        """Return every field that the configuration lacks: a constructor asks for one after the other."""
        names: list[str] = []
        while is_unknown_field(error) and error.name not in names:
            names.append(error.name)
            try:
                self._call(
                    self.make, Sizes(sizes.config, {**sizes.chosen, **dict.fromkeys(names, 1)}, set()), self.rung
                )
            except Exception as another:
                error = another
        return names

    def _fits(self, layer: Any, sizes: Sizes) -> bool:
        try:
            return isinstance(layer, nn.Module) and bool(read(layer, self.rung, sizes.config))
        except Unreadable:
            return False

    def _with_its_own_activation(self, sizes: Sizes, error: Exception) -> Any:
        """Build a layer that has no activation of our name with the first of the file's own that it knows."""
        for name in _GELU[1:]:
            sizes.values["act_fn"] = name
            with suppress(LookupError, AttributeError, ValueError, NotImplementedError):
                return self._call(self.make, sizes, self.rung)
        raise error

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
        unknown: list[str] = []
        for each in [*named, *in_kwargs(make, bool(named))]:
            try:
                value = self._argument(each, named, sizes, rung)
            except Refused as error:
                if not error.can_be_set:
                    raise
                unknown += error.names
                continue
            if value is MISSING:
                continue
            if each.kind == each.POSITIONAL_ONLY:
                positional.append(value)
            else:
                given[each.name] = value
        if unknown:
            raise Refused(*unknown)
        return make(*positional, **given)

    def _argument(self, each: inspect.Parameter, named: list[inspect.Parameter], sizes: Sizes, rung: str) -> Any:
        required = each.default is each.empty
        name = each.name
        # What the user has chosen, and names that mean something of their own.
        if name in sizes.chosen:
            return sizes.own_choice(name)
        if sizes.mask.wanted and is_mask(name) and (each.default is None or "Tensor" in str(each.annotation)):
            return sizes.mask.give(name)
        if name == "scale" and each.default is False:  # whether to divide by sqrt(d_head): GPT-2 does
            sizes.passed[name] = (True, False)
            return True
        if isinstance(each.default, enum.Enum):
            return next((member for member in type(each.default) if "gelu" in member.name.lower()), MISSING)
        of_side = side(name) if rung in _AS_WIDE else ""
        if rung == "mlp" and of_side == "out" and "in" in {side(other.name) for other in named}:
            widths = [other for other in named if side(other.name) or canonical(other.name) in (*SIZES, "ratio")]
            return sizes.get("d_mlp") if len(widths) == 2 else sizes.get("d_model")
        # A size or a choice of GPT-2's.
        ours = self._meanings.get(flat(name)) or IN_LAYER.get((rung, flat(name))) or canonical(name)
        ours = ours or ("d_model" if of_side else None)
        others = [other.name for other in named if other is not each]
        if other := _other_meaning(name, rung, ours, of_side, others):
            self._doubtful[flat(name)] = other
        rows = {"embed": "d_vocab", "pos-embed": "n_ctx"}.get(rung)
        if rows and ours == "d_model" and name.startswith("n") and "d_model" in map(canonical, others):
            ours = rows  # Embedding(n_embed, d_embed)
        if (rung, flat(name)) in IN_LAYER and not any(
            canonical(other) == "d_model" or side(other) or CONFIGURATION_NAME.search(other) for other in others
        ):
            ours = "d_model"  # the only width that it is given
        widths = [*map(canonical, others), ours]
        if flat(name) in _HIDDEN and "d_model" not in widths and self._is_the_width(others, widths):
            ours = "d_model"
        typed = self._is_module(each)
        is_module = bool(_MODULE.search(name)) if typed is None else typed
        ours = None if typed and ours in SIZES else ours
        if rung == "layer-norm" and required and not ours and not CONFIGURATION_NAME.search(name) and not is_module:
            ours = "d_model"
        alone = required and len([other for other in named if other.default is other.empty]) == 1
        if ours and not (flat(name) in ("c", "n", "h") and alone) and (required or ours not in _OPTIONAL):
            return sizes.take(ours, name, each.default)
        # A flag, or a configuration.
        with suppress(KeyError):
            bare = required and each.annotation is each.empty  # ``mask``, say
            return sizes.flag(name, each.default, bare or each.annotation is bool or each.annotation == "bool")
        if foreign(name) and required:
            raise Refused(name)
        if CONFIGURATION_NAME.search(name):
            return self._configuration(sizes)
        part, cls = self._part(each)
        if alone and rung in _AS_WIDE and each.annotation in (int, "int"):
            return sizes.take("d_model", name, each.default)  # a layer's only number is its width
        if alone and not is_module and not (cls and flat(cls.__name__) == flat(name)):
            return self._configuration(sizes)
        if not required:
            return MISSING
        if cls is None:
            raise Refused(name, is_module=is_module)
        try:
            return self._call(cls, sizes, part)
        except Refused as error:
            raise Refused(name, is_module=True) from error

    def _is_the_width(self, others: list[str], widths: list[str | None]) -> bool:
        """Return whether ``hidden`` is the model's width: it is beside an MLP's, or if no other width is known."""
        elsewhere = any(map(CONFIGURATION_NAME.search, others)) or any(
            canonical(n) == "d_model" for _, n in self.globals.constants
        )
        return widths.count("d_mlp") > 1 or not elsewhere

    def _configuration(self, sizes: Sizes) -> Any:
        sizes.asked.add("config")
        own = getattr(self._making[-1], "config_class", None)
        if inspect.isclass(own) and not issubclass(own, Configuration | nn.Module):
            # With sizes of ours, of which nothing counts as read yet.
            made = self._call(own, Sizes(sizes.config, sizes.chosen, set()), "")
            return of_own_class(made, Configuration(sizes, self.configurations))
        return Configuration(sizes, self.configurations)

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


def _other_meaning(name: str, rung: str, ours: str | None, of_side: str, others: list[str]) -> str | None:
    """Return what an argument's name may also mean, if the layer's parameters fit nothing otherwise."""
    if rung == "attention" and of_side == "out":  # of one head
        return "d_head"
    knows_heads = "n_heads" in map(canonical, others)
    if rung in ("attention", "block") and ours == "d_head" and is_of_qkv(name) and knows_heads:  # of all together
        return "d_model"
    if rung == "block" and ours == "d_head" and "d_model" not in map(canonical, others):  # Block(head_size=n_embd)
        return "d_model"
    return None
