"""A layer in a process of its own: a reply comes back in every case, and nothing is left running."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptladder.ladder import CandidateError
from gptladder.ladder.answers import Answer
from gptladder.ladder.candidate.layer import Candidate
from gptladder.ladder.candidate.requests import Reply, Request
from gptladder.ladder.candidate.source import load
from gptladder.ladder.results import Fault
from gptladder.ladder.rungs import Trial, distance, draw_case, make_trial, rung
from gptladder.ladder.sandbox.sandbox import Sandbox

ARENA = Path(__file__).parents[1] / "layers" / "arena.py"

LAYERS = f"""
import ctypes, os, subprocess, sys, time, warnings
sys.path.insert(0, {str(ARENA.parent)!r})
from arena import Attention

class Prints(Attention):
    def forward(self, x):
        print("scores:", "x" * 3_000_000)
        print("to the other stream", file=sys.stderr)
        return super().forward(x)

class Exits(Attention):
    def forward(self, x):
        sys.exit(0)

class Reads(Attention):
    def forward(self, x):
        return input()

class Hangs(Attention):
    def forward(self, x):
        with open("pids", "w") as file:
            print(os.getpid(), subprocess.Popen(["sleep", "613.25"]).pid, file=file)
        while True:
            time.sleep(0.01)  # HERE

class LeavesAtOnce(Attention):
    def forward(self, x):
        print("I leave", flush=True)
        os._exit(3)

class Crashes(Attention):
    def forward(self, x):
        return ctypes.string_at(0)  # HERE

class Odd(Attention):
    def forward(self, x):
        return super().forward(x)

class Scores(Attention):
    def apply_causal_mask(self, scores):
        return super().apply_causal_mask(scores).as_subclass(Special)

import torch
class Special(torch.Tensor):
    pass
"""


def line_of(words: str) -> int:
    return 1 + next(index for index, line in enumerate(LAYERS.splitlines()) if words in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers")
    (path / "mine.py").write_text(LAYERS)
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def trial_of(name: str = "attention") -> Trial:
    judged = rung(name)
    return make_trial(judged, judged.references[0], draw_case(random.Random(3)), torch.float64)


def question(name: str = "attention") -> Request:
    return Request(replace(trial_of(), rung=name))


def answer_of(reply: Reply) -> Answer:
    assert reply.answer is not None
    return reply.answer


def fault_of(reply: Reply) -> Fault:
    assert reply.fault is not None
    return reply.fault


def started() -> list[int]:
    """Return the processes that a layer started; in a namespace of their own they know other numbers of themselves."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ended = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if b"613.25" in (path / "cmdline").read_bytes() and not ended:
                found.append(int(path.name))
    return found


def gone() -> bool:
    until = time.monotonic() + 20
    while started() and time.monotonic() < until:
        time.sleep(0.05)
    return not started()


def test_it_answers_as_the_layer_does_in_this_process() -> None:
    with Sandbox({"attention": "mine.py:Prints"}, 60) as sandbox:
        for look in (False, True):
            there = sandbox.respond(replace(question(), look=look))
            loaded = load(ARENA, ["Attention"])
            near = Candidate(loaded.get("Attention", ""), "Attention", loaded.code).respond(
                replace(question(), look=look)
            )
            ours, theirs = answer_of(near), answer_of(there)
            assert torch.equal(theirs.output, ours.output)
            assert theirs.gradients.keys() == ours.gradients.keys()
            assert all(torch.equal(theirs.gradients[name], gradient) for name, gradient in ours.gradients.items())
            assert there.asked == near.asked == {"config", "d_model", "n_heads", "d_head", "init_range"}
            functions = [event.function for event in near.trace.events]
            assert [event.function for event in there.trace.events] == functions
            assert bool(functions) == look
    assert sandbox.printed_bytes == 2 * (len("scores: \nto the other stream\n") + 3_000_000)
    assert sandbox.printed.startswith(b"scores: xxx")
    assert len(sandbox.printed) == 1000


def test_the_next_request_is_on_its_way_while_a_reply_is_read() -> None:
    asked = [question(), replace(question(), look=True), question()]
    made = []

    def making() -> Iterator[Request]:
        for each in asked:
            made.append(each)
            yield each

    with Sandbox({"attention": "mine.py:Odd"}, 60, copy=True) as sandbox:
        replies = sandbox.replies(making())
        assert not next(replies).trace.events
        assert len(made) == 2
        assert next(replies).trace.events
        replies.close()  # the third reply is on its way, and belongs to no later request
        assert [bool(each.trace.events) for each in sandbox.replies(asked)] == [False, True, False]


def test_a_layer_that_exits_or_reads_leaves_the_process_running() -> None:
    with Sandbox({"attention": "mine.py:Exits"}, 60, copy=True) as sandbox:
        for _ in range(2):
            assert str(fault_of(sandbox.respond(question()))).splitlines()[0] == "forward calls exit()."
    with Sandbox({"attention": "mine.py:Reads"}, 60, copy=True) as sandbox:
        assert fault_of(sandbox.respond(question())).message == "forward raises EOFError: EOF when reading a line"
    with Sandbox({"attention": "mine.py:Scores"}, 60, copy=True) as sandbox:
        found = distance(answer_of(sandbox.respond(question())), trial_of().expected)
        assert max(found) < 1e-12


def test_a_hanging_layer_is_stopped_and_another_process_takes_over() -> None:
    with Sandbox({"attention": "mine.py:Hangs"}, 1.5, copy=True) as sandbox:
        fault = fault_of(sandbox.respond(question()))
        assert fault.kind == "hang"
        assert fault.message == "no end of forward or the backward pass within 1.5 s"
        assert (fault.at, fault.code) == (f"mine.py:{line_of('time.sleep')}", "time.sleep(0.01)  # HERE")
        assert Path("pids").read_text().split()
        assert gone()
        sandbox.time_limit, sandbox.sources = 60, {"attention": "mine.py:Odd"}
        assert sandbox.respond(question()).answer is not None


def test_an_exit_a_crash_and_a_hang_are_distinguished() -> None:
    with Sandbox({"attention": "mine.py:Crashes"}, 60, copy=True) as sandbox:
        fault = fault_of(sandbox.respond(question()))
        assert (fault.kind, fault.message) == ("died", "forward or the backward pass crashed Python (SIGSEGV)")
        assert fault.at == f"mine.py:{line_of('ctypes.string_at')}"
    with Sandbox({"attention": "mine.py:LeavesAtOnce"}, 60, copy=True) as sandbox:
        fault = fault_of(sandbox.respond(question()))
        assert (fault.kind, fault.at) == ("died", None)
        assert fault.message.startswith("forward or the backward pass ended the whole process with status 3; ")
        assert fault.message.endswith('the last that it printed is "I leave"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = = 1\n", "broken.py:A: the file has no A; it has no class (line 1 does not parse"),
        ("import os\nclass A(os._exit(4)): pass\n", "reading it ended the whole process with status 4"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_in_one_line(folder: Path, text: str, message: str) -> None:
    (folder / "broken.py").write_text(text)
    with Sandbox({"attention": "broken.py:A"}, 60, copy=True) as sandbox, pytest.raises(CandidateError) as caught:
        sandbox.ready()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_file_does_not_replace_a_module_of_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "taken").mkdir()
    monkeypatch.chdir(folder / "taken")
    for name in ("random.py", "torch.py", "components.py"):
        Path(name).write_text("raise RuntimeError('not this one')\n")
    Path("layer.py").write_text(LAYERS)
    with Sandbox({"attention": "layer.py:Odd"}, 60) as sandbox:
        assert sandbox.respond(question()).answer is not None


FORGED = """
import sys, torch
sys.path.insert(0, {folder!r})
from arena import Attention
from gptladder.ladder.sandbox import messages
from gptladder.ladder.candidate.requests import Reply
from gptladder.ladder.answers import Answer

class Mine(Attention):
    def forward(self, x):
        frame = sys._getframe()
        while "replies" not in frame.f_locals:
            frame = frame.f_back
        replies = frame.f_locals["replies"]
        {action}
        return super().forward(x)
"""


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("replies.write(bytes(4096))", "sent what is no answer"),
        ("replies.write(b'x' * 100)", "sent what is no answer"),
        ("messages.write(replies, Reply(answer=Answer(torch.zeros(1), {})))", "sent an answer of another shape"),
        ("messages.write(replies, Reply(answer=Answer(torch.zeros(2, 4, 24), {'x': x})))", "sent an answer of another"),
        ("replies.close()", "ended the whole process"),
    ],
)
def test_a_layer_that_writes_replies_itself_has_a_fault(folder: Path, action: str, message: str) -> None:
    (folder / "forged.py").write_text(FORGED.format(folder=str(ARENA.parent), action=action))
    with Sandbox({"attention": "forged.py:Mine"}, 60, copy=True) as sandbox:
        fault = fault_of(sandbox.respond(question()))
    assert fault.kind == "died"
    assert message in fault.message


STOPPED = """
import signal
import torch
from gptladder import GPT2Config
from gptladder.ladder.candidate.requests import Request
from gptladder.ladder.sandbox.sandbox import Sandbox
from gptladder.ladder.rungs import Case, Trial

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background deaf to it
shapes = dict(W_Q=(2, 4, 2), W_K=(2, 4, 2), W_V=(2, 4, 2), b_Q=(2, 2), b_K=(2, 2), b_V=(2, 2), W_O=(2, 2, 4), b_O=(4,))
parameters = {name: torch.zeros(shape) for name, shape in shapes.items()}
given = torch.zeros(1, 3, 4)
with Sandbox({"attention": "mine.py:Hangs"}, 5) as sandbox:
    case = Case(GPT2Config(d_model=4, n_heads=2), 1, 3, 0)
    sandbox.respond(Request(Trial("attention", case, torch.float32, parameters, given, given)))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running_when_the_climb_is_stopped(sent: signal.Signals) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove("pids")
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (Path("pids").exists() and Path("pids").read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(sent)
    assert process.wait(timeout=60) == -sent
    if sent == signal.SIGKILL:
        for pid in started():  # without a namespace, nothing is left to end what the layer itself started
            os.kill(pid, signal.SIGKILL)
    assert gone()
