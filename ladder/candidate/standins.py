"""Stand-ins for what the user's file imports and this machine does not have: they raise only if they are used."""

import inspect
from typing import Any

from torch import nn


class Unavailable(RuntimeError):
    """Something that could not be imported was used."""


class StandInModule(nn.Module):
    """In place of a base class that could not be imported (a LightningModule, say)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


class StandIn:
    """In place of a name that could not be imported or was not run.

    Args:
        name: the name.
        reason: why it is not available, as a clause.
    """

    reading = 0  # above 0 while a file is read: a call then gives a stand-in, since it is no use by a layer
    # Progress bars and loggers do no arithmetic.
    inert = frozenset({"logger", "log", "logging", "wandb", "tqdm", "writer", "warn", "info", "debug", "print"})

    def __init__(self, name: str, reason: str) -> None:
        self.__dict__.update(standin_name=name, reason=reason)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self.standin_name}.{name}", self.reason)

    def __getitem__(self, key: object) -> "StandIn":
        return self

    def __or__(self, other: object) -> "StandIn":
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (StandInModule,) if self.standin_name.endswith(("Module", "Model", "Base")) else (object,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise, unless it is a decorator, a logger, or the file is still being read."""
        if len(args) == 1 and not kwargs and (inspect.isclass(args[0]) or inspect.isfunction(args[0])):
            return args[0]  # a decorator
        parts = self.standin_name.split(".")
        if StandIn.reading or parts[0] in self.inert or parts[-1] in self.inert:
            return self
        raise self._unavailable()

    def __bool__(self) -> bool:
        return False

    def _used(self, *_: object) -> Any:
        """Raise, unless the file is still being read: arithmetic with a value that is not known."""
        if StandIn.reading:
            return self
        raise self._unavailable()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _used
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = _used
    __lt__ = __le__ = __gt__ = __ge__ = _used

    def _has_none(self) -> Any:
        """Raise: it has no number, no length and no items."""
        raise self._unavailable()

    __int__ = __float__ = __index__ = __len__ = __iter__ = _has_none

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"{self.standin_name} is not available: {self.reason}")
