"""The job object of Windows, as far as it can be tested elsewhere: the structure handed over, the order of calls."""

import ctypes
import subprocess
from typing import Any

import pytest

from gptladder.ladder.sandbox import Limits, windows
from gptladder.ladder.sandbox.windows import ExtendedLimits, Job, extended_limits


def test_the_structure_is_laid_out_as_windows_documents_it() -> None:
    # From winnt.h, for 64 bits.
    assert ctypes.sizeof(ExtendedLimits) == 144
    assert ExtendedLimits.JobMemoryLimit.offset == 120
    assert windows.BasicLimits.LimitFlags.offset == 16
    assert windows.BasicLimits.ActiveProcessLimit.offset == 40
    found = extended_limits(Limits(memory=7 << 30, processes=5))
    assert found.JobMemoryLimit == 7 << 30
    assert found.BasicLimitInformation.ActiveProcessLimit == 5
    assert found.BasicLimitInformation.LimitFlags == 0x2000 | 0x200 | 0x8
    assert extended_limits(None).BasicLimitInformation.LimitFlags == 0x2000


class Kernel:
    """Stands in for kernel32; notes the calls, and refuses one of them if it is asked to."""

    def __init__(self, refuses: str = "") -> None:
        self.calls: list[str] = []
        self.refuses = refuses

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return 0 if name == self.refuses else 1

        setattr(self, name, call)
        return call


class Started:
    """Stands in for a process."""

    pid, _handle, killed = 41, 42, False

    def kill(self) -> None:
        self.killed = True


def test_a_job_holds_the_process_and_ends_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, commands = Kernel(), []
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    started: Any = Started()
    job = Job(started, Limits())
    assert kernel.calls == ["CreateJobObjectW", "SetInformationJobObject", "AssignProcessToJobObject"]
    job.end()
    job.end()
    assert kernel.calls[3:] == ["TerminateJobObject", "CloseHandle"]
    assert commands == [["taskkill", "/F", "/T", "/PID", "41"]]


@pytest.mark.parametrize("refuses", ["CreateJobObjectW", "SetInformationJobObject", "AssignProcessToJobObject"])
def test_without_a_job_nothing_of_the_submission_runs(refuses: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: Kernel(refuses), raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: 5, raising=False)
    started: Any = Started()
    with pytest.raises(OSError, match="no job object"):
        Job(started, Limits())
    assert started.killed
