"""Whether faster training is the same training: losses after 2,000 steps beside transformers', from the same weights.

    python benchmarks/losses.py

The shape ``char`` of ``training.py`` learns the characters of generated stories, the same batches in order. Each
contestant's mean loss over the last 100 steps, and on text that none has seen, is told beside transformers' in float32.
bfloat16 is set beside the spread over seeds: transformers again, with other initial weights and another order.
"""

import argparse
import statistics
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from measure import machine, print_table, write_result

from gptladder.assembly import GPT2
from gptladder.components.linear import onednn_products
from gptladder.training.kernels import keep_freed_memory, try_onednn
from gptladder.training.stories import stories
from training import SHAPES, ours, transformers_gpt2

SHAPE = SHAPES["char"]


def text() -> tuple[torch.Tensor, torch.Tensor]:
    """Two megabytes of stories by character, no more characters than the shape has; and text for validation."""
    characters = "".join(story + "\n\n" for story in islice(stories(seed=1), 2500))
    kept = sorted(sorted(set(characters), key=lambda c: -characters.count(c))[: SHAPE.d_vocab])
    ids = torch.tensor([kept.index(c) for c in characters if c in kept])
    return ids[:-100_000], ids[-100_000:]


def train(contestant: str, seed: int, steps: int) -> dict[str, float]:
    """The losses at the end of a run."""
    train_ids, val_ids = text()
    onednn_products(contestant == "ours" and try_onednn().accurate)
    bf16 = contestant == "ours bf16"
    torch.manual_seed(seed)
    build = transformers_gpt2 if contestant == "transformers" else ours
    model, step = build(SHAPE, GPT2(SHAPE.config))
    # Without decay, so that it does not matter how each divides its parameters into those that decay and others.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    source = torch.Generator().manual_seed(seed)

    def loss(starts: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        windows = torch.stack([ids[start : start + SHAPE.seq + 1] for start in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return step(windows[:, :-1], windows[:, 1:])

    last = []
    for number in range(steps):
        found = loss(torch.randint(len(train_ids) - SHAPE.seq, (SHAPE.batch,), generator=source), train_ids)
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number >= steps - 100:
            last.append(found.item())
    model.eval()
    with torch.no_grad():
        starts = torch.arange(0, len(val_ids) - SHAPE.seq - 1, SHAPE.seq).split(SHAPE.batch)[:-1]
        val = statistics.fmean(loss(batch, val_ids).item() for batch in starts)
    return {"train": statistics.fmean(last), "validation": val}


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    keep_freed_memory()
    runs = [("transformers", 1), ("ours", 1), ("ours bf16", 1), ("transformers", 2), ("transformers", 3)]
    found: dict[str, Any] = {f"{name}, seed {seed}": train(name, seed, arguments.steps) for name, seed in runs}
    first = found["transformers, seed 1"]["validation"]
    print_table(
        f"losses after {arguments.steps:,} steps",
        ["", "last 100", "validation", "from transformers'"],
        [
            [name, f"{f['train']:.5f}", f"{f['validation']:.5f}", f"{f['validation'] - first:+.5f}"]
            for name, f in found.items()
        ],
        foreign=0.0,
    )
    if arguments.json:
        write_result(arguments.json, {"machine": machine(), "steps": arguments.steps, "losses": found})


if __name__ == "__main__":
    main()
