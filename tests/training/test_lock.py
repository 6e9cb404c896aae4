"""The lock of a run: one process at a time, by whatever name of the folder, and never left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gptladder.training.lock import RunFolderError, RunLock

HOLD = "import sys, time; from pathlib import Path; from gptladder.training.lock import RunLock\n"
HOLD += "with RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_second_holder_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "runs" / "x"
    with RunLock(folder):
        with (
            pytest.raises(RunFolderError, match=rf"another process \({os.getpid()}\) is training in .*runs/x"),
            RunLock(folder.parent / ".." / "runs" / "x"),
        ):
            pass
        with RunLock(folder.parent / "y"):
            pass
    with RunLock(folder):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links and signals of POSIX")
def test_a_link_to_the_folder_is_the_same_run_and_a_killed_holder_frees_it(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "x")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match=f"another process \\({process.pid}\\)"), RunLock(tmp_path / "link"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with RunLock(tmp_path / "link"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with RunLock(tmp_path / "x"):
        child = os.fork()
        if not child:
            os.read(reads, 1)  # outlives the lock
            os._exit(0)
    with RunLock(tmp_path / "x"):
        pass
    os.write(writes, b"x")
    os.waitpid(child, 0)
    os.close(reads)
    os.close(writes)
