"""Where a text is split: at the requested share, or at a document that begins near it."""

from collections.abc import Callable
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptladder.training.data.split import validation_start


def between(ends: list[int]) -> Callable[[int, int], list[int]]:
    return lambda first, last: [end for end in ends if first < end <= last]


@given(
    lengths=st.lists(st.integers(1, 60) | st.sampled_from([500, 3000]), min_size=1, max_size=40),
    val_fraction=st.floats(0.01, 0.99),
)
def test_the_nearest_beginning_of_a_document_is_taken(lengths: list[int], val_fraction: float) -> None:
    tokens = sum(lengths)
    if tokens < 2:
        return
    ends = list(accumulate(lengths))
    start, divided = validation_start(tokens, len(lengths), val_fraction, between(ends))
    wanted = min(max(int(tokens * (1 - val_fraction)), 1), tokens - 1)
    near = [end for end in ends[:-1] if abs(end - wanted) <= tokens // 100]
    assert divided == (not near)
    assert start == next((end for end in near if end >= wanted), near[-1] if near else wanted)
    assert 0 < start < tokens


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([900, 1000], (900, False)),
        ([890, 910, 1000], (910, False)),  # the next one, rather than the one before
        ([890, 911, 1000], (890, False)),
        ([889, 911, 1000], (900, True)),  # none within a hundredth of the text
        ([], (900, True)),
    ],
)
def test_a_document_counts_as_near_within_a_hundredth(ends: list[int], expected: tuple[int, bool]) -> None:
    assert validation_start(1000, len(ends), 0.1, between(ends)) == expected


def test_one_document_is_not_searched_for_ends() -> None:
    def refuse(first: int, last: int) -> list[int]:
        raise AssertionError("one document has no ends inside")

    assert validation_start(1001, 1, 0.1, refuse) == (900, True)


@pytest.mark.parametrize(("val_fraction", "start"), [(1e-20, 5), (1 - 1e-10, 1)])
def test_neither_part_is_empty(val_fraction: float, start: int) -> None:
    assert validation_start(6, 1, val_fraction, between([])) == (start, True)


@pytest.mark.parametrize("tokens", [0, 1])
def test_too_few_tokens_for_two_parts_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"the text has {tokens} tokens, too few to hold some back for validation"):
        validation_start(tokens, 1, 0.1, between([]))
