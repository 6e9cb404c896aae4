"""Read pickles without running them. The result holds plain values and descriptions of tensors, and nothing else.

A pickle is a program. Python's own unpickler calls what it names, and a few bytes can ask for gigabytes
(``bytearray(3 << 30)``), for a table of 2**32 entries, or for nesting that overflows the stack. This machine knows the
instructions that ``torch.save`` writes (the binary ones of pickle protocols 2 to 5), calls nothing that the file
names, and stops at fixed limits. The standard library's ``pickletools`` documents each instruction.
"""

import struct
from collections.abc import Callable
from typing import Any

from .pickle_calls import CALLS, ORDERS, NumpyDType, StorageKind, checked_key, described, named, string
from .pickle_values import ForeignError, Named, PickleError, Record, StorageName

MAX_STEPS = 2_000_000
"""Most instructions of one pickle. GPT-2 xl with its optimizer's state has 60,000."""

MAX_DEPTH = 100
"""Deepest nesting of containers."""

_MAX_INT_BYTES = 32
_MAX_COPIED = 100_000_000  # characters and items in the arguments of all calls, which may be the same ones each time


def read_pickle(data: bytes, start: int = 0, *, records: bool = False) -> tuple[Any, int]:
    """Return what a pickle describes, and where in ``data`` it ends.

    Args:
        data: the pickle, and perhaps more behind it.
        start: where it begins.
        records: allow instances of classes. A `Record` with their fields takes their place.

    Raises:
        ForeignError: the pickle builds something other than plain values and tensors.
        PickleError: the pickle is damaged, too large, or too deeply nested.
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
    """Copy values so that no container occurs twice or inside itself, and none is nested deeply."""

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
        if isinstance(value, Record | Named | StorageName | StorageKind | NumpyDType):
            raise ForeignError(described(value))
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
            target[checked_key(key)] = value

    def add(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not set:
            raise PickleError("it adds items to what is no set")
        self._stack[-1].update(checked_key(item) for item in items)

    # Objects

    def global_(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise PickleError("it names an object by what is no string")
        self.push(named(module, name))

    def reduce(self) -> None:
        function, arguments = self.last(2)
        maker = CALLS.get(described(function)) if type(function) is Named else None
        if maker is None or type(arguments) is not tuple:
            raise ForeignError(described(function))
        self._copied += sum(len(each) for each in arguments if isinstance(each, str | list | tuple))
        if self._copied > _MAX_COPIED:
            raise PickleError("it copies one value again and again")
        self.push(maker(*arguments))

    def new_object(self) -> None:
        kind, arguments = self.last(2)
        if not isinstance(kind, Named) or arguments != ():
            raise ForeignError(described(kind))
        self.push(Record(kind, {}))

    def build(self) -> None:
        (state,) = self.last(1)
        target = self._stack[-1]
        if type(target) is NumpyDType:
            target.order = ORDERS[string(state[1])]
        elif type(target) is Record:
            target.fields.update(
                {checked_key(key): state[key] for key in state} if type(state) is dict else {"": state}
            )
        elif type(target) is not dict or type(state) is not dict:  # the attributes of an OrderedDict are left out
            raise ForeignError(type(target).__name__)

    def storage(self) -> None:
        (parts,) = self.last(1)
        kind, dtype, key, _, numel, *view = parts  # between them the device
        if kind != "storage" or not isinstance(dtype, StorageKind) or view not in ([], [None]):
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
