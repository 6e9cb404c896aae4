"""Pushing a model folder to a hub on loopback (``hub``, in conftest.py), and getting it back by its name."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants

from gptladder import GPT2, GPT2Config
from gptladder.files import FileError
from gptladder.tokenizer import BPETokenizer, load_tokenizer
from gptladder.weights import HubError, WeightsError, from_pretrained, push_to_hub
from gptladder.weights.card import card
from gptladder.weights.files.write import write_folder
from gptladder.weights.push import model_files
from gptladder.weights.sources import RUN_FORMAT, config_to_ours, resolve

TOKEN = "hf_writer"

# huggingface_hub calls httpx in a way that httpx advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture(autouse=True)
def _only_the_loopback_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No token of the user's, no telemetry, no proxy, no bar, no Xet."""
    for name in ("TELEMETRY", "IMPLICIT_TOKEN", "PROGRESS_BARS", "XET"):
        monkeypatch.setattr(constants, f"HF_HUB_DISABLE_{name}", True)
    huggingface_hub.utils.disable_progress_bars()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    huggingface_hub.close_session()
    yield
    huggingface_hub.utils.enable_progress_bars()
    huggingface_hub.close_session()


@pytest.fixture
def push(hub: Any) -> Callable[..., str]:
    hub.writer = TOKEN
    return lambda folder, name="me/stories", **options: push_to_hub(
        folder, name, **{"endpoint": hub.url, "token": TOKEN, **options}
    )


def model(d_vocab: int = 260) -> GPT2:
    torch.manual_seed(0)
    return GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=d_vocab, n_ctx=8)).eval()


def saved(folder: Path, **options: Any) -> Path:
    model().save_pretrained(folder, **options)
    BPETokenizer.train("the cat sat on the mat", 260).save(folder)
    (folder / "step.json").write_text('{"step": 3}')
    (folder / "notes.txt").write_text("mine")
    return folder


def card_fields(hub: Any) -> dict[str, Any]:
    return ModelCard(hub.models["me/stories"].files["README.md"].decode()).data.to_dict()


def test_what_was_pushed_comes_back_by_its_name(hub: Any, push: Callable[..., str], tmp_path: Path) -> None:
    folder = saved(tmp_path / "stories")
    address = push(folder)
    assert address == f"{hub.url}/me/stories/commit/{hub.models['me/stories'].commit}"
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(hub.models["me/stories"].files) == names
    assert hub.commits == ["Push stories"]
    fetched = resolve("me/stories", endpoint=hub.url, cache_dir=tmp_path / "cache")
    again = from_pretrained(fetched)
    assert all(torch.equal(tensor, model().state_dict()[name]) for name, tensor in again.state_dict().items())
    assert load_tokenizer(fetched).fingerprint == load_tokenizer(folder).fingerprint


def test_the_card_of_the_folder_is_pushed_or_a_short_one_is_made(
    hub: Any, push: Callable[..., str], tmp_path: Path
) -> None:
    folder = saved(tmp_path / "stories")
    push(folder)
    made = card_fields(hub)
    assert (made["library_name"], made["pipeline_tag"]) == ("transformers", "text-generation")
    (folder / "README.md").write_text(card("# mine", license="mit", base_model="gpt2"))
    push(folder, message="With a card")
    assert card_fields(hub)["base_model"] == "gpt2"
    assert hub.commits == ["Push stories", "With a card"]


def test_nothing_of_an_earlier_model_stays_beside_the_new_one(
    hub: Any, push: Callable[..., str], tmp_path: Path
) -> None:
    old = ("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.json")
    hub.add("me/stories", dict.fromkeys((*old, "config.json", "LICENSE", "images/a.png"), b"old"))
    push(saved(tmp_path / "stories"))
    left = hub.models["me/stories"].files
    assert not set(old) & set(left)
    assert left["LICENSE"] == left["images/a.png"] == b"old"
    push(saved(tmp_path / "sharded", max_shard_size=4000))
    assert "model.safetensors" not in hub.models["me/stories"].files
    fetched = resolve("me/stories", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert torch.equal(from_pretrained(fetched).embed.W_E, model().embed.W_E)


def test_a_run_stands_for_its_best_model(hub: Any, push: Callable[..., str], tmp_path: Path) -> None:
    saved(tmp_path / "run" / "final")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"format": RUN_FORMAT}))
    push(tmp_path / "run")
    assert "model.safetensors" in hub.models["me/stories"].files


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises((HubError, FileError, WeightsError)) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_what_is_no_whole_model_for_transformers_is_not_pushed(
    hub: Any, push: Callable[..., str], tmp_path: Path
) -> None:
    write_folder(tmp_path / "ours", config_to_ours(model().config), model().state_dict())
    damaged = saved(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-5])
    broken = model()
    with torch.no_grad():
        broken.embed.W_E[3, 3] = torch.nan
    broken.save_pretrained(tmp_path / "nan")
    assert "--to hf" in refusal(push, tmp_path / "ours")
    assert "model.safetensors" in refusal(push, damaged)
    assert "not finite" in refusal(push, tmp_path / "nan")
    assert "there is no such folder" in refusal(push, tmp_path / "gone")
    assert hub.requests == []


def test_a_refusal_by_the_hub_names_the_fix(hub: Any, push: Callable[..., str], tmp_path: Path) -> None:
    folder = saved(tmp_path / "stories")
    assert "hf auth login" in refusal(push, folder, token="hf_reader")
    assert "403" in refusal(push, folder, token="hf_reader")
    assert "is not a name that a model can have" in refusal(push, folder, "a/b/c")
    assert "nothing was pushed" in refusal(push, folder, endpoint="http://127.0.0.1:9")
    hub.writer = None
    assert "HF_TOKEN" in refusal(push, folder, token=False)


def test_a_commit_that_fails_leaves_the_repository_as_it_was(
    hub: Any, push: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("me/stories", {"config.json": b"old", "pytorch_model.bin": b"old"})
    hub.fails_at = "/commit/"
    assert "nothing was pushed" in refusal(push, saved(tmp_path / "stories"))
    assert hub.models["me/stories"].files == {"config.json": b"old", "pytorch_model.bin": b"old"}


def test_the_files_are_found_without_the_hub(tmp_path: Path) -> None:
    folder = saved(tmp_path / "sharded", max_shard_size=4000)
    names = set(model_files(folder))
    assert {path.name for path in folder.glob("model-*")} < names
    assert not names & {"step.json", "notes.txt"}


def test_the_command_pushes_and_prints_the_address(hub: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "stories")
    hub.writer = TOKEN
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost"}
    command = [sys.executable, "-m", "gptladder", "push", str(folder), "me/stories", "--private"]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"pushed: {hub.url}/me/stories/commit/")
    shutil.rmtree(folder)
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 2
    assert "there is no such folder" in done.stderr
