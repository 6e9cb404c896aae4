"""Model folders of every kind, and helpers to compare what is read from them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptladder.files import FileError
from gptladder.weights.files.folders import open_tensors, read_config
from gptladder.weights.files.tensors import check_finite
from gptladder.weights.files.write import write_folder

CONFIG = {"model_type": "gpt2", "n_layer": 2}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "wte.weight": torch.randn(5, 4, generator=generator),
        "wpe.weight": torch.randn(4, 5, generator=generator),
        "h.0.ln_1.weight": torch.randn(4, generator=generator),
        "h.0.ln_1.bias": torch.randn(4, generator=generator),
        "h.0.attn.bias": torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(),
        "step": torch.tensor(7),
    }


def save_bin(folder: Path, tensors: dict[str, Tensor], name: str = "pytorch_model.bin", zipped: bool = True) -> None:
    torch.save(tensors, folder / name, _use_new_zipfile_serialization=zipped)


def save_bin_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = list(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[:3], "pytorch_model-00002-of-00002.bin": names[3:]}
    for file_name, part in parts.items():
        save_bin(folder, {name: tensors[name] for name in part}, file_name)
    weight_map = {name: file_name for file_name, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def whole_folder(folder: Path, kind: str) -> Path:
    """Write a valid model folder of some kind, and return its path."""
    tensors = some_tensors()
    if kind == "safetensors":
        write_folder(folder, CONFIG, tensors)
    elif kind == "shards":
        write_folder(folder, CONFIG, tensors, max_shard_size=176)
    else:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        {"bin": save_bin, "legacy": lambda *a: save_bin(*a, zipped=False), "bin shards": save_bin_shards}[kind](
            folder, tensors
        )
    return folder


KINDS = ["safetensors", "shards", "bin", "legacy", "bin shards"]


def load(folder: Path) -> dict[str, Tensor]:
    """Read a model folder as a loader of models does."""
    read_config(folder)
    tensors = dict(open_tensors(folder))
    check_finite(tensors, folder)
    return tensors


def refusal(call: Callable[..., object], *args: object, **options: object) -> str:
    """Return the text of the error that a call raises, which must be one line with a fix."""
    with pytest.raises(FileError) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 700
    assert ": " in text
    assert "; " in text, "does not name a fix"
    return text


def outcome(call: Callable[..., Mapping[str, Tensor]], *args: object) -> dict[str, Tensor] | str:
    """Return the tensors, or the text of the error."""
    try:
        return dict(call(*args))
    except FileError as error:
        return str(error)


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
