"""What the benchmarks share: the machine, its bounds, who else is at work on it, and tables."""

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

# Processors' worth of other work from which figures are not worth comparing with those of other days.
QUIET = 0.1


@dataclass
class Load:
    """How many processors others kept busy."""

    processors: float = 0.0


@contextmanager
def foreign_load() -> Iterator[Load]:
    """Find out what others do while the block runs. Needs Linux; elsewhere it finds nothing."""
    load = Load()
    began, all_before, own_before = time.perf_counter(), _busy(), time.process_time()
    yield load
    seconds = time.perf_counter() - began
    if seconds > 0.2:  # the clock of /proc/stat is too coarse for less
        load.processors = max(0.0, (_busy() - all_before - (time.process_time() - own_before)) / seconds)


def busy_elsewhere(seconds: float = 1.0) -> float:
    """How many processors others keep busy while this process sleeps."""
    with foreign_load() as load:
        time.sleep(seconds)
    return load.processors


def wait_for_quiet(patience: float = 20.0) -> None:
    """Wait until others have no work, but no longer than ``patience`` seconds."""
    ends = time.monotonic() + patience
    while busy_elsewhere(0.5) > QUIET and time.monotonic() < ends:
        pass


def _busy() -> float:
    """Seconds that processors have been at work since the machine's start, all together."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    fields = [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
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
    """What is told of figures that were measured round by round."""
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def operations_per_token(config: GPT2Config, seq: int) -> float:
    """Floating-point operations of the matrix products of a training step, of one token among ``seq``.

    Two for each weight in each of three passes (the table of positions is not multiplied with), and the same for
    attention's scores and values, half of which the mask leaves out.
    """
    multiplied = GPT2(config, device="meta").num_parameters() - config.n_ctx * config.d_model
    return 6 * multiplied + 6 * config.n_layers * seq * config.n_heads * config.d_head


def matrix_speed(dtype: torch.dtype, size: int = 2048, tries: int = 6) -> float:
    """Floating-point operations a second of a matrix product: the quickest of some tries, by oneDNN or MKL."""
    a, b = torch.randn(2, size, size).to(dtype)

    def by_onednn() -> None:
        torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    kernels = [lambda: a @ b, *([by_onednn] if torch.backends.mkldnn.is_available() else [])]
    return 2 * size**3 / min(_seconds(kernel) for kernel in kernels for _ in range(tries))


def bandwidth(megabytes: int = 1024, tries: int = 6) -> float:
    """Bytes a second that can be read from memory: the quickest of some passes over more than the caches hold."""
    numbers = torch.ones(megabytes * 2**20 // 4)
    return numbers.nbytes / min(_seconds(lambda: torch.dot(numbers, numbers)) for _ in range(tries))


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def print_table(title: str, columns: list[str], rows: list[list[str]], *, foreign: float) -> None:
    """A table, and below it a warning where the machine was not quiet."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    # Rich cuts columns to fit the width, which is 80 in a pipe; figures must stay whole.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)
    if foreign > QUIET:
        console.print(
            f"NOT A QUIET MACHINE: other work kept up to {foreign:.2f} processors busy; "
            "take the ratios, not the speeds\n"
        )


def write_result(path: Path, result: dict[str, Any]) -> None:
    """The figures as JSON, floats to four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(result), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
