"""Functions that the benchmarks share: the machine, its limits, the load by other processes, and tables."""

import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from gptladder.assembly import GPT2, GPT2Config

# If other processes use more processors than this, the figures cannot be compared with those of other days.
QUIET = 0.1


@dataclass
class Load:
    """The number of processors that other processes used."""

    processors: float = 0.0


@contextmanager
def foreign_load() -> Iterator[Load]:
    """Measure the load by other processes while the block runs. Only Linux reports it; on other systems it is 0."""
    load = Load()
    began, all_before, own_before = time.perf_counter(), _busy(), time.process_time()
    yield load
    seconds = time.perf_counter() - began
    if seconds > 0.2:  # the clock of /proc/stat is too coarse for less
        load.processors = max(0.0, (_busy() - all_before - (time.process_time() - own_before)) / seconds)


def busy_elsewhere(seconds: float = 1.0) -> float:
    """Return the number of processors that other processes use while this process sleeps."""
    with foreign_load() as load:
        time.sleep(seconds)
    return load.processors


def wait_for_quiet(patience: float = 20.0) -> None:
    """Wait until other processes are idle, but at most ``patience`` seconds."""
    ends = time.monotonic() + patience
    while busy_elsewhere(0.5) > QUIET and time.monotonic() < ends:
        pass


def _busy() -> float:
    """Return the seconds that all processors together have worked since the machine's start."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    fields = [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Return the median, the smallest and the largest of the figures of all rounds."""
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def operations_per_token(config: GPT2Config, seq: int) -> float:
    """Return the floating-point operations of the matrix products of a training step, per token.

    There are two for each weight in each of three passes (except for the position embedding, which is not multiplied),
    and as many for attention's scores and values, half of which are masked.
    """
    multiplied = GPT2(config, device="meta").num_parameters() - config.n_ctx * config.d_model
    return 6 * multiplied + 6 * config.n_layers * seq * config.n_heads * config.d_head


def matrix_speed(dtype: torch.dtype, size: int = 2048, tries: int = 6) -> float:
    """Return the floating-point operations per second of a matrix product: the fastest of several, by oneDNN or MKL."""
    a, b = torch.randn(2, size, size).to(dtype)

    def by_onednn() -> None:
        torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    kernels = [lambda: a @ b, *([by_onednn] if torch.backends.mkldnn.is_available() else [])]
    return 2 * size**3 / min(_seconds(kernel) for kernel in kernels for _ in range(tries))


def bandwidth(megabytes: int = 1024, tries: int = 6) -> float:
    """Return the bytes per second read from memory: the fastest of several passes over more than the caches hold."""
    numbers = torch.ones(megabytes * 2**20 // 4)
    return numbers.nbytes / min(_seconds(lambda: torch.dot(numbers, numbers)) for _ in range(tries))


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def print_table(title: str, columns: list[str], rows: list[list[str]], *, foreign: float) -> None:
    """Print a table, and a warning if other processes were busy."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    # Rich shortens columns to fit the width, which is 80 in a pipe; figures must not be shortened.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)
    if foreign > QUIET:
        console.print(
            f"NOT A QUIET MACHINE: other processes used up to {foreign:.2f} processors; "
            "use the ratios, not the speeds\n"
        )


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write the figures as JSON, with floats rounded to four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(result), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
