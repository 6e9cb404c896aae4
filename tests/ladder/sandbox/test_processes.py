"""A function in a process of its own: nothing of it is left when it ends, and it cannot harm what is around it.

Each test runs on every way to start a process that this system has. ``portable`` is what is left where there is
neither fork nor a process group: Windows, without its job object.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gptladder.ladder.sandbox import OVER_LIMIT, Limits, messages, processes
from gptladder.ladder.sandbox.processes import Process, context_of_judges, ended_by, probe, start

sys.path.insert(0, str(Path(__file__).parent))
from commands import RUN, Program, Result

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="namespaces and Landlock are Linux's")
ABLE = probe()
LIMITS = Limits(memory=500 * 2**20, processes=20, file_bytes=2**20, disk_bytes=8 * 2**20)
ENV = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


@contextlib.contextmanager
def started(code: str, writable: Path, limits: Limits | None = LIMITS, *, copy: bool = True) -> Iterator[Process]:
    process = start(RUN, writable=writable, limits=limits, env=ENV, copy=copy)
    try:
        messages.write(process.requests, Program(code))
        yield process
    finally:
        process.end()
        process.output.close()


def outcome(
    code: str, writable: Path, limits: Limits | None = LIMITS, *, copy: bool = True
) -> tuple[int | None, str, str]:
    """Return the status, the reply and what was printed."""
    with started(code, writable, limits, copy=copy) as process:
        try:
            reply = messages.exchange(process.requests, None, process.replies, Result)(60).text
        except (EOFError, TimeoutError):
            reply = ""
        status = process.wait(30)
        return status, reply, process.output.read().decode()


def running(mark: str) -> list[int]:
    """The processes whose command line holds a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


WAYS = [
    pytest.param(("linux", True), marks=LINUX, id="copy"),
    pytest.param(("linux", False), marks=LINUX, id="new Python"),
    pytest.param(("macos", False), marks=pytest.mark.skipif(os.name != "posix", reason="POSIX's"), id="macos"),
    pytest.param(("portable", False), id="portable"),
]


@pytest.fixture(params=WAYS)
def copy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Choose a way to start processes; the value is the argument of `start`."""
    system, copied = request.param
    monkeypatch.setattr(processes, "SYSTEM", system)
    return copied


def test_a_function_replies_prints_and_ends(copy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "print('printed', flush=True); import os; result = [6 * 7, os.getcwd(), os.environ['MARK']]"
    monkeypatch.setitem(ENV, "MARK", "given")
    # Where the system counts what is imported, PyTorch's build for CUDA takes more than `LIMITS` has.
    status, reply, printed = outcome(code, tmp_path, replace(LIMITS, memory=2**31), copy=copy)
    assert reply == str([42, str(tmp_path.resolve()), "given"])
    assert printed == "printed\n"
    assert status == 0


@LINUX
def test_a_process_that_ends_itself_has_a_status_and_no_reply(tmp_path: Path) -> None:
    status, reply, _ = outcome("import os; os._exit(7)", tmp_path)
    assert (status, reply) == (7, "")


@pytest.mark.parametrize("copy", [("linux", True), ("portable", False)], indirect=True, ids=["copy", "portable"])
def test_a_crash_has_the_name_of_its_signal(copy: bool, tmp_path: Path) -> None:
    status, _, _ = outcome("import os; os.abort()", tmp_path, copy=copy)
    assert status is not None
    assert ended_by(status) == "SIGABRT"
    assert ended_by(3) == ""


@pytest.mark.parametrize("copy", [("linux", True), ("portable", False)], indirect=True, ids=["copy", "portable"])
def test_a_process_that_ignores_signals_is_ended(copy: bool, tmp_path: Path) -> None:
    code = """
import signal, time, sys
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
    with started(code, tmp_path, copy=copy) as process:
        said = b""
        while said != b"deaf\n":  # the pipe gives what is there
            assert b"deaf\n".startswith(said)
            said += process.output.read(5 - len(said))
        began = time.monotonic()
        process.end()
        assert time.monotonic() - began < 20
        assert process.returncode is not None


def test_windows_crashes_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SYSTEM", "windows")
    assert ended_by(0xC0000005) == ended_by(0xC0000005 - 2**32) == "access violation"
    assert ended_by(1) == ""


@pytest.mark.parametrize(
    ("system", "missing"),
    [("windows", ("network", "files")), ("portable", ("processes", "network", "files", "memory"))],
)
def test_what_a_system_lacks_is_reported(
    system: str, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SYSTEM", system)
    assert tuple(name for name, able in probe().items() if not able) == missing
    assert context_of_judges().get_start_method() == "spawn"


DETACHED = """
import os, subprocess, sys, time
mark = {mark!r}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", mark], start_new_session=True)
        time.sleep(600)
    os._exit(0)
print("started", flush=True)
{after}
"""


@LINUX
@pytest.mark.parametrize(
    ("copy", "after"), [(True, "time.sleep(0.5)"), (True, "time.sleep(600)"), (False, "time.sleep(600)")]
)
def test_what_forks_twice_and_calls_setsid_does_not_outlive_it(tmp_path: Path, after: str, copy: bool) -> None:
    mark = f"detached-{os.getpid()}-{len(after)}-{copy}"
    with started(DETACHED.format(mark=mark, after=after), tmp_path, copy=copy) as process:
        assert process.output.read(8) == b"started\n"
        if "600" in after:
            assert wait_until(lambda: bool(running(mark)))
            process.end()
        assert process.wait(30) is not None
    assert wait_until(lambda: not running(mark))


@LINUX
def test_nothing_outlives_a_grader_that_is_killed(tmp_path: Path) -> None:
    mark = f"killed-{os.getpid()}"
    grader = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from commands import RUN, Program
from gptladder.ladder.sandbox import messages
from gptladder.ladder.sandbox.processes import start
process = start(RUN, writable=Path({str(tmp_path)!r}), limits=None, env=os.environ, copy=True)
messages.write(process.requests, Program({DETACHED.format(mark=mark, after="time.sleep(600)")!r}))
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", grader], env=ENV) as process:
        assert wait_until(lambda: bool(running(mark)), 60)
        process.kill()
    assert wait_until(lambda: not running(mark))


@LINUX
@pytest.mark.skipif(not ABLE["files"], reason="this kernel has no Landlock")
def test_it_changes_files_in_its_own_folder_alone(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (other / "results.csv").write_text("kept")
    code = f"""
import os, pathlib
pathlib.Path("mine.txt").write_text("fine")
other = pathlib.Path({str(other)!r})
result = []
for harm in (lambda: (other / "results.csv").write_text("forged"), lambda: (other / "new").write_text("x"),
             lambda: (other / "results.csv").unlink(), lambda: os.truncate(other / "results.csv", 0),
             lambda: os.rename(other / "results.csv", "stolen"), lambda: (other / "folder").mkdir(),
             lambda: os.symlink("/", other / "link"), lambda: os.link(other / "results.csv", "link")):
    try:
        harm()
        result.append("done")
    except OSError:
        result.append("refused")
"""
    assert outcome(code, own)[1] == str(["refused"] * 8)
    assert (own / "mine.txt").read_text() == "fine"
    assert [path.name for path in other.iterdir()] == ["results.csv"]
    assert (other / "results.csv").read_text() == "kept"


@LINUX
@pytest.mark.skipif(not ABLE["files"], reason="this kernel has no Landlock")
def test_it_reads_no_hidden_folder(tmp_path: Path) -> None:
    own, course = tmp_path / "own", tmp_path / "course"
    for folder in (own, course / "ann", course / "bea"):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    (tmp_path / "beside").write_text("beside")
    (tmp_path / "link").symlink_to(course)
    limits = Limits(hidden=(str(course),), visible=(str(course / "ann"),))
    code = f"""
import json, os, pathlib
result = []
folder = pathlib.Path({str(tmp_path)!r})
for name in ("own/file", "course/ann/file", "course/bea/file", "link/bea/file", "course", "beside", "/proc/1/environ"):
    try:
        result.append((folder / name).read_text() if (folder / name).is_file() else str(os.listdir(folder / name)))
    except OSError:
        result.append("refused")
import wave  # the standard library can be read
result = json.dumps(result)
"""
    assert outcome(code, own, limits)[1] == '["own", "ann", "refused", "refused", "refused", "beside", "refused"]'


@LINUX
@pytest.mark.skipif(not ABLE["network"], reason="this system grants no network namespace")
def test_it_reaches_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5); result = 'reached'"
        status, reply, printed = outcome(code, tmp_path)
    assert (status, reply) == (1, "")
    assert "Error" in printed


@LINUX
def test_it_has_no_descriptor_and_no_variable_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "x")
    with (tmp_path / "results").open("w") as results:
        code = f"""
import os
try:
    os.write({results.fileno()}, b"forged")
    result = "written"
except OSError:
    result = "refused"
result += str("SECRET_OF_THE_PARENT" in os.environ)
"""
        assert outcome(code, tmp_path)[1] in ("refusedFalse", "writtenFalse")  # the number may be one of its own
    assert (tmp_path / "results").read_text() == ""


@LINUX
@pytest.mark.parametrize(
    "code",
    [
        "import mmap; kept = mmap.mmap(-1, 4 << 30); kept.write(bytes(1 << 30)); result = 'had it'",
        "kept = bytearray(1 << 30); result = 'had it'",
        "import torch; kept = torch.ones(1 << 28); result = 'had it'",
        "open('big', 'wb').write(bytes(4 << 20)); result = 'had it'",
    ],
    ids=["shared memory", "memory", "a tensor", "a file"],
)
def test_what_takes_too_much_gets_an_error(code: str, tmp_path: Path) -> None:
    status, reply, _ = outcome(code, tmp_path)
    assert status != 0
    assert reply == ""


@LINUX
@pytest.mark.parametrize(
    "code",
    [
        "[os.fork() or time.sleep(600) for _ in range(500)]",
        "while True:\n    try: os.fork() or time.sleep(600)\n    except OSError: time.sleep(0.1)",
        "for _ in range(5):\n    if not os.fork(): kept = bytearray(os.urandom(1 << 20)) * 200; time.sleep(600)",
        "[open(str(i), 'wb').write(bytes(1 << 20)) for i in range(100)]",
        "[os.pwrite(os.memfd_create('x'), bytes(15 << 20), 0) for _ in range(60)]",
        "for _ in range(3000): os.mkdir('deep'); os.chdir('deep')",
    ],
    ids=["many processes", "a fork bomb", "memory of several", "many files", "files in memory", "deep folders"],
)
def test_what_exceeds_a_limit_is_ended(code: str, tmp_path: Path) -> None:
    limits = LIMITS if "memfd" not in code else Limits(memory=500 * 2**20)
    folder = tmp_path / "own"
    folder.mkdir()
    # Memory counts from what the grader has; this process has much that a copy of it would give back first.
    copy = "urandom" not in code
    status, _, _ = outcome(f"import os, time\n{code}\ntime.sleep(600)", folder, limits, copy=copy)
    assert status == OVER_LIMIT
    processes.remove(folder)
    assert not folder.exists()
