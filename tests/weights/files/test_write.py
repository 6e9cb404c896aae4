"""Writing model folders, whole or not at all."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from gptladder.weights.files.folders import (
    open_tensors,
    read_config,
)
from gptladder.weights.files.write import write_folder

from .model_folders import CONFIG, DTYPES, KINDS, load, outcome, refusal, same, some_tensors, whole_folder


def split_header(path: Path) -> tuple[bytes, bytes]:
    """Header and numbers of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return {kind: whole_folder(root / kind, kind) for kind in KINDS}


# What is written


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_is_read_again(tmp_path: Path, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
    tensors = {}
    for name in names:
        shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
        tensor = torch.randn(shape, dtype=torch.float64).to(data.draw(st.sampled_from(DTYPES)))
        tensors[name] = tensor.mT if tensor.ndim > 1 and data.draw(st.booleans()) else tensor
    most = data.draw(st.integers(1, 400))
    folder = tmp_path / "model"
    write_folder(folder, CONFIG, tensors, max_shard_size=most, overwrite=True)
    assert read_config(folder) == CONFIG
    assert same(open_tensors(folder), tensors)
    files = list(folder.glob("*.safetensors"))
    # The package, which checks more than we rely on, reads them too; and every tensor is aligned.
    loaded = [load_file(path) for path in files]
    assert same({name: tensor for part in loaded for name, tensor in part.items()}, tensors)
    for path, part in zip(files, loaded, strict=True):
        header, _ = split_header(path)
        assert len(header) % 8 == 0
        for name, entry in json.loads(header).items():
            assert name == "__metadata__" or entry["data_offsets"][0] % part[name].element_size() == 0
        assert (
            sum(tensor.nbytes for tensor in part.values()) <= most
            or len(part) == 1
            or not any(tensor.nbytes for tensor in list(part.values())[1:])
        )
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".partial") == []


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_head=2, n_layer=2, vocab_size=11)).eval()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for most in (10**9, 2000):
        folder = tmp_path / str(most)
        write_folder(folder, model.config.to_dict(), tensors, max_shard_size=most)
        again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        tokens = torch.tensor([[1, 2, 3]])
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.json").write_text("{}")
    (folder / "checkpoints").mkdir()
    write_folder(folder, CONFIG, some_tensors())
    write_folder(folder, CONFIG, some_tensors(), max_shard_size=100, overwrite=True)
    assert (folder / "vocab.json").read_text() == "{}"
    assert (folder / "checkpoints").is_dir()
    assert same(load(folder), some_tensors())


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("most", [10**9, 100])
def test_a_model_is_replaced_by_tensors_that_are_maps_of_it(tmp_path: Path, old: str, most: int) -> None:
    folder = whole_folder(tmp_path / "model", old)
    assert "overwrite=True" in refusal(write_folder, folder, CONFIG, some_tensors())
    assert same(load(folder), some_tensors())
    tensors = open_tensors(folder)
    write_folder(
        folder, {"new": True}, {f"new.{name}": tensors[name] for name in tensors}, max_shard_size=most, overwrite=True
    )
    assert read_config(folder) == {"new": True}
    assert same(load(folder), {f"new.{name}": tensor for name, tensor in some_tensors().items()})
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".json", ".safetensors"}, "the old weights are gone"


@pytest.mark.parametrize("old", ["none", *KINDS])
@pytest.mark.parametrize("most", [10**9, 100])
def test_a_crash_at_any_step_leaves_the_old_model_or_none_or_the_new(
    tmp_path: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch, old: str, most: int
) -> None:
    new = {name: tensor.clone().fill_(1) for name, tensor in some_tensors().items()}

    class CrashError(BaseException):
        pass

    seen, finished = set(), False
    for step in range(100):
        folder = tmp_path / str(step) / "model"
        if old == "none":
            folder.parent.mkdir()
        else:
            shutil.copytree(whole[old], folder)
        left = step

        def crash_at(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                nonlocal left
                if left == 0:
                    raise CrashError
                left -= 1
                return original(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("open", "mkdir", "unlink", "rename", "replace", "rmdir"):
                patch.setattr(Path, name, crash_at(getattr(Path, name)))
            patch.setattr(os, "fsync", crash_at(os.fsync))
            patch.setattr(shutil, "rmtree", lambda *args, **options: None)  # a crash tidies nothing
            try:
                write_folder(folder, {"new": True}, new, max_shard_size=most, overwrite=True)
                finished = True
            except CrashError:
                finished = False
        result = outcome(load, folder)
        if isinstance(result, str):
            assert "config.json: no such" in result
            seen.add("none")
        else:
            version = "new" if "new" in read_config(folder) else "old"
            assert same(result, new if version == "new" else some_tensors())
            seen.add(version)
        if finished:
            break
    assert finished
    assert seen == ({"none", "new"} if old == "none" else {"old", "none", "new"})


@pytest.mark.parametrize("old", ["none", "safetensors"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, old: str) -> None:
    folder = tmp_path / "model"
    if old != "none":
        whole_folder(folder, old)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    big = {"a": torch.ones(100_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the kernel refuses the rest, as on a full disk
    try:
        with pytest.raises(OSError, match="nothing was changed") as caught:
            write_folder(folder, {}, big, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert folder.exists() == (old != "none")
    write_folder(folder, {}, big, overwrite=True)
    assert same(open_tensors(folder), big)


def test_a_kill_leaves_nothing_that_reads_as_a_model(tmp_path: Path) -> None:
    """A real kill, in the middle of the weights: the name that was asked for does not exist."""
    code = """
import os, sys, signal, torch
from pathlib import Path
from collections import UserDict
from gptladder.weights.files.write import write_folder
class Killing(UserDict):
    looked = 0
    def __getitem__(self, name):
        self.looked += 1
        if self.looked > 12: os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(name)
write_folder(Path(sys.argv[1]), {}, Killing({str(i): torch.ones(50_000) for i in range(10)}))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], check=False)
    assert done.returncode == -9
    (partial,) = tmp_path.iterdir()
    assert partial.suffix == ".partial"
    assert (partial / "model.safetensors").stat().st_size > 0
    assert "no such file" in refusal(load, partial)
    assert "no such folder" in refusal(load, tmp_path / "model")


def test_tensors_may_be_made_on_demand(tmp_path: Path) -> None:
    class Lazy(dict):
        made = 0

        def items(self) -> Any:
            return ((name, self[name]) for name in self)

        def __getitem__(self, name: str) -> Tensor:
            Lazy.made += 1
            return torch.full((3,), float(super().__getitem__(name)))

    write_folder(tmp_path / "model", CONFIG, Lazy(a=1, b=2))
    assert same(open_tensors(tmp_path / "model"), {"a": torch.ones(3), "b": torch.full((3,), 2.0)})
    assert Lazy.made == 4


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2).to(torch.float8_e5m2),
    ],
)
def test_tensors_that_cannot_be_held_are_named_before_anything_is_written(tmp_path: Path, tensor: Tensor) -> None:
    assert "cannot hold 'odd'" in refusal(write_folder, tmp_path / "model", CONFIG, {"a": torch.ones(1), "odd": tensor})
    assert "cannot hold '__metadata__'" in refusal(
        write_folder, tmp_path / "m", CONFIG, {"__metadata__": torch.ones(1)}
    )
    assert "no tensors" in refusal(write_folder, tmp_path / "model", CONFIG, {})
    for config in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_folder(tmp_path / "model", config, {"a": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(write_folder, tmp_path / "file", CONFIG, some_tensors())
    (tmp_path / "model" / "model.safetensors").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "is a folder where" in refusal(write_folder, tmp_path / "model", CONFIG, some_tensors(), overwrite=True)
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_replacing_links_leaves_what_they_lead_to(tmp_path: Path, whole: dict[str, Path]) -> None:
    folder = shutil.copytree(whole["safetensors"], tmp_path / "model")
    kept = (folder / "model.safetensors").rename(tmp_path / "kept")
    (folder / "model.safetensors").symlink_to(kept)
    before = kept.read_bytes()
    write_folder(folder, CONFIG, {"a": torch.ones(1)}, overwrite=True)
    assert kept.read_bytes() == before
    assert same(load(folder), {"a": torch.ones(1)})
