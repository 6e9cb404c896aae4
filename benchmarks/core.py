"""Compare parts of the library with their counterparts: forward and backward passes, loading, shape check, import.

    python benchmarks/core.py

The two sides of a pair alternate, in a new random order each round, so that other work on the machine affects both. The
figures are ratios: the median, the smallest and the largest of all rounds. Other work on the machine is measured and
reported.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import busy_elsewhere, machine, print_table, spread, wait_for_quiet, write_result

from gptladder import GPT2, GPT2Config
from gptladder.components import typecheck
from gptladder.ladder.references import random_hf
from gptladder.weights import from_hf

Pair = dict[str, Callable[[], object]]


def alternate(pair: Pair, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in each round, after one round that does not count."""
    order = list(pair)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds + 1):
        random.shuffle(order)
        for name in order:
            began = time.perf_counter()
            pair[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(pair: Pair, rounds: int) -> dict[str, float]:
    """Return the time of the first divided by the time of the second, over all rounds."""
    wait_for_quiet()
    first, second = alternate(pair, rounds).values()
    return spread([a / b for a, b in zip(first, second, strict=True)])


def passes(hf: Any, backward: bool) -> Pair:
    """Compare the 124M models: cross-entropy of a batch of 4 x 256, float32, eager, with or without backward."""
    hf.config._attn_implementation = "sdpa"
    ours = from_hf(hf)
    tokens = torch.randint(50257, (4, 257), generator=torch.Generator().manual_seed(0))

    def step(logits: Callable[[torch.Tensor], torch.Tensor], model: torch.nn.Module) -> float:
        with torch.set_grad_enabled(backward):
            loss = torch.nn.functional.cross_entropy(logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            if backward:
                loss.backward()
                model.zero_grad()
        return loss.item()

    pair: dict[str, Callable[[], float]] = {
        "transformers": lambda: step(lambda x: hf(x, use_cache=False).logits, hf),
        "ours": lambda: step(ours, ours),
    }
    losses = [call() for call in pair.values()]
    assert abs(losses[0] - losses[1]) < 1e-4, f"they do not compute the same: {losses}"
    return dict(pair)


def loading(folder: Path) -> Pair:
    """Compare loading a folder of 124M float32 parameters, up to reading every weight of the model once."""

    def touch(model: torch.nn.Module) -> float:
        return sum(float(parameter.detach().sum()) for parameter in model.parameters())

    return {
        "transformers": lambda: touch(transformers.GPT2LMHeadModel.from_pretrained(folder)),
        "ours": lambda: touch(GPT2.from_pretrained(folder)),
    }


def shape_check(hf: Any) -> Pair:
    """Compare the 124M model with and without the shape check, on 1 x 64 tokens without gradients."""
    model = from_hf(hf)
    tokens = torch.randint(50257, (1, 64), generator=torch.Generator().manual_seed(0))

    def forward(enabled: bool) -> None:
        with torch.inference_mode(), typecheck(enabled):
            for _ in range(3):
                model(tokens)

    return {"on": partial(forward, True), "off": partial(forward, False)}


def imports() -> Pair:
    """Compare ``import gptladder`` with ``import torch``, each in a new interpreter."""

    def start(name: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True, cwd="/")

    return {"gptladder": partial(start, "gptladder"), "torch": partial(start, "torch")}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    before = busy_elsewhere()
    hf = random_hf(GPT2Config.preset("gpt2"), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder)
        pairs = {
            "forward, 124M, 4 x 256: transformers / ours": passes(hf, backward=False),
            "forward and backward, the same": passes(hf, backward=True),
            "load 124M from a folder: transformers / ours": loading(Path(folder)),
            "shape check, 124M, 1 x 64: on / off": shape_check(hf),
            "import: gptladder / torch": imports(),
        }
        found = {name: ratio(pair, arguments.rounds) for name, pair in pairs.items()}
    print_table(
        "ratios of time",
        ["", "median", "from", "to"],
        [[name, *(f"{f[key]:.3f}" for key in ("median", "least", "most"))] for name, f in found.items()],
        foreign=max(before, busy_elsewhere()),
    )
    if arguments.json:
        write_result(arguments.json, {"machine": machine(), "ratios": found})


if __name__ == "__main__":
    main()
