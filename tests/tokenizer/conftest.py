"""GPT-2's vocabulary, a trained one and characters, for the tests of tokenizers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptladder.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
)

from .support import ALPHABET, SHARED


@pytest.fixture(scope="session", autouse=True)
def vocabulary_folder() -> Iterator[None]:
    """Let tiktoken find GPT-2's vocabulary in the shared folder, unless the environment names another one."""
    with pytest.MonkeyPatch.context() as patch:
        if "TIKTOKEN_CACHE_DIR" not in os.environ and (SHARED / "tiktoken").is_dir():
            patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
        yield


@pytest.fixture(scope="module")
def gpt2() -> Iterator[BPETokenizer]:
    with pytest.MonkeyPatch.context() as patch:
        if "TIKTOKEN_CACHE_DIR" not in os.environ:
            if not (SHARED / "tiktoken").is_dir():
                pytest.skip("GPT-2's vocabulary is not here: neither TIKTOKEN_CACHE_DIR nor a shared folder")
            patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
        yield BPETokenizer.gpt2()


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    text = "the cat sat on the mat, and the dog's ball isn't there; it'll rain 2024 🙂 日本語 ünï aaaaaaa ababab\n\t"
    return BPETokenizer.train([text[i:] + text[:i] for i in range(len(text))], 320)


@pytest.fixture(scope="module")
def char() -> CharTokenizer:
    return CharTokenizer(ALPHABET)


@pytest.fixture(scope="module")
def char_eot() -> CharTokenizer:
    return CharTokenizer(ALPHABET, end_of_text=True)


@pytest.fixture(scope="module", params=["gpt2", "bpe", "char", "char_eot"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def saved(any_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    any_tokenizer.save(folder)
    return folder
