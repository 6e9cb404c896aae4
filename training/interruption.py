"""Handle Ctrl-C, SIGTERM and a closed terminal: end a run at a point from which it can continue."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed, or its connection broke; Windows has none
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if _HANGUP is None else [_HANGUP]))


class Interrupted(BaseException):
    """Raised during work that can be repeated. It is no ``Exception``, so that no other package catches it."""


class Interruption:
    """Handle Ctrl-C, SIGTERM and SIGHUP within a ``with`` block.

    While a run prepares, a signal ends it at once, as Ctrl-C ends any program. Within `between_steps`, the first signal
    requests an end after the current step, and a second signal ends the program at once. Within `at_once`, the first
    signal stops the current work, which the run repeats when it continues.

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
            # A program that `nohup` started goes on when its terminal is closed.
            handled = [n for n in _SIGNALS if n != _HANGUP or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
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
        """Within the block, let the first signal request an end after the current step."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    @contextlib.contextmanager
    def at_once(self, *, alone: bool) -> Iterator[None]:
        """Within the block, let the first signal raise `Interrupted`.

        Args:
            alone: Whether this is the only process. Otherwise nothing is raised, because the others would wait for it.
        """
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
    # os.write, because the signal may arrive during a print, and print is not reentrant. The terminal may be gone, and
    # so may `tee`, which Ctrl-C ends too.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
