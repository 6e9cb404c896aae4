"""Compiled code runs as it was written within a block, and compiled after the last block that overlaps it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptladder.components.eager import uncompiled

Compiled = tuple[Callable[[Tensor], Tensor], list[int]]


@pytest.fixture
def compiled() -> Compiled:
    """Return a compiled function, and a list that grows when the function is compiled."""
    torch.compiler.reset()
    times: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        times.append(len(times))
        return graph.forward

    return torch.compile(lambda x: x + 1, backend=backend), times


def test_a_block_runs_code_as_written_and_ends(compiled: Compiled) -> None:
    function, times = compiled
    with uncompiled():
        assert function(torch.zeros(1)) == 1
        assert not times
    assert function(torch.zeros(1)) == 1
    assert len(times) == 1


def test_a_block_ends_with_an_error_too(compiled: Compiled) -> None:
    function, times = compiled
    with pytest.raises(KeyError), uncompiled():
        raise KeyError
    function(torch.zeros(1))
    assert len(times) == 1


def test_of_blocks_that_overlap_the_last_to_end_counts(compiled: Compiled) -> None:
    function, times = compiled
    first, second = uncompiled(), uncompiled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    function(torch.zeros(1))
    assert not times
    second.__exit__(None, None, None)
    function(torch.zeros(1))
    assert len(times) == 1
    with uncompiled():
        function(torch.zeros(2, 2))
    assert len(times) == 1
