"""Compare greedy decoding with transformers' ``generate``: GPT-2's 124M shape, the same weights, in the same run.

    python benchmarks/decode.py
    python benchmarks/decode.py --trained runs/tinystories/final

The prompt has 16 tokens, and 128 are generated, for 1 row and for 8. First the script checks that float32 gives the
same tokens as transformers. The contestants alternate in a new random order each round, so that other work on the
machine affects all of them. A step cannot be faster than reading the weights from memory once; the column "of bound"
shows how near each contestant comes to that.

``--trained`` measures the accuracy that packing costs: the loss of a trained model on new stories, packed and unpacked.
"""

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import bandwidth, foreign_load, machine, print_table, spread, wait_for_quiet, write_result

from gptladder import GPT2, GPT2Config
from gptladder.sampling import PackedWeights, SamplingParams, generate, pack
from gptladder.tokenizer import load_tokenizer
from gptladder.training.data.batches import evaluation_batches
from gptladder.training.data.stories import stories
from gptladder.training.presets import PRESETS
from gptladder.weights import to_hf

# Bytes of a weight in memory.
PACKED: dict[PackedWeights, int] = {"float32": 4, "bfloat16": 2, "int8": 1}


def ours(model: GPT2, prompts: torch.Tensor, new: int) -> list[list[int]]:
    """Return the new tokens of each row."""
    return [found.tokens for found in generate(model, prompts, SamplingParams(temperature=0), max_new_tokens=new)]


def theirs(model: Any, prompts: torch.Tensor, new: int) -> list[list[int]]:
    """Return the new tokens of each row by transformers, without an end token, so that all of them are generated."""
    mask = torch.ones_like(prompts)
    found = model.generate(
        prompts, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return found[:, prompts.shape[1] :].tolist()


def measure(
    contestants: dict[str, Callable[[], list[list[int]]]], rounds: int
) -> tuple[dict[str, list[float]], list[float], float]:
    """Return the seconds of each contestant and the bandwidth in each round, and the largest load by others."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    reading, foreign = [], 0.0
    for _ in range(rounds):
        wait_for_quiet()
        reading.append(bandwidth())
        for name in random.sample(list(contestants), len(contestants)):
            with foreign_load() as load:
                began = time.perf_counter()
                contestants[name]()
                seconds[name].append(time.perf_counter() - began)
            foreign = max(foreign, load.processors)
    return seconds, reading, foreign


def loss_of(model: GPT2, tokens: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the mean cross-entropy on windows."""
    with torch.inference_mode():
        logits = torch.cat([model(row[None]).float() for row in tokens])
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def cost_of_packing(folder: Path) -> dict[str, dict[str, float]]:
    """Return the losses of a trained model on 64 windows of stories from a seed that was not used for training.

    The stories are joined and divided as for the validation of `tinystories`.
    """
    model, tokenizer = GPT2.from_pretrained(folder), load_tokenizer(folder)
    joined = [[*tokenizer.encode(story), tokenizer.eot_id] for story in islice(stories(seed=987654321), 400)]
    (windows,) = evaluation_batches(
        np.concatenate(joined),
        seq=model.config.n_ctx,
        batch_size=64,
        most=64,
        order=PRESETS["tinystories"].optim.order,
        eot_id=tokenizer.eot_id,
    )
    plain = loss_of(model, *windows)
    losses = {"unpacked": plain, **{name: loss_of(pack(model, name), *windows) for name in PACKED}}
    return {name: {"loss": loss, "change": loss / plain - 1} for name, loss in losses.items()}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="rows (default: 1 8)")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt (default: 16)")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate (default: 128)")
    parser.add_argument("--trained", type=Path, help="a model folder to measure the cost of packing on")
    parser.add_argument("--compiled", action="store_true", help="add our model with torch.compile")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    torch.manual_seed(0)
    model = GPT2(GPT2Config()).eval()
    reference = to_hf(model)
    # The weights that each step reads: all except the position embedding. The tied embedding counts once.
    weights = model.num_parameters() - model.pos_embed.W_pos.numel()
    result: dict[str, Any] = {"machine": machine(), "weights": weights, "batches": {}}
    for batch in arguments.batch:
        prompts = torch.randint(model.d_vocab, (batch, arguments.prompt))
        models = {"ours": model, **{f"ours, {name}": pack(model, name, rows=batch) for name in PACKED}}
        if arguments.compiled:
            models["ours, compiled"] = deepcopy(model)
            models["ours, compiled"].compile(dynamic=True)
        contestants = {name: partial(ours, each, prompts, arguments.new) for name, each in models.items()}
        contestants["transformers"] = partial(theirs, reference, prompts, arguments.new)
        tokens = {name: contestant() for name, contestant in contestants.items()}  # and warm up
        if not tokens["ours"] == tokens["ours, float32"] == tokens["transformers"]:
            raise SystemExit(f"batch {batch}: float32 does not give the same tokens; there is nothing to compare")
        seconds, reading, foreign = measure(contestants, arguments.rounds)
        found = {}
        sizes = {f"ours, {name}": size for name, size in PACKED.items()}
        for name, own in seconds.items():
            size = sizes.get(name, 4)
            step = statistics.median(own) / arguments.new
            found[name] = {
                "tokens_per_second": batch / step,
                "ratio": spread([b / a for a, b in zip(own, seconds["transformers"], strict=True)]),
                "step_ms": 1000 * step,
                "share_of_bandwidth_bound": weights * size / statistics.median(reading) / step,
            }
        result["batches"][batch] = {"bandwidth": statistics.median(reading), "contestants": found}
        speed = statistics.median(reading) / 1e9
        print_table(
            f"batch {batch}, greedy, {arguments.new} tokens; memory is read at {speed:.1f} GB/s",
            ["", "tokens/s", "ratio", "from", "to", "ms/step", "of bound"],
            [
                [
                    name,
                    f"{f['tokens_per_second']:.1f}",
                    *(f"{f['ratio'][key]:.2f}" for key in ("median", "least", "most")),
                    f"{f['step_ms']:.1f}",
                    f"{f['share_of_bandwidth_bound']:.0%}",
                ]
                for name, f in found.items()
            ],
            foreign=foreign,
        )
    if arguments.trained is not None:
        result["cost_of_packing"] = cost_of_packing(arguments.trained)
        print_table(
            "the cost of packing",
            ["", "loss", "change"],
            [[name, f"{f['loss']:.5f}", f"{f['change']:+.3%}"] for name, f in result["cost_of_packing"].items()],
            foreign=0.0,
        )
    if arguments.json:
        write_result(arguments.json, result)


if __name__ == "__main__":
    main()
