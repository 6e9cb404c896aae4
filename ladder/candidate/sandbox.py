"""The user's layers in a process of their own: they may crash it, hang, exit, print without end.

`Sandbox` is this side, `main` the other. Requests and replies go over a pipe that is neither's standard output.
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
from pathlib import Path
from typing import IO, Any

import torch

from ...assembly.config import GPT2Config
from ..numbers import Answer
from ..results import Fault
from .finder import find_layers, rungs_of
from .isolation import OVER_LIMIT, Limits, end, isolated
from .layer import Candidate, Reply, Request
from .source import CandidateError, Code, Loaded, load, split
from .trace import Event, Trace

# Seconds to read the user's file, and whatever that imports.
_START_LIMIT = 120.0
_GRACE = 10.0
_KEPT = 1000  # bytes of what is printed
_OTHER_SIDE = f"import sys; from {__name__} import main; main(sys.argv[1:])"


class Sandbox:
    """Answers requests as `Candidate` does, in another process. To be closed, or used as a context.

    Args:
        sources: ``FILE.py:NAME`` by rung; under ``""`` a whole file, in which the layers are to be found.
        time_limit: seconds that a layer has for one request. Then it is stopped, and has hung.
        chosen: values for what constructors ask for, by name.
        limits: what it may use; with limits it has no network either, and writes to a folder of its own alone
            (default: it may do what the user may, but nothing of it outlives it).
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        time_limit: float,
        chosen: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.sources = dict(sources)
        self.limits = limits
        self.time_limit, self.chosen = time_limit, dict(chosen or {})
        self.printed, self.printed_bytes, self._last = b"", 0, b""
        self._code = Code(*(split(source)[0] for source in sources.values()))
        self.layers: dict[str, list[str]] = {}
        self.notes: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
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
        if not self._ready:
            found = self._receive(_START_LIMIT, "reading it")
            if isinstance(found, Fault):
                files = sorted({str(split(source)[0]) for source in self.sources.values()})
                raise CandidateError(f"{', '.join(files)}: {found}", found.kind)
            if found["error"]:
                self.close()
                raise CandidateError(found["error"], found["kind"])
            self.layers, self.notes = found["layers"], tuple(found["notes"])
            self._ready = True

    def respond(self, request: Request) -> Reply:
        """Return the reply of the layer of the request's rung."""
        if self._process is None:
            self._start()
        self.ready()
        message = {"limit": self.time_limit, "request": _plain(request)}
        with contextlib.suppress(OSError):  # it has ended meanwhile, and so does not answer
            self._ours.send_bytes(_packed(message))
        found = self._receive(self.time_limit, "forward or the backward pass")
        return Reply(fault=found) if isinstance(found, Fault) else _reply(found)

    def close(self) -> None:
        """End the process, and every one that it started."""
        if self._process is None:
            return
        end(self._process)
        self._reader.join(timeout=5)
        self._ours.close()
        self._trace.close()
        self._folder.cleanup()
        self._process = None

    def _start(self) -> None:
        self._ready = False
        self._ours, theirs = Pipe()
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._folder = tempfile.TemporaryDirectory(prefix="gptladder-")
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if self.limits is not None:
            env["TMPDIR"] = self._folder.name
        self._process = isolated(
            # -P: a file of the user's called random.py is not to stand in for Python's own.
            [sys.executable, "-P", "-c", _OTHER_SIDE, str(theirs.fileno()), str(self._trace.fileno())],
            writable=None if self.limits is None else Path(self._folder.name),
            limits=self.limits,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno(), self._trace.fileno()],
        )
        theirs.close()
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._ours.send_bytes(_packed({"sources": self.sources, "chosen": self.chosen}))

    def _read(self, stream: IO[bytes]) -> None:
        """Keep the beginning of what is printed, and count the rest."""
        with stream:
            while chunk := stream.read1(1 << 16):  # pyright: ignore[reportAttributeAccessIssue]
                self.printed += chunk[: _KEPT - len(self.printed)]
                self.printed_bytes += len(chunk)
                self._last = (self._last + chunk)[-_KEPT:]

    def _receive(self, limit: float, doing: str) -> dict[str, Any] | Fault:
        """Return the other side's next message; a fault if there is none."""
        assert self._process is not None
        # The other side keeps the time itself, and reports where it was; this is for one that cannot even do that.
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
        if ended == OVER_LIMIT and self.limits is not None:
            most = f"{self.limits.memory // 2**20} MB, {self.limits.processes} processes"
            return Fault("limit", f"{doing} used more than it may ({most})", at, code)
        if ended is not None and ended > 128 and ended - 128 in set(signal.Signals):
            crash = f"{doing} crashed Python ({signal.Signals(ended - 128).name})"
            return Fault("died", crash, at, code)
        last = self._last.decode(errors="replace").rstrip().rpartition("\n")[2][-200:]
        said = f'; the last that it printed is "{last}"' if last else ""
        return Fault("died", f"{doing} ended the whole process with status {ended}{said}", at, code)


def main(arguments: list[str]) -> None:
    """Run the other side: read the sources, then answer requests until there are none."""
    descriptor, trace = map(int, arguments)
    connection = Connection(descriptor)
    os.set_inheritable(descriptor, False)
    os.set_inheritable(trace, False)
    faulthandler.enable(trace)
    torch.set_num_threads(1)
    start = _unpacked(connection.recv_bytes())
    candidates: dict[str, Candidate] = {}
    told: dict[str, Any] = {"error": None, "kind": "", "layers": {}, "notes": []}
    faulthandler.dump_traceback_later(_START_LIMIT, exit=True, file=trace)
    try:
        candidates = _candidates(start["sources"], start["chosen"], told)
    except CandidateError as refused:
        told["error"], told["kind"] = str(refused), refused.kind
    faulthandler.cancel_dump_traceback_later()
    _send(connection, told)
    while True:
        try:
            message = _unpacked(connection.recv_bytes())
        except EOFError:
            return
        faulthandler.dump_traceback_later(message["limit"], exit=True, file=trace)
        request = _request(message["request"])
        reply = candidates[request.rung].respond(request)
        faulthandler.cancel_dump_traceback_later()
        _send(connection, _plain(reply))


def _candidates(sources: Mapping[str, str], chosen: Mapping[str, Any], told: dict[str, Any]) -> dict[str, Candidate]:
    """Read the sources; note in ``told`` which class was taken for which rung, and what was left out."""
    found: dict[str, Candidate] = {}
    loaded: dict[Path, Loaded] = {}
    names: dict[Path, set[str]] = {}
    for source in sources.values():
        path, name = split(source)
        names.setdefault(path, set()).add(name)
    for path, wanted in names.items():
        loaded[path] = load(path, () if "" in wanted else wanted)
    for rung, source in sources.items():
        path, name = split(source)
        if rung:
            found[rung] = _candidate(loaded[path], name or _first(loaded[path], rung, chosen, source), source, chosen)
            told["layers"].setdefault(rung, []).append(found[rung].name)
    if "" in sources:
        path, name = split(sources[""])
        layers = _layers(loaded[path], name, sources[""], chosen)
        if not layers and not found:
            _check_parsed(loaded[path], sources[""])
            has = ", ".join(loaded[path].classes) or "no nn.Module class"
            why = f" ({'; '.join(loaded[path].notes)})" if loaded[path].notes else ""
            raise CandidateError(
                f"{sources['']}: none of its classes could be taken for a layer of GPT-2; it has {has}{why}. Say which "
                "is which: --attention FILE.py:CLASS",
                "no layer",
            )
        for rung, classes in layers.items():
            if rung not in found:
                found[rung] = _candidate(loaded[path], classes[0], sources[""], chosen)
                told["layers"][rung] = classes
    told["notes"] = list(dict.fromkeys(note for each in loaded.values() for note in each.notes))
    return found


def _layers(loaded: Loaded, name: str, source: str, chosen: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the classes for each rung: of the whole file, or the rung of the one that is named."""
    if not name:
        return find_layers(loaded, chosen)
    rungs = rungs_of(loaded.get(name, source), name, vars(loaded.module), chosen)
    return {rungs[0]: [name]} if rungs else {}


def _check_parsed(loaded: Loaded, source: str) -> None:
    """Refuse a file that has no class because it does not parse."""
    broken = next((note for note in loaded.notes if "does not parse" in note), None)
    if broken and not loaded.classes:
        raise CandidateError(f"{source}: {broken}")


def _first(loaded: Loaded, rung: str, chosen: Mapping[str, Any], source: str) -> str:
    layers = find_layers(loaded, chosen)
    if rung not in layers:
        _check_parsed(loaded, source)
        has = ", ".join(loaded.classes) or "no nn.Module class"
        raise CandidateError(f"{source}: no class of it could be taken for {rung}; it has {has}: write {source}:CLASS")
    return layers[rung][0]


def _candidate(loaded: Loaded, name: str, source: str, chosen: Mapping[str, Any]) -> Candidate:
    return Candidate(loaded.get(name, source), name, loaded.code, vars(loaded.module), chosen)


def _send(connection: Connection, message: dict[str, Any]) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    connection.send_bytes(_packed(message))


def _plain(value: Any) -> Any:
    """Return records as dicts, lists, strings and tensors: nothing that reading could run code by."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | frozenset | set):
        return [_plain(each) for each in value]
    if isinstance(value, torch.Tensor | torch.dtype | str | int | float | bool | type(None)):
        return value
    return repr(value)


def _request(message: dict[str, Any]) -> Request:
    plain = {**message, "config": GPT2Config(**message["config"]), "before": tuple(message["before"])}
    return Request(**plain)


def _reply(found: dict[str, Any]) -> Reply:
    def place(value: Any) -> tuple[str, str] | None:
        return tuple(value) if value else None  # pyright: ignore[reportReturnType]

    events = [
        Event(
            **{
                **each,
                "at": place(each["at"]),
                "made": place(each["made"]),
                "inputs": tuple(each["inputs"]),
                "parameters": tuple(each["parameters"]),
                "within": tuple((part, place(at)) for part, at in each["within"]),
            }
        )
        for each in found["trace"]["events"]
    ]
    places = {name: (at[0], at[1]) for name, at in found["trace"]["places"].items()}
    fault = found["fault"]
    return Reply(
        answer=Answer(**found["answer"]) if found["answer"] else None,
        fault=Fault(**{**fault, "names": tuple(fault["names"])}) if fault else None,
        asked=frozenset(found["asked"]),
        missing=frozenset(found["missing"]),
        layouts=tuple((label, oddity) for label, oddity in found["layouts"]),
        passed={name: (value, default) for name, (value, default) in found["passed"].items()},
        notes=tuple(found["notes"]),
        borrowed=tuple(found["borrowed"]),
        trace=Trace(events, places, [tuple(part) for part in found["trace"]["parts"]], found["trace"]["output"]),
    )


def _packed(message: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(message), buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(packed), weights_only=True)
