"""Wall time to a loss: ours beside transformers' GPT-2 and nanoGPT, which train by nanoGPT's published recipe.

    python benchmarks/time_to_loss.py
    python benchmarks/time_to_loss.py --nanogpt ~/nanoGPT --json result.json --picture result.png

All contestants learn the same characters (tinyshakespeare if ``--text`` names it, else generated stories) with a model
of the same size: 4 layers of 128, 4 heads, 64 positions. ``transformers`` and ``nanoGPT`` use what nanoGPT's README
gives for a CPU: AdamW, 2,000 steps of 12 sequences, learning rate 1e-3 with warm-up and cosine, float32. Ours use the
presets of `gptladder train`: ``shakespeare-char`` (AdamW), ``shakespeare-char-fast`` (Muon), and the latter with a
shorter schedule, which reaches the target sooner and ends higher.

The target is the loss that nanoGPT itself ends with (transformers, which trains by the same recipe, if no clone of
nanoGPT is given), on the whole validation tenth. The time to it is the time spent in training steps until the first
evaluation at or below it; the evaluations themselves do not count. For each seed the contestants train at the same
time, each in its own process, and alternate between evaluations in a new random order, so that other work on the
machine affects all of them. If other work used more than a quarter of a processor during a turn, the turn counts at the
median pace of that run's other turns; the result file has the measured times, and the number of such turns.
"""

import argparse
import math
import multiprocessing
import random
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from contestants import (
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    NANOGPT,
    SEQ,
    TRANSFORMERS,
    Contestant,
    Data,
    contestants,
    ours,
    read_data,
)
from measure import foreign_load, machine, print_table, spread, wait_for_quiet, write_result
from steps import train_steps, whole_loss

from gptladder.components.kernels import set_onednn_products
from gptladder.training.data.batches import Batches
from gptladder.training.precision import keep_freed_memory, settle


@dataclass(frozen=True)
class Point:
    """Where a contestant stands at one evaluation."""

    steps: int
    seconds: float
    """Spent in training steps so far."""
    loss: float
    """On the whole validation text."""
    foreign: float
    """Processors that others kept busy during the steps since the last evaluation."""
    done: bool


def work(contestant: Contestant, data: Data, seed: int, evaluations: int, pipe: Connection) -> None:
    """Train until the next evaluation at each message, and answer with its point."""
    import warnings

    warnings.simplefilter("ignore")
    config = contestant.config
    if contestant.build is ours:
        keep_freed_memory()
        config = settle(config, torch.device("cpu"), None)
        set_onednn_products(config.optim.products == "onednn")
    optim = config.optim
    torch.manual_seed(seed)
    model, loss_of, optimizer = contestant.build(optim, data.n_vocab)
    parameters = list(model.parameters())
    batches = Batches(data.train, seq=SEQ, batch_size=optim.batch, order="random", seed=seed)
    steps = optim.max_steps or 0
    marks = sorted({max(1, round(steps * i / evaluations)) for i in range(1, evaluations + 1)})
    seconds, step = 0.0, 0
    for mark in marks:
        if not pipe.recv():
            return
        model.train()
        with foreign_load() as load:
            began = time.perf_counter()
            train_steps(loss_of, optimizer, parameters, batches, optim, range(step, mark))
            seconds += time.perf_counter() - began
        step = mark
        model.eval()
        loss = whole_loss(loss_of, data.val, SEQ, bf16=optim.precision == "bf16")
        pipe.send(Point(step, seconds, loss, load.processors, step == steps))


def race(entered: list[Contestant], data: Data, seed: int, evaluations: int) -> dict[str, list[Point]]:
    """Return each contestant's points for one seed."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers = []
    for contestant in entered:
        pipes[contestant.name], theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(contestant, data, seed, evaluations, theirs), daemon=True))
        workers[-1].start()
    points: dict[str, list[Point]] = {contestant.name: [] for contestant in entered}
    wait_for_quiet()
    while running := [name for name, own in points.items() if not own or not own[-1].done]:
        for name in random.sample(running, len(running)):
            pipes[name].send(True)
            points[name].append(pipes[name].recv())
    for worker in workers:
        worker.join()
    return points


DISTURBED = 0.25  # processors


def steady(points: list[Point]) -> tuple[list[Point], int]:
    """Return a run with disturbed turns counted at the median pace of the others, and how many these are."""
    turns = [
        (end.steps - begin.steps, end.seconds - begin.seconds, end.foreign > DISTURBED)
        for begin, end in pairwise([Point(0, 0.0, math.nan, 0.0, False), *points])
    ]
    undisturbed = [seconds / steps for steps, seconds, disturbed in turns if not disturbed]
    if not undisturbed:
        return points, len(turns)  # the times as they were
    pace = statistics.median(undisturbed)
    seconds = accumulate(pace * steps if disturbed else taken for steps, taken, disturbed in turns)
    counted = [replace(point, seconds=now) for point, now in zip(points, seconds, strict=True)]
    return counted, len(turns) - len(undisturbed)


def time_to(points: list[Point], target: float) -> float | None:
    """Return the training seconds at the first evaluation at or below a loss; None if there is none."""
    return next((point.seconds for point in points if point.loss <= target), None)


def loss_at(points: list[Point], seconds: float) -> float:
    """Return the loss of the last evaluation within a time; infinity if there is none."""
    return min((point.loss for point in points if point.seconds <= seconds), default=math.inf)


def summary(races: list[dict[str, list[Point]]], reference: str) -> dict[str, Any]:
    """Return for each contestant its times to the target and its losses at the peer's time, with their spread."""
    targets = [points[reference][-1].loss for points in races]
    raw = races
    races = [{name: steady(run)[0] for name, run in points.items()} for points in raw]
    found: dict[str, Any] = {"targets": targets, "target_of": reference, "contestants": {}}
    for name in races[0]:
        runs = [points[name] for points in races]
        peers = [points[TRANSFORMERS] for points in races]
        times = [time_to(run, target) for run, target in zip(runs, targets, strict=True)]
        peer_times = [time_to(peer, target) or peer[-1].seconds for peer, target in zip(peers, targets, strict=True)]
        reached = [(peer, own) for peer, own in zip(peer_times, times, strict=True) if own is not None]
        entry: dict[str, Any] = {
            "final_loss": spread([run[-1].loss for run in runs]),
            "seconds": spread([run[-1].seconds for run in runs]),
            "reached": f"{len(reached)} of {len(runs)}",
            "loss_less_than_peers_at_equal_time": spread(
                [
                    loss_at(peer, until) - loss_at(run, until)
                    for run, peer in zip(runs, peers, strict=True)
                    for until in [min(run[-1].seconds, peer[-1].seconds)]
                ]
            ),
            "disturbed_turns": sum(steady(points[name])[1] for points in raw),
            "turns": sum(len(points[name]) for points in raw),
            "runs": [[asdict(point) for point in points[name]] for points in raw],
        }
        if reached:
            entry["seconds_to_target"] = spread([own for _, own in reached])
            entry["times_as_fast"] = spread([peer / own for peer, own in reached])
        found["contestants"][name] = entry
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw loss against seconds of training: a line for each run, one colour for each contestant, and the target."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lowest, highest = math.inf, -math.inf
    for place, (name, found) in enumerate(result["contestants"].items()):
        for number, run in enumerate(found["runs"]):
            counted, _ = steady([Point(**point) for point in run])
            axes.plot(
                [point.seconds for point in counted],
                [point.loss for point in counted],
                color=f"C{place}",
                marker=".",
                markersize=4,
                linewidth=1.5 if not number else 0.7,
                alpha=1.0 if not number else 0.5,
                label=f"{name}: {run[-1]['loss']:.2f}" if not number else None,
            )
            lowest, highest = min(lowest, run[-1]["loss"]), max(highest, run[-1]["loss"])
    target = sorted(result["targets"])[len(result["targets"]) // 2]
    axes.axhline(target, color="0.4", linestyle="--", linewidth=1)
    axes.annotate(
        f"target: where {result['target_of'].split(',')[0]} ends",
        (0.01, target),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        color="0.3",
    )
    axes.set_xscale("log")
    axes.set_ylim(lowest - 0.08, highest + 1.2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="seconds of training (evaluations not counted)", ylabel="validation loss, nats per character")
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="final loss, first seed", loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="the text, by characters (default: a megabyte of generated stories)")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a clone of nanoGPT, which then takes part")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=20, help="of each contestant and seed (default: 20)")
    parser.add_argument("--steps", type=int, help="shorten every recipe to this many steps, for a trial")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--picture", type=Path, help="draw loss against seconds here (PNG)")
    arguments = parser.parse_args()

    entered = contestants(arguments.nanogpt, arguments.steps)
    data = read_data(arguments.text)
    races = [race(entered, data, seed, arguments.evaluations) for seed in range(1, arguments.seeds + 1)]
    found = summary(races, NANOGPT if arguments.nanogpt else TRANSFORMERS)
    result = {
        "machine": machine(),
        "text": arguments.text.name if arguments.text else "generated stories",
        "model": {"d_model": D_MODEL, "n_layers": N_LAYERS, "n_heads": N_HEADS, "n_ctx": SEQ, "d_vocab": data.n_vocab},
        "recipes": {contestant.name: asdict(contestant.config.optim) for contestant in entered},
        **found,
    }

    def span(figures: dict[str, float] | None, form: str) -> str:
        return "" if figures is None else " / ".join(format(figures[key], form) for key in ("least", "median", "most"))

    print_table(
        f"to a validation loss of {', '.join(f'{target:.3f}' for target in found['targets'])}, where "
        f"{found['target_of']} ends; least / median / most of {arguments.seeds} seeds",
        [
            "",
            "final loss",
            "after s",
            "reached",
            "s to the target",
            "times as fast",
            "loss less at equal time",
            "disturbed turns",
        ],
        [
            [
                name,
                span(f["final_loss"], ".3f"),
                span(f["seconds"], ".0f"),
                f["reached"],
                span(f.get("seconds_to_target"), ".1f"),
                span(f.get("times_as_fast"), ".2f"),
                span(f["loss_less_than_peers_at_equal_time"], "+.3f"),
                f"{f['disturbed_turns']} of {f['turns']}",
            ]
            for name, f in found["contestants"].items()
        ],
        foreign=0.0,  # the last column has it
    )
    if arguments.json:
        write_result(arguments.json, result)
    if arguments.picture:
        draw(result, arguments.picture)


if __name__ == "__main__":
    main()
