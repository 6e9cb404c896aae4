"""What the benchmarks share."""

import os
import time
from pathlib import Path


def busy_elsewhere(seconds: float = 2.0) -> float:
    """How many processors others keep busy, while this process sleeps. Needs Linux."""

    def used() -> float:
        fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds
