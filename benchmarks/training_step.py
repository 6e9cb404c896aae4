"""What the chunked loss saves: a training step with it, beside the plain formulation, in the same run.

    python benchmarks/training_step.py

Two layers, d_model 64, GPT-2's vocabulary, batch 16 x 256, float32: forward, backward and AdamW. The two take turns,
so that whatever else the machine does falls on both; each has a process of its own, so that the peak of its memory is
its own. Where other work takes part of the machine, that is said, since the figures are then no good for comparisons
with other days.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection
from typing import Literal

import torch
import torch.nn.functional as F
from measure import busy_elsewhere

from gptladder.assembly import GPT2, GPT2Config
from gptladder.training.loss import NextTokenLoss
from gptladder.training.optim import adamw

BATCH, SEQ = 16, 256
Formulation = Literal["chunked", "plain"]


def work(formulation: Formulation, steps: int, pipe: Connection) -> None:
    """Answer each message with what one round of steps took: seconds, processors, the loss at its end, peak memory."""
    torch.manual_seed(1337)
    model = GPT2(GPT2Config(d_model=64, n_layers=2, n_heads=4, n_ctx=SEQ))
    objective = NextTokenLoss(model)
    optimizer = adamw(model, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    tokens, targets = torch.randint(model.config.d_vocab, (2, BATCH, SEQ))
    while pipe.recv():
        began, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            if formulation == "chunked":
                loss = objective(tokens, targets).loss / targets.numel()
            else:
                loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - began
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # kilobytes on Linux
        pipe.send((seconds / steps, (time.process_time() - processor) / seconds, loss.item(), peak_gb))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="turns that each formulation gets (default: 8)")
    parser.add_argument("--steps", type=int, default=2, help="steps of each turn (default: 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    formulations: tuple[Formulation, ...] = ("chunked", "plain")
    pipes, workers = {}, []
    for formulation in formulations:
        pipes[formulation], theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(formulation, arguments.steps, theirs), daemon=True))
        workers[-1].start()
    rounds: dict[str, list[tuple[float, float, float, float]]] = {formulation: [] for formulation in formulations}
    load = []
    for turn in range(arguments.rounds + 1):
        for formulation in formulations if turn % 2 else reversed(formulations):
            pipes[formulation].send(True)
            answer = pipes[formulation].recv()
            if turn:  # the first turn pays for memory and code that the others find
                rounds[formulation].append(answer)
        load.append(busy_elsewhere(1.0))
    for pipe in pipes.values():
        pipe.send(False)
    for worker in workers:
        worker.join()

    ratios = [plain[0] / chunked[0] for chunked, plain in zip(rounds["chunked"], rounds["plain"], strict=True)]
    foreign = statistics.median(load[1:])
    result = {
        "tokens_per_second": {f: round(BATCH * SEQ / statistics.median(r[0] for r in rounds[f])) for f in formulations},
        "speedup": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "peak_gb": {f: rounds[f][-1][3] for f in formulations},
        "loss": {f: rounds[f][-1][2] for f in formulations},
        "processors_used": {f: statistics.median(r[1] for r in rounds[f]) for f in formulations},
        "processors_busy_elsewhere": foreign,
        "threads": torch.get_num_threads(),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for f in formulations:
        print(
            f"{f:8} {result['tokens_per_second'][f]:7,} tokens/s  peak {result['peak_gb'][f]:.2f} GB  "
            f"loss {result['loss'][f]:.6f}  on {result['processors_used'][f]:.2f} processors"
        )
    speedup = result["speedup"]
    print(
        f"chunked is {speedup['median']:.2f} times as fast (from {speedup['least']:.2f} to {speedup['most']:.2f} "
        f"in {arguments.rounds} rounds, {torch.get_num_threads()} threads)"
    )
    if foreign > 0.1:
        print(f"NOT A QUIET MACHINE: other work keeps {foreign:.2f} processors busy; take the ratios, not the speeds")


if __name__ == "__main__":
    main()
