"""Fetching by name, against a hub on loopback (``hub``, in conftest.py)."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from gptladder.assembly.config import GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.weights import CheckpointError
from gptladder.weights.files import hub as hub_module
from gptladder.weights.files.folders import open_tensors
from gptladder.weights.files.hub import HubError, fetch
from gptladder.weights.files.write import write_folder
from gptladder.weights.sources import resolve

CONFIG = b'{"model_type": "gpt2"}'
TOKENIZER = {name: b'{"a": 0}' + name.encode() for name in hub_module.TOKENIZER_FILES}


@pytest.fixture(autouse=True)
def _only_the_loopback_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No token of the user's, no telemetry, no proxy, no bar."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def get(hub: Any, tmp_path: Path) -> Callable[..., Path]:
    return lambda name, **options: fetch(name, endpoint=hub.url, cache_dir=tmp_path / "cache", **options)


def add(hub: Any, name: str = "gpt2", files: dict[str, bytes] | None = None, **options: Any) -> Any:
    whole = {"config.json": CONFIG, "model.safetensors": b"weights", **TOKENIZER}
    return hub.add(name, whole if files is None else files, **options)


def refusal(call: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(HubError) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "owner/name"])
def test_a_name_becomes_a_folder_that_holds_the_files(hub: Any, get: Callable[..., Path], name: str) -> None:
    model = add(hub, name)
    folder = get(name)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == model.files


def test_a_second_time_no_content_is_asked_for(hub: Any, get: Callable[..., Path]) -> None:
    add(hub)
    first = get("gpt2")
    hub.requests.clear()
    assert get("gpt2") == first
    assert hub.fetched() == []
    assert len(hub.requests) <= 2


def test_a_moved_name_is_followed(hub: Any, get: Callable[..., Path]) -> None:
    add(hub, "openai-community/gpt2")
    hub.moved["gpt2"] = "openai-community/gpt2"
    assert (get("gpt2") / "model.safetensors").read_bytes() == b"weights"


def test_what_was_saved_is_read_through_the_links_of_the_cache(
    hub: Any, get: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = {f"layer.{i}": torch.randn(5, 7) for i in range(4)}
    write_folder(tmp_path / "saved", {"n_layer": 4}, tensors, max_shard_size=300)
    add(hub, files={path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()})
    folder = get("gpt2")
    assert (folder / "model-00001-of-00002.safetensors").is_symlink()
    loaded = open_tensors(folder)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "pytorch_model.bin.index.json"], ["pytorch_model.bin"]),
    ],
)
def test_nothing_needless_is_fetched(
    hub: Any, get: Callable[..., Path], weights: list[str], expected: list[str]
) -> None:
    needless = [
        *("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx/decoder_model.onnx", "README.md"),
        *("64.tflite", ".gitattributes", "generation_config.json", "subfolder/config.json"),
    ]
    names = ["config.json", *weights, *TOKENIZER, *needless]
    add(hub, files={name: name.encode() for name in names})
    folder = get("gpt2")
    wanted = sorted(["config.json", *expected, *TOKENIZER])
    assert sorted(hub.fetched()) == wanted
    assert sorted(path.name for path in folder.iterdir()) == wanted


def test_only_the_shards_that_the_index_lists_are_fetched(hub: Any, get: Callable[..., Path]) -> None:
    index = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}).encode()
    shards = {f"model-{i}-of-2.safetensors": b"%d" % i for i in (1, 2, 3)}
    add(hub, files={"config.json": CONFIG, "model.safetensors.index.json": index, **shards})
    assert not (get("gpt2") / "model-3-of-2.safetensors").exists()
    assert "model-2-of-2.safetensors" in hub.fetched()


def test_a_shard_name_that_leaves_the_folder_is_not_followed(hub: Any, get: Callable[..., Path]) -> None:
    index = json.dumps({"weight_map": {"a": "../../x.safetensors"}}).encode()
    add(hub, files={"config.json": CONFIG, "model.safetensors.index.json": index, "../../x.safetensors": b"x"})
    with pytest.raises(CheckpointError, match=r"names '\.\./\.\./x\.safetensors' as a shard"):
        get("gpt2")


def test_a_shard_that_the_hub_lacks_is_named(hub: Any, get: Callable[..., Path]) -> None:
    index = json.dumps({"weight_map": {"a": "model-1-of-1.safetensors"}}).encode()
    add(hub, files={"config.json": CONFIG, "model.safetensors.index.json": index})
    assert "model-1-of-1.safetensors" in refusal(get, "gpt2")


def test_revisions(hub: Any, get: Callable[..., Path], tmp_path: Path) -> None:
    add(hub, branches=("main", "tuned"))
    assert get("gpt2", revision="tuned").name == hub.models["gpt2"].commit
    assert get("gpt2", revision=hub.models["gpt2"].commit) == get("gpt2", revision="tuned")
    assert "no revision 'older'" in refusal(get, "gpt2", revision="older")
    # What was fetched under a branch's name is found under it without the hub; another name is not.
    assert get("gpt2", revision="tuned", local_files_only=True).is_dir()
    assert "no copy of gpt2 at older" in refusal(get, "gpt2", revision="older", local_files_only=True)


def test_a_new_commit_is_fetched_and_the_old_one_stays(hub: Any, get: Callable[..., Path]) -> None:
    add(hub)
    old = get("gpt2")
    add(hub, files={"config.json": CONFIG, "model.safetensors": b"new weights"}, commit="1" * 40)
    new = get("gpt2")
    assert (old / "model.safetensors").read_bytes() == b"weights"
    assert (new / "model.safetensors").read_bytes() == b"new weights"
    assert get("gpt2", local_files_only=True) == new


def test_a_token_opens_a_private_model_and_stays_on_the_hub(hub: Any, get: Callable[..., Path]) -> None:
    add(hub, token="hf_right")
    for options in ({}, {"token": "hf_wrong"}):
        text = refusal(get, "gpt2", **options)
        assert "token=" in text
        assert "HF_TOKEN" in text
        assert "(401)" in text
    hub.requests.clear()
    assert get("gpt2", token="hf_right").is_dir()
    by_host = {True: set(), False: set()}
    for request in hub.requests:
        by_host[request.path.startswith("/storage/")].add(request.token)
    assert by_host == {False: {"Bearer hf_right"}, True: {None}}


def test_a_token_does_not_follow_a_name_to_another_host(hub: Any, get: Callable[..., Path]) -> None:
    add(hub, "owner/new")
    hub.moved["owner/old"] = "owner/new"
    hub.moved_to = hub.storage_url
    with contextlib.suppress(HubError):  # whether it is followed there is the package's affair
        get("owner/old", token="hf_mine")
    tokens = {request.host: request.token for request in hub.requests}
    assert tokens.pop(hub.url.removeprefix("http://")) == "Bearer hf_mine"
    assert set(tokens.values()) == {None}


def test_a_gated_model_is_refused_with_how_to_get_access(hub: Any, get: Callable[..., Path]) -> None:
    add(hub, "owner/gated", token="hf_right", gated=True)
    text = refusal(get, "owner/gated")
    assert f"accept its terms at {hub.url}/owner/gated" in text
    assert "token=" in text
    assert get("owner/gated", token="hf_right").is_dir()


def test_an_unknown_name_is_reported(hub: Any, get: Callable[..., Path]) -> None:
    text = refusal(get, "gpt3")
    assert "no model 'gpt3' (404)" in text


@pytest.mark.parametrize("name", ["a//b", "a b", "--x", "x" * 200])
@pytest.mark.parametrize("local_files_only", [False, True])
def test_a_name_that_cannot_be_is_not_asked_for(
    hub: Any, get: Callable[..., Path], name: str, local_files_only: bool
) -> None:
    assert repr(name) in refusal(get, name, local_files_only=local_files_only)
    assert hub.requests == []


def test_a_model_without_pytorch_weights_is_refused_with_what_it_has(hub: Any, get: Callable[..., Path]) -> None:
    add(hub, files={"config.json": CONFIG, "tf_model.h5": b"x"})
    text = refusal(get, "gpt2")
    assert "no safetensors or PyTorch weights" in text
    assert "tf_model.h5" in text
    assert hub.fetched() == []


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Any, get: Callable[..., Path]) -> None:
    content = os.urandom(15 * 2**20)
    add(hub, files={"config.json": CONFIG, "model.safetensors": content})
    hub.cut["model.safetensors"] = 12 * 2**20
    folder = get("gpt2")
    assert (folder / "model.safetensors").read_bytes() == content
    first, second = [request for request in hub.requests if request.path.startswith("/storage/")]
    assert (first.range, first.sent) == (None, 12 * 2**20)
    # The package writes in pieces of 10 MiB: what it has of the piece that broke is sent once more.
    piece = constants.DOWNLOAD_CHUNK_SIZE
    assert (second.range, second.sent) == (f"bytes={piece}-", len(content) - piece)


def test_after_a_kill_whole_files_are_kept_and_the_one_in_hand_begins_anew(
    hub: Any, get: Callable[..., Path], tmp_path: Path
) -> None:
    """The package gives each transfer a name of its own: what a killed one leaves is never taken up, nor for whole."""
    index = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}).encode()
    shards = {f"model-{i}-of-2.safetensors": os.urandom(3 * 2**20) for i in (1, 2)}
    files = {"config.json": CONFIG, "model.safetensors.index.json": index, **shards}
    add(hub, files=files)
    hub.stalled["model-2-of-2.safetensors"] = 2**20
    code = "import sys, gptladder.weights.files.hub as h; h.fetch('gpt2', endpoint=sys.argv[1], cache_dir=sys.argv[2])"
    environment = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "HF_HUB_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, hub.url, tmp_path / "cache"], env=environment, stderr=subprocess.DEVNULL
    )
    assert hub.stopped.wait(60)
    process.kill()
    process.wait()
    assert "lacks model-2-of-2.safetensors" in refusal(get, "gpt2", local_files_only=True)
    hub.requests.clear()
    folder = get("gpt2")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert set(hub.fetched()) == {"model-2-of-2.safetensors"}
    assert [request.range for request in hub.requests if request.path.startswith("/storage/")] == [None]


@pytest.mark.parametrize("file_name", ["model.safetensors", "config.json", "vocab.json"])
def test_contents_with_the_wrong_checksum_are_refused_and_removed(
    hub: Any, get: Callable[..., Path], tmp_path: Path, file_name: str
) -> None:
    model = add(hub)
    hub.altered.add(file_name)
    text = refusal(get, "gpt2")
    assert f"{file_name} does not have the hub's checksum" in text
    left = [path for path in (tmp_path / "cache").rglob("*") if path.name == file_name]
    assert left == []
    # Not in the blobs either: the next call must not find it.
    right = hashlib.sha256(model.files[file_name]).hexdigest()
    assert not list((tmp_path / "cache").rglob(f"blobs/{right}"))
    hub.altered.clear()
    assert (get("gpt2") / file_name).read_bytes() == model.files[file_name]


def test_an_interrupted_check_leaves_nothing_unchecked(
    hub: Any, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add(hub)

    class Interrupted:
        def update(self, piece: bytes) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(hub_module, "hashlib", SimpleNamespace(sha1=hashlib.sha1, sha256=Interrupted))
    with pytest.raises(KeyboardInterrupt):
        get("gpt2")
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_hub_that_fails_leaves_the_copy_in_the_cache(hub: Any, get: Callable[..., Path], tmp_path: Path) -> None:
    add(hub)
    hub.status = 503
    text = refusal(get, "gpt2")
    assert f"{hub.url} answered 503" in text
    assert f"the cache {tmp_path / 'cache'} holds no copy of gpt2" in text
    assert 'from_pretrained("path/to/folder")' in text
    hub.status = None
    folder = get("gpt2")
    hub.status = 503
    assert get("gpt2") == folder
    hub.status = 418
    assert "418" in refusal(get, "gpt2")


def test_offline_sends_no_request(hub: Any, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    add(hub)
    folder = get("gpt2")
    hub.requests.clear()
    assert get("gpt2", local_files_only=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get("gpt2") == folder
    assert "HF_HUB_OFFLINE" in refusal(get, "gpt2-xl")
    assert hub.requests == []


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_an_incomplete_copy_is_reported(hub: Any, get: Callable[..., Path], missing: str) -> None:
    add(hub)
    folder = get("gpt2")
    (folder / missing).unlink()
    text = refusal(get, "gpt2", local_files_only=True)
    assert f"{folder} lacks" in text
    assert ("config.json" if missing == "config.json" else "the weights") in text


def test_an_incomplete_set_of_shards_is_reported(hub: Any, get: Callable[..., Path]) -> None:
    index = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}).encode()
    shards = {f"model-{i}-of-2.safetensors": b"%d" % i for i in (1, 2)}
    add(hub, files={"config.json": CONFIG, "model.safetensors.index.json": index, **shards})
    folder = get("gpt2")
    assert get("gpt2", local_files_only=True) == folder
    (folder / "model-2-of-2.safetensors").unlink()
    assert "lacks model-2-of-2.safetensors" in refusal(get, "gpt2", local_files_only=True)


def test_an_address_that_refuses_is_reported_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = time.monotonic()
    text = refusal(fetch, "gpt2", endpoint=f"http://127.0.0.1:{port}", cache_dir=tmp_path)
    assert time.monotonic() - start < 2
    assert f"http://127.0.0.1:{port} cannot be reached" in text
    assert f"the cache {tmp_path} holds no copy of gpt2" in text


def test_an_address_that_never_answers_is_given_up_within_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert hub_module._PATIENCE < 9
    monkeypatch.setattr(hub_module, "_PATIENCE", 1.0)  # a test need not wait for all of it
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        start = time.monotonic()
        text = refusal(fetch, "gpt2", endpoint=endpoint, cache_dir=tmp_path)
    assert 0.9 < time.monotonic() - start < 1.9
    assert f"{endpoint} did not answer within 1 seconds" in text


def test_many_slow_addresses_take_no_longer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_module, "_PATIENCE", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: time.sleep(3))
    start = time.monotonic()
    assert "did not answer" in refusal(fetch, "gpt2", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)
    assert time.monotonic() - start < 1


def test_an_endpoint_that_is_no_hub(hub: Any, get: Callable[..., Path]) -> None:
    hub.status = 200
    assert "check HF_ENDPOINT" in refusal(get, "gpt2")


def test_endpoint_and_cache_come_from_the_environment(hub: Any, tmp_path: Path) -> None:
    add(hub)
    code = "from gptladder.weights.files.hub import fetch; print(fetch('gpt2'))"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_mine",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    environment = {key: value for key, value in environment.items() if key not in {"HF_HUB_CACHE", "HF_HUB_OFFLINE"}}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert folder.is_relative_to(tmp_path / "hub" / "models--gpt2")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "Bearer hf_mine" in {request.token for request in hub.requests}


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    assert resolve(tmp_path / "gpt2") == tmp_path / "gpt2"
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2") == Path("gpt2")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/gpt2") == tmp_path / "gpt2"


@pytest.mark.parametrize(
    "path",
    [
        *("./model", "../model", "/no/such/model", "~/no-such-model", "runs/1/final", "model/", "model.safetensors"),
        *("dir/pytorch_model.bin", r"C:\models\gpt2", Path("gpt2")),
    ],
)
def test_what_looks_like_a_path_is_not_asked_for(
    hub: Any, path: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = refusal(resolve, path, endpoint=hub.url, cache_dir=tmp_path)
    assert "there is no file or folder" in text
    assert hub.requests == []


def test_a_file_in_place_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is one file of a model folder; give the folder") as refused:
        resolve(tmp_path / "model.safetensors")
    assert str(refused.value).endswith(str(tmp_path))


def test_a_name_is_fetched(hub: Any, tmp_path: Path) -> None:
    add(hub, "owner/name")
    folder = resolve("owner/name", endpoint=hub.url, cache_dir=tmp_path)
    assert resolve("owner/name", endpoint=hub.url, cache_dir=tmp_path, local_files_only=True) == folder
    assert "no revision 'x'" in refusal(resolve, "owner/name", revision="x", endpoint=hub.url, cache_dir=tmp_path)
    add(hub, "owner/private", token="hf_right")
    assert resolve("owner/private", token="hf_right", endpoint=hub.url, cache_dir=tmp_path).is_dir()


def test_a_model_comes_from_the_hub_with_nothing_but_its_own_files(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the door that users go through: a gated model, at a revision, beside other frameworks' weights."""
    place = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    monkeypatch.setattr(hub_module, "fetch", lambda name, **options: fetch(name, **{**options, **place}))
    model = GPT2(GPT2Config(d_model=4, n_layers=2, n_heads=2, d_vocab=11, n_ctx=5))
    model.save_pretrained(tmp_path / "saved", max_shard_size=1000)
    own = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert len(own) > 4
    others = [
        "tf_model.h5",
        "flax_model.msgpack",
        "pytorch_model.bin",
        "rust_model.ot",
        "README.md",
        "coreml/model.bin",
    ]
    files = {**own, **TOKENIZER, **dict.fromkeys(others, b"not for us")}
    add(hub, "owner/name", files=files, token="hf_right", gated=True, branches=("main", "tuned"))
    with pytest.raises(HubError, match="gated"):
        GPT2.from_pretrained("owner/name", revision="tuned")
    hub.requests.clear()
    fetched = GPT2.from_pretrained("owner/name", revision="tuned", token="hf_right")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in fetched.state_dict().items())
    asked = {Path(request.path).name for request in hub.requests if "/api/" not in request.path}
    assert asked == {*own, *TOKENIZER}
    hub.requests.clear()
    GPT2.from_pretrained("owner/name", revision="tuned", local_files_only=True)
    assert hub.requests == []


def test_a_full_disk_is_reported(hub: Any, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    add(hub)

    def no_space(*args: object, **options: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_space)
    text = refusal(get, "gpt2")
    assert "fetching config.json of 'gpt2'" in text
    assert "No space left on device" in text


def test_a_model_that_changes_meanwhile_is_not_mixed(
    hub: Any, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(hub)
    ask = hub_module._ask

    def ask_then_change(*args: Any) -> Any:
        info = ask(*args)
        hub.models["gpt2"].commit = "2" * 40
        return info

    monkeypatch.setattr(hub_module, "_ask", ask_then_change)
    assert "changed on" in refusal(get, "gpt2")


def test_the_package_is_imported_only_to_fetch() -> None:
    code = "import sys, gptladder.weights.files.hub; sys.exit('huggingface_hub.hf_api' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
