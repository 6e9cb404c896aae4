"""Linux: run a function so that nothing of it is left when it ends, and so that it harms nothing around it.

`enter` is called in a forked process, the watcher. The watcher makes namespaces and starts process 1 of the new process
namespace, which starts the function's own process:

    watcher  ->  process 1  ->  the function

When process 1 ends, the kernel ends every process in the namespace, also those in sessions or groups of their own. With
limits the function has no network, changes files in one folder only, and cannot read hidden folders (see landlock.py).
Where the kernel refuses a part of this, that part is left out, and `probe` reports it.
"""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import OVER_LIMIT, Limits, landlock

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000  # linux/sched.h
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38  # linux/prctl.h
_POLL_SECONDS = 0.02
_FILES_EVERY = 10  # polls between two looks at the folder's size
_OPEN_FILES = 256
_MOST_FILES, _LONGEST_PATH = 20_000, 1000  # in its folder: more than any layer needs


def enter(
    function: Callable[[], object],
    *,
    streams: Sequence[int],
    writable: Path | None,
    limits: Limits | None,
    env: Mapping[str, str],
) -> None:
    """In a forked process: take the streams as 0, 1 and 2, and run the function in isolation. Never returns."""
    status = 126
    try:
        _leave_parent(streams, env)
        status = _watcher(function, writable, limits)
    except BaseException as error:
        os.write(2, f"the sandbox could not be set up: {error}\n".encode())
    finally:
        os._exit(status)


def probe() -> dict[str, bool]:
    """Return what this kernel grants: ``processes``, ``network`` and ``files``, tried in a forked process."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        found = _namespaces(network=False)
        os.write(writes, bytes([found["processes"], found["network"]]))
        os._exit(0)
    os.close(writes)
    with open(reads, "rb") as pipe:
        granted = pipe.read()
    os.waitpid(child, 0)
    processes, network = (bool(each) for each in granted) if len(granted) == 2 else (False, False)
    return {"processes": processes, "network": network, "files": landlock.version() > 0}


# In the watcher


def _leave_parent(streams: Sequence[int], env: Mapping[str, str]) -> None:
    """Give up what the fork shares with its parent: open files, the environment, buffers of printed text."""
    import fcntl

    os.setsid()
    for number, stream in enumerate([fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in streams]):
        os.dup2(stream, number)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2:
                os.close(int(name))
    # No object of the parent may be destroyed here: its destructor would close a number that is another file's now.
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115


def _watcher(function: Callable[[], object], writable: Path | None, limits: Limits | None) -> int:
    """Make the namespaces, start process 1, watch the limits, and return the function's status."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # without a namespace, orphans come here and are ended below
    apart = _namespaces(network=limits is None)
    first = os.fork()
    if first == 0:
        _first_process(function, writable, limits, counted=apart["user"])
    _let_go_of_streams()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _kill(first))
    try:
        return _watch(first, writable, limits)
    finally:
        _kill(first)
        _end_orphans()


def _first_process(
    function: Callable[[], object], writable: Path | None, limits: Limits | None, *, counted: bool
) -> None:
    """In the child: be process 1 of the namespace, which starts the function and waits for it. Never returns.

    The function does not run in process 1 itself, because the kernel spares process 1 the signals of its own namespace:
    an abort would not end it.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    process = os.fork()
    if process == 0:
        _run(function, writable, limits, counted=counted)
    _let_go_of_streams()
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == process:
            os._exit(_status(status))


def _run(function: Callable[[], object], writable: Path | None, limits: Limits | None, *, counted: bool) -> None:
    """In the child: give up rights, take on limits, and run the function. Never returns."""
    status = 126
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if limits is not None:
            _set_limits(limits, counted=counted)
        if writable is not None:
            os.chdir(writable)
        if limits is not None and writable is not None:
            landlock.restrict(writable, hidden=limits.hidden, visible=limits.visible)
            _drop_capabilities()
        function()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _set_limits(limits: Limits, *, counted: bool) -> None:
    import resource

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    wanted = {
        # The limit is for what the function adds to the memory of Python and torch.
        resource.RLIMIT_AS: pages * os.sysconf("SC_PAGE_SIZE") + limits.memory,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if counted:
        # In a user namespace the kernel counts its processes and threads alone. This keeps a fork bomb small until the
        # watcher ends it, and leaves numerical libraries their threads.
        wanted[resource.RLIMIT_NPROC] = limits.processes + 2 * (os.cpu_count() or 1) + 16
    for name, value in wanted.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(name, (value, value))


def _let_go_of_streams() -> None:
    """Point 0, 1 and 2 elsewhere, so that their other ends notice when the function's process has ended."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


def _watch(first: int, writable: Path | None, limits: Limits | None) -> int:
    """Wait for process 1, and kill it when its family exceeds a limit."""
    polls = 0
    how = 0 if limits is None else os.WNOHANG  # without limits there is nothing to look at meanwhile
    while True:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, how))[0]:  # orphans come here too
                if found[0] == first:
                    return _status(found[1])
        polls += 1
        if limits is not None and _exceeds(first, limits, writable if polls % _FILES_EVERY == 0 else None):
            _kill(first)
            os.waitpid(first, 0)
            return OVER_LIMIT
        time.sleep(_POLL_SECONDS)


def _exceeds(first: int, limits: Limits, folder: Path | None) -> bool:
    family = [each for each in _descendants(os.getpid()) if each != first]
    if len(family) > limits.processes or (folder is not None and _folder_bytes(folder) > limits.disk_bytes):
        return True
    return _memory(family) > limits.memory


def _status(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _end_orphans() -> None:
    """End the processes that have outlived their parents, until there are none."""
    while family := _descendants(os.getpid()):
        for each in family:
            _kill(each)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _descendants(process: int) -> list[int]:
    found, left = [], [process]
    while left and len(found) < 10_000:
        here = left.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{here}/task"):
                with open(f"/proc/{here}/task/{thread}/children") as file:
                    children = [int(each) for each in file.read().split()]
                found += children
                left += children
    return found


def _memory(processes: Sequence[int]) -> int:
    """Return the bytes that processes have taken since the fork, in memory files and deleted files too.

    What they have from the grader is what this process has from it. (The kernel's exact sum, smaps_rollup, waits for a
    lock that a fork bomb holds for seconds.)
    """
    own, total = _anonymous("self"), 0
    files: dict[tuple[int, int], int] = {}
    for each in processes:
        total += max(0, _anonymous(each) - own)
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{each}/fd"):
                with contextlib.suppress(OSError):
                    found = os.stat(f"/proc/{each}/fd/{descriptor}")
                    if found.st_nlink == 0 and found.st_size:
                        files[found.st_dev, found.st_ino] = 512 * found.st_blocks
    return total + sum(files.values())


def _anonymous(process: int | str) -> int:
    """Return the bytes of a process in memory that belong to no file of a program."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{process}/status") as file:
        return sum(1024 * int(line.split()[1]) for line in file if line.startswith(("RssAnon:", "RssShmem:")))
    return 0


def _folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; very many files, or some that cannot be counted, are endless."""
    total, count, left = 0, 0, [str(folder)]
    while left:
        path = left.pop()
        if len(path) > len(str(folder)) + _LONGEST_PATH:
            return sys.maxsize
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    count += 1
                    if count > _MOST_FILES:
                        return sys.maxsize
                    with contextlib.suppress(OSError):
                        if entry.is_dir(follow_symlinks=False):
                            left.append(entry.path)
                        else:
                            total += 512 * entry.stat(follow_symlinks=False).st_blocks
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
            continue
        except OSError:  # its owner has closed it, so that its size is not known
            return sys.maxsize
    return total


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _namespaces(*, network: bool) -> dict[str, bool]:
    """Move this process's children into namespaces of their own; return which the kernel granted.

    Args:
        network: leave them the network.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    apart = _NEW_PID if network else _NEW_PID | _NEW_NET | _NEW_IPC
    for flags in (_NEW_USER | apart, apart, _NEW_PID):
        if libc.unshare(flags):
            continue
        if flags & _NEW_USER:  # the same user and group within as without
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        return {"processes": True, "network": bool(flags & _NEW_NET), "user": bool(flags & _NEW_USER)}
    return {"processes": False, "network": False, "user": False}


def _drop_capabilities() -> None:
    """Give up the rights that a namespace's creator, or the superuser, has in it: mounting, for one."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)())


def stay_until_ended(watcher: int) -> None:
    """In a process whose only task is to have started the watcher: end as it ends, and take it along."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _let_go_of_streams()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(watcher, signal.SIGTERM))
    os._exit(os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1]))
