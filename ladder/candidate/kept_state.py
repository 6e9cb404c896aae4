"""What a call of the user's layer keeps for the next one: in its attributes, its classes, or its file's names."""

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any

from torch import Tensor, nn

from .places import Code, Place

# More is not compared: tables of words, say, and a layer that goes through its numbers one by one.
_MOST_ENTRIES, _MOST_LINES = 50, 20_000
_OF_TORCH = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, bytes, type(None))


@dataclass(frozen=True)
class _Holder:
    """The attributes of a module or of a class, or the names of a file.

    Args:
        prefix: what stands before a name in the code: ``self.``.
        names: the names, as Python keeps them.
        of: the class, if it is one.
    """

    prefix: str
    names: Mapping[str, Any]
    of: type | None = None

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield the names that a call may change, and what they stand for."""
        for name, value in list(self.names.items()):
            fixed = isinstance(
                value, nn.Module | nn.Parameter | ModuleType | type | staticmethod | classmethod | property
            )
            if not (fixed or callable(value) or name in _OF_TORCH or name.startswith("__")):
                yield name, value

    def put(self, name: str, value: Any) -> None:
        """Let a name stand for this."""
        if self.of is not None:
            setattr(self.of, name, value)
        elif isinstance(self.names, dict):
            self.names[name] = value

    def remove(self, name: str) -> None:
        """Take a name out."""
        if self.of is not None:
            delattr(self.of, name)
        elif isinstance(self.names, dict):
            del self.names[name]


class KeptState:
    """Notes which names stand for something else after its context, and the line that changed each of them last.

    Args:
        code: the user's source.
        layer: the layer.
        names: the global names of its file.
    """

    def __init__(self, code: Code, layer: nn.Module, names: Mapping[str, Any]) -> None:
        self._code, self._holders = code, list(_holders(code, layer, names))
        # The layer's modules and parameters stay what they are in the copies.
        own = {id(each): each for each in (*layer.modules(), *layer.parameters())}
        try:
            self._before = copy.deepcopy([dict(holder.items()) for holder in self._holders], own)
        except Exception:  # it holds what cannot be copied, such as an open file
            self._holders, self._before = [], []
        self._first = self._last = self._states()
        self._lines, self._running = 0, None
        self._places: dict[str, Place | None] = {}

    def __enter__(self) -> "KeptState":
        """Begin to look for changes, before each line of the user's that runs."""
        self._tracing = sys.gettrace()
        sys.settrace(self._traced)
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        sys.settrace(self._tracing)
        self._compare()

    @property
    def changed(self) -> list[tuple[str, Place]]:
        """The names, such as ``self.cache``, each with the line that changed it last, in the order of these changes."""
        changed = {name for name, _ in self._differing(self._first)}
        return [(name, place) for name, place in self._places.items() if name in changed and place]

    def restore(self, names: tuple[str, ...]) -> None:
        """Let these names stand for what they stood for before."""
        for name, (holder, key, index) in self._differing(self._first):
            if name in names and key in self._before[index]:
                holder.put(key, self._before[index][key])
            elif name in names:
                holder.remove(key)

    def _states(self) -> list[dict[str, Any]]:
        return [{name: _state(value) for name, value in holder.items()} for holder in self._holders]

    def _differing(self, before: list[dict[str, Any]]) -> Iterator[tuple[str, tuple[_Holder, str, int]]]:
        """Yield what is not as it was: its name in the code; the holder, its name there, and the holder's number."""
        for index, (holder, one, other) in enumerate(zip(self._holders, before, self._states(), strict=True)):
            for key in dict.fromkeys([*one, *other]):
                if (key in one, one.get(key)) != (key in other, other.get(key)):
                    yield f"{holder.prefix}{key}", (holder, key, index)

    def _compare(self) -> None:
        """Note the line that has just run beside what it changed."""
        place = self._code.first([self._running]) if self._running else None
        for name, _ in self._differing(self._last):
            self._places.pop(name, None)
            self._places[name] = place
        self._last = self._states()

    def _traced(self, frame: FrameType, event: str, _: object) -> Any:
        if not self._code.owns(frame.f_code.co_filename) or self._lines > _MOST_LINES:
            return None
        self._lines += 1
        self._compare()
        # After a function has returned, the line that called it goes on.
        goes_on = frame.f_back if event == "return" else frame
        while goes_on is not None and not self._code.owns(goes_on.f_code.co_filename):
            goes_on = goes_on.f_back
        self._running = (goes_on.f_code.co_filename, goes_on.f_lineno) if goes_on else None
        return self._traced


def _holders(code: Code, layer: nn.Module, names: Mapping[str, Any]) -> Iterator[_Holder]:
    """Yield where the user's layer, its classes and its file keep something."""
    classes: dict[type, None] = {}
    for module in layer.modules():
        yield _Holder("self.", vars(module))
        yield _Holder("self.", module._buffers)
        own = (each for each in type(module).__mro__ if each.__module__.partition(".")[0] not in ("torch", "builtins"))
        classes |= dict.fromkeys(own)
    for each in classes:
        yield _Holder(f"{each.__name__}.", vars(each), each)
    yield _Holder("", names)


def _state(value: Any, depth: int = 0) -> Any:
    """Return what tells whether something has been changed or replaced."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    if depth < 4 and isinstance(value, Mapping) and len(value) <= _MOST_ENTRIES:
        return id(value), [(_state(one, 4), _state(other, depth + 1)) for one, other in value.items()]
    if depth < 4 and isinstance(value, list | tuple | set) and len(value) <= _MOST_ENTRIES:
        return id(value), [_state(each, depth + 1) for each in value]
    if depth < 4 and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        return id(value), [(name, _state(each, depth + 1)) for name, each in vars(value).items()]
    return id(value), len(value) if isinstance(value, list | dict | set) else 0
