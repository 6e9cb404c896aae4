"""Where the time of a run went, by parts: text and tokenizer, training, evaluation, samples, files."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Timing:
    """Seconds of each part of a run. Parts may lie in each other: time counts for the innermost one.

    Args:
        clock: Returns seconds.

    >>> ticks = iter([0.0, 1.0, 3.0, 10.0, 10.0])
    >>> timing = Timing(clock=lambda: next(ticks))
    >>> with timing.part("text"):
    ...     pass
    >>> timing.seconds
    {'start': 1.0, 'text': 2.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock, self._part, self._since = clock, "start", clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a ``with`` block for a part."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def line(self) -> str:
        """Return all parts in one line, the longest first.

        >>> ticks = iter([0.0, 2.0, 127.5, 127.5])
        >>> timing = Timing(clock=lambda: next(ticks))
        >>> with timing.part("training"):
        ...     pass
        >>> timing.line()
        'time: 2 min 8 s (training 2 min 6 s, start 2 s)'
        """
        self._switch(self._part)
        parts = sorted(self.seconds.items(), key=lambda entry: -entry[1])
        listed = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in parts)
        return f"time: {_duration(sum(self.seconds.values()))} ({listed})"

    def _switch(self, name: str) -> str:
        now, before = self._clock(), self._part
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._part, self._since = name, now
        return before


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
