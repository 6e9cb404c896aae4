"""Where the time of a run went: each second counts once, for the innermost part."""

import pytest

from gptladder.training.timing import Timing


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_inner_parts_are_not_counted_twice(clock: Clock) -> None:
    timing = Timing(clock)
    clock.now += 1
    with timing.part("training"):
        clock.now += 10
        with timing.part("evaluation"):
            clock.now += 4
        clock.now += 20
        with timing.part("evaluation"):
            clock.now += 5
    clock.now += 2
    assert timing.line() == "time: 42 s (training 30 s, evaluation 9 s, start 3 s)"
    assert timing.seconds == {"start": 3, "training": 30, "evaluation": 9}


def test_an_error_ends_a_part(clock: Clock) -> None:
    timing = Timing(clock)

    def fail() -> None:
        with timing.part("text"):
            clock.now += 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.now += 4
    timing.line()
    assert timing.seconds == {"start": 4, "text": 3}


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (59.6, "1 min 0 s"), (3725, "62 min 5 s")])
def test_a_duration_is_in_minutes_and_seconds(clock: Clock, seconds: float, text: str) -> None:
    timing = Timing(clock)
    clock.now += seconds
    assert timing.line() == f"time: {text} (start {text})"
