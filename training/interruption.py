"""How Ctrl-C and SIGTERM end a run: at a moment from which it can continue."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Raised in the middle of work that can be repeated. No ``except Exception`` of another package catches it."""


class Interruption:
    """What Ctrl-C and SIGTERM do, for a ``with`` block.

    While a run prepares, they end it at once, as Ctrl-C ends any program. Within `between_steps`, the first one asks
    for an end after the step, and a second one ends at once. Within `at_once`, the first one stops what is under way,
    which the run repeats when it continues.

    Attributes:
        asked: Whether an end has been asked for.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waits = False
        self._repeatable = False
        self._before: dict[int, Any] = {}
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth > 1:
            return self
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """For the block, the first signal asks for an end after the step."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    @contextlib.contextmanager
    def at_once(self, *, alone: bool) -> Iterator[None]:
        """For the block, the first signal raises `Interrupted`, if this process is alone: others would wait for it."""
        if alone and self.asked:
            raise Interrupted
        self._repeatable = alone
        try:
            yield
        finally:
            self._repeatable = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self.asked or not self._waits:
            _print(f"{name}: ending now")
            raise KeyboardInterrupt
        self.asked = True
        if self._repeatable:
            _print(f"{name}: ending here, with a snapshot")
            raise Interrupted
        _print(f"{name}: ending after this step, with a snapshot; once more ends now")


def _print(line: str) -> None:
    # The signal may have come in the middle of a print, which must not be entered twice.
    os.write(2, f"\n{line}\n".encode())
