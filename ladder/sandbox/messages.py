"""Messages between the grading process and the process that runs a user's layer.

A message is a record (a dataclass) as JSON, followed by the bytes of its tensors. Reading one runs no code and checks
every type: the sender may be a hostile submission.
"""

import dataclasses
import json
import threading
import types
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, BinaryIO, Literal, TypeVar

import torch

MAX_BYTES = 256 * 2**20
"""The largest message that is read."""

_TENSOR, _DTYPE = "\0tensor", "\0dtype"
_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_PLAIN = (str, int, float, bool, type(None))
_ALIGNMENT = 16

Record = TypeVar("Record")


class MessageError(ValueError):
    """Bytes that are no message of the expected kind."""


def pack(record: Any) -> bytes:
    """Return a record as bytes. A value that is neither plain, a tensor nor a record is sent as its ``repr``.

    Example:
        >>> @dataclasses.dataclass
        ... class Point:
        ...     x: torch.Tensor
        ...     names: tuple[str, ...] = ()
        >>> unpack(pack(Point(torch.tensor([1.0, 2.0]), ("a",))), Point)
        Point(x=tensor([1., 2.]), names=('a',))
    """
    contents: list[bytes] = []
    text = json.dumps(_plain(record, contents)).encode()
    padded = text + b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(padded).to_bytes(8, "little") + padded + b"".join(contents)


def unpack(packed: bytes | bytearray, kind: type[Record]) -> Record:
    """Return the record in a message.

    Raises:
        MessageError: it holds something else.
    """
    try:
        data = packed if isinstance(packed, bytearray) else bytearray(packed)
        end = 8 + int.from_bytes(data[:8], "little")
        reader = _Reader(data, end)
        return reader.build(kind, json.loads(data[8:end].decode()))
    except MessageError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, RecursionError, OverflowError) as error:
        raise MessageError(f"not a message: {error}") from error


def write(stream: BinaryIO, record: Any) -> None:
    """Write a record to an unbuffered stream, after its length."""
    packed = pack(record)
    left = memoryview(len(packed).to_bytes(8, "little") + packed)
    while left:
        left = left[stream.write(left) :]


def read(stream: BinaryIO, kind: type[Record]) -> Record:
    """Read a record from an unbuffered stream.

    Raises:
        EOFError: the stream ends.
        MessageError: what it holds is no such record.
    """
    size = int.from_bytes(_exactly(stream, 8), "little")
    if size > MAX_BYTES:
        raise MessageError(f"a message of {size:,} bytes; at most {MAX_BYTES:,} are read")
    return unpack(_exactly(stream, size), kind)


def exchange(requests: BinaryIO, record: Any, replies: BinaryIO, kind: type[Record]) -> Callable[[float], Record]:
    """Begin to send a record (or nothing, if it is None), and return a function that waits so many seconds for a reply.

    Writing can block as long as reading, if the other side does not read, so both happen in a thread. It ends when the
    streams are closed.

    Raises (when the reply is waited for):
        TimeoutError: no reply within the time.
        EOFError: the other side has ended.
        MessageError: it sent something else.
    """
    result: list[Record] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            if record is not None:
                write(requests, record)
            result.append(read(replies, kind))
        except Exception as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def wait(timeout: float) -> Record:
        thread.join(timeout)
        if result:
            return result[0]
        if not errors:
            raise TimeoutError
        if isinstance(errors[0], MessageError):
            raise errors[0]
        raise EOFError from errors[0]  # a broken pipe, a closed stream

    return wait


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(min(size - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def _plain(value: Any, contents: list[bytes]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        whole = value.detach().as_subclass(torch.Tensor).to_dense().cpu().resolve_conj().resolve_neg().contiguous()
        data = whole.reshape(-1).view(torch.uint8).numpy().tobytes()
        contents.append(data + b"\0" * (-len(data) % _ALIGNMENT))
        return {_TENSOR: [str(value.dtype).removeprefix("torch."), list(value.shape)]}
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name), contents) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(each, contents) for name, each in value.items()}
    if isinstance(value, list | tuple | frozenset | set):
        return [_plain(each, contents) for each in value]
    return repr(value)


class _Reader:
    """Builds the values of one message."""

    def __init__(self, data: bytearray, at: int) -> None:
        self.data, self.at = data, at

    def build(self, kind: Any, value: Any) -> Any:
        """Return ``value`` as the type that a field declares.

        Raises:
            MessageError: it is of another type.
        """
        arguments = typing.get_args(kind)
        origin = typing.get_origin(kind) or kind
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            (other,) = [each for each in arguments if each is not type(None)] if type(None) in arguments else [Any]
            return self.build(other, value)
        if origin is Any:
            return self._any(value)
        if origin is Literal:
            return value if value in arguments else self._refuse(kind, value)
        if origin in (torch.Tensor, torch.dtype):
            found = self._any(value)
            return found if isinstance(found, origin) else self._refuse(kind, value)
        if dataclasses.is_dataclass(origin):
            return self._record(origin, value)
        if isinstance(value, list) and origin in (tuple, list, set, frozenset):
            return self._sequence(origin, arguments, value)
        if isinstance(value, dict) and isinstance(origin, type) and issubclass(origin, Mapping):
            return {name: self.build(arguments[1] if arguments else Any, each) for name, each in value.items()}
        if origin is float and type(value) is int:
            return float(value)
        return value if type(value) is origin else self._refuse(kind, value)

    def _record(self, kind: Any, value: Any) -> Any:
        fields = _fields(kind)
        if not isinstance(value, dict) or not value.keys() <= fields.keys():
            self._refuse(kind, value)
        return kind(**{name: self.build(fields[name], each) for name, each in value.items()})

    def _sequence(self, origin: Any, arguments: tuple[Any, ...], value: list[Any]) -> Any:
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                self._refuse(origin, value)
            return tuple(self.build(kind, each) for kind, each in zip(arguments, value, strict=True))
        kind = arguments[0] if arguments else Any
        return origin(self.build(kind, each) for each in value)

    def _any(self, value: Any) -> Any:
        if isinstance(value, dict) and _TENSOR in value:
            return self._tensor(*value[_TENSOR])
        if isinstance(value, dict) and _DTYPE in value:
            return _DTYPES[value[_DTYPE]]
        if isinstance(value, dict):
            return {name: self._any(each) for name, each in value.items()}
        return [self._any(each) for each in value] if isinstance(value, list) else value

    def _tensor(self, name: str, shape: list[int]) -> torch.Tensor:
        dtype, count = _DTYPES[name], 1
        for length in shape:
            if type(length) is not int or length < 0:
                raise MessageError(f"a tensor of shape {shape}")
            count *= length
        size = count * dtype.itemsize
        begin, self.at = self.at, self.at + size + -size % _ALIGNMENT
        if begin + size > len(self.data):
            raise MessageError("the bytes of a tensor are missing")
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.data, dtype=dtype, count=count, offset=begin).reshape(shape)

    def _refuse(self, kind: Any, value: Any) -> Any:
        raise MessageError(f"{str(value)[:80]!r} where {getattr(kind, '__name__', kind)} was expected")


@lru_cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {each.name: hints[each.name] for each in dataclasses.fields(kind) if each.init}
