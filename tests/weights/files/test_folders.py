"""Reading model folders. (Damaged and hostile files have tests of their own: test_damaged.)"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gptladder import files
from gptladder.weights.files import folders
from gptladder.weights.files.folders import (
    WEIGHT_FILES,
    open_tensors,
    read_config,
    read_index,
    read_tensor_file,
)
from gptladder.weights.files.tensors import check_finite
from gptladder.weights.files.torch_files import load_torch_file
from gptladder.weights.files.write import write_folder

from .model_folders import (
    CONFIG,
    DTYPES,
    KINDS,
    layout,
    load,
    outcome,
    refusal,
    same,
    save_bin,
    some_tensors,
    whole_folder,
)

# What is whole


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_folder_is_read(tmp_path: Path, kind: str) -> None:
    folder = whole_folder(tmp_path / "model", kind)
    assert read_config(folder) == CONFIG
    assert same(load(folder), some_tensors())


def test_kinds_are_looked_for_in_the_order_of_transformers(tmp_path: Path) -> None:
    for number, name in enumerate(WEIGHT_FILES):
        tensors = {"which": torch.tensor(number)}
        if name.endswith(".json"):
            shard = name.removesuffix(".index.json").replace(".", "-00001-of-00001.")
            (tmp_path / name).write_text(json.dumps({"weight_map": {"which": shard}}))
            name = shard
        (save_file if name.endswith(".safetensors") else torch.save)(tensors, tmp_path / name)
    for number, name in enumerate(WEIGHT_FILES):
        assert open_tensors(tmp_path)["which"] == number
        (tmp_path / name).unlink()
    assert all(name in refusal(open_tensors, tmp_path) for name in WEIGHT_FILES)


def test_shared_and_strided_tensors_of_a_state_dict_are_read(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    table = OrderedDict(a=torch.nn.Parameter(shared), b=shared, c=shared.t(), d=shared[:, :0])
    for zipped in (True, False):
        save_bin(tmp_path, table, zipped=zipped)
        tensors = open_tensors(tmp_path)
        assert same(tensors, {name: tensor.detach() for name, tensor in table.items()})
        assert not any(tensor.requires_grad for tensor in tensors.values())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_writing_to_a_tensor_does_not_change_the_file(tmp_path: Path, kind: str) -> None:
    folder = whole_folder(tmp_path / "model", kind)
    for tensor in open_tensors(folder).values():
        tensor.fill_(1)
    assert same(open_tensors(folder), some_tensors())


def test_nested_containers_are_for_those_who_ask(tmp_path: Path) -> None:
    nested = {"model": {"a": torch.ones(2)}, "iter_num": 5, "config": {"dropout": 0.0, "dataset": "x", "bias": None}}
    torch.save(nested, tmp_path / "ckpt.pt")
    assert load_torch_file(tmp_path / "ckpt.pt")["config"] == nested["config"]
    text = refusal(read_tensor_file, tmp_path / "ckpt.pt")
    assert "'model', 'iter_num', 'config'" in text
    assert "state_dict()" in text


def test_a_transformers_folder_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=11))
    for size in ("1GB", "1KB"):
        model.save_pretrained(tmp_path / size, max_shard_size=size)
        tensors = open_tensors(tmp_path / size)
        assert read_config(tmp_path / size)["n_embd"] == 8
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
        assert tensors.keys() == model.state_dict().keys() - {"lm_head.weight"}
    assert (tmp_path / "1KB" / "model.safetensors.index.json").exists()


MEASURE = """
import resource, sys
from pathlib import Path
from gptladder.weights.files.folders import open_tensors
from gptladder.weights.files.tensors import check_finite
from gptladder.weights.files.write import write_folder
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
tensors = open_tensors(Path(sys.argv[1]))
opened = peak() - before
check_finite(tensors, "")
if len(sys.argv) > 2: write_folder(Path(sys.argv[2]), {}, tensors, max_shard_size=20_000_000)
print(opened, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_memory_is_the_files_own_and_only_when_touched(tmp_path: Path, kind: str) -> None:
    tensors = {f"h.{i}.weight": torch.ones(1000, 1000) for i in range(20)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    if kind == "safetensors":
        write_folder(tmp_path / "model", {}, tensors)
    else:
        (tmp_path / "model").mkdir()
        save_bin(tmp_path / "model", tensors)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "model", tmp_path / "out"], capture_output=True, check=True
    )
    opened, touched = map(int, done.stdout.split())
    allowance = 8e6  # code that is loaded at first use
    assert touched < 1.25 * size + allowance  # written out again, too
    assert opened < 0.1 * size + allowance


# What is damaged: the little that test_damaged has no place for


def split_header(path: Path) -> tuple[bytes, bytes]:
    """Header and numbers of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def put_header(path: Path, header: bytes, numbers: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + numbers)


def put_link(path: Path, target: Path | str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return {kind: whole_folder(root / kind, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_no_flipped_bit_goes_by_unseen(tmp_path: Path, whole: dict[str, Path], kind: str) -> None:
    """Of a safetensors header, or anywhere in an archive: refused, or visible to a strict loader, or of no effect.

    (In the numbers of a safetensors file, and in a legacy .bin, a flipped bit cannot be seen.)
    """
    path = tmp_path / {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[kind]
    shutil.copy(whole[kind] / path.name, path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little") if kind == "safetensors" else len(content)
    original = some_tensors()
    refused = 0
    for position in range(0, end, 1 if kind == "safetensors" else 3):
        bit = 1 << random.Random(position).randrange(8)
        path.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        result = outcome(open_tensors, tmp_path)
        if isinstance(result, str):
            assert result.startswith(str(path))
            assert result.isprintable()
            refused += 1
        else:
            assert layout(result) != layout(original) or same(result, original), position
    assert refused > end // 8


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_no_bytes_at_all_break_the_reader(tmp_path: Path, kind: str) -> None:
    path = tmp_path / {"safetensors": "x.safetensors", "bin": "x.bin"}[kind]

    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=300))
    def check(content: bytes) -> None:
        prefix = struct.pack("<Q", max(len(content) - 3, 0)) if kind == "safetensors" else b""
        path.write_bytes(prefix + content)
        refusal(read_tensor_file, path)

    check()


def test_names_from_the_file_are_escaped_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"\x1b[31m\nred" + "d" * 1000: torch.tensor([float("nan")])}, path)
    assert r"'\x1b[31m\nredd" in refusal(load_nothing_but_finite, tmp_path)


def test_names_that_another_package_repeats_are_made_plain(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"a\n\x1b[31m": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}
    put_header(path, json.dumps(header).encode(), bytes(8))
    assert "`a [31m`" in refusal(open_tensors, tmp_path)


def load_nothing_but_finite(folder: Path) -> None:
    check_finite(open_tensors(folder), folder)


def test_links_within_the_folder_and_within_the_hubs_cache_are_followed(tmp_path: Path, whole: dict[str, Path]) -> None:
    beside = shutil.copytree(whole["safetensors"], tmp_path / "beside")
    put_link(beside / "model.safetensors", (beside / "model.safetensors").rename(beside / "weights").name)
    assert same(load(beside), some_tensors())
    for store in ("models--a--b/blobs", "blobs/ab"):
        cache = tmp_path / store.replace("/", "-")
        folder = cache / "models--a--b" / "snapshots" / "1234"
        shutil.copytree(whole["shards"], folder)
        (cache / store).mkdir(parents=True)
        for path in list(folder.iterdir()):
            put_link(path, path.rename(cache / store / path.name))
        assert same(load(folder), some_tensors())
        linked = tmp_path / f"link to {cache.name}"
        linked.symlink_to(folder)
        assert same(load(linked), some_tensors())
    # The same links in a folder that only looks like the cache.
    look_alike = tmp_path / "evil" / "snapshots" / "1234"
    shutil.copytree(folder, look_alike, symlinks=True)
    assert "outside the folder" in refusal(load, look_alike)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    for kind, name in {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}.items():
        folder = whole_folder(tmp_path / kind, kind)
        (folder / name).chmod(0)
        assert "yours to read" in refusal(open_tensors, folder)


def test_a_file_that_the_system_does_not_give(
    tmp_path: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(Path, "read_bytes", denied)
    for call, path in (
        (read_tensor_file, whole["safetensors"] / "model.safetensors"),
        (read_tensor_file, whole["bin"] / "pytorch_model.bin"),
        (read_index, whole["shards"] / "model.safetensors.index.json"),
    ):
        assert "Permission denied" in refusal(call, path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    assert "give a .safetensors" in refusal(read_tensor_file, tmp_path / "model.h5")


def test_json_larger_than_any_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, folders):
        monkeypatch.setattr(module, "MAX_JSON_BYTES", 100)
    (tmp_path / "config.json").write_text('{"a": "' + "x" * 100 + '"}')
    assert "109 bytes" in refusal(read_config, tmp_path)
    save_file({f"{i}": torch.ones(1) for i in range(9)}, tmp_path / "model.safetensors")
    assert "header claims" in refusal(open_tensors, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_finite_weights_pass_and_infinite_ones_do_not(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max if dtype.is_floating_point else 1
    tensors = {"a": torch.tensor([largest, 0], dtype=dtype), "b": torch.ones(0, dtype=dtype)}
    check_finite(tensors, "here")
    if dtype.is_floating_point:
        assert "a" in refusal(check_finite, {**tensors, "a": torch.tensor([torch.inf, 0], dtype=dtype)}, "here")
