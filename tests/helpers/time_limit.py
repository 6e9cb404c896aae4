"""A limit of time for one call within a test; pytest's own limit is for the whole test."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class HangError(BaseException):
    """A call took longer than its limit. It is no ``Exception``, so that the code under test does not catch it."""


@contextmanager
def seconds(limit: int) -> Iterator[None]:
    """Raise `HangError` if the block takes longer than ``limit`` seconds."""

    def late(*_: object) -> None:
        raise HangError(f"not done within {limit} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
