"""Asking the network with a time limit, and where tiktoken keeps GPT-2's vocabulary on this machine."""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import tiktoken

__all__ = ["OfflineError", "answer_within", "gpt2_encoding", "tiktoken_cache"]

T = TypeVar("T")

_GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_SECONDS_TO_ANSWER = 3.0  # a run may ask two hosts, and reports within 10 seconds that it is offline


class OfflineError(ConnectionError):
    """Something is neither on this machine nor available from the network."""


def answer_within(seconds: float, ask: Callable[[], T]) -> T:
    """Return ``ask()``, or raise TimeoutError if it has not returned in time.

    Looking up a host's name may hang far longer than the time limit of the request that needs it. So the wait is here,
    and a call that hangs stays on a thread that does not keep the program alive.

    >>> answer_within(5, lambda: 6 * 7)
    42
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None


def gpt2_encoding() -> tiktoken.Encoding:
    """Return tiktoken's encoding of GPT-2, from its cache or else from the network.

    Raises:
        OfflineError: neither has it. The error comes within 10 seconds and names the folder to put the files into.
    """
    cache = tiktoken_cache()
    names = [hashlib.sha1(f"{_GPT2_FILES}/{name}".encode()).hexdigest() for name in ("vocab.bpe", "encoder.json")]
    cached = cache is not None and all((cache / name).exists() for name in names)
    patience = _SECONDS_TO_ANSWER
    try:
        if not cached:
            import requests  # the package that tiktoken fetches with: a proxy set for it serves both

            answer_within(patience, lambda: requests.head(f"{_GPT2_FILES}/vocab.bpe", timeout=patience))
            patience = 300.0  # there is a network, but it may be slow
        return answer_within(patience, lambda: tiktoken.get_encoding("gpt2"))
    except OSError as error:
        raise OfflineError(
            f"GPT-2's vocabulary is not in tiktoken's cache ({cache or 'off'}) and {_GPT2_FILES} does not answer "
            f"({type(error).__name__}): put its vocab.bpe and encoder.json there, named {names[0]} and {names[1]}, "
            "or set TIKTOKEN_CACHE_DIR to a folder that holds them so, or load a model folder with vocab.json and "
            "merges.txt"
        ) from None


def tiktoken_cache() -> Path | None:
    """Return the folder where tiktoken looks before it asks the network; None if the user has switched it off."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if named is None:
        return Path(tempfile.gettempdir(), "data-gym-cache")
    return Path(named) if named else None
