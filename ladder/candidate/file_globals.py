"""The globals of a file that hold sizes: ``n_embd = 64``, fields of constant classes, ``config = Config()``."""

import inspect
import re
import types
from collections.abc import Mapping, MutableMapping
from typing import Any

from ...assembly.config import GPT2Config
from .aliases import SIZES, canonical
from .configuration import Configuration, Sizes
from .standins import StandIn

CONFIGURATION_NAME = re.compile(
    r"^(cfg|conf|config|configuration|args?|hparams?|params|opt|options|settings|hps|c)$|config$", re.I
)


class FileGlobals:
    """What the classes of a file read as globals, and what is given other sizes for each case.

    Args:
        namespace: of the file.
        configurations: its own configurations; see `own_configurations`.

    Attributes:
        constants: the numbers, each by its owner (the namespace or a class) and name.
    """

    def __init__(self, namespace: MutableMapping[str, Any], configurations: list[Any]) -> None:
        self._namespace, self._configurations = namespace, configurations
        self._used = _names_looked_up(namespace)
        self.constants = [*self._numbers(), *self._fields()]
        self._objects = dict(self._configuration_objects())

    def set(self, sizes: Sizes) -> None:
        """Give them these sizes."""
        for owner, name in self.constants:
            new = sizes.get(name)
            if isinstance(owner, MutableMapping):
                owner[name] = new
            else:
                setattr(owner, name, new)
        for name, fallback in self._objects.items():
            self._namespace[name] = Configuration(sizes, fallback)

    def _numbers(self) -> list[tuple[Any, str]]:
        sizes = (*SIZES, "n_kv_heads", "dropout", "layer_norm_eps", "device")
        return [
            (self._namespace, name)
            for name, value in self._namespace.items()
            if name in self._used and len(name) > 2 and canonical(name) in sizes
            if isinstance(value, int | float | str | StandIn) and not isinstance(value, bool)
        ]

    def _fields(self) -> list[tuple[Any, str]]:
        """Return the fields of constant classes."""
        found: list[tuple[Any, str]] = []
        for own in self._configurations:
            owner = own if inspect.isclass(own) else type(own)
            if isinstance(own, Mapping) or hasattr(owner, "__dataclass_fields__"):
                continue
            for name, value in vars(owner).items():
                if canonical(name) in SIZES and isinstance(value, int | StandIn) and not isinstance(value, bool):
                    found.append((owner, name))
        return found

    def _configuration_objects(self) -> list[tuple[str, list[Any]]]:
        """Return the names of objects that classes read sizes of, and what answers for what is no size."""
        found: list[tuple[str, list[Any]]] = []
        for name in filter(CONFIGURATION_NAME.search, self._used & self._namespace.keys()):
            own = self._namespace[name]
            if isinstance(own, Configuration):  # it was put there before
                found.append((name, vars(own)["_fallback"]))
            elif isinstance(own, StandIn):
                found.append((name, self._configurations))
            elif not (inspect.isclass(own) or inspect.ismodule(own) or callable(own) or isinstance(own, GPT2Config)):
                found.append((name, [own, *self._configurations]))
        return found


def _names_looked_up(namespace: Mapping[str, Any]) -> set[str]:
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
