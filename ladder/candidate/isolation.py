"""Run a command that may hang, fork, flood or delete, so that nothing of it is left when it ends.

This file is both a module and the program that stands between the two: ``python isolation.py LIMITS COMMAND…``. It
imports the standard library alone, because it starts for every submission.

On Linux the command runs as process 1 of a process namespace of its own: when it ends or is killed, the kernel ends
every process that it has started, whatever sessions or groups they have made. It has no network, and writes to one
folder only (Landlock). Where the kernel refuses a part of this, that part is left out and named in
``Isolation.missing``. On other systems there are limits and process groups (macOS) or a job object (Windows).
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000  # linux/sched.h
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38  # linux/prctl.h
_POLL_SECONDS = 0.05

OVER_LIMIT = 125
"""Status of a command that was killed because it used more memory or processes than it may."""


@dataclass(frozen=True)
class Limits:
    """What a command may use.

    Args:
        memory: bytes of all its processes together.
        processes: how many it may have at a time, threads not counted.
        file_bytes: size of a file that it writes.
        cpu_seconds: of one process.
    """

    memory: int = 2 * 2**30
    processes: int = 32
    file_bytes: int = 64 * 2**20
    cpu_seconds: int = 600


@dataclass(frozen=True)
class Isolation:
    """What this system can do: ``available`` and ``missing`` hold ``processes``, ``network`` and ``files``."""

    available: tuple[str, ...]
    missing: tuple[str, ...]


def isolated(
    command: Sequence[str], *, writable: Path | None, limits: Limits | None, env: Mapping[str, str], **options: Any
) -> "subprocess.Popen[bytes]":
    """Start a command in isolation; `end` ends it with everything that it has started.

    Args:
        command: the program, by its full path, and its arguments.
        writable: the one folder that it may write to, where it starts too (default: it may write where its user may).
        limits: what it may use; with limits it has no network. A command that uses more is killed, and its status is
            `OVER_LIMIT`. A command that a signal has ended has the status 128 + signal, as in a shell.
        env: its environment.
        options: of `subprocess.Popen`.
    """
    settings = {
        "limits": None if limits is None else asdict(limits),
        "writable": None if writable is None else str(writable.resolve()),
        "pass_fds": list(options.get("pass_fds", ())),
    }
    launcher = [sys.executable, "-I", "-S", __file__, json.dumps(settings), *command]
    if os.name == "posix":
        options["start_new_session"] = True
    start: Any = subprocess.Popen
    return start(launcher, env=dict(env), **options)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End an isolated command and everything that it has started, and wait for it."""
    if os.name == "posix":
        # The launcher's own end takes the command along, which takes the namespace along.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def probe() -> Isolation:
    """Return what this system can do, by trying it in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, "probe"], capture_output=True, text=True, timeout=30, check=False
    )
    found: dict[str, bool] = json.loads(done.stdout or "{}")
    names = ("processes", "network", "files")
    return Isolation(tuple(n for n in names if found.get(n)), tuple(n for n in names if not found.get(n)))


# The launcher


def main(arguments: list[str]) -> int:
    """Be the launcher: make the namespaces, start the command, watch its limits, and return its status."""
    if arguments == ["probe"]:
        print(json.dumps({**_namespaces(), "files": _landlock_version() > 0}))
        return 0
    settings, command = json.loads(arguments[0]), arguments[1:]
    if os.name != "posix":
        return _in_job(command, settings)
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # without a namespace, orphans come here and are ended below
        _namespaces(network=settings["limits"] is None)
    child = os.fork()
    if child == 0:
        _first_process(command, settings)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _kill(child))
    for descriptor in settings["pass_fds"]:
        os.close(descriptor)
    try:
        return _watch(child, settings)
    finally:
        _kill(child)
        _end_orphans()


def _first_process(command: Sequence[str], settings: Mapping[str, Any]) -> None:
    """In the child: be process 1 of the namespace, which starts the command and waits for it. Never returns.

    The command is not process 1 itself, because the kernel spares process 1 the signals of its own namespace: an abort
    would not end it.
    """
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    command_process = os.fork()
    if command_process == 0:
        _become(command, settings)
    for descriptor in settings["pass_fds"]:  # so that its other end sees when the command has ended
        os.close(descriptor)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == command_process:
            os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _become(command: Sequence[str], settings: Mapping[str, Any]) -> None:
    """In the child: give up rights, take on limits, and turn into the command. Never returns."""
    import resource

    try:
        if sys.platform == "linux":
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
            if settings["writable"]:
                _write_only_below(settings["writable"])
        limits = settings["limits"] or {}
        for name, value in (
            ("RLIMIT_CPU", limits.get("cpu_seconds")),
            ("RLIMIT_FSIZE", limits.get("file_bytes")),
            ("RLIMIT_DATA", limits.get("memory")),
            ("RLIMIT_CORE", 0),
        ):
            with contextlib.suppress(ValueError, OSError, AttributeError):
                if value is not None:
                    limit = getattr(resource, name)
                    resource.setrlimit(limit, (value, value))
        for descriptor in settings["pass_fds"]:
            os.set_inheritable(descriptor, True)
        if settings["writable"]:
            os.chdir(settings["writable"])
        os.execv(command[0], list(command))
    except BaseException as error:
        os.write(2, f"the sandbox could not be set up: {error}\n".encode())
    finally:
        os._exit(126)


def _watch(child: int, settings: Mapping[str, Any]) -> int:
    """Wait for the command, and kill it when its processes or their memory exceed the limits."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if settings["limits"]:
            family = _descendants(os.getpid())
            if len(family) > settings["limits"]["processes"] + 1 or _resident(family) > settings["limits"]["memory"]:
                _kill(child)
                os.waitpid(child, 0)
                return OVER_LIMIT
        with contextlib.suppress(ChildProcessError):  # orphans that have ended
            while os.waitpid(-1, os.WNOHANG)[0] not in (0, child):
                pass
        time.sleep(_POLL_SECONDS)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _end_orphans() -> None:
    """End the processes that have outlived their parents, until there are none."""
    while family := [each for each in _descendants(os.getpid()) if each != os.getpid()]:
        for each in family:
            _kill(each)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _descendants(process: int) -> list[int]:
    """The processes below one, where /proc tells; else none."""
    found, left = [], [process]
    while left:
        here = left.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{here}/task"):
                with open(f"/proc/{here}/task/{thread}/children") as file:
                    children = [int(each) for each in file.read().split()]
                found += children
                left += children
        if len(found) > 10_000:
            break
    return found


def _resident(processes: Sequence[int]) -> int:
    """Bytes of memory that processes hold for themselves alone."""
    total = 0
    for each in processes:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{each}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            total += (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return total


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _namespaces(*, network: bool = False) -> dict[str, bool]:
    """Move this process's children into namespaces of their own; returns which the kernel granted.

    Args:
        network: leave them the network.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    apart = _NEW_PID if network else _NEW_PID | _NEW_NET | _NEW_IPC
    for flags in (_NEW_USER | apart, apart, _NEW_PID):
        if sys.platform != "linux" or libc.unshare(flags):
            continue
        if flags & _NEW_USER:  # the same user and group within as without
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        return {"processes": True, "network": bool(flags & _NEW_NET)}
    return {"processes": False, "network": False}


# Landlock (kernel 5.13 and later): https://docs.kernel.org/userspace-api/landlock.html. The numbers of its system calls
# are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _REMOVE_AND_MAKE, _REFER, _TRUNCATE = 1 << 1, sum(1 << bit for bit in range(4, 13)), 1 << 13, 1 << 14


def _landlock_version() -> int:
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, 1))


def _write_only_below(folder: str) -> None:
    """Refuse this process and its children every change of files outside a folder, where the kernel can."""
    version = _landlock_version()
    if not version:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    handled = _WRITE_FILE | _REMOVE_AND_MAKE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = ctypes.create_string_buffer(handled.to_bytes(8, "little"), 8)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, 8, 0)
    if ruleset < 0:
        return
    for allowed, rights in ((folder, handled), ("/dev/null", _WRITE_FILE | (_TRUNCATE if version >= 3 else 0))):
        place = os.open(allowed, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(rights.to_bytes(8, "little") + place.to_bytes(4, "little"), 12)
        libc.syscall(_ADD_RULE, ruleset, 1, rule, 0)
        os.close(place)
    libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _in_job(command: Sequence[str], settings: Mapping[str, Any]) -> int:
    """On Windows: run the command in a job object, which ends with this process and holds the limits."""
    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # pyright: ignore[reportAttributeAccessIssue]
    kernel.CreateJobObjectW.restype = kernel.GetCurrentProcess.restype = ctypes.c_void_p
    job = ctypes.c_void_p(kernel.CreateJobObjectW(None, None))
    # JOBOBJECT_EXTENDED_LIMIT_INFORMATION on 64 bits: LimitFlags at byte 16, ActiveProcessLimit at 40, JobMemoryLimit
    # at 120. The flags: active processes, memory of the job, and the end of all when the job's handle is closed.
    information, limits = bytearray(144), settings["limits"]
    information[16:20] = ((0x8 | 0x200 if limits else 0) | 0x2000).to_bytes(4, "little")
    if limits:
        information[40:44] = (limits["processes"] + 1).to_bytes(4, "little")
        information[120:128] = int(limits["memory"]).to_bytes(8, "little")
    kernel.SetInformationJobObject(job, 9, (ctypes.c_char * 144).from_buffer(information), 144)
    kernel.AssignProcessToJobObject(job, ctypes.c_void_p(kernel.GetCurrentProcess()))
    return subprocess.run(command, cwd=settings["writable"], close_fds=False, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
