"""Pickles are read without running them, within fixed limits of time and memory."""

import argparse
import collections
import pickle
import pickletools
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptladder.weights.files import pickles
from gptladder.weights.files.pickle_values import ForeignError, PickleError, Record
from gptladder.weights.files.pickles import read_pickle

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(-(2**40), 2**40) | st.booleans(), inner, max_size=4)
        | st.sets(st.text(max_size=3), max_size=3)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(value=plain, protocol=st.integers(2, 5))
def test_plain_values_come_out_as_python_reads_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    assert read_pickle(data + b"more") == (value, len(data))


def test_numpy_numbers_become_python_numbers() -> None:
    values = [np.float64(1.5), np.float32(0.5), np.float16(2), np.int64(-3), np.uint8(200), np.bool_(True)]
    for protocol in (2, 4):
        read, _ = read_pickle(pickle.dumps(values, protocol=protocol))
        assert read == [1.5, 0.5, 2.0, -3, 200, True]
        assert [type(number) for number in read] == [float, float, float, int, int, bool]


def test_instances_of_classes_become_records_where_they_are_allowed() -> None:
    data = pickle.dumps({"args": argparse.Namespace(n_layer=2, name="x")}, protocol=2)
    read, _ = read_pickle(data, records=True)
    assert isinstance(read["args"], Record)
    assert read["args"].fields == {"n_layer": 2, "name": "x"}
    with pytest.raises(ForeignError, match=r"argparse\.Namespace"):
        read_pickle(data)


def test_shared_containers_come_out_apart() -> None:
    shared = [1]
    read, _ = read_pickle(pickle.dumps({"a": shared, "b": shared}, protocol=2))
    assert read == {"a": [1], "b": [1]}
    assert read["a"] is not read["b"]


ran: list[str] = []


class Hostile:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def twice(depth: int) -> Any:
    value: Any = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return b"\x80\x02" + opening * depth + closing * depth + b"."


CALLS = {
    "os.system": Hostile(ran.append, "run"),
    "bytearray": Hostile(bytearray, 3 << 30),
    "Counter": collections.Counter("aab"),
    "eval": Hostile(eval, "1+1"),
    "getattr": Hostile(getattr, "x", "upper"),
    "a tensor's method": Hostile(torch.zeros, 3),
    "complex": 1j,
    "a path": Path("x"),
    "a class": argparse.Namespace,
    "a set of sets": {frozenset({1})},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_would_call_something_is_refused(name: str, protocol: int) -> None:
    data = pickle.dumps([CALLS[name]], protocol=protocol)
    for records in (False, True):
        with pytest.raises(PickleError):
            read_pickle(data, records=records)
    assert ran == []


LIMITS = {
    "a list in itself": pickle.dumps((lambda x: x.append(x) or x)([]), protocol=2),
    "two to the 60 lists": pickle.dumps(twice(60), protocol=2),
    "deep lists": nested(200_000, b"](", b"e"),
    "deep tuples": b"\x80\x02)" + b"\x85" * 300_000 + b".",
    "a deep tuple as a key": b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
    "a deep tuple in a set": b"\x80\x04\x8f()" + b"\x85" * 300_000 + b"\x90.",
    "a deep tuple as a dtype": b"\x80\x02cnumpy\ndtype\n)" + b"\x85" * 300_000 + b"\x85R.",
    "an endless string": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "endless bytes": b"\x80\x04\x8e" + struct.pack("<Q", 3 << 30) + b".",
    "an endless integer": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "a large integer": b"\x80\x02\x8b" + struct.pack("<i", 1000) + b"\x01" * 1000 + b".",
    "many empty sets": b"\x80\x04]" + b"(\x8f" * 1_100_000 + b"e.",
    "numbers that collide": pickle.dumps({k * (2**61 - 1): 0 for k in range(1, 20_000)}, protocol=2),
    "a string encoded again and again": b"\x80\x02X"
    + struct.pack("<I", 1_000_000)
    + b"x" * 1_000_000
    + b"q\x000c_codecs\nencode\nq\x010X\x06\x00\x00\x00latin1q\x020"
    + b"h\x01h\x00h\x02\x86R0" * 10_000
    + b"N.",
    "a device of devices": b"\x80\x02ctorch\ndevice\nq\x000X\x0a\x00\x00\x00xxxxxxxxxxq\x010"
    + b"h\x00h\x01h\x01\x86Rq\x010" * 60
    + b"N.",
    "the memo's last place": b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\x7f.",
}


@contextmanager
def memory_limit(most: int) -> Iterator[None]:
    """Allow the block so many bytes more than the process has: by the kernel, which is fast, or else by Python."""
    if sys.platform == "linux":
        import resource

        before, pages = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        return
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def test_the_limit_of_memory_is_one() -> None:
    with pytest.raises((MemoryError, AssertionError)), memory_limit(100_000_000):
        bytearray(200_000_000)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_memory_and_depth_hold(name: str) -> None:
    with memory_limit(600_000_000), pytest.raises(PickleError) as caught:
        read_pickle(LIMITS[name])
    assert "MemoryError" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b".", b"N", b"(.", b"1.", b"e.", b"]e.", b"Ns.", b"}(NNNu.", b"R.", b"b.", b"Q.", b"h\x00.", b"X\xff."),
        *(b"cos\nsystem\n.", b"]N\x85b.", b"((NQ.", b"X\x01\x00\x00\x00\xff.", b"\x82\x01.", b"cos", b")NR.", b"NNa."),
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nNNNtQ.",
        b"(NNNNNtQ.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
    ],
)
def test_damaged_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(PickleError):
        read_pickle(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_to_a_stop_or_refused(data: bytes) -> None:
    data = b"\x80\x04" + data
    try:
        _, end = read_pickle(data)
    except PickleError:
        return
    assert data[end - 1 : end] == b"."


def test_each_instruction_is_one_of_pickles() -> None:
    known = {ord(each.code): each for each in pickletools.opcodes}
    assert pickles._INSTRUCTIONS.keys() < known.keys()
    assert not {known[code].name for code in pickles._INSTRUCTIONS} & {"INST", "OBJ", "EXT1", "EXT2", "EXT4"}
