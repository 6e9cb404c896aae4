"""The examples in the docstrings of the tokenizers, and of what stands beside them, are true."""

import doctest
import importlib

import pytest

MODULES = ["base", "byte_pairs", "characters", "cutting", "loading", "network", "pipeline"]
NAMES = [*(f"tokenizer.{name}" for name in MODULES), "sampling.text", "weights.generation"]


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"gptladder.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
