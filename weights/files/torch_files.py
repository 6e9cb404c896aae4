"""Read files of ``torch.save`` without ``torch.load``, which trusts the file in more than it has to.

Of the two formats one is a zip archive (https://github.com/pytorch/pytorch, ``serialization.py``; since PyTorch 1.6):
``NAME/data.pkl`` describes the contents, and each storage of tensors is a record ``NAME/data/KEY`` with its CRC-32. The
older one is a chain of pickles, followed by the storages without checksums. Both are read in two steps:
`open_torch_file` returns what the file holds, and then each tensor is read and compared with its checksum when it is
looked up.
"""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...files import FileError, first_sentence, listed
from .pickle_values import ForeignError, PickleError, Record, StorageName, TensorView
from .pickles import read_pickle
from .tensors import StableFile, Storage, StoredTensor

MAX_PICKLE_BYTES = 25_000_000
"""Largest description of a file's contents."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def load_torch_file(path: Path) -> Any:
    """Read what ``torch.save`` wrote: tensors, plain containers, numbers and strings, however nested.

    Tensors that share memory in the file share it again. Nothing in the file is run, and no more memory is used than
    the file has bytes, and the containers of at most 25 MB of description.

    Raises:
        FileError: not a regular file, damaged, or holding other Python objects, which are never built.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "x.pt")
        ...     torch.save({"step": 3, "w": torch.ones(2)}, path)
        ...     load_torch_file(path)
        {'step': 3, 'w': tensor([1., 1.])}
    """
    storages: dict[tuple[int, torch.dtype], Tensor] = {}

    def read(tensor: StoredTensor) -> Tensor:
        place = tensor.storage.offset, tensor.dtype
        if place not in storages:
            storages[place] = tensor.storage.read()
        return tensor.view(storages[place])

    return _mapped(open_torch_file(path), StoredTensor, read)


def open_torch_file(path: Path, *, records: bool = False) -> Any:
    """Read what ``torch.save`` wrote, with a `StoredTensor` in the place of each tensor.

    Args:
        path: the file.
        records: allow instances of classes: a `Record` of their fields takes their place.

    Raises:
        FileError: as `load_torch_file` does; a checksum is tried when a tensor is read.
    """
    file = StableFile(Path(path))
    with file.open() as opened:
        opener = _open_archive if opened.read(4) == b"PK\x03\x04" else _open_legacy
        try:
            return opener(file, opened, records)
        except ForeignError as error:
            raise FileError(
                f"{path}: holds Python objects other than tensors ({listed([error])}), which may run code, so it is "
                "not loaded; save its state_dict() from the program that wrote it"
            ) from error
        except PickleError as error:
            raise FileError(
                f"{path}: cannot be read as tensors saved by torch.save ({first_sentence(error)}); fetch it or save it "
                "again"
            ) from error


def has_records(value: Any) -> bool:
    """Return whether a value of `open_torch_file` is or contains a `Record`."""
    found: list[Record] = []
    _mapped(value, Record, found.append)
    return bool(found)


def _open_archive(file: StableFile, opened: BinaryIO, records: bool) -> Any:
    places = _records(file, opened)
    described = [name for name in places if name.endswith("/data.pkl")]
    if len(described) != 1:
        raise FileError(f"{file.path}: is a zip archive, but not of torch.save; give the file that it wrote")
    folder = described[0].removesuffix("data.pkl")

    def content(name: str, limit: int) -> bytes:
        offset, nbytes, crc = places[folder + name]
        if nbytes > limit:
            raise PickleError(f"{name} has {nbytes:,} bytes, where at most {limit:,} are expected")
        storage = Storage(file, offset, torch.uint8, nbytes, crc, folder + name)
        return storage.read().numpy().tobytes()

    if folder + "byteorder" in places and content("byteorder", 10) != b"little":
        raise PickleError("its numbers are big-endian")
    value, _ = read_pickle(content("data.pkl", MAX_PICKLE_BYTES), records=records)

    def place(view: TensorView) -> Storage:
        name = f"{folder}data/{view.storage.key}"
        if name not in places:
            raise PickleError(f"{listed([name])} is missing")
        offset, nbytes, crc = places[name]
        if nbytes != _nbytes(view.storage, view.dtype):
            raise PickleError(f"{listed([name])} has {nbytes:,} bytes, where {view.storage.numel:,} numbers belong")
        return Storage(file, offset, view.dtype, nbytes // view.dtype.itemsize, crc, name)

    return _placed(file, value, place)


def _records(file: StableFile, opened: BinaryIO) -> dict[str, tuple[int, int, int]]:
    """Return the records of a zip archive: where each begins, its length in bytes, and its CRC-32.

    torch.save compresses and encrypts nothing.
    """
    places: dict[str, tuple[int, int, int]] = {}
    try:
        with zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise PickleError("it is a compressed archive, which torch.save never writes")
            if entry.filename in places:
                raise PickleError("it holds two records of one name")
            opened.seek(entry.header_offset)
            header = opened.read(30)
            if header[:4] != b"PK\x03\x04":
                raise PickleError(f"{listed([entry.filename])} does not begin where it should")
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            if entry.file_size != entry.compress_size or start + entry.file_size > file.size:
                raise PickleError("it claims contents larger than the file")
            places[entry.filename] = start, entry.file_size, entry.CRC
    # What zipfile raises for a damaged archive; NotImplementedError and RuntimeError for versions and encryption.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError(f"it is not a whole PyTorch archive: {first_sentence(error)}") from error
    if sum(nbytes for _, nbytes, _ in places.values()) > file.size:
        raise PickleError("it claims contents larger than the file")
    return places


def _open_legacy(file: StableFile, opened: BinaryIO, records: bool) -> Any:
    opened.seek(0)
    head = b""
    while len(head) < MAX_PICKLE_BYTES and (chunk := opened.read(MAX_PICKLE_BYTES - len(head))):
        head += chunk

    # At the beginning are five pickles: two marks, the system, the contents, and the names of the storages.
    magic, end = read_pickle(head)
    protocol, end = read_pickle(head, end)
    system, end = read_pickle(head, end)
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise PickleError("it does not begin as such a file does")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("its numbers are big-endian")
    value, end = read_pickle(head, end, records=records)
    keys, end = read_pickle(head, end)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise PickleError("its list of storages is damaged")
    named = {view.storage.key: view for view in _views(value)}
    if missing := sorted(named.keys() - set(keys)):
        raise PickleError(f"the storage {listed(missing)} is missing")

    # Behind them: for each storage how many numbers it has, and these.
    places: dict[str, Storage] = {}
    for key in keys:
        opened.seek(end)
        numel = int.from_bytes(opened.read(8), "little")
        view = named.get(key)
        if view is None:
            raise PickleError(f"the storage {listed([key])} belongs to no tensor")
        nbytes = _nbytes(view.storage, view.dtype)
        end += 8
        if numel != view.storage.numel or end + nbytes > file.size:
            raise PickleError("it ends early, or the size of a storage is not the one that the pickle gives")
        places[key] = Storage(file, end, view.dtype, nbytes // view.dtype.itemsize, None, f"the storage {key}")
        end += nbytes
    if end != file.size:
        raise PickleError(f"{file.size - end:,} bytes stand behind its last storage")

    def place(view: TensorView) -> Storage:
        if places[view.storage.key].dtype != view.dtype:
            raise PickleError("two tensors of different dtypes share a storage")
        return places[view.storage.key]

    return _placed(file, value, place)


def _nbytes(storage: StorageName, dtype: torch.dtype) -> int:
    """Return the bytes of a storage; one without a dtype is counted in bytes."""
    return storage.numel * (1 if storage.dtype is None else dtype.itemsize)


def _placed(file: StableFile, value: Any, place: Callable[[TensorView], Storage]) -> Any:
    """Return a value with the tensors' places in the file in place of their descriptions."""

    def put(view: TensorView) -> StoredTensor:
        return StoredTensor(place(view), view.offset, view.shape, view.stride)

    return _mapped(value, TensorView, put)


def _views(value: Any) -> list[TensorView]:
    found: list[TensorView] = []
    _mapped(value, TensorView, found.append)
    return found


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return a tree of containers with each item of a type changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, kind, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_mapped(item, kind, change) for item in value])
    if isinstance(value, Record):
        return Record(value.kind, _mapped(value.fields, kind, change))
    return value
