"""Run a function in a process of its own, and end it with all that it started: the one module that knows the system.

What differs between Linux, macOS and Windows stands behind `start`, `take_streams`, `Process.wait`, `Process.end`,
`ended_by`, `remove`, `probe` and `context_of_judges`. Nothing that a system lacks is imported before it is used.

============  ==========================  =========================  ==================  ===========================
system        starts                      ends                       limits              isolates
============  ==========================  =========================  ==================  ===========================
``linux``     fork                        process namespace          memory, processes   network, files, processes
``macos``     a new Python                process group              memory (by ``ps``)  nothing
``windows``   a new Python                job object, ``taskkill``   memory, processes   nothing
``portable``  a new Python                the process                none                nothing
============  ==========================  =========================  ==================  ===========================
"""

import contextlib
import json
import multiprocessing
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from . import OVER_LIMIT, Limits, linux, windows

_SYSTEMS = {"linux": "linux", "win32": "windows", "darwin": "macos"}

SYSTEM = _SYSTEMS.get(sys.platform, "portable")
"""Which row of the table above is used."""

_CHILD = f"import sys; from {__name__} import child; child(*sys.argv[1:])"
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 0.3


class Process:
    """A started process. What it prints comes out of ``output``; its messages go over ``requests`` and ``replies``.

    The streams are unbuffered: closing a buffered one waits for a thread that reads it.
    """

    requests: BinaryIO
    replies: BinaryIO
    output: BinaryIO
    returncode: int | None = None
    imports: bool
    """Whether it imports its modules anew, which takes seconds."""

    def wait(self, timeout: float) -> int | None:
        """Wait for the process to end, and return its status; None if it did not end in time."""
        raise NotImplementedError

    def end(self) -> None:
        """End the process and everything that it started, and wait for it. The streams are closed, too."""
        raise NotImplementedError

    def _ask_to_end(self) -> None:
        """Close the requests: a function that waits for one returns, and its use of the processor is accounted for."""
        with contextlib.suppress(OSError, ValueError):
            self.requests.close()
        self.wait(_PATIENCE_SECONDS)

    def _close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.replies.close()


def start(
    target: str, *, writable: Path | None, limits: Limits | None, env: Mapping[str, str], copy: bool = False
) -> Process:
    """Start a function in a process of its own, in isolation as far as this system offers it.

    Args:
        target: ``package.module:function``. It takes no argument, reads requests from descriptor 0, writes replies to 1
            and prints to 2 (see `take_streams`).
        writable: the one folder that it may write to, where it starts too (default: it may write where its user may).
        limits: what it may use; with limits it has no network, where the system can (default: no limits). If it uses
            more it is ended, with the status `OVER_LIMIT`.
        env: its environment.
        copy: on Linux, start as a copy of this process, which saves importing everything again. This process must have
            run no code but its own package's, and no other thread may be at work in it.
    """
    if SYSTEM == "linux" and copy:
        return _Forked(target, writable, limits, env)
    return _Spawned(target, writable, limits, env)


def take_streams() -> tuple[BinaryIO, BinaryIO]:
    """In the started process: return the streams of requests and replies. What is printed goes to ``output``."""
    null = os.open(os.devnull, os.O_RDONLY)
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    if SYSTEM == "windows":
        import msvcrt

        for descriptor in (requests, replies):
            msvcrt.setmode(descriptor, os.O_BINARY)  # pyright: ignore[reportAttributeAccessIssue]
    return open(requests, "rb", buffering=0), open(replies, "wb", buffering=0)


def ended_by(status: int) -> str:
    """Return what killed a process that ended with a status, such as ``SIGSEGV``; empty if it ended by itself.

    Example:
        >>> ended_by(3)
        ''
    """
    if SYSTEM == "windows":
        return windows.CRASHES.get(status & 0xFFFFFFFF, "")
    number = -status if status < 0 else status - 128
    return signal.Signals(number).name if number in set(signal.Signals) else ""


def remove(folder: Path) -> None:
    """Remove a folder as far as that is possible. A submission may have made it too deep for Python's own function."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists() and SYSTEM in ("linux", "macos"):
        subprocess.run(["rm", "-rf", str(folder)], capture_output=True, check=False)


def probe() -> dict[str, bool]:
    """Return whether this system can isolate ``processes``, ``network``, ``files`` and ``memory``, by trying it."""
    able = {"processes": SYSTEM in ("windows", "macos"), "network": False, "files": False}
    if SYSTEM == "linux":
        able |= linux.probe()
    return {**able, "memory": SYSTEM != "portable"}


def context_of_judges() -> Any:
    """Return how judging processes start: on Linux as copies of this process, elsewhere each imports all anew."""
    return multiprocessing.get_context("fork" if SYSTEM == "linux" else "spawn")


def child(target: str, settings: str) -> None:
    """Be the process that `_Spawned` starts: run the function, on Linux in isolation."""
    function = pkgutil.resolve_name(target)
    given = json.loads(settings)
    writable = Path(given["writable"]) if given["writable"] else None
    if given["system"] == "linux":
        limits = Limits(**given["limits"]) if given["limits"] else None
        # A process with several threads, such as those of numerical libraries, can make no user namespace: fork first.
        watcher = _forked(function, (0, 1, 2), writable, limits, os.environ)
        linux.stay_until_ended(watcher)
    globals()["SYSTEM"] = given["system"]  # a test of another system's way has changed it in the parent
    if writable is not None:
        os.chdir(writable)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    function()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended. (A hung parent is killed; its child would go on.)"""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _forked(function: Any, streams: Any, writable: Path | None, limits: Limits | None, env: Mapping[str, str]) -> int:
    """Fork the watcher of linux.py, and return its process id."""
    with warnings.catch_warnings():
        # Python warns of threads that the copy lacks. Those of numerical libraries know of forks, and `copy` excludes
        # others.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        linux.enter(function, streams=streams, writable=writable, limits=limits, env=dict(env))
    return process


class _Forked(Process):
    """A copy of this process."""

    imports = False

    def __init__(self, target: str, writable: Path | None, limits: Limits | None, env: Mapping[str, str]) -> None:
        requests, replies, output = os.pipe(), os.pipe(), os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        theirs = (requests[0], replies[1], output[1])
        self._process = _forked(pkgutil.resolve_name(target), theirs, writable, limits, env)
        for descriptor in theirs:
            os.close(descriptor)
        self.requests = os.fdopen(requests[1], "wb", buffering=0)
        self.replies, self.output = (os.fdopen(each[0], "rb", buffering=0) for each in (replies, output))
        self._lock = threading.Lock()

    def wait(self, timeout: float) -> int | None:
        """Wait for the process to end, and return its status; None if it did not end in time."""
        until, pause = time.monotonic() + timeout, 0.001
        while not self._reap():
            if time.monotonic() >= until:
                return None
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        return self.returncode

    def end(self) -> None:
        """End the watcher, which takes the namespace along."""
        self._ask_to_end()
        if not self._reap():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGTERM)
            if self.wait(5) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process, signal.SIGKILL)
                self.wait(60)
        self._close()

    def _reap(self) -> bool:
        with self._lock:
            if self.returncode is None:
                try:
                    ended, status = os.waitpid(self._process, os.WNOHANG)
                except ChildProcessError:  # another part of the program has waited for it
                    ended, status = 1, 0
                if ended:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode is not None


class _Spawned(Process):
    """A new Python, which imports everything anew."""

    imports = True

    def __init__(self, target: str, writable: Path | None, limits: Limits | None, env: Mapping[str, str]) -> None:
        settings = {
            "system": SYSTEM,
            "writable": None if writable is None else str(writable.resolve()),
            "limits": None if limits is None else asdict(limits),
        }
        # -P: a file of the user's called random.py must not stand in for Python's own.
        process: Any = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, target, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(env),
            start_new_session=SYSTEM in ("linux", "macos"),
            creationflags=0x200 | 0x08000000 if SYSTEM == "windows" else 0,  # a process group of its own, no window
        )
        self._process: subprocess.Popen[bytes] = process
        self.requests, self.replies, self.output = process.stdin, process.stdout, process.stderr
        self._job = None
        self._exceeded = False
        if SYSTEM == "windows":
            # Nothing of the user's runs before the first request is sent, which is later than this.
            self._job = windows.Job(self._process, limits)
        if SYSTEM == "macos" and limits is not None:
            threading.Thread(target=self._watch, args=(limits,), daemon=True).start()

    def wait(self, timeout: float) -> int | None:
        """Wait for the process to end, and return its status; None if it did not end in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(timeout)
            self.returncode = OVER_LIMIT if self._exceeded else status
        return self.returncode

    def end(self) -> None:
        """End the process, and what it has started as far as the system can."""
        self._ask_to_end()
        if self._job is not None:
            self._job.end()
        if SYSTEM == "linux" and self._process.poll() is None:
            self._process.terminate()  # it has the watcher end all processes, then itself
            self.wait(5)
        if SYSTEM in ("linux", "macos"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self.wait(60)
        self._close()

    def _watch(self, limits: Limits) -> None:
        while self._process.poll() is None:
            memory, processes = _family(self._process.pid)
            if memory > limits.memory or processes > limits.processes:
                self._exceeded = True
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)


def _family(process: int) -> tuple[int, int]:
    """Return the bytes in memory and the number of a process and all below it, as ``ps`` reports them."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=False)
    rows = [tuple(map(int, line.split())) for line in listed.stdout.splitlines() if len(line.split()) == 3]
    family = {process}
    while more := {pid for pid, parent, _ in rows if parent in family} - family:
        family |= more
    return sum(1024 * size for pid, _, size in rows if pid in family), len(family)
