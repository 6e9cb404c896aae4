"""Fetching TinyStories: once, from a server that answers, refuses, hangs or breaks off."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from gptladder.tokenizer import OfflineError
from gptladder.training.data import hub as hub_module
from gptladder.training.data.corpus import tinystories

BODY = "One day.\n\nA cat sat.\n<|endoftext|>\n\nTwo dogs ran.\n<|endoftext|>\n"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a server of the test's own the hub, with any environment."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    body = BODY.encode()
    asked: list[str]

    def do_HEAD(self) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c0ffee" + "0" * 34)
        self.send_header("ETag", '"1234"')
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_tinystories_are_fetched_once(hub: str, tmp_path: Path) -> None:
    corpus = tinystories(cache_dir=tmp_path, endpoint=hub)
    assert ["".join(document) for document in corpus.documents()] == ["One day.\n\nA cat sat.", "Two dogs ran."]
    assert f"GET /datasets/roneneldan/TinyStories/resolve/main/TinyStories-train.txt" in Hub.asked  # noqa: F541
    source = "roneneldan/TinyStories, TinyStories-train.txt, revision c0ffee" + "0" * 34
    assert corpus.record().source == source
    Hub.asked.clear()
    again = tinystories(cache_dir=tmp_path, endpoint=hub, fraction=0.2)
    assert (Hub.asked, ["".join(document) for document in again.documents()]) == ([], ["One day.\n\nA cat sat."])
    assert again.record().source == source + ", the first 0.2 of it"


def test_a_hub_that_refuses_is_offline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        OfflineError, match=rf"not in the hub's cache and http://127\.0\.0\.1:{port}/\S+ does not answer"
    ):
        tinystories(cache_dir=tmp_path, endpoint=f"http://127.0.0.1:{port}")


def test_a_hub_that_never_answers_is_offline(silent_hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_SECONDS_TO_ANSWER", 0.3)
    began = time.monotonic()
    with pytest.raises(OfflineError, match="does not answer"):
        tinystories(cache_dir=tmp_path, endpoint=silent_hub)
    assert time.monotonic() - began < 5


def test_a_download_that_breaks_off_is_an_error(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = huggingface_hub.hf_hub_download

    def breaks_off(*args: Any, local_files_only: bool = False, **kwargs: Any) -> str:
        if local_files_only:
            return fetch(*args, local_files_only=True, **kwargs)
        raise OSError("peer closed the connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", breaks_off)
    with pytest.raises(
        ConnectionError, match=r"broke off \(peer closed the connection\); run it again to continue"
    ) as caught:
        tinystories(cache_dir=tmp_path, endpoint=hub)
    assert not isinstance(caught.value, OfflineError)


def test_two_hosts_are_given_up_within_ten_seconds() -> None:
    assert 2 * hub_module._SECONDS_TO_ANSWER < 10
