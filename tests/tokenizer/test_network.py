"""GPT-2's vocabulary without a network, and asking with a time limit."""

import threading
import time
from pathlib import Path

import pytest
import requests
import tiktoken

from gptladder.tokenizer import (
    BPETokenizer,
    OfflineError,
    answer_within,
)
from gptladder.tokenizer import network as module

# Without a network


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    return tmp_path


def test_offline_is_reported_in_one_line_with_the_files_to_get(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "head", refuse)
    with pytest.raises(OfflineError) as caught:
        BPETokenizer.gpt2()
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(no_cache), "ConnectionError", "TIKTOKEN_CACHE_DIR", "vocab.json and merges.txt"):
        assert part in message
    for name in ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"):
        assert name in message


@pytest.mark.usefixtures("no_cache")
def test_a_network_that_never_answers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: hanging.wait(60))
    monkeypatch.setattr(module, "_SECONDS_TO_ANSWER", 0.2)
    began = time.monotonic()
    with pytest.raises(OfflineError, match="TimeoutError"):
        BPETokenizer.gpt2()
    assert time.monotonic() - began < 5
    hanging.set()


def test_two_hosts_are_given_up_within_ten_seconds() -> None:
    assert 2 * module._SECONDS_TO_ANSWER < 10


def test_a_damaged_cache_with_no_network_is_noticed(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"):
        (no_cache / name).write_bytes(b"damaged")

    def refuse(*args: object, **kwargs: object) -> None:
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(OfflineError, match="does not answer"):
        BPETokenizer.gpt2()


def test_answers_and_errors_come_through() -> None:
    assert answer_within(5, lambda: 42) == 42
    with pytest.raises(KeyError, match="missing"):
        answer_within(5, lambda: {}["missing"])
    waiting = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 seconds"):
        answer_within(0.05, lambda: waiting.wait(60))
    waiting.set()
