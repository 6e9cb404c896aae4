"""The user's layers in a process of their own: they may crash it, hang, exit, print without end.

`Sandbox` is this side of it, worker.py the other.
"""

import os
import re
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..candidate.places import Code
from ..candidate.requests import Reply, Request
from ..candidate.source import CandidateError, split
from ..results import Fault
from ..rungs import Trial
from . import OVER_LIMIT, Limits
from .messages import MessageError, exchange
from .processes import Process, ended_by, remove, start
from .worker import START, Start

# Seconds to read the user's file and what it imports.
_START_LIMIT = 120.0
# The worker keeps the time itself, and reports where it was; this is for one that cannot even do that.
_GRACE = 5.0
_PRINTED = 1000  # bytes of the output that are stored
_MOST_TRACE = 64 * 2**10
# Variables of the environment that a layer with limits may see; others may hold secrets of the teacher's.
_VARIABLES = re.compile(
    r"(PATH|HOME|USER|LANG|LC_\w+|TZ|TERM|PYTHON\w+|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_PREFIX|TIKTOKEN_CACHE_DIR|"
    r"(OMP|MKL|OPENBLAS|KMP|TORCH|PYTORCH|GPTLADDER)_\w+|SYSTEMROOT|SYSTEMDRIVE|COMSPEC|PATHEXT|WINDIR|USERPROFILE|"
    r"APPDATA|LOCALAPPDATA|PROGRAMDATA|PROGRAMFILES\S*|NUMBER_OF_PROCESSORS|PROCESSOR_\w+)",
    re.IGNORECASE,
)


class Sandbox:
    """Answers requests as `Candidate` does, in another process. To be closed, or used as a context.

    Args:
        sources: ``FILE.py:NAME`` by rung; under ``""`` a whole file, in which the layers are to be found.
        time_limit: seconds that a layer has for one request. Then it is stopped, and has hung.
        chosen: values for what constructors ask for, by name.
        limits: what it may use; with limits it has no network either, sees no variable of the environment that may hold
            a secret, and writes to a folder of its own alone (default: it may do what the user may, but nothing of it
            outlives it).
        only: the one rung to find in a whole file (default: all that it holds).
        copy: start as a copy of this process where the system can; see `processes.start`.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        time_limit: float,
        chosen: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        *,
        copy: bool = False,
        only: str | None = None,
    ) -> None:
        self.sources = dict(sources)
        self.limits, self.copy, self.only = limits, copy, only
        self.time_limit, self.chosen = time_limit, dict(chosen or {})
        self.printed, self.printed_bytes, self._last = b"", 0, b""
        self._code = Code(*(split(source)[0] for source in sources.values()))
        self.layers: Mapping[str, tuple[str, ...]] = {}
        self.notes: tuple[str, ...] = ()
        self._process: Process | None = None
        self._start()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until the user's files are read.

        Raises:
            CandidateError: they cannot be, or hold no such layer.
        """
        if self._ready:
            return
        limit = _START_LIMIT if self.limits is None else min(_START_LIMIT, self.time_limit)
        first = Start(self.sources, self.chosen, self.only, self._trace.name, limit, self.time_limit)
        assert self._process is not None
        grace = _START_LIMIT if self._process.imports else _GRACE
        reply = self._begun(first, limit, "reading it", grace)()
        if isinstance(reply, Fault):
            files = sorted({str(split(source)[0]) for source in self.sources.values()})
            raise CandidateError(f"{', '.join(files)}: {reply}", reply.kind, reply.at)
        if reply.fault is not None:
            self.close()
            raise CandidateError(reply.fault.message, reply.fault.kind)
        self.layers, self.notes = reply.layers, reply.notes
        self._ready = True

    def respond(self, request: Request) -> Reply:
        """Return the reply of the layer of the request's rung."""
        return next(self.replies([request]))

    def replies(self, requests: Iterable[Request]) -> Generator[Reply]:
        """Yield the reply to each request.

        While the caller reads one reply, and makes the request after the next, the layer works on the next.
        """
        waiting: Callable[[], Reply] | None = None
        try:
            for request in requests:
                reply = waiting() if waiting else None
                waiting = None
                if reply and self._process is None:  # it has ended: perhaps the caller wants no other
                    yield reply
                    reply = None
                waiting = self._sent(request)
                if reply:
                    yield reply
            if waiting:
                reply, waiting = waiting(), None
                yield reply
        except GeneratorExit:
            if waiting and self._process:  # the caller wants no more replies, but one is on its way
                waiting()
            raise

    def _sent(self, request: Request) -> Callable[[], Reply]:
        """Send a request, and return a function that waits for the reply."""
        if self._process is None:
            self._start()
        self.ready()
        doing = "forward or the backward pass"
        wait = self._begun(request, self.time_limit, doing)

        def reply() -> Reply:
            found = wait()
            if isinstance(found, Fault):
                return Reply(fault=found)
            if not _fits(found, request.trial):
                return Reply(fault=self._fault(doing, f"{doing} sent an answer of another shape than it must have"))
            return found

        return reply

    def close(self) -> None:
        """End the process, and every one that it started."""
        if self._process is None:
            return
        self._process.end()
        self._reader.join(timeout=5)
        self._trace.close()
        remove(self._folder)
        self._process = None

    def _start(self) -> None:
        self._ready = False
        self._folder = Path(tempfile.mkdtemp(prefix="gptladder-"))
        # Read by this open file, not by its name: a submission can put something else in its place.
        self._trace = open(self._folder / "trace", "w+b")  # noqa: SIM115 - closed with the process
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if self.limits is not None:
            env = {name: value for name, value in env.items() if _VARIABLES.fullmatch(name)}
            env |= {"HF_HUB_OFFLINE": "1", "TMPDIR": str(self._folder), "TEMP": str(self._folder)}
        self._process = start(
            START,
            writable=None if self.limits is None else self._folder,
            limits=self.limits,
            env=env,
            copy=self.copy,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.output,), daemon=True)
        self._reader.start()

    def _read(self, stream: BinaryIO) -> None:
        """Keep the beginning of what is printed, and count the rest."""
        with stream:
            while chunk := stream.read(1 << 16):
                self.printed += chunk[: _PRINTED - len(self.printed)]
                self.printed_bytes += len(chunk)
                self._last = (self._last + chunk)[-_PRINTED:]

    def _begun(
        self, message: Start | Request, limit: float, doing: str, grace: float = _GRACE
    ) -> Callable[[], Reply | Fault]:
        """Send a message, and return a function that waits for the worker's reply; a fault if there is none."""
        assert self._process is not None
        wait = exchange(self._process.requests, message, self._process.replies, Reply)

        def reply() -> Reply | Fault:
            try:
                return wait(limit + grace)
            except TimeoutError:
                return self._fault(doing, f"no end of {doing} within {limit:g} s", "hang")
            except MessageError as error:
                return self._fault(doing, f"{doing} sent what is no answer ({error})")
            except EOFError:
                return self._fault(doing, limit=limit)

        return reply

    def _fault(self, doing: str, message: str = "", kind: str = "died", limit: float = 0.0) -> Fault:
        """End the process, and return what is wrong with the layer: ``message``, or how the process ended."""
        assert self._process is not None
        status = self._process.wait(0 if message else 5)
        self._trace.seek(0)
        left = self._trace.read(_MOST_TRACE).decode(errors="replace")
        self.close()
        frames = re.findall(r'File "(.+)", line (\d+)', left)
        at, code = self._code.first((name, int(line)) for name, line in frames) or (None, None)
        if left.startswith("Timeout") and not message:
            kind, message = "hang", f"no end of {doing} within {limit:g} s"
        if message:
            return Fault(kind, message, at, code)
        if status == OVER_LIMIT and self.limits is not None:
            most = f"{self.limits.memory // 2**20} MB, {self.limits.processes} processes, "
            most += f"{self.limits.disk_bytes // 2**20} MB of files"
            return Fault("limit", f"{doing} used more than it may ({most})", at, code)
        if status is None:
            return Fault("died", f"{doing} closed the pipe to the grader", at, code)
        if signal := ended_by(status):
            return Fault("died", f"{doing} crashed Python ({signal})", at, code)
        last = self._last.decode(errors="replace").rstrip().rpartition("\n")[2][-200:]
        printed = f'; the last that it printed is "{last}"' if last else ""
        return Fault("died", f"{doing} ended the whole process with status {status}{printed}", at, code)


def _fits(reply: Reply, trial: Trial) -> bool:
    """Return whether the tensors of a reply have the shapes and dtype that the worker checks before it sends them."""
    if reply.answer is None:
        return reply.fault is not None
    wanted: dict[str, Tensor] = {**trial.parameters, "input": trial.given}
    output = reply.answer.output
    return (output.shape, output.dtype) == (trial.cotangent.shape, trial.dtype) and all(
        name in wanted and gradient.shape == wanted[name].shape for name, gradient in reply.answer.gradients.items()
    )
