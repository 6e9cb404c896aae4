"""Files to tensors and back: model folders, read so that no file can harm its reader, and written whole or not at all.

Nothing here knows what a model is: names are strings, tensors are tensors. A folder holds ``config.json`` and one of
``WEIGHT_FILES``: all weights in one file, or an index that says in which file (shard) each tensor lies. Weights come as
safetensors (https://github.com/huggingface/safetensors, format) or as a pickle by ``torch.save``; of the latter only
tensors and plain containers are read, by PyTorch's restricted unpickler, and nothing in it is ever executed.

Tensors that are read are private maps of their file: memory is used when a value is, and writing to a tensor does not
change the file. (A ``.bin`` from before PyTorch 1.6 cannot be mapped, and is read into memory.)

What no reader of these formats can see is a wrong value in a well-formed file: safetensors carries no checksum of its
numbers, nor did PyTorch before 1.6. ``check_finite`` finds values that are no numbers; the hub's checksums, the rest.
"""

import json
import os
import re
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import (
    MAX_JSON_BYTES,
    FileError,
    file_in,
    file_size,
    first_sentence,
    listed,
    parse_json,
    read_json,
    sync_folder,
    unreadable,
    write_whole,
)
from .lazy import Lazy

__all__ = [
    "CONFIG_FILE",
    "WEIGHT_FILES",
    "CheckpointError",
    "check_finite",
    "file_in",
    "load_torch_file",
    "open_tensors",
    "open_training_checkpoint",
    "read_config",
    "read_index",
    "read_tensor_file",
    "read_tensors",
    "write_folder",
]

CONFIG_FILE = "config.json"

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a folder's weights are looked for, the first found being taken (as transformers does)."""

_SHARDS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# Bytes of tensors that are taken from one map of a file before it is exchanged for a fresh one.
_WINDOW = 32_000_000

_PLAIN_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


CheckpointError = FileError
"""What a file or folder raises that cannot be read as a model, or must not be."""


# Reading


def read_config(folder: Path, name: str = CONFIG_FILE) -> dict[str, Any]:
    """The object in a folder's ``config.json``, or in another such file.

    Raises:
        CheckpointError: no such folder or file, or not one JSON object.
    """
    return read_json(file_in(folder, name))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by name, from the first of ``WEIGHT_FILES`` that it holds.

    Raises:
        CheckpointError: no weights, a file that ``read_tensor_file`` refuses, or shards that do not hold exactly the
            tensors which the index says they hold.
    """
    return {name: tensor for part in _read_files(folder).values() for name, tensor in part.items()}


def open_tensors(folder: Path) -> Mapping[str, Tensor]:
    """`read_tensors`, for one tensor after the other: the pages of those that nobody holds any more are given back.

    Raises:
        CheckpointError: as for `read_tensors`.
    """
    files = _read_files(folder)
    if not all(path.suffix == ".safetensors" or _is_archive(path) for path in files):
        return {name: tensor for part in files.values() for name, tensor in part.items()}  # in memory as it is

    def read(path: Path) -> Mapping[str, Tensor]:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _load(path, mmap=True)

    window = _Window(read)
    return Lazy({name: partial(window.tensor, path, name) for path, part in files.items() for name in part})


def open_training_checkpoint(path: Path, keys: Sequence[str]) -> tuple[str, dict[str, Any], Mapping[str, Tensor]]:
    """What ``torch.save`` wrote of a training run: the first of the keys that it has, all of it, the state dict there.

    The state dict's tensors come as `open_tensors` gives them; of the optimizer's nothing is read.

    Raises:
        CheckpointError: a file that ``load_torch_file`` refuses, or that has a state dict under none of the keys.
    """
    path = Path(path)
    whole = load_torch_file(path)
    key = next((key for key in keys if isinstance(whole, dict) and isinstance(whole.get(key), dict)), None)
    if key is None:
        raise CheckpointError(
            f"{path}: is no checkpoint of a training run, which has its weights under {' or '.join(map(repr, keys))}; "
            f"if it holds weights alone, give the folder that has {CONFIG_FILE} beside them"
        )
    tensors = _state_dict(path, whole[key], whole)
    if not _is_archive(path):
        return key, whole, tensors
    window = _Window(lambda path: _load(path, mmap=True)[key])
    return key, whole, Lazy({name: partial(window.tensor, path, name) for name in tensors})


class _Window:
    """Tensors from a map of their file that is exchanged for a fresh one after ``_WINDOW`` bytes, or with the file.

    A page that was read counts as this process's memory as long as its map is there, and the map is as long as one of
    its tensors.
    """

    def __init__(self, read: Callable[[Path], Mapping[str, Tensor]]) -> None:
        self._read = read
        self._path: Path | None = None
        self._tensors: Mapping[str, Tensor] = {}
        self._taken = 0

    def tensor(self, path: Path, name: str) -> Tensor:
        if path != self._path or self._taken > _WINDOW:
            self._path, self._tensors, self._taken = path, self._read(path), 0
        tensor = self._tensors[name].detach()
        self._taken += tensor.nbytes
        return tensor


def _read_files(folder: Path) -> dict[Path, dict[str, Tensor]]:
    """The tensors of each of a folder's weight files."""
    name = next((name for name in WEIGHT_FILES if os.path.lexists(Path(folder, name))), None)
    if name is None:
        raise CheckpointError(f"{folder}: holds no weights; one of these must be there: {', '.join(WEIGHT_FILES)}")
    path = file_in(folder, name)
    if path.suffix != ".json":
        return {path: read_tensor_file(path)}
    weight_map = read_index(path)
    files: dict[Path, dict[str, Tensor]] = {}
    for shard in sorted(set(weight_map.values())):
        part = read_tensor_file(file_in(folder, shard))
        if misplaced := [name for name in part if weight_map.get(name) != shard]:
            raise CheckpointError(
                f"{path.parent / shard}: holds {listed(misplaced)}, which {path.name} does not place there; "
                "fetch or save the model again"
            )
        files[path.parent / shard] = part
    if missing := weight_map.keys() - {name for part in files.values() for name in part}:
        raise CheckpointError(
            f"{path}: lists {listed(sorted(missing))}, which the shards do not hold; fetch or save the model again"
        )
    return files


def read_index(path: Path) -> dict[str, str]:
    """The ``weight_map`` of an index file: tensor name -> name of the file beside it that holds the tensor.

    Raises:
        CheckpointError: not such an index, or a file name that could lead out of the folder or to another format.
    """
    path = Path(path)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no 'weight_map' from tensor names to file names; fetch it again")
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _PLAIN_FILE_NAME.fullmatch(shard) or not shard.endswith(suffix):
            raise CheckpointError(
                f"{path}: names {listed([shard])} as a shard, where only a plain name ending in {suffix} may stand; "
                "do not use this folder unless you trust its author"
            )
    return weight_map


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one ``.safetensors`` file, or of one ``.bin``, ``.pt`` or ``.pth`` file that holds a state dict.

    Raises:
        CheckpointError: not a regular file, damaged, or holding anything but dense tensors of common dtypes by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in {".bin", ".pt", ".pth"}:
        whole = load_torch_file(path)
        tensors = _state_dict(path, whole, whole)
    else:
        raise CheckpointError(f"{path}: is no kind of weights known here; give a .safetensors, .bin, .pt or .pth file")
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; fetch or save the model again")
    return tensors


def load_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote, if that is tensors and plain containers, numbers and strings, however nested.

    Raises:
        CheckpointError: not a regular file, damaged, or holding other Python objects, which are never built.
    """
    path = Path(path)
    size = file_size(path)
    zipped = _is_archive(path)
    if zipped:
        _check_archive(path, size)
    try:
        return _load(path, mmap=zipped)
    except Exception as error:  # a damaged pickle can raise anything
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path}: holds Python objects other than tensors ({foreign[1][:80]!r}), which may run code, so it is "
                "not loaded; save its state_dict() from the program that wrote it"
            ) from error
        raise CheckpointError(
            f"{path}: cannot be read as tensors saved by torch.save ({type(error).__name__}: {first_sentence(error)}); "
            "fetch it or save it again"
        ) from error


def _load(path: Path, *, mmap: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is strange about the file is an error later, or of no consequence
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def check_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Refuse weights that are NaN or infinite; one pass over the values, with no temporary tensor of their size.

    Args:
        tensors: what to look through; those that are not floating point pass.
        source: the file or folder to name in the error.

    Raises:
        CheckpointError: some tensor holds such a value; it is named.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            lowest, highest = torch.aminmax(tensor.detach())  # NaN goes through both
            if not (lowest.isfinite() and highest.isfinite()):
                raise CheckpointError(
                    f"{source}: {listed([name])} holds values that are not finite; the file is damaged or its "
                    "training diverged"
                )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _check_safetensors_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: is not a whole safetensors file ({first_sentence(error)}); fetch it or save it again"
        ) from error


def _check_safetensors_header(path: Path) -> None:
    """Refuse what the safetensors package lets pass: a name given twice, of which it takes one, and rare dtypes."""
    size = file_size(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_JSON_BYTES):
                raise CheckpointError(
                    f"{path}: is not a whole safetensors file (its header claims {length:,} bytes, the file has "
                    f"{size:,}); fetch it or save it again"
                )
            header = parse_json(path, file.read(length))
    except OSError as error:
        raise unreadable(path, error) from error
    for name, entry in header.items():
        if name != "__metadata__" and isinstance(entry, dict) and str(entry.get("dtype")) not in _DTYPES:
            raise CheckpointError(
                f"{path}: {listed([name])} has dtype {listed([entry.get('dtype')])}; convert it to one of "
                f"{', '.join(_DTYPES)}"
            )


def _is_archive(path: Path) -> bool:
    """Whether torch.load will take the file for a zip archive; its own test."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise unreadable(path, error) from error


def _check_archive(path: Path, size: int) -> None:
    """Refuse a zip archive that unpacks to more than it is, or whose contents differ from their own checksums.

    torch.save never compresses; torch.load inflates what is compressed, or maps it as if it were not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                fault = "is a compressed archive, which torch.save never writes"
            elif sum(max(entry.file_size, entry.compress_size) for entry in entries) > size:
                fault = "claims contents larger than the file"
            elif len({entry.filename for entry in entries}) != len(entries):
                fault = "holds two records of one name"
            elif (damaged := archive.testzip()) is not None:
                fault = f"{listed([damaged])} in it fails its checksum"
            else:
                return
    # What zipfile raises for a damaged archive; NotImplementedError and RuntimeError for compression and encryption.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        fault = f"is not a whole PyTorch archive ({first_sentence(error)})"
    raise CheckpointError(f"{path}: {fault}; fetch it or save it again")


def _state_dict(path: Path, table: Any, whole: Any) -> dict[str, Tensor]:
    """A flat table of dense tensors, which is the whole of a file or a part of it, or a refusal."""
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: holds a {type(table).__name__}, not a state dict; save model.state_dict()")
    if strangers := [key for key, value in table.items() if not (isinstance(key, str) and isinstance(value, Tensor))]:
        raise CheckpointError(
            f"{path}: holds other things than tensors under {listed(strangers)}; save the model's state_dict() alone"
        )
    for name, tensor in table.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPE_NAMES:
            raise CheckpointError(
                f"{path}: {listed([name])} is a {tensor.dtype} tensor of layout {tensor.layout} on "
                f"{tensor.device.type}; save dense tensors with data, of one of {', '.join(_DTYPES)}"
            )
        # A few bytes can be made to look like any shape, by strides of 0: memory would go when it is first copied.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {listed([name])} of shape {tuple(tensor.shape)} repeats a smaller tensor; "
                "save it with .contiguous()"
            )
    if _is_archive(path):
        # A map of a record that is too short would go on into its neighbour.
        storages = [tensor.untyped_storage() for tensor in _tensors_in(whole)]
        claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        with zipfile.ZipFile(path) as archive:
            stored = sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
        if claimed != stored:
            raise CheckpointError(
                f"{path}: its tensors claim {claimed:,} bytes and it stores {stored:,}; fetch it or save it again"
            )
    return {name: tensor.detach() for name, tensor in table.items()}


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of containers, however nested, even in themselves."""
    left, seen = [value], set()
    while left:
        item = left.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            left += item.values() if isinstance(item, dict) else item


# Writing


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
    watch: Callable[[str, Tensor], None] = lambda name, tensor: None,
    check: Callable[[Path], None] | None = None,
    max_shard_size: int = 5 * 2**30,
    overwrite: bool = False,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` (or shards and their index), as transformers reads them.

    A new folder appears whole or not at all. In a folder that is there, other files (a tokenizer's) stay as they are,
    and a model there is replaced: everything is written beside it first, so that a full disk or a kill leaves it as it
    was; then ``config.json`` is taken away, the weights are exchanged by renaming, and ``config.json`` is put back. Who
    reads in that moment, or after a crash in it, finds no ``config.json``: never a mixture of the two models.

    The tensors may be maps of the very files that are replaced. Memory: a copy of one tensor at most, and only of one
    that is not contiguous or not on the CPU. Each name is looked up twice, so a mapping may make its tensors on demand.

    Args:
        folder: where; its parents are made.
        config: what ``config.json`` shall say.
        tensors: dense tensors by name; those sharing memory are written one by one.
        dtype: what to write floating-point numbers as; each tensor's own where not given.
        files: more files of the folder, by name: a tokenizer's.
        watch: is given each tensor as it is about to be written.
        check: is given the folder that everything was written to, before any of it gets its name. What it or ``watch``
            raises undoes the writing.
        max_shard_size: bytes of tensors in one file; a tensor larger than that has a file of its own.
        overwrite: replace the config and weights that the folder holds, those of ``pytorch_model.bin`` included.

    Raises:
        CheckpointError: the folder holds a model and ``overwrite`` is false, or is a file; or there is a tensor that
            the format cannot hold.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    config_text = json.dumps(dict(config), indent=2, sort_keys=True, allow_nan=False) + "\n"
    specs = _specs(folder, tensors, dtype)
    exists = folder.is_dir()
    if not exists and os.path.lexists(folder):
        raise CheckpointError(f"{folder}: is a file; choose another name for the folder")
    if exists and not overwrite and (present := [path.name for path in _model_files(folder)]):
        raise CheckpointError(
            f"{folder}: holds a model already ({listed(present)}); pass overwrite=True (or --overwrite) to replace it"
        )
    if blocked := [path for path in _model_files(folder) if path.is_dir() and not path.is_symlink()]:
        raise CheckpointError(f"{blocked[0]}: is a folder where a file belongs; remove it")

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

    # From here on only names change, and what is staged is kept if that fails: it is the one whole copy.
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    sync_folder(folder)
    for path in _model_files(folder):
        if path.name not in written:
            path.unlink()
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
        if name == "__metadata__" or written not in _DTYPE_NAMES or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(
                f"{folder}: cannot hold {listed([name])}, a {tensor.dtype} tensor of layout {tensor.layout} on "
                f"{tensor.device.type}; give dense tensors with data, of one of {', '.join(_DTYPES)}"
            )
        specs[name] = _Spec(_DTYPE_NAMES[written], list(tensor.shape), tensor.numel() * written.itemsize)
    if not specs:
        raise CheckpointError(f"{folder}: there are no tensors to write; give at least one")
    return specs


def _model_files(folder: Path) -> list[Path]:
    """The config and weights that a folder holds, stray shards included."""
    named = [folder / name for name in (CONFIG_FILE, *WEIGHT_FILES) if os.path.lexists(folder / name)]
    return named + sorted(path for pattern in _SHARDS for path in folder.glob(pattern))


def _write_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    specs: Mapping[str, _Spec],
    max_shard_size: int,
    watch: Callable[[str, Tensor], None],
) -> list[str]:
    """Write one file, or shards and their index; returns the names of the files."""
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
    """The safetensors format: header length (uint64, little-endian), header (JSON), then the tensors, row-major.

    The package's own ``save_file`` takes neither strided tensors nor two that share memory, and its older versions
    hold a second copy of all.
    """
    # Widest dtype first, behind a header of a multiple of 8 bytes: every tensor starts at a multiple of its item size.
    names = sorted(specs, key=lambda name: (-_DTYPES[specs[name].dtype].itemsize, name))
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
            tensor = tensors[name].detach().to("cpu", _DTYPES[specs[name].dtype]).contiguous()
            watch(name, tensor)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
