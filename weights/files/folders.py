"""Reading model folders: ``config.json`` and one of ``WEIGHT_FILES``, so that no file can harm its reader.

Nothing here knows what a model is: names are strings, tensors are tensors. A folder holds all weights in one file, or
an index that lists the file (shard) of each tensor. The files are safetensors
(https://github.com/huggingface/safetensors, format) or written by ``torch.save``. Tensors are read when they are asked
for, into memory of their own.

A wrong number in a well-formed safetensors file cannot be seen by any reader, since the format has no checksum of its
numbers; nor had PyTorch's before 1.6. ``check_finite`` finds NaN and infinity, and the hub's checksums find the rest.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...files import MAX_JSON_BYTES, FileError, file_in, first_sentence, listed, parse_json, read_json
from ..lazy import Lazy
from .tensors import DTYPES, StableFile, Storage, StoredTensor
from .torch_files import has_records, open_torch_file

CONFIG_FILE = "config.json"

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files that a folder's weights are looked for in; the first that exists is read (as transformers does)."""

_MAY_HOLD_RECORDS = ("config", "args", "hparams")

_PLAIN_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def read_config(folder: Path, name: str = CONFIG_FILE) -> dict[str, Any]:
    """Read the object in a folder's ``config.json``, or in another such file.

    Raises:
        FileError: no such folder or file, or not one JSON object.
    """
    return read_json(file_in(folder, name))


def open_tensors(folder: Path) -> Lazy:
    """Return all tensors of a folder, by name, from the first of ``WEIGHT_FILES`` that it holds.

    Each is read when it is asked for.

    Raises:
        FileError: no weights, a file that `open_tensor_file` refuses, or shards that do not hold exactly the tensors
            that the index lists for them.
    """
    name = next((name for name in WEIGHT_FILES if os.path.lexists(Path(folder, name))), None)
    if name is None:
        raise FileError(f"{folder}: holds no weights; one of these must be there: {', '.join(WEIGHT_FILES)}")
    path = file_in(folder, name)
    if path.suffix != ".json":
        return lazily(open_tensor_file(path))
    weight_map = read_index(path)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        part = open_tensor_file(file_in(folder, shard))
        if misplaced := [name for name in part if weight_map.get(name) != shard]:
            raise FileError(
                f"{path.parent / shard}: holds {listed(misplaced)}, which {path.name} does not place there; "
                "fetch or save the model again"
            )
        tensors |= part
    if missing := weight_map.keys() - tensors.keys():
        raise FileError(
            f"{path}: lists {listed(sorted(missing))}, which the shards do not hold; fetch or save the model again"
        )
    return lazily(tensors)


def open_training_checkpoint(path: Path, keys: Sequence[str]) -> tuple[str, dict[str, Any], Lazy]:
    """Open what ``torch.save`` wrote of a training run.

    Args:
        path: the file.
        keys: names that the state dict may have in it.

    Returns:
        The first of the names that it has, all of its contents, and the tensors of the state dict, each of which is
        read when it is asked for. A configuration that is an instance of some class is a `Record` of its fields.

    Raises:
        FileError: a file that ``open_torch_file`` refuses, or that has a state dict under none of the names.
    """
    path = Path(path)
    whole = open_torch_file(path, records=True)
    key = next((key for key in keys if isinstance(whole, dict) and isinstance(whole.get(key), dict)), None)
    if key is None:
        raise FileError(
            f"{path}: is no checkpoint of a training run, which has its weights under {' or '.join(map(repr, keys))}; "
            f"if it holds weights alone, give the folder that has {CONFIG_FILE} beside them"
        )
    if odd := [name for name in whole if name not in _MAY_HOLD_RECORDS and has_records(whole[name])]:
        raise FileError(
            f"{path}: holds Python objects other than tensors under {listed(odd)}, so it is not loaded; save it "
            "without them from the program that wrote it"
        )
    return key, whole, lazily(_state_dict(path, whole[key]))


def lazily(tensors: Mapping[str, StoredTensor]) -> Lazy:
    """Return tensors by name, each of which is read when it is asked for."""
    return Lazy({name: tensor.read for name, tensor in tensors.items()})


def read_index(path: Path) -> dict[str, str]:
    """Read the ``weight_map`` of an index file: tensor name -> name of the file beside it that holds the tensor.

    Raises:
        FileError: not such an index, or a file name that could lead out of the folder or to another format.
    """
    path = Path(path)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileError(f"{path}: has no 'weight_map' from tensor names to file names; fetch it again")
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _PLAIN_FILE_NAME.fullmatch(shard) or not shard.endswith(suffix):
            raise FileError(
                f"{path}: names {listed([shard])} as a shard, where only a plain name ending in {suffix} may stand; "
                "do not use this folder unless you trust its author"
            )
    return weight_map


def open_tensor_file(path: Path) -> dict[str, StoredTensor]:
    """Open a ``.safetensors`` file, or a ``.bin``, ``.pt`` or ``.pth`` file that holds a state dict.

    Raises:
        FileError: not a regular file, damaged, or holding anything but dense tensors of common dtypes by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = _open_safetensors(path)
    elif path.suffix in {".bin", ".pt", ".pth"}:
        tensors = _state_dict(path, open_torch_file(path))
    else:
        raise FileError(f"{path}: is no kind of weights known here; give a .safetensors, .bin, .pt or .pth file")
    if not tensors:
        raise FileError(f"{path}: holds no tensors; fetch or save the model again")
    return tensors


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """Read all tensors of one file.

    Raises:
        FileError: as `open_tensor_file` does.
    """
    return dict(lazily(open_tensor_file(path)))


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    file = StableFile(path)
    with file.open() as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(file.size - 8, MAX_JSON_BYTES):
            raise FileError(
                f"{path}: is not a whole safetensors file (its header claims {length:,} bytes, the file has "
                f"{file.size:,}); fetch it or save it again"
            )
        # The package takes one of two entries of the same name; this parser refuses them.
        header = parse_json(path, opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__" and isinstance(entry, dict) and str(entry.get("dtype")) not in DTYPES:
                raise FileError(
                    f"{path}: {listed([name])} has dtype {listed([entry.get('dtype')])}; convert it to one of "
                    f"{', '.join(DTYPES)}"
                )
        # The package checks that the tensors fill the file without gap or overlap. Its tensors are maps of the file.
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise FileError(
                f"{path}: is not a whole safetensors file ({first_sentence(error)}); fetch it or save it again"
            ) from error
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            start, end = entry["data_offsets"]
            storage = Storage(file, 8 + length + start, dtype, (end - start) // dtype.itemsize, None, f"{name!r:.80}")
            tensors[name] = StoredTensor(storage, 0, shape, _row_major(shape))
    return tensors


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides[: len(shape)]))


def _state_dict(path: Path, table: Any) -> dict[str, StoredTensor]:
    """Return a flat table of tensors, or refuse what is not one."""
    if not isinstance(table, dict):
        raise FileError(f"{path}: holds a {type(table).__name__}, not a state dict; save model.state_dict()")
    if strangers := [k for k, value in table.items() if not (isinstance(k, str) and isinstance(value, StoredTensor))]:
        raise FileError(
            f"{path}: holds other things than tensors under {listed(strangers)}; save the model's state_dict() alone"
        )
    for tensor in table.values():
        tensor.check_repeats_nothing()
    return table
