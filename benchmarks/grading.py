"""Grade a class of 200 submissions, hostile ones among them, and measure what each costs.

    python benchmarks/grading.py [--only RUNG] [--size N] [--folder FOLDER]

The class (grading_class.py) holds right layers, every mistake of the catalogue, layers that hang, exit, flood the
output, fork, eat memory, call the network, fill the disk, ignore signals, forge results or read other submissions, and
files that are damaged, empty or oddly named. Each is graded by `gptladder grade` on its own rung. The script checks
that all are reported, that each has a status that its kind may have, that right ones get full marks, that mistakes of
the catalogue get their names, and that no file of the class has changed. It needs Linux.

With --folder, a run that was stopped goes on where it was.
"""

import argparse
import contextlib
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from grading_class import SIZE, checked, written
from grading_memory import memory_below
from measure import busy_elsewhere, machine, wait_for_quiet, write_result

from gptladder.ladder.grading import command
from gptladder.ladder.grading.judge import judge

TIME_LIMIT = 6.0
RESULT = Path(__file__).parent / "results" / "cpu" / "grading.json"


@contextlib.contextmanager
def sampled(file: Path) -> Iterator[None]:
    """Sample the memory of this process's children in another process: a thread here would be in the forks' way."""
    script = Path(__file__).with_name("grading_memory.py")
    with subprocess.Popen([sys.executable, str(script), str(os.getpid()), str(file)]) as sampler:
        try:
            yield
        finally:
            sampler.terminate()


def grade(rung: str, folder: Path, out: Path, costs: Path, peaks: Path) -> dict[str, Any]:
    """Grade one folder as the command line does; each judge notes what it cost."""

    def measured(submission: Any, rung: str, settings: Any) -> Any:
        outcome = judge(submission, rung, settings)
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        seconds = sum(each.ru_utime + each.ru_stime for each in usage)
        line = json.dumps({"student": submission.student, "rung": rung, "pid": os.getpid(), "cpu": seconds})
        with costs.open("a") as file:
            file.write(line + "\n")
        return outcome

    options = ["--rungs", f"{rung}=10", "--out", str(out), "--time-limit", str(TIME_LIMIT)]
    with mock.patch.object(command, "judge", measured), sampled(peaks):
        command.grade([str(folder), *options, "--gradescope", "--classroom"])
    return json.loads(peaks.read_text())


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of change of every file, to see whether one was touched."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def alone(folder: Path) -> dict[str, float]:
    """Return what one submission costs with a program that starts anew, as on Gradescope."""
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        arguments = [str(folder), "--single", "--rungs", "attention", "--gradescope", "--out", out]
        process = subprocess.Popen(
            [sys.executable, "-m", "gptladder", "grade", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        peak = 0
        ended, _, usage = os.wait4(process.pid, os.WNOHANG)
        while not ended:
            peak = max(peak, memory_below(process.pid))
            time.sleep(0.05)
            ended, _, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - began
        process.returncode = 0
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "memory_mb": peak / 2**20}


def summary(values: list[float]) -> dict[str, float]:
    """Return the median and the worst of some figures."""
    return {"median": statistics.median(values), "worst": max(values)} if values else {}


def main() -> int:
    """Write the class, grade it, check the results, and print and keep what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="grade this rung alone")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--folder", type=Path, help="keep the class and the results here, to go on later")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = (arguments.folder or Path(temporary)).resolve()
        root, out, costs = home / "class", home / "results", home / "costs.jsonl"
        everyone = written(root, out, arguments.size)
        figures: dict[str, Any] = {"submissions": len(everyone), "machine": machine()}
        faults, rows, peaks, whole = [], [], {}, 0
        wait_for_quiet()
        figures["other_work"] = busy_elsewhere()
        began = time.perf_counter()
        for rung in dict.fromkeys(case.rung for case in everyone):
            if arguments.only not in (None, rung):
                continue
            before = snapshot(root)
            memory = grade(rung, root / rung, out / rung, costs, home / f"memory-{rung}.json")
            if snapshot(root) != before:
                faults.append(f"{rung}: a file of the class has changed")
            whole = max(whole, memory["whole"])
            peaks |= {int(pid): size for pid, size in memory["peaks"].items()}
            with (out / rung / "results.csv").open(encoding="utf-8-sig", newline="") as file:
                rows_here = list(csv.DictReader(file))
            rows += rows_here
            faults += checked([case for case in everyone if case.rung == rung], rows_here)
        figures["seconds"] = time.perf_counter() - began
        noted = {}
        for line in costs.read_text().splitlines():
            each = json.loads(line)
            noted[each["student"], each["rung"]] = each
        stopped = ("hung", "over a limit", "crashed")
        kinds = {"all": rows, "not stopped": [row for row in rows if row["status"] not in stopped]}
        for kind, chosen in kinds.items():
            found = [noted[key] for row in chosen if (key := (row["student"].removeprefix("'"), row["rung"])) in noted]
            figures[kind] = {
                "number": len(chosen),
                "seconds": summary([float(row["seconds"]) for row in chosen]),
                "cpu_seconds": summary([each["cpu"] for each in found]),
                "memory_mb": summary([peaks[each["pid"]] / 2**20 for each in found if each["pid"] in peaks]),
            }
        lone = root / "attention" / "other_right.py"
        (home / "submission").mkdir(exist_ok=True)
        (home / "submission" / "attention.py").write_text(lone.read_text())
        figures["one submission, started anew"] = alone(home / "submission")
        figures["whole_memory_mb"] = whole / 2**20
        figures["statuses"] = dict(Counter(row["status"] for row in rows))
        figures["faults"] = faults
    print(json.dumps({name: value for name, value in figures.items() if name != "machine"}, indent=1))
    if arguments.json or (arguments.only is None and arguments.size == SIZE):
        write_result(arguments.json or RESULT, figures)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
