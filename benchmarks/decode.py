"""Greedy decoding beside transformers' ``generate``: GPT-2's 124M shape, float32, the same weights, in the same run.

    python benchmarks/decode.py

16 tokens of prompt and 128 new ones, for 1 row and for 8. That both give the same tokens is checked first. The two take
turns, so that whatever else the machine does falls on both. What a step cannot go below is the time to read the weights
from memory once; how near ours comes to that is printed too. Where other work takes part of the machine, that is said,
since the figures are then no good for comparisons with other days.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gptladder import GPT2, GPT2Config
from gptladder.sampling import SamplingParams, generate
from gptladder.weights import to_hf


def ours(model: GPT2, prompts: torch.Tensor, new: int) -> list[list[int]]:
    """The new tokens of each row."""
    return [found.tokens for found in generate(model, prompts, SamplingParams(temperature=0), max_new_tokens=new)]


def theirs(model: Any, prompts: torch.Tensor, new: int) -> list[list[int]]:
    """The same from transformers; with no end token, so that all are generated."""
    mask = torch.ones_like(prompts)
    found = model.generate(
        prompts, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return found[:, prompts.shape[1] :].tolist()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that the work took, and how many processors' worth of other work went on meanwhile."""

    def busy() -> float:
        with open("/proc/stat", encoding="ascii") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting

    began, own, everybody = time.perf_counter(), time.process_time(), busy()
    work()
    seconds = time.perf_counter() - began
    return seconds, max(0.0, (busy() - everybody - (time.process_time() - own)) / seconds)


def bandwidth(megabytes: int = 1024, tries: int = 6) -> float:
    """Bytes a second that can be read from memory: the quickest of some passes over more than the caches hold."""
    numbers = torch.ones(megabytes * 2**20 // 4)
    return max(numbers.nbytes / timed(lambda: torch.dot(numbers, numbers))[0] for _ in range(tries))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each of the two gets (default: 5)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="rows (default: 1 8)")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt (default: 16)")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate (default: 128)")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each batch size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")

    torch.manual_seed(0)
    model = GPT2(GPT2Config()).eval()
    reference = to_hf(model)
    # Read once a step: all but the table of positions. The tied embedding counts once, as the output projection.
    weights = 4 * (model.num_parameters() - model.pos_embed.W_pos.numel())
    for batch in arguments.batch:
        prompts = torch.randint(model.d_vocab, (batch, arguments.prompt))
        # The first call also pays for memory and code that later ones find.
        if ours(model, prompts, arguments.new) != theirs(reference, prompts, arguments.new):
            raise SystemExit(f"batch {batch}: the two do not give the same tokens; there is nothing to compare")
        rounds, load, reading = [], [], []
        for turn in range(arguments.rounds):
            pair = [(ours, model), (theirs, reference)]
            took = {}
            for contestant, its_model in pair if turn % 2 else reversed(pair):
                took[contestant], foreign = timed(partial(contestant, its_model, prompts, arguments.new))
                load.append(foreign)
            rounds.append((took[ours], took[theirs]))
            reading.append(bandwidth())
        ratios = [reference_s / our_s for our_s, reference_s in rounds]
        seconds = [statistics.median(column) for column in zip(*rounds, strict=True)]
        bound = weights / max(reading)
        result = {
            "batch": batch,
            "tokens_per_second": {
                name: round(batch * arguments.new / s, 1)
                for name, s in zip(("ours", "transformers"), seconds, strict=True)
            },
            "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
            "step_ms": 1000 * seconds[0] / arguments.new,
            "weights_mb": weights / 1e6,
            "bandwidth_gb_per_second": max(reading) / 1e9,
            "bound_ms": 1000 * bound,
            "share_of_bound": bound * arguments.new / seconds[0],
            "processors_busy_elsewhere": statistics.median(load),
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(result) if arguments.json else describe(result, arguments.rounds), flush=True)


def describe(result: dict[str, Any], rounds: int) -> str:
    """The same for people."""
    speed, ratio = result["tokens_per_second"], result["ratio"]
    lines = [
        f"batch {result['batch']}: ours {speed['ours']:.1f} tokens/s, transformers {speed['transformers']:.1f}",
        f"  ours is {ratio['median']:.2f} times as fast (from {ratio['least']:.2f} to {ratio['most']:.2f} in {rounds} "
        f"rounds, {result['threads']} threads)",
        f"  a step takes {result['step_ms']:.1f} ms; reading {result['weights_mb']:.0f} MB of weights at "
        f"{result['bandwidth_gb_per_second']:.1f} GB/s takes {result['bound_ms']:.1f} ms: "
        f"{result['share_of_bound']:.0%} of the memory-bandwidth bound",
    ]
    if result["processors_busy_elsewhere"] > 0.1:
        lines.append(
            f"  NOT A QUIET MACHINE: other work kept {result['processors_busy_elsewhere']:.2f} processors busy; "
            "take the ratio, not the speeds"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
