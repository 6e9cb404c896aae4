"""A layer in a process of its own: whatever it does there, a reply comes back, and nothing is left running."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptladder.ladder import CandidateError
from gptladder.ladder.candidate.layer import Candidate, Request
from gptladder.ladder.candidate.sandbox import Sandbox
from gptladder.ladder.candidate.source import find
from gptladder.ladder.rungs import distance, draw_case, make_trial, rung

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


def line_of(words):
    return 1 + next(index for index, line in enumerate(LAYERS.splitlines()) if words in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("layers")
    (made / "mine.py").write_text(LAYERS)
    return made


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def trial_of(name="attention"):
    judged = rung(name)
    return make_trial(judged, judged.references[0], draw_case(random.Random(3)), torch.float64)


def question(name="attention"):
    trial = trial_of()
    return Request(name, trial.config, trial.dtype, trial.parameters, trial.given, trial.cotangent)


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


def test_it_answers_as_the_layer_does_here_and_survives_what_can_be_survived(folder):
    with Sandbox({"attention": "mine.py:Prints"}, 60) as sandbox:
        for look in (False, True):
            there = sandbox.respond(replace(question(), look=look))
            made, code = find(f"{ARENA}:Attention")
            near = Candidate(made, "Attention", code).respond(replace(question(), look=look))
            assert torch.equal(there.answer.output, near.answer.output)
            assert there.answer.gradients.keys() == near.answer.gradients.keys()
            assert all(torch.equal(there.answer.gradients[name], grad) for name, grad in near.answer.gradients.items())
            assert there.asked == near.asked == {"d_model", "n_heads", "d_head", "init_range"}
            functions = [event.function for event in near.trace.events]
            assert [event.function for event in there.trace.events] == functions
            assert bool(functions) == look
    assert sandbox.printed_bytes == 2 * (len("scores: \nto the other stream\n") + 3_000_000)
    assert sandbox.printed.startswith(b"scores: xxx")
    assert len(sandbox.printed) == 1000


def test_what_can_be_survived_is_survived():
    with Sandbox({"attention": "mine.py:Exits"}, 60) as sandbox:
        for _ in range(2):
            assert str(sandbox.respond(question()).fault).splitlines()[0] == "forward calls exit()."
    with Sandbox({"attention": "mine.py:Reads"}, 60) as sandbox:
        assert sandbox.respond(question()).fault.message == "forward raises EOFError: EOF when reading a line"
    with Sandbox({"attention": "mine.py:Scores"}, 60) as sandbox:
        found = distance(sandbox.respond(question()).answer, trial_of().expected)
        assert max(found.output, found.gradient) < 1e-12


def test_a_layer_that_hangs_is_stopped_with_all_that_it_started_and_another_process_takes_over():
    with Sandbox({"attention": "mine.py:Hangs"}, 1.5) as sandbox:
        fault = sandbox.respond(question()).fault
        assert fault.kind == "hang"
        assert fault.message == "no end of forward or the backward pass within 1.5 s"
        assert (fault.at, fault.code) == (f"mine.py:{line_of('time.sleep')}", "time.sleep(0.01)  # HERE")
        assert Path("pids").read_text().split()
        assert gone()
        sandbox.time_limit, sandbox.sources = 60, {"attention": "mine.py:Odd"}
        assert sandbox.respond(question()).answer is not None


def test_a_layer_that_ends_or_crashes_its_process_is_told_from_one_that_hangs():
    with Sandbox({"attention": "mine.py:Crashes"}, 60) as sandbox:
        fault = sandbox.respond(question()).fault
        assert (fault.kind, fault.message) == ("died", "forward or the backward pass crashed Python (SIGSEGV)")
        assert fault.at == f"mine.py:{line_of('ctypes.string_at')}"
    with Sandbox({"attention": "mine.py:LeavesAtOnce"}, 60) as sandbox:
        fault = sandbox.respond(question()).fault
        assert (fault.kind, fault.at) == ("died", None)
        assert fault.message.startswith("forward or the backward pass ended the whole process with status 3; ")
        assert fault.message.endswith('the last that it printed is "I leave"')


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = = 1\n", "broken.py:A: the file has no A; it has no class (line 1 does not parse"),
        ("import os\nclass A(os._exit(4)): pass\n", "reading it ended the whole process with status 4"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_in_one_line(folder, text, told):
    (folder / "broken.py").write_text(text)
    with Sandbox({"attention": "broken.py:A"}, 60) as sandbox, pytest.raises(CandidateError) as caught:
        sandbox.ready()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_the_users_does_not_stand_in_for_pythons_own(folder, monkeypatch):
    (folder / "taken").mkdir()
    monkeypatch.chdir(folder / "taken")
    for name in ("random.py", "torch.py", "components.py"):
        Path(name).write_text("raise RuntimeError('not this one')\n")
    Path("layer.py").write_text(LAYERS)
    with Sandbox({"attention": "layer.py:Odd"}, 60) as sandbox:
        assert sandbox.respond(question()).answer is not None


STOPPED = """
import signal
import torch
from gptladder import GPT2Config
from gptladder.ladder.candidate.layer import Request
from gptladder.ladder.candidate.sandbox import Sandbox

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background deaf to it
shapes = dict(W_Q=(2, 4, 2), W_K=(2, 4, 2), W_V=(2, 4, 2), b_Q=(2, 2), b_K=(2, 2), b_V=(2, 2), W_O=(2, 2, 4), b_O=(4,))
parameters = {name: torch.zeros(shape) for name, shape in shapes.items()}
given = torch.zeros(1, 3, 4)
with Sandbox({"attention": "mine.py:Hangs"}, 5) as sandbox:
    sandbox.respond(Request("attention", GPT2Config(d_model=4, n_heads=2), torch.float32, parameters, given, given))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running_when_the_climb_itself_is_stopped(sent):
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
