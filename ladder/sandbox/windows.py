"""Windows: a job object, which holds a process with all that it starts to limits, and ends them together."""

import ctypes
import subprocess
import sys
from typing import Any

from . import Limits

CRASHES = {0xC0000005: "access violation", 0xC00000FD: "stack overflow", 0xC0000374: "heap corruption"}
"""What the status of a process that Windows ended stands for."""

_EXTENDED_LIMITS = 9  # JobObjectExtendedLimitInformation
_ACTIVE_PROCESSES, _JOB_MEMORY, _KILL_ON_CLOSE = 0x8, 0x200, 0x2000


class BasicLimits(ctypes.Structure):
    """``JOBOBJECT_BASIC_LIMIT_INFORMATION``."""

    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class ExtendedLimits(ctypes.Structure):
    """``JOBOBJECT_EXTENDED_LIMIT_INFORMATION``."""

    _fields_ = (
        ("BasicLimitInformation", BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


def extended_limits(limits: Limits | None) -> ExtendedLimits:
    """Return what Windows is asked for: the limits, and the end of all processes when the job's handle is closed."""
    information = ExtendedLimits()
    information.BasicLimitInformation.LimitFlags = _KILL_ON_CLOSE
    if limits is not None:
        information.BasicLimitInformation.LimitFlags |= _ACTIVE_PROCESSES | _JOB_MEMORY
        information.BasicLimitInformation.ActiveProcessLimit = limits.processes
        information.JobMemoryLimit = limits.memory
    return information


class Job:
    """A job object with one process and what it will start.

    Its handle belongs to this process, so Windows ends the job when this process ends, however it does.

    Raises:
        OSError: Windows refuses.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", limits: Limits | None) -> None:
        self._pid = process.pid
        self._kernel: Any = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009 (Windows only)
        handle = ctypes.c_void_p
        for name, result, arguments in (
            ("CreateJobObjectW", handle, [handle, ctypes.c_wchar_p]),
            ("SetInformationJobObject", ctypes.c_int, [handle, ctypes.c_int, handle, ctypes.c_uint32]),
            ("AssignProcessToJobObject", ctypes.c_int, [handle, handle]),
            ("TerminateJobObject", ctypes.c_int, [handle, ctypes.c_uint32]),
            ("CloseHandle", ctypes.c_int, [handle]),
        ):
            function = getattr(self._kernel, name)
            function.restype, function.argtypes = result, arguments
        self._job = self._kernel.CreateJobObjectW(None, None)
        information = extended_limits(limits)
        place = ctypes.cast(ctypes.byref(information), handle)
        size = ctypes.sizeof(information)
        own: Any = process
        if not (
            self._job
            and self._kernel.SetInformationJobObject(self._job, _EXTENDED_LIMITS, place, size)
            and self._kernel.AssignProcessToJobObject(self._job, int(own._handle))
        ):
            process.kill()
            code = getattr(ctypes, "get_last_error")()  # noqa: B009 (Windows only)
            raise OSError(f"Windows grants no job object (error {code}), so nothing would limit a submission")

    def end(self) -> None:
        """End every process of the job; what has left it ends by ``taskkill``, which follows the tree of parents."""
        if not self._job:
            return
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(self._pid)], capture_output=True, check=False)
        self._kernel.TerminateJobObject(self._job, 1)
        self._kernel.CloseHandle(self._job)
        self._job = None


assert sys.maxsize < 2**32 or ctypes.sizeof(ExtendedLimits) == 144
