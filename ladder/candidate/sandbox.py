"""Somebody's layers in a process of their own: they may crash it, hang, exit, print without end.

`Sandbox` is this side, `main` the other. Questions and replies go over a pipe that is neither's standard output.
"""

import contextlib
import dataclasses
import faulthandler
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

import torch

from ...assembly.config import GPT2Config
from ..numbers import Answer
from .layer import Candidate, Fault, Look, Question, Reply
from .source import CandidateError, Code, find, split

# To import the user's file, and whatever that imports.
_START_LIMIT = 120.0
_GRACE = 10.0
_KEPT = 1000  # bytes of what is printed
_OTHER_SIDE = f"import sys; from {__name__} import main; main(sys.argv[1:])"


class Sandbox:
    """Answers questions as `Candidate` does, in another process. To be closed, or used as a context.

    Args:
        sources: ``FILE.py:NAME`` by rung.
        time_limit: seconds that a layer has for one question. Then it is stopped, and has hung.
    """

    def __init__(self, sources: Mapping[str, str], time_limit: float) -> None:
        self.sources = dict(sources)
        self.time_limit = time_limit
        self.printed, self.printed_bytes, self._last = b"", 0, b""
        self._code = Code(*(split(source)[0] for source in sources.values()))
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until the user's files are imported.

        Raises:
            CandidateError: they cannot be, or hold no such layer.
        """
        if not self._ready:
            found = self._receive(_START_LIMIT, "importing it")
            if isinstance(found, Fault):
                files = sorted({source.rpartition(":")[0] for source in self.sources.values()})
                raise CandidateError(f"{', '.join(files)}: {found}")
            if found["error"]:
                self.close()
                raise CandidateError(found["error"])
            self._ready = True

    def respond(self, question: Question, look: Look = "") -> Reply:
        """What the layer of the question's rung makes of it."""
        if self._process is None:
            self._start()
        self.ready()
        message = {"look": look, "limit": self.time_limit, "question": _plain(question)}
        with contextlib.suppress(OSError):  # it has ended meanwhile, and so does not answer
            self._ours.send_bytes(_packed(message))
        found = self._receive(self.time_limit, "forward or the backward pass")
        if isinstance(found, Fault):
            return Reply(fault=found)
        return Reply(
            answer=Answer(**found["answer"]) if found["answer"] else None,
            fault=Fault(**found["fault"]) if found["fault"] else None,
            asked=frozenset(found["asked"]),
            places=found["places"],
            taps=found["taps"],
        )

    def close(self) -> None:
        """End the process, and every one that it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=5)
        self._ours.close()
        self._trace.close()
        self._process = None

    def _start(self) -> None:
        self._ready = False
        self._ours, theirs = Pipe()
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            # -P: a file of the user's called random.py is not to stand in for Python's own.
            [sys.executable, "-P", "-c", _OTHER_SIDE, str(theirs.fileno()), str(self._trace.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno(), self._trace.fileno()],
            start_new_session=True,
        )
        theirs.close()
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._ours.send_bytes(_packed(self.sources))

    def _read(self, stream: IO[bytes]) -> None:
        """Keep the beginning of what is printed, and count the rest."""
        with stream:
            while chunk := stream.read1(1 << 16):  # pyright: ignore[reportAttributeAccessIssue]
                self.printed += chunk[: _KEPT - len(self.printed)]
                self.printed_bytes += len(chunk)
                self._last = (self._last + chunk)[-_KEPT:]

    def _receive(self, limit: float, doing: str) -> dict[str, Any] | Fault:
        """The other side's next message; a fault where there is none."""
        assert self._process is not None
        # The other side keeps the time itself, and says where it was; this is for one that cannot even do that.
        hung = not self._ours.poll(limit + _GRACE)
        if not hung:
            with contextlib.suppress(EOFError, OSError):
                return _unpacked(self._ours.recv_bytes())
        process, trace = self._process, self._trace
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0 if hung else 5)
        trace.seek(0)
        left = trace.read().decode(errors="replace")
        ended = process.returncode
        self.close()
        frames = re.findall(r'File "(.+)", line (\d+)', left)
        at, code = self._code.first((name, int(line)) for name, line in frames) or (None, None)
        if hung or left.startswith("Timeout"):
            return Fault("hang", f"no end of {doing} within {limit:g} s", at, code)
        if ended is not None and ended < 0:
            named = signal.Signals(-ended).name
            return Fault("died", f"{doing} crashed Python itself ({named})", at, code)
        last = self._last.decode(errors="replace").strip().rpartition("\n")[2]
        said = f', having printed "{last}"' if last else ""
        return Fault("died", f"{doing} ended the whole process with status {ended}{said}", at, code)


def main(arguments: list[str]) -> None:
    """The other side: import the sources, then answer questions until there are none."""
    descriptor, trace = map(int, arguments)
    connection = Connection(descriptor)
    os.set_inheritable(descriptor, False)
    os.set_inheritable(trace, False)
    faulthandler.enable(trace)
    torch.set_num_threads(1)
    sources = _unpacked(connection.recv_bytes())
    candidates: dict[str, Candidate] = {}
    error = None
    faulthandler.dump_traceback_later(_START_LIMIT, exit=True, file=trace)
    try:
        for rung, source in sources.items():
            made, code = find(source)
            candidates[rung] = Candidate(made, source.rpartition(":")[2], code)
    except CandidateError as refused:
        error = str(refused)
    faulthandler.cancel_dump_traceback_later()
    _send(connection, {"error": error})
    while True:
        try:
            message = _unpacked(connection.recv_bytes())
        except EOFError:
            return
        faulthandler.dump_traceback_later(message["limit"], exit=True, file=trace)
        question = _question(message["question"])
        reply = candidates[question.rung].respond(question, message["look"])
        faulthandler.cancel_dump_traceback_later()
        _send(connection, _plain(reply))


def _send(connection: Connection, message: dict[str, Any]) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    connection.send_bytes(_packed(message))


def _plain(record: Question | Reply) -> dict[str, Any]:
    """As dicts, strings and tensors: nothing that reading could run code by."""
    plain = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
    for name, value in plain.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            plain[name] = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        elif isinstance(value, frozenset):
            plain[name] = sorted(value)
    return plain


def _question(message: dict[str, Any]) -> Question:
    return Question(**{**message, "config": GPT2Config(**message["config"])})


def _packed(message: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(message), buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(packed), weights_only=True)
