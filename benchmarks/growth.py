"""Measure how time and memory grow as context, batch, width and depth double, and compare with the arithmetic.

    python benchmarks/growth.py

A training step (forward, backward, AdamW) and a decoded token are timed at each size, each in a separate process. The
exponent is the slope of a line through the logarithms: 1 means that twice the size takes twice the time. The table also
has the exponent of the number of operations, or, for decoding, of the bytes that must be read.
"""

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measure import busy_elsewhere, machine, operations_per_token, print_table, wait_for_quiet, write_result

from gptladder import GPT2, GPT2Config
from gptladder.training.loss import NextTokenLoss
from gptladder.training.optim import adamw
from gptladder.training.precision import keep_freed_memory


@dataclass(frozen=True)
class Sizes:
    """A model and a batch."""

    d_model: int = 256
    n_layers: int = 4
    batch: int = 4
    context: int = 256

    def model(self) -> GPT2:
        """Return a new model, with a vocabulary so small that the blocks take most of the time."""
        return GPT2(
            GPT2Config(
                d_model=self.d_model,
                n_layers=self.n_layers,
                n_heads=self.d_model // 32,
                d_vocab=2048,
                n_ctx=self.context,
            )
        )


AXES: dict[str, list[int]] = {
    "context": [128, 256, 512, 1024, 2048],
    "batch": [2, 4, 8, 16, 32],
    "d_model": [128, 256, 512, 1024],
    "n_layers": [2, 4, 8, 16],
}


def training_step(sizes: Sizes) -> tuple[float, float]:
    """Return the seconds and the number of operations of a training step."""
    keep_freed_memory()
    model = sizes.model()
    objective, optimizer = NextTokenLoss(model), adamw(model, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1)
    tokens, targets = torch.randint(2048, (2, sizes.batch, sizes.context))

    def step() -> None:
        (objective(tokens, targets).loss / targets.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return fastest(step), operations_per_token(model.config, sizes.context) * sizes.batch * sizes.context


def decoded_token(sizes: Sizes) -> tuple[float, float]:
    """Return the seconds of a token after ``context - 1`` others in each row, and the bytes that must be read."""
    model = sizes.model().eval()
    cache = model.new_cache(sizes.batch)
    with torch.inference_mode():
        model(torch.randint(2048, (sizes.batch, sizes.context - 1)), cache=cache)
        token = torch.zeros(sizes.batch, 1, dtype=torch.int64)

        def step() -> None:
            model(token, cache=cache)
            cache.crop(sizes.context - 1)

        seconds = fastest(step)
    cached = 2 * sizes.n_layers * sizes.batch * sizes.context * sizes.d_model
    return seconds, 4.0 * (model.num_parameters() + cached)


def fastest(work: Callable[[], None], at_least: float = 0.6) -> float:
    """Return the seconds of the fastest of several calls."""
    work()
    taken, began = [], time.perf_counter()
    while time.perf_counter() - began < at_least or len(taken) < 3:
        before = time.perf_counter()
        work()
        taken.append(time.perf_counter() - before)
    return min(taken)


def alone(work: Callable[[Sizes], tuple[float, float]], sizes: Sizes) -> dict[str, float]:
    """Return the measurements of a separate process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, sizes))


def _measured(work: Callable[[Sizes], tuple[float, float]], sizes: Sizes) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, needed = work(sizes)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0  # kilobytes on Linux
    return {"seconds": seconds, "needed": needed, "memory": memory}


def slope(sizes: list[int], values: list[float]) -> float:
    """Return the exponent of growth: the slope of the least-squares line through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--picture", type=Path, help="draw them here (PNG)")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "growth": {}}
    for title, work in (("training step", training_step), ("decoded token", decoded_token)):
        rows, foreign = [], 0.0
        for axis, values in AXES.items():
            wait_for_quiet()
            foreign = max(foreign, busy_elsewhere())
            found = [alone(work, replace(Sizes(), **{axis: value})) for value in values]
            columns = {name: [each[name] for each in found] for name in ("seconds", "needed", "memory")}
            exponents = {name: slope(values, column) for name, column in columns.items()}
            result["growth"][f"{title}, {axis}"] = {"sizes": values, **columns, "exponents": exponents}
            rows.append(
                [
                    axis,
                    f"{values[0]} to {values[-1]}",
                    *(f"{exponents[name]:.2f}" for name in ("seconds", "needed", "memory")),
                    f"{columns['seconds'][0] * 1000:.1f}",
                    f"{columns['seconds'][-1] * 1000:.1f}",
                ]
            )
        print_table(
            f"{title}: exponents of growth",
            ["as it doubles", "sizes", "time", "needed", "memory", "first ms", "last ms"],
            rows,
            foreign=foreign,
        )
    if arguments.json:
        write_result(arguments.json, result)
    if arguments.picture:
        draw(result["growth"], arguments.picture)


_NEEDED = {"training step": "operations", "decoded token": "bytes read"}
_SIZES = {
    "context": "context (tokens)",
    "batch": "batch (sequences)",
    "d_model": "width (d_model)",
    "n_layers": "depth (layers)",
}


def draw(growth: dict[str, Any], path: Path) -> None:
    """Draw, for each axis, the time relative to the first size, and the operations or bytes that are needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(12, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 4, sharey="row", sharex="col")
    for panel, (name, found) in zip(panels.flat, growth.items(), strict=True):
        work, axis = name.split(", ")
        sizes, exponents = found["sizes"], found["exponents"]
        for what, style, label in (("seconds", "o-", "time, measured"), ("needed", "k:", f"{_NEEDED[work]}, computed")):
            panel.loglog(sizes, [value / found[what][0] for value in found[what]], style, label=label)
        text = f"exponents:\n{exponents['seconds']:.2f} time\n{exponents['needed']:.2f} {_NEEDED[work]}"
        panel.text(0.04, 0.96, text, transform=panel.transAxes, va="top", fontsize=9)
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
        if panel in panels[0]:
            panel.set_title(f"growing {axis}", fontsize=10)
        if panel in panels[-1]:
            panel.set_xlabel(_SIZES[axis])
        if panel in panels[:, 0]:
            panel.set_ylabel(f"{work}:\ntimes that of the smallest size")
            panel.legend(fontsize=8, loc="lower right")
    for row in panels:
        # Room above the curves for the exponents, and below them for the legend.
        row[0].set_ylim(0.5, 1.6 * max(line.get_ydata().max() for panel in row for line in panel.lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
