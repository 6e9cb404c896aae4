"""Messages carry records and tensors exactly, and bytes of a hostile sender give an error, never another type."""

import io
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch

from gptladder.ladder.candidate.requests import Reply, Request
from gptladder.ladder.results import Fault
from gptladder.ladder.rungs import draw_case, make_trial
from gptladder.ladder.sandbox import messages
from gptladder.ladder.sandbox.messages import MessageError, exchange, pack, read, unpack, write


@dataclass(frozen=True)
class Inner:
    name: str
    at: tuple[str, str] | None = None


@dataclass(frozen=True)
class Outer:
    tensors: Mapping[str, torch.Tensor]
    inner: Inner | None = None
    inners: list[Inner] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    pair: tuple[int, float] = (1, 2.0)
    dtype: torch.dtype = torch.float32
    kind: Literal["a", "b"] = "a"
    anything: Any = None


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
)
def test_tensors_arrive_bit_for_bit(dtype: torch.dtype) -> None:
    given = {"a": torch.randn(3, 5).to(dtype), "b": torch.ones(()).to(dtype), "c": torch.empty(0, 4).to(dtype)}
    given["t"] = given["a"].T[::2]
    found = unpack(pack(Outer(given)), Outer).tensors
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_records_arrive_as_they_are() -> None:
    infinite = torch.tensor([float("nan"), float("-inf")])
    sent = Outer(
        {"x": infinite},
        Inner("é\ud800", ("f:1", "x")),
        [Inner("b")],
        frozenset("xy"),
        (3, float("inf")),
        torch.int8,
        "b",
    )
    found = unpack(pack(sent), Outer)
    assert torch.equal(found.tensors["x"].nan_to_num(), infinite.nan_to_num())
    assert (found.inner, found.inners, found.names, found.pair, found.dtype, found.kind) == (
        sent.inner,
        sent.inners,
        sent.names,
        sent.pair,
        sent.dtype,
        sent.kind,
    )
    assert unpack(pack(Outer({}, anything=[1, {"x": object}])), Outer).anything == [1, {"x": repr(object)}]


def test_a_request_arrives_without_the_right_answer_and_so_does_a_reply() -> None:
    from gptladder.ladder.rungs import rung

    attention = rung("attention")
    trial = make_trial(attention, attention.own, draw_case(random.Random(1)), torch.float64)
    found = unpack(pack(Request(trial, layout=3)), Request)
    assert found.layout == 3
    assert (found.trial.case, found.trial.dtype, found.trial.rung) == (trial.case, trial.dtype, trial.rung)
    assert all(torch.equal(found.trial.parameters[name], each) for name, each in trial.parameters.items())
    assert trial.expected.output.numel() > 0
    assert found.trial.expected.output.numel() == 0
    assert not found.trial.expected.gradients
    reply = Reply(fault=Fault("raises", "x", "a:1", "y", names=("a",)), passed={"eps": (1e-5, None)})
    assert unpack(pack(reply), Reply).fault == reply.fault


def packed(value: Any, rest: bytes = b"") -> bytes:
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text + rest


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\xff" * 40,
        random.Random(0).randbytes(400),
        packed([]),
        packed({"tensors": 1}),
        packed({"tensors": {"x": "text"}}),
        packed({"tensors": {"x": {"\0tensor": ["float64", [1 << 40]]}}}),
        packed({"tensors": {"x": {"\0tensor": ["float64", [-1]]}}}),
        packed({"tensors": {"x": {"\0tensor": ["float64", [3]]}}}, b"short"),
        packed({"tensors": {"x": {"\0tensor": ["pickle", [3]]}}}),
        packed({"tensors": {}, "unknown": 1}),
        packed({"tensors": {}, "kind": "c"}),
        packed({"tensors": {}, "pair": [1]}),
        packed({"tensors": {}, "pair": ["1", 2.0]}),
        packed({"tensors": {}, "inner": {"name": 1}}),
        packed({"tensors": {}, "inner": {"at": None}}),
        b"\x00\x00\x10\x00\x00\x00\x00\x00" + b"[" * (1 << 20),
    ],
)
def test_what_is_no_such_record_gives_one_kind_of_error(sent: bytes) -> None:
    with pytest.raises(MessageError):
        unpack(sent, Outer)


def test_streams_are_read_message_by_message() -> None:
    stream = io.BytesIO()
    write(stream, Inner("a"))
    write(stream, Inner("b", ("x", "y")))
    stream.seek(0)
    assert [read(stream, Inner), read(stream, Inner)] == [Inner("a"), Inner("b", ("x", "y"))]
    with pytest.raises(EOFError):
        read(stream, Inner)
    with pytest.raises(MessageError, match="at most"):
        read(io.BytesIO((messages.MAX_BYTES + 1).to_bytes(8, "little")), Inner)


def test_a_sender_that_neither_reads_nor_writes_costs_its_time_alone() -> None:
    (their_requests, requests), (replies, their_replies) = os.pipe(), os.pipe()
    with os.fdopen(requests, "wb", buffering=0) as sending, os.fdopen(replies, "rb", buffering=0) as receiving:
        began = time.monotonic()
        with pytest.raises(TimeoutError):  # the message is larger than the pipe
            exchange(sending, Outer({"x": torch.zeros(1 << 20)}), receiving, Inner)(0.3)
        assert time.monotonic() - began < 20
        os.close(their_requests)
        os.close(their_replies)
        with pytest.raises(EOFError):
            exchange(sending, Inner("x"), receiving, Inner)(10)
