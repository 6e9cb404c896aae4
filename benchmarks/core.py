"""The model beside transformers', the shape check beside none, the import beside torch's: each pair in the same run.

    python benchmarks/core.py

Pairs take turns, in an order drawn anew each round, so that whatever else the machine does falls on both. Figures are
ratios, with the least and the most of all rounds. Work of others on the machine is measured and said.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from measure import busy_elsewhere

from gptladder import GPT2Config
from gptladder.components import typecheck
from gptladder.ladder.references import random_hf
from gptladder.weights import from_hf


def alternate(pair: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one that does not count."""
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


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as long ``slow`` takes as ``fast``, round by round."""
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def forward_backward(rounds: int) -> dict[str, float]:
    """The 124M model, batch 4 x 256, float32, eager: forward, cross-entropy, backward. transformers' with sdpa."""
    hf = random_hf(GPT2Config.preset("gpt2"), seed=0).train()
    hf.config._attn_implementation = "sdpa"
    ours = from_hf(hf).train()
    for model in (hf, ours):
        for module in model.modules():  # no dropout: the two would draw different numbers
            for name in ("p", "dropout", "resid_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
    object.__setattr__(ours.config, "embed_dropout", 0.0)
    tokens = torch.randint(50257, (4, 257), generator=torch.Generator().manual_seed(0))

    def step(logits: Callable[[torch.Tensor], torch.Tensor], model: torch.nn.Module) -> float:
        loss = torch.nn.functional.cross_entropy(logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        model.zero_grad()
        return loss.item()

    losses = step(ours, ours), step(lambda x: hf(x, use_cache=False).logits, hf)
    assert abs(losses[0] - losses[1]) < 1e-4, f"they do not compute the same: {losses}"
    pair = {"ours": lambda: step(ours, ours), "theirs": lambda: step(lambda x: hf(x, use_cache=False).logits, hf)}
    return ratio(alternate(pair, rounds), "theirs", "ours")


def check_overhead(rounds: int) -> dict[str, float]:
    """The 124M model on 1 x 64 tokens, without gradients: the shape check on beside off."""
    model = from_hf(random_hf(GPT2Config.preset("gpt2"), seed=0))
    tokens = torch.randint(50257, (1, 64), generator=torch.Generator().manual_seed(0))

    def forward(enabled: bool) -> None:
        with torch.inference_mode(), typecheck(enabled):
            for _ in range(3):
                model(tokens)

    return ratio(alternate({"on": lambda: forward(True), "off": lambda: forward(False)}, rounds * 8), "on", "off")


def import_time(rounds: int) -> dict[str, float]:
    """A new interpreter with ``import gptladder`` beside one with ``import torch``."""

    def start(name: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True, cwd=os.sep)

    pair = {"ours": lambda: start("gptladder"), "torch": lambda: start("torch")}
    return ratio(alternate(pair, rounds), "ours", "torch")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side gets (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    before = busy_elsewhere()
    result: dict[str, object] = {
        "forward and backward, 124M, 4 x 256: transformers' time / ours": forward_backward(arguments.rounds),
        "shape check, 124M, 1 x 64: time on / off": check_overhead(arguments.rounds),
        "import: gptladder / torch": import_time(arguments.rounds),
        "processors busy elsewhere, before and after": [before, busy_elsewhere()],
        "threads": torch.get_num_threads(),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, figures in result.items():
        if isinstance(figures, dict):
            figures = "{median:.3f}  (from {least:.3f} to {most:.3f})".format(**figures)
        print(f"{name:64} {figures}")


if __name__ == "__main__":
    main()
