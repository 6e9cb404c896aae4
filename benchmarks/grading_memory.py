"""Sample the memory of each child of a process, with everything below it, until this script is terminated.

    python benchmarks/grading_memory.py PID FILE.json

A page that several processes share counts for each in equal parts, so that the sum is what a container counts.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path


def children(process: int) -> list[int]:
    """Return the children of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return [each for each in found if each != os.getpid()]


def shared_memory(process: int) -> int:
    """Return the bytes in memory of a process, each shared page divided among those that share it."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def memory_below(process: int) -> int:
    """Return the bytes in memory of a process and all below it."""
    return shared_memory(process) + sum(map(memory_below, children(process)))


def main() -> None:
    """Sample ten times a second, and write the largest sizes at the end."""
    process, file = int(sys.argv[1]), Path(sys.argv[2])
    peaks: dict[int, int] = {}
    whole = 0

    def write(*_: object) -> None:
        file.write_text(json.dumps({"whole": whole, "peaks": peaks}))
        sys.exit()

    signal.signal(signal.SIGTERM, write)
    while True:
        sizes = {child: memory_below(child) for child in children(process)}
        for child, size in sizes.items():
            peaks[child] = max(peaks.get(child, 0), size)
        whole = max(whole, shared_memory(process) + sum(sizes.values()))
        time.sleep(0.1)


if __name__ == "__main__":
    main()
