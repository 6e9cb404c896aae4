"""Tensors in files: where each one is stored, and how to read it into memory of its own.

Nothing is mapped. A map would change, or end the process, when another program writes to the file.
"""

import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ...files import FileError, file_size, listed, refuse_pointer, unreadable

DTYPES = {
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
"""The dtypes that are read and written, by their names in safetensors."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_CHUNK = 2**20
_LARGE = 2**18


class StableFile:
    """A file that is opened for each read, and that must be the same file with the same content each time.

    Args:
        path: the file.

    Raises:
        FileError: it is not a regular file with content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = file_size(path)
        self.verified: set[int] = set()  # offsets of the storages whose checksum was found right
        with self._opened() as file:
            self._stamp = _stamp(file)
            refuse_pointer(path, file.read(64))

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file for reading.

        Raises:
            FileError: it cannot be opened, or has been replaced or written to since the first time.
        """
        with self._opened() as file:
            self._check(file)
            yield file
            self._check(file)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise unreadable(self.path, error) from error
        with file:
            yield file  # pyright: ignore[reportReturnType]

    def _check(self, file: BinaryIO) -> None:
        if _stamp(file) != self._stamp:
            raise FileError(f"{self.path}: was changed while it was read; read it again")


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Storage:
    """The bytes of a file that one tensor, or several, are views of.

    Args:
        file: the file.
        offset: the first of the bytes.
        dtype: what they are.
        numel: how many numbers they are.
        crc: their CRC-32, if the file has it.
        record: what the file calls them, for messages.
    """

    file: StableFile
    offset: int
    dtype: torch.dtype
    numel: int
    crc: int | None = None
    record: str = ""

    def read(self, start: int = 0, numel: int | None = None) -> Tensor:
        """Read the numbers as a tensor [numel].

        Args:
            start, numel: a part of the numbers (default: all of them). The whole storage's checksum is tried once.

        Raises:
            FileError: the bytes do not have their checksum; the file ends before them; it was changed.
        """
        numel = self.numel if numel is None else numel
        whole = numel == self.numel
        if not whole and self.crc is not None and self.offset not in self.file.verified:
            self._check(_read_all(self, memoryview(bytearray(_CHUNK)), self.offset, self.numel * self.dtype.itemsize))
        numbers = _empty(numel, self.dtype)
        nbytes = numel * self.dtype.itemsize
        view = numbers.view(torch.uint8).numpy().data
        crc = _read_all(self, view, self.offset + start * self.dtype.itemsize, nbytes)
        if whole:
            self._check(crc)
        # A byte other than 0 and 1 is no bool, and PyTorch does not check that.
        return numbers.view(torch.uint8) != 0 if self.dtype == torch.bool else numbers

    def _check(self, crc: int) -> None:
        if self.crc is not None and crc != self.crc:
            raise FileError(
                f"{self.file.path}: {listed([self.record])} in it fails its checksum; fetch it or save it again"
            )
        self.file.verified.add(self.offset)


def _empty(numel: int, dtype: torch.dtype) -> Tensor:
    """Return memory for numbers. A large piece goes back to the system when it is freed, and leaves no gap in the heap.

    Otherwise a model whose matrices are read and then transposed needs up to twice its size.
    """
    if numel < _LARGE:
        return torch.empty(numel, dtype=dtype)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return torch.frombuffer(mmap.mmap(-1, numel * dtype.itemsize, **private), dtype=dtype)


def _read_all(storage: Storage, buffer: memoryview, offset: int, nbytes: int) -> int:
    """Read bytes of a file into a buffer, again and again if it is smaller; return their CRC-32 if the file has one."""
    crc = 0
    with storage.file.open() as file:
        file.seek(offset)
        done = 0
        while done < nbytes:
            place = done % len(buffer)
            chunk = buffer[place : place + min(_CHUNK, nbytes - done, len(buffer) - place)]
            got = file.readinto(chunk)  # pyright: ignore[reportAttributeAccessIssue]
            if not got:
                raise FileError(f"{storage.file.path}: ends inside {storage.record}; fetch it or save it again")
            if storage.crc is not None:
                crc = zlib.crc32(chunk[:got], crc)
            done += got
    return crc


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: which view of which storage.

    Args:
        storage: the numbers.
        offset: the place of the tensor's first number among them.
        shape: its shape.
        stride: the step along each axis, in numbers.

    Raises:
        FileError: the view reaches beyond the storage.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        fits = len(self.shape) == len(self.stride) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)) if fits else 0
        if not fits or (0 not in self.shape and self.offset + last >= self.storage.numel):
            raise FileError(
                f"{self.storage.file.path}: a tensor of shape {str(self.shape)[:80]} reaches beyond its "
                f"{self.storage.numel:,} numbers; fetch it or save it again"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self.storage.dtype

    def view(self, numbers: Tensor, *, start: int = 0) -> Tensor:
        """Return the tensor as a view of its storage's numbers, of which the first is number ``start``.

        Raises:
            FileError: as `check_repeats_nothing` does.
        """
        self.check_repeats_nothing()
        if 0 in self.shape:
            return numbers.new_empty(self.shape)
        return numbers.as_strided(self.shape, self.stride, self.offset - start)

    def check_repeats_nothing(self) -> None:
        """Refuse a view that repeats numbers.

        A few bytes can claim to be any shape in that way, and memory would be used when it is first copied.

        Raises:
            FileError: it repeats numbers.
        """
        if math.prod(self.shape) > self.storage.numel:
            raise FileError(
                f"{self.storage.file.path}: a tensor of shape {str(self.shape)[:80]} repeats a smaller tensor; save it "
                "with .contiguous()"
            )

    def read(self) -> Tensor:
        """Read the tensor, and no more of its storage than it needs.

        Raises:
            FileError: as `Storage.read` and `view` do.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.view(self.storage.read(self.offset, last + 1), start=self.offset)


def check_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Refuse weights that are NaN or infinite, in one pass that needs no temporary tensor of their size.

    Args:
        tensors: the tensors to check; those that are not floating point pass.
        source: the file or folder to name in the error.

    Raises:
        FileError: some tensor holds such a value; it is named.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise FileError(
                f"{source}: {listed([name])} holds values that are not finite; the file is damaged or its training "
                "diverged"
            )


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity, in one pass that needs no temporary of its size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    lowest, highest = torch.aminmax(tensor.detach())  # NaN propagates to both
    return bool(lowest.isfinite() and highest.isfinite())
