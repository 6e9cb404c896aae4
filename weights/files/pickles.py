"""Reading pickles without running them: plain values come out, and descriptions of tensors; nothing else can.

A pickle is a program. Python's own unpickler calls what it names, and a few bytes can ask for gigabytes
(``bytearray(3 << 30)``), for a table of 2**32 entries, or for nesting that overflows the stack. This machine knows the
instructions that ``torch.save`` writes (the binary ones of pickle protocols 2 to 5), calls nothing that the file
names, and stops at fixed limits. What an instruction means is in the standard library's ``pickletools``.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .tensors import DTYPES

MAX_STEPS = 2_000_000
"""Most instructions of one pickle. GPT-2 xl with its optimizer's state has 60,000."""

MAX_DEPTH = 100
"""Deepest nesting of containers."""

_MAX_INT_BYTES = 32
_MAX_COPIED = 100_000_000  # characters and items in the arguments of all calls, which may be the same ones each time


class PickleError(ValueError):
    """A pickle that is damaged, hostile, or holds more than plain values and tensors."""


class ForeignError(PickleError):
    """A pickle that asks for a Python object that is not known here. Its text is the object's name."""


@dataclass(frozen=True)
class Named:
    """The name of a Python object, in place of the object."""

    module: str
    name: str


@dataclass
class Record:
    """The fields of an instance of a class that this reader does not load, in place of the instance."""

    kind: Named
    fields: dict[str, Any]


@dataclass(frozen=True)
class StorageName:
    """A storage that a pickle names: its numbers lie elsewhere in the file. ``dtype`` is None for bare bytes."""

    dtype: torch.dtype | None
    key: str
    numel: int


@dataclass(frozen=True)
class TensorView:
    """A tensor that a pickle describes."""

    storage: StorageName
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class _NumpyDType:
    code: str
    order: str = "="


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": None,
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_NUMPY = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_ORDERS = {"<": "<", ">": ">", "|": "=", "=": "="}
_NUMPY |= {"f2": "e", "f4": "f", "f8": "d"}


def read_pickle(data: bytes, start: int = 0, *, records: bool = False) -> tuple[Any, int]:
    """Return what a pickle describes, and where in ``data`` it ends.

    Args:
        data: the pickle, and perhaps more behind it.
        start: where it begins.
        records: allow instances of classes, of which a `Record` tells the fields.

    Raises:
        ForeignError: it builds something else than plain values and tensors.
        PickleError: it is damaged, too large, or too deeply nested.
    """
    machine = _Machine(data, start)
    try:
        value = machine.run()
        return _Tree(records).plain(value), machine.position
    except PickleError:
        raise
    except Exception as error:  # the stack or the memo lacks what an instruction wants, or has something else
        raise PickleError(f"damaged at byte {machine.position:,} ({type(error).__name__})") from error


class _Tree:
    """Copies of values, in which no container stands twice or in itself, and none is nested deeply."""

    def __init__(self, records: bool) -> None:
        self._records = records
        self._left = MAX_STEPS

    def plain(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise PickleError(f"nested more than {MAX_DEPTH} deep, or of more than {MAX_STEPS:,} values")
        if isinstance(value, dict):
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.plain(item, depth + 1) for item in value])
        if isinstance(value, Record) and self._records:
            return Record(value.kind, self.plain(value.fields, depth + 1))
        if isinstance(value, Record | Named | StorageName | _StorageKind | _NumpyDType):
            raise ForeignError(_described(value))
        return value


class _Machine:
    """The stack, the memo and the instructions."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def run(self) -> Any:
        for _ in range(MAX_STEPS):
            if self.position >= len(self.data):
                raise PickleError("it ends early")
            code = self.data[self.position]
            self.position += 1
            if code == _STOP:
                return self._stack.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise PickleError(f"it has the instruction {code:#04x}, which torch.save does not write")
            instruction(self)
        raise PickleError(f"more than {MAX_STEPS:,} instructions")

    # What follows an instruction in the pickle

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise PickleError("it ends early")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.index(b"\n", self.position, self.position + 1000)
        return self.take(end + 1 - self.position)[:-1].decode()

    # The stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def last(self, count: int) -> list[Any]:
        start = len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise PickleError("it takes more than there is")
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def since_mark(self) -> list[Any]:
        return self.last(len(self._stack) - self._marks.pop())

    # The memo

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, place: int) -> None:
        self.push(self._memo[place])

    # Values

    def integer(self, size: int) -> None:
        if size > _MAX_INT_BYTES:
            raise PickleError(f"it holds an integer of {size:,} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def text(self, width: int) -> None:
        self.push(self.take(self.number(width)).decode("utf-8", "surrogatepass"))

    def extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise PickleError("it adds items to what is no list")
        self._stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        target = target.fields if type(target) is Record else target
        if type(target) is not dict or len(items) % 2:
            raise PickleError("it adds items to what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def add(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not set:
            raise PickleError("it adds items to what is no set")
        self._stack[-1].update(_checked_key(item) for item in items)

    # Objects

    def global_(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise PickleError("it names an object by what is no string")
        self.push(_named(module, name))

    def reduce(self) -> None:
        function, arguments = self.last(2)
        maker = _MAKERS.get(_described(function)) if type(function) is Named else None
        if maker is None or type(arguments) is not tuple:
            raise ForeignError(_described(function))
        self._copied += sum(len(each) for each in arguments if isinstance(each, str | list | tuple))
        if self._copied > _MAX_COPIED:
            raise PickleError("it copies one value again and again")
        self.push(maker(*arguments))

    def new_object(self) -> None:
        kind, arguments = self.last(2)
        if not isinstance(kind, Named) or arguments != ():
            raise ForeignError(_described(kind))
        self.push(Record(kind, {}))

    def build(self) -> None:
        (state,) = self.last(1)
        target = self._stack[-1]
        if type(target) is _NumpyDType:
            target.order = _ORDERS[_string(state[1])]
        elif type(target) is Record:
            target.fields.update(
                {_checked_key(key): state[key] for key in state} if type(state) is dict else {"": state}
            )
        elif type(target) is not dict or type(state) is not dict:  # the attributes of an OrderedDict are left out
            raise ForeignError(type(target).__name__)

    def storage(self) -> None:
        (described,) = self.last(1)
        kind, dtype, key, _, numel, *view = described  # between them the device
        if kind != "storage" or not isinstance(dtype, _StorageKind) or view not in ([], [None]):
            raise PickleError("it has a storage of a kind that is not known")
        if not isinstance(key, str) or type(numel) is not int or not 0 <= numel < 2**60:
            raise PickleError("it has a storage without name or size")
        self.push(StorageName(dtype.dtype, key, numel))


_STOP = 0x2E
_INSTRUCTIONS: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.take(1),  # the protocol
    0x95: lambda m: m.take(8),  # a frame
    ord("("): _Machine.mark,
    ord("0"): lambda m: m.last(1),
    ord("1"): _Machine.since_mark,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.integer(4),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    0x8A: lambda m: m.integer(m.number(1)),
    0x8B: lambda m: m.integer(m.number(4)),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    0x8D: lambda m: m.text(8),
    ord("C"): lambda m: m.push(m.take(m.number(1))),
    ord("B"): lambda m: m.push(m.take(m.number(4))),
    0x8E: lambda m: m.push(m.take(m.number(8))),
    ord("U"): lambda m: m.push(m.take(m.number(1)).decode("latin-1")),  # Python 2's str
    ord("T"): lambda m: m.push(m.take(m.number(4)).decode("latin-1")),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.push(tuple(m.last(1))),
    0x86: lambda m: m.push(tuple(m.last(2))),
    0x87: lambda m: m.push(tuple(m.last(3))),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.extend(m.last(1)),
    ord("e"): lambda m: m.extend(m.since_mark()),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.update(m.last(2)),
    ord("u"): lambda m: m.update(m.since_mark()),
    0x8F: lambda m: m.push(set()),
    0x90: lambda m: m.add(m.since_mark()),
    ord("q"): lambda m: m.put(m.number(1)),
    ord("r"): lambda m: m.put(m.number(4)),
    0x94: _Machine.memoize,
    ord("h"): lambda m: m.get(m.number(1)),
    ord("j"): lambda m: m.get(m.number(4)),
    ord("c"): lambda m: m.global_(m.line(), m.line()),
    0x93: lambda m: m.global_(*m.last(2)),
    ord("R"): _Machine.reduce,
    0x81: _Machine.new_object,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.storage,
}


@dataclass(frozen=True)
class _StorageKind:
    dtype: torch.dtype | None


def _named(module: str, name: str) -> Any:
    """Return what a name stands for: a storage's type, a dtype, or else the name itself."""
    if module in ("torch", "torch.storage") and name in _STORAGES:
        return _StorageKind(_STORAGES[name])
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    return Named(module, name)


def _described(value: Any) -> str:
    """Return the name of an object, or of its type: the text of a value from a file may be endless."""
    value = value.kind if type(value) is Record else value
    return f"{value.module}.{value.name}" if type(value) is Named else type(value).__name__


def _string(value: Any) -> str:
    """Return a string that is to be looked up; other values may be too deeply nested to be hashed."""
    if type(value) is not str:
        raise PickleError(f"it has a {type(value).__name__} in place of a string")
    return value


def _checked_key(key: Any) -> Any:
    """Refuse keys that are expensive or impossible to hash: nested ones, and numbers made to collide."""
    parts: tuple[Any, ...] = key if type(key) is tuple and len(key) <= 4 else (key,)
    for part in parts:
        small = abs(part) < 2**60 if type(part) in (int, float) else isinstance(part, str | bytes | bool | None)
        if not small:
            raise PickleError(f"it has a dict with a {type(part).__name__} of no common size among its keys")
    return key


# What a pickle may call by name. The functions below take its place.


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    return {_checked_key(key): value for key, value in pairs}


def _set(items: Any) -> set[Any]:
    return {_checked_key(item) for item in items}


def _size(sizes: Any) -> tuple[Any, ...]:
    return tuple(sizes)


def _device(*names: Any) -> str:
    return ":".join(str(name) if type(name) is int else _string(name) for name in names)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorView:
    if storage.dtype is None:
        raise PickleError("a tensor of bytes without a dtype")
    return TensorView(storage, offset, tuple(shape), tuple(stride), storage.dtype)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
) -> TensorView:
    if type(dtype) is not torch.dtype:
        raise PickleError("a tensor without a dtype")
    return TensorView(storage, offset, tuple(shape), tuple(stride), dtype)


def _parameter(tensor: Any, *_: Any) -> TensorView:
    if type(tensor) is not TensorView:
        raise PickleError("a parameter that is no tensor")
    return tensor


def _with_attributes(function: Any, _: Any, arguments: Any, __: Any) -> TensorView:
    if (name := _described(function)) not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
        raise ForeignError(name)
    return _MAKERS[name](*arguments)


def _octets(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise PickleError("it has bytes in another encoding than latin1")
    return _string(text).encode("latin-1")


def _no_octets() -> bytes:
    return b""


def _numpy_array(*_: Any) -> Record:
    return Record(Named("numpy", "ndarray"), {})


def _numpy_dtype(code: Any, *_: Any) -> _NumpyDType:
    if _string(code) not in _NUMPY:
        raise ForeignError(f"numpy.dtype {code[:20]}")
    return _NumpyDType(code)


def _numpy_scalar(dtype: Any, content: Any) -> bool | int | float:
    return struct.unpack(dtype.order + _NUMPY[dtype.code], content)[0]


_MAKERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Size": _size,
    "torch.device": _device,
    "__builtin__.bytes": _no_octets,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _octets,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
