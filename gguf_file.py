"""The header of a GGUF file: its fields, and where each tensor lies. The file may be damaged or hostile.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package ``gguf`` maps the file
and trusts its numbers; here each number is compared with a limit or with the size of the file before it is used.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .files import FileError, file_size, listed, unreadable

__all__ = ["BLOCKS", "GGUFHeader", "GGUFTensor", "is_gguf", "read_header"]

BLOCKS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 8: ("Q8_0", 32, 34), 30: ("BF16", 1, 2)}
"""The types of numbers that are read, by their ids: name, numbers of a block, bytes of a block."""

_OTHERS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# Far more than any genuine file has.
_MOST_FIELDS, _MOST_TENSORS, _LONGEST_ARRAY, _LONGEST_STRING, _MOST_AXES = 10_000, 100_000, 1 << 22, 1 << 22, 4


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor in the file.

    Args:
        kind: the id of its type, a key of `BLOCKS`.
        shape: the last axis is that whose numbers lie side by side.
        offset: of its first byte in the file.
        nbytes: how many bytes it has.
    """

    kind: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a file holds beside the numbers: its fields, and its tensors by name."""

    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file that begins as GGUF files do.

    Raises:
        FileError: it is a file that cannot be opened.

    Example:
        >>> is_gguf(Path("no-such-file.gguf"))
        False
    """
    if not path.is_file():  # a pipe would block
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise unreadable(path, error) from error


def read_header(path: Path) -> GGUFHeader:
    """Return the fields of a GGUF file, and where its tensors lie.

    Raises:
        FileError: the file is no GGUF file, of another version, damaged, or has a tensor of a type that is not read.
    """
    size = file_size(path)
    try:
        with path.open("rb") as file:
            return _Reader(path, file, size).header()
    except OSError as error:
        raise unreadable(path, error) from error


class _Reader:
    """Reads one file from its beginning."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def header(self) -> GGUFHeader:
        """Return the whole header."""
        if self._bytes(len(_MAGIC)) != _MAGIC:
            raise self._fault("does not begin as a GGUF file does")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise FileError(f"{self.path}: is of GGUF version {version}, and 2 and 3 are read; write it again")
        n_tensors = self._count(_MOST_TENSORS, "tensors")
        fields = self._named(self._count(_MOST_FIELDS, "fields"), self._value)
        found = self._named(n_tensors, self._tensor)
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16:
            raise self._fault(f"has the alignment {alignment!r:.20}")
        start = -(-self.file.tell() // alignment) * alignment
        tensors = {
            name: GGUFTensor(kind, shape, start + offset, nbytes)
            for name, (kind, shape, offset, nbytes) in found.items()
        }
        self._check_places(tensors)
        return GGUFHeader(fields, tensors)

    def _check_places(self, tensors: dict[str, GGUFTensor]) -> None:
        """Refuse tensors beyond the end of the file, or in each other: a small file could ask for any memory."""
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
            if tensor.offset < end:
                raise self._fault(f"has {listed([name])} in the place of another tensor")
            end = tensor.offset + tensor.nbytes
            if end > self.size:
                raise self._fault(f"ends before the end of {listed([name])}")

    def _tensor(self, name: str) -> tuple[int, tuple[int, ...], int, int]:
        """Return a tensor's type, shape, offset among the numbers, and bytes."""
        axes = self._number("<I")
        if not 1 <= axes <= _MOST_AXES:
            raise self._fault(f"gives {listed([name])} {axes} axes")
        sizes = [self._number("<Q") for _ in range(axes)]
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in BLOCKS:
            names = ", ".join(block[0] for block in BLOCKS.values())
            raise FileError(
                f"{self.path}: stores {listed([name])} as {_OTHERS.get(kind, f'type {kind}')}, and {names} are read; "
                "give a file of one of these types, or the model that it was made from"
            )
        _, numbers, nbytes = BLOCKS[kind]
        count = math.prod(sizes)
        if not 0 < count <= self.size * numbers or sizes[0] % numbers:
            raise self._fault(f"gives {listed([name])} the shape {str(sizes)[:60]}")
        return kind, tuple(reversed(sizes)), offset, count // numbers * nbytes

    def _value(self, name: str) -> Any:
        kind = self._number("<I")
        if kind != _ARRAY:
            return self._one(kind, name)
        inner, length = self._number("<I"), self._count(_LONGEST_ARRAY, "items in one field")
        if inner == _ARRAY:
            raise self._fault(f"has lists in the list {listed([name])}")
        return [self._one(inner, name) for _ in range(length)]

    def _one(self, kind: int, name: str) -> Any:
        if kind == _STRING:
            return self._string()
        if kind not in _NUMBERS:
            raise self._fault(f"gives {listed([name])} the type {kind}")
        return self._number(_NUMBERS[kind])

    def _named(self, count: int, read: Callable[[str], Any]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for _ in range(count):
            name = self._string()
            if name in table:
                raise self._fault(f"has {listed([name])} more than once")
            table[name] = read(name)
        return table

    def _string(self) -> str:
        content = self._bytes(self._count(_LONGEST_STRING, "bytes in one text"))
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise self._fault("has a text that is not UTF-8") from None

    def _count(self, most: int, what: str) -> int:
        count = self._number("<Q")
        if count > most:
            raise self._fault(f"claims {count} {what}")
        return count

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._bytes(struct.calcsize(code)))[0]

    def _bytes(self, count: int) -> bytes:
        content = self.file.read(count)
        if len(content) < count:
            raise self._fault("ends within its header")
        return content

    def _fault(self, what: str) -> FileError:
        return FileError(f"{self.path}: {what}; fetch it or write it again")
