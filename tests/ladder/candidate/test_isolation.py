"""A command in isolation: nothing of it is left when it ends, and it cannot harm what is around it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptladder.ladder.candidate.isolation import OVER_LIMIT, Limits, end, isolated, probe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces and Landlock are Linux's")

ABLE = probe()
LIMITS = Limits(memory=300 * 2**20, processes=20, file_bytes=2**20)


def start(code: str, writable: Path, limits: Limits = LIMITS) -> "subprocess.Popen[bytes]":
    return isolated(
        [sys.executable, "-c", code],
        writable=writable,
        limits=limits,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def output(code: str, writable: Path, limits: Limits = LIMITS) -> tuple[int, str]:
    process = start(code, writable, limits)
    try:
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed.decode()
    finally:
        end(process)


def running(mark: str) -> list[int]:
    """The processes whose command line holds a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


def test_a_command_gives_its_output_and_status(tmp_path: Path) -> None:
    assert output("print(6 * 7); raise SystemExit(3)", tmp_path) == (3, "42\n")


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


@pytest.mark.parametrize("after", ["time.sleep(0.5)", "time.sleep(600)"], ids=["ends", "is ended"])
def test_what_forks_twice_and_calls_setsid_does_not_outlive_it(tmp_path: Path, after: str) -> None:
    mark = f"detached-{os.getpid()}-{len(after)}"
    process = start(DETACHED.format(mark=mark, after=after), tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    if "600" in after:
        assert wait_until(lambda: bool(running(mark)))
        end(process)
    process.wait(timeout=30)
    end(process)
    process.stdout.close()
    assert wait_until(lambda: not running(mark))


def test_what_is_killed_takes_all_along(tmp_path: Path) -> None:
    mark = f"killed-{os.getpid()}"
    process = start(DETACHED.format(mark=mark, after="time.sleep(600)"), tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    assert wait_until(lambda: bool(running(mark)))
    process.kill()  # the launcher itself, as when the grader is killed
    process.wait()
    process.stdout.close()
    assert wait_until(lambda: not running(mark))


@pytest.mark.skipif("files" not in ABLE.available, reason="this kernel has no Landlock")
def test_it_writes_to_its_own_folder_alone(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (other / "results.csv").write_text("kept")
    code = f"""
import os, pathlib
pathlib.Path("mine.txt").write_text("fine")
other = pathlib.Path({str(other)!r})
for harm in (lambda: (other / "results.csv").write_text("forged"), lambda: (other / "new").write_text("x"),
             lambda: (other / "results.csv").unlink(), lambda: os.truncate(other / "results.csv", 0),
             lambda: os.rename(other / "results.csv", "stolen"), lambda: (other / "folder").mkdir(),
             lambda: os.symlink("/", other / "link")):
    try:
        harm()
        print("done")
    except OSError:
        print("refused")
"""
    assert output(code, own) == (0, "refused\n" * 7)
    assert (own / "mine.txt").read_text() == "fine"
    assert [path.name for path in other.iterdir()] == ["results.csv"]
    assert (other / "results.csv").read_text() == "kept"


@pytest.mark.skipif("network" not in ABLE.available, reason="this system grants no network namespace")
def test_it_reaches_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)"
        status, printed = output(code, tmp_path)
    assert status == 1
    assert "Error" in printed


def test_memory_processes_and_files_have_limits(tmp_path: Path) -> None:
    status, printed = output("x = bytearray(400 << 20); print('had it')", tmp_path)
    assert status != 0
    assert "had it" not in printed
    bomb = "import os, time\nwhile True:\n    os.fork() or time.sleep(600)"
    status, _ = output("import os, time\n[os.fork() or time.sleep(600) for _ in range(500)]\ntime.sleep(600)", tmp_path)
    assert status == OVER_LIMIT
    status, _ = output(bomb, tmp_path)
    assert status == OVER_LIMIT
    status, printed = output("open('big', 'wb').write(bytes(4 << 20)); print('had it')", tmp_path)
    assert status != 0
    assert "had it" not in printed


def test_memory_of_several_processes_counts_together(tmp_path: Path) -> None:
    code = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1 << 20)) * 100
        time.sleep(600)
time.sleep(600)
"""
    assert output(code, tmp_path)[0] == OVER_LIMIT


def test_signals_that_end_the_command_are_reported(tmp_path: Path) -> None:
    assert output("import os; os.kill(os.getpid(), 9)", tmp_path)[0] == 128 + 9
    assert output("import os; os.abort()", tmp_path)[0] == 128 + 6
