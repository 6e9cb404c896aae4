"""Write model folders, whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...files import FileError, listed, sync_folder, write_whole
from .folders import CONFIG_FILE, WEIGHT_FILES
from .tensors import DTYPE_NAMES, DTYPES

SHARDS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")


class _Spec(NamedTuple):
    dtype: str
    shape: list[int]
    nbytes: int


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
    replaces: Collection[str] = (),
    watch: Callable[[str, Tensor], None] = lambda name, tensor: None,
    check: Callable[[Path], None] | None = None,
    max_shard_size: int = 5 * 2**30,
    overwrite: bool = False,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` (or shards and their index), as transformers reads them.

    A new folder appears whole or not at all. In an existing folder, other files (a tokenizer's) stay as they are, and
    the model is replaced. First everything is written to a temporary folder, so that a full disk or a kill leaves the
    old model as it was. Then ``config.json`` is removed, the weights are exchanged by renaming, and the new
    ``config.json`` is moved there. A program that reads at that moment, or after a crash then, finds no
    ``config.json``, and never a mixture of two models.

    The tensors may come from the files that are replaced. At most one tensor is copied at a time, and only if it is not
    contiguous or not on the CPU. Each name is looked up twice, so a mapping may compute its tensors on demand.

    Args:
        folder: the folder to write; missing parents are created.
        config: the fields of ``config.json``.
        tensors: dense tensors by name; those that share memory are written one by one.
        dtype: dtype of the floating-point numbers in the file (default: each tensor's own).
        files: more files of the folder, by name: a tokenizer's.
        replaces: names of files that belong to the model that is replaced, and go with it.
        watch: called with each tensor's name and the tensor before it is written.
        check: called with the temporary folder when everything is written. If it or ``watch`` raises an error, nothing
            is changed.
        max_shard_size: bytes of tensors in one file; a tensor larger than that has a file of its own.
        overwrite: replace the config and weights that the folder holds, those of ``pytorch_model.bin`` included.

    Raises:
        FileError: the folder holds a model and ``overwrite`` is false, or is a file; or there is a tensor that
            the format cannot hold.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    config_text = json.dumps(dict(config), indent=2, sort_keys=True, allow_nan=False) + "\n"
    specs = _specs(folder, tensors, dtype)
    _check_place(folder, overwrite)

    # Write everything to a temporary folder, which becomes the folder if there is none yet.
    exists = folder.is_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = (folder if exists else folder.parent) / f".{folder.name}.{secrets.token_hex(4)}.partial"
    staging.mkdir()
    try:
        written = [*_write_weights(staging, tensors, specs, max_shard_size, watch), *files]
        for name, content in files.items():
            write_whole(staging / name, content)
        write_whole(staging / CONFIG_FILE, config_text)
        sync_folder(staging)
        if check is not None:
            check(staging)
        if not exists:
            staging.rename(folder)
            sync_folder(folder.parent)
            return
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:  # a failed write does not say where
            raise OSError(error.errno, f"{error.strerror}; nothing was changed", str(folder)) from error
        raise

    # Replace the old model.
    _exchange(folder, staging, written, replaces)


def _check_place(folder: Path, overwrite: bool) -> None:
    """Raise FileError if a folder cannot take a model."""
    if not folder.is_dir() and os.path.lexists(folder):
        raise FileError(f"{folder}: is a file; choose another name for the folder")
    if not overwrite and (present := [path.name for path in _model_files(folder)]):
        raise FileError(
            f"{folder}: holds a model already ({listed(present)}); pass overwrite=True (or --overwrite) to replace it"
        )
    if blocked := [path for path in _model_files(folder) if path.is_dir() and not path.is_symlink()]:
        raise FileError(f"{blocked[0]}: is a folder where a file belongs; remove it")


def _exchange(folder: Path, staging: Path, written: Collection[str], replaces: Collection[str]) -> None:
    """Replace the files of a model by those of a temporary folder.

    Only names change. If that fails, the temporary folder stays, because it is the only complete copy.
    """
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    sync_folder(folder)
    for path in [*_model_files(folder), *(folder / name for name in replaces)]:
        if path.name not in written:
            path.unlink(missing_ok=True)
    for name in written:
        (staging / name).replace(folder / name)
    sync_folder(folder)
    (staging / CONFIG_FILE).replace(folder / CONFIG_FILE)
    staging.rmdir()
    sync_folder(folder)


def _specs(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, _Spec]:
    specs = {}
    for name, tensor in tensors.items():
        written = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        if name == "__metadata__" or written not in DTYPE_NAMES or tensor.layout != torch.strided or tensor.is_meta:
            raise FileError(
                f"{folder}: cannot hold {listed([name])}, a {tensor.dtype} tensor of layout {tensor.layout} on "
                f"{tensor.device.type}; give dense tensors with data, of one of {', '.join(DTYPES)}"
            )
        specs[name] = _Spec(DTYPE_NAMES[written], list(tensor.shape), tensor.numel() * written.itemsize)
    if not specs:
        raise FileError(f"{folder}: there are no tensors to write; give at least one")
    return specs


def _model_files(folder: Path) -> list[Path]:
    """Return the config and weights that a folder holds, stray shards included."""
    named = [folder / name for name in (CONFIG_FILE, *WEIGHT_FILES) if os.path.lexists(folder / name)]
    return named + sorted(path for pattern in SHARDS for path in folder.glob(pattern))


def _write_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    specs: Mapping[str, _Spec],
    max_shard_size: int,
    watch: Callable[[str, Tensor], None],
) -> list[str]:
    """Write one file, or shards and their index; return the names of the files."""
    shards: list[list[str]] = []
    room = 0
    for name, spec in specs.items():
        if not shards or spec.nbytes > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(name)
        room -= spec.nbytes
    if len(shards) == 1:
        _write_safetensors(folder / "model.safetensors", tensors, specs, watch)
        return ["model.safetensors"]
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / file_name, tensors, {name: specs[name] for name in names}, watch)
        weight_map |= dict.fromkeys(names, file_name)
    index = {"metadata": {"total_size": sum(spec.nbytes for spec in specs.values())}, "weight_map": weight_map}
    write_whole(folder / "model.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [*sorted(set(weight_map.values())), "model.safetensors.index.json"]


def _write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], specs: Mapping[str, _Spec], watch: Callable[[str, Tensor], None]
) -> None:
    """Write the safetensors format: header length (uint64, little-endian), header (JSON), then the tensors, row-major.

    The package's own ``save_file`` takes neither strided tensors nor two that share memory, and its older versions
    hold a second copy of all.
    """
    # Widest dtype first, behind a header of a multiple of 8 bytes: every tensor starts at a multiple of its item size.
    names = sorted(specs, key=lambda name: (-DTYPES[specs[name].dtype].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses the file
    end = 0
    for name in names:
        start, end = end, end + specs[name].nbytes
        header[name] = {"dtype": specs[name].dtype, "shape": specs[name].shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            tensor = tensors[name].detach().to("cpu", DTYPES[specs[name].dtype]).contiguous()
            watch(name, tensor)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
