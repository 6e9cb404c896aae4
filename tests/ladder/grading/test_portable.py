"""`climb` and `grade` without fork, process groups, ``resource`` and ``/proc``, as on Windows, and without any extra.

No Windows machine was available: this is Linux that has lost what Windows lacks, in every Python process of the test.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Python reads this module at every start. The standard library itself keeps what it uses on this system.
WITHOUT_POSIX = """
import asyncio, ctypes.util, importlib.abc, multiprocessing.popen_spawn_posix, multiprocessing.resource_tracker
import multiprocessing.spawn, os, selectors, signal, subprocess, sys, tempfile, types

multi = multiprocessing
for module in (ctypes.util, subprocess, multi.popen_fork, multi.popen_spawn_posix, multi.util):
    for name in ("os", "signal"):
        if hasattr(module, name):
            setattr(module, name, types.SimpleNamespace(**vars(globals()[name])))

LACKING = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "curses"}
EXTRAS = {"transformer_lens", "transformers", "tensorflow", "matplotlib", "pandas"}


class Refuses(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in LACKING | EXTRAS:
            raise ModuleNotFoundError(f"this system has no {name}")


for name in LACKING:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Refuses())
for module, names in (
    (signal, "SIGKILL SIGHUP SIGSTOP SIGALRM SIGCHLD SIGQUIT alarm setitimer pthread_kill sigwait"),
    (os, "fork forkpty killpg setsid getpgid getuid geteuid getgid getegid WNOHANG WIFSIGNALED WTERMSIG WEXITSTATUS "
         "waitid waitstatus_to_exitcode O_NOFOLLOW O_PATH O_DIRECTORY sysconf uname pipe2"),
):
    for each in names.split():
        if hasattr(module, each):
            delattr(module, each)
sys.platform = "unknown"
"""

RIGHT = """
import torch, torch.nn as nn

class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model)), eps

    def forward(self, x):
        {within}
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it takes Linux apart")
def test_climb_and_grade_run_without_posix(tmp_path: Path) -> None:
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "sitecustomize.py").write_text(WITHOUT_POSIX)
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "hangs.py").write_text(RIGHT.format(within="while True: pass"))
    (tmp_path / "right.py").write_text(RIGHT.format(within="pass"))
    path = f"{tmp_path / 'lacking'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "gptladder", *arguments]
        return subprocess.run(program, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=240, check=False)

    lost = "import os, sys; print(hasattr(os, 'fork'), sys.platform); import resource"
    proof = subprocess.run([sys.executable, "-c", lost], capture_output=True, text=True, env=env, check=False)
    assert proof.stdout == "False unknown\n"
    assert "this system has no resource" in proof.stderr

    climbed = run("climb", "right.py", "--json", "--cases", "2")
    assert climbed.returncode == 0, climbed.stderr
    assert json.loads(climbed.stdout)["rungs"][0]["status"] == "passed"

    graded = run("grade", "class", "--rungs", "layer-norm", "--cases", "2", "--time-limit", "2")
    assert graded.returncode == 0, graded.stderr
    missing = "Not available on this system: isolation of processes, network, files, memory"
    assert missing in " ".join(graded.stderr.split())
    (row,) = csv.DictReader((tmp_path / "results" / "results.csv").read_text("utf-8-sig").splitlines())
    assert (row["status"], row["line"], row["score"]) == ("hung", "hangs.py:10", "0.0")
    assert row["limit"] == "2 s a case; processes and memory not limited on this system"
