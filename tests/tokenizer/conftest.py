"""GPT-2's vocabulary for the tests of tokenizers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def vocabulary_folder() -> Iterator[None]:
    """Let tiktoken find GPT-2's vocabulary in the shared folder, unless it is told another place."""
    with pytest.MonkeyPatch.context() as patch:
        if "TIKTOKEN_CACHE_DIR" not in os.environ and (SHARED / "tiktoken").is_dir():
            patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
        yield
