"""Landlock: which files a process may read and change (Linux 5.13 and later).

https://docs.kernel.org/userspace-api/landlock.html. The numbers of its system calls are the same on every architecture.
"""

import contextlib
import ctypes
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_AND_MAKE, _REFER, _TRUNCATE = sum(1 << bit for bit in range(4, 13)), 1 << 13, 1 << 14
_TCP, _SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals
_READ = _READ_FILE | _READ_DIR


def version() -> int:
    """Return the version of the kernel's Landlock; 0 if it has none."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, 1))


def restrict(writable: Path, *, hidden: Sequence[str] = (), visible: Sequence[str] = ()) -> None:
    """Refuse this process and its children every change of files outside a folder, and the reading of hidden ones.

    From version 4 on, TCP is refused too, and from version 6 on signals to processes outside.

    Args:
        writable: the one folder with files that they may change.
        hidden: folders that they may not read; ``/proc`` is hidden in any case, because it shows other processes.
        visible: files and folders below the hidden ones that they may read.
    """
    found = version()
    if not found:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    changes = _WRITE_FILE | _REMOVE_AND_MAKE | (_REFER if found >= 2 else 0) | (_TRUNCATE if found >= 3 else 0)
    handled = [changes | _READ, _TCP if found >= 4 else 0, _SCOPES if found >= 6 else 0]
    used = 8 * (1 if found < 4 else 2 if found < 6 else 3)
    attributes = b"".join(each.to_bytes(8, "little") for each in handled)[:used]
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.create_string_buffer(attributes, used), used, 0)
    if ruleset < 0:
        return

    def allow(path: str, rights: int) -> None:
        with contextlib.suppress(OSError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
            rule = ctypes.create_string_buffer(rights.to_bytes(8, "little") + place.to_bytes(4, "little"), 12)
            libc.syscall(_ADD_RULE, ruleset, 1, rule, 0)
            os.close(place)

    for path in readable(["/proc", *hidden], [*visible, *_python()]):
        allow(path, _READ)
    allow(os.path.realpath(writable), changes | _READ)
    allow("/dev/null", _READ_FILE | _WRITE_FILE | (_TRUNCATE if found >= 3 else 0))
    libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def readable(hidden: Iterable[str], visible: Iterable[str]) -> list[str]:
    """Return the paths that together are everything but the hidden folders, plus what is visible below those.

    Landlock can only allow, and allows whole trees. So the way from the root to each hidden folder is walked, and what
    stands beside it is allowed. Links are left out: what they lead to is allowed where it stands, or hidden.
    """
    closed = {os.path.realpath(each) for each in hidden}
    above = {parent for each in closed for parent in map(str, Path(each).parents)}
    allowed = []
    for folder in sorted(above):
        if any(_within(folder, each) for each in closed):
            continue
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            allowed += [
                entry.path
                for entry in entries
                if not entry.is_symlink() and entry.path not in closed and entry.path not in above
            ]
    for each in map(os.path.realpath, visible):
        if each not in above and each not in closed and any(_within(each, folder) for folder in closed):
            allowed.append(each)
    return allowed


def _python() -> list[str]:
    """Return the folders that Python itself reads from, which may lie below a hidden one."""
    package = Path(__file__).resolve().parents[2]
    libraries = [each for each in sys.path if os.path.basename(each) in ("site-packages", "dist-packages")]
    return [sys.prefix, sys.base_prefix, sys.exec_prefix, str(package), *libraries]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
