"""Check that faster training reaches the same losses as transformers, after 2,000 steps from the same weights.

    python benchmarks/losses.py

The shape ``char`` of ``training.py`` learns the characters of generated stories, with warm-up and a cosine, on the same
batches in the same order. The table shows each contestant's mean loss over the last 100 steps, its loss on new text,
and the differences from transformers with the same precision.

In float64 and float32, only rounding may make a difference. The difference of bfloat16 can be compared with that of
another seed: transformers with other initial weights and another order.
"""

import argparse
import statistics
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from measure import machine, print_table, write_result

from gptladder.assembly import GPT2
from gptladder.components.kernels import set_onednn_products
from gptladder.training.data.stories import stories
from gptladder.training.precision import keep_freed_memory, try_onednn
from gptladder.training.schedule import warmup_decay
from training import SHAPES, ours, transformers_gpt2

SHAPE = SHAPES["char"]

# Contestant, precision, seed. Each is compared with the first one of its precision.
RUNS = [
    ("transformers", "float64", 1),
    ("ours", "float64", 1),
    ("transformers", "float32", 1),
    ("ours", "float32", 1),
    ("transformers", "float32", 2),
    ("ours", "bf16", 1),
]


def text() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the characters of stories as ids, two megabytes for training and the rest for validation."""
    characters = "".join(story + "\n\n" for story in islice(stories(seed=1), 2500))
    # The most frequent characters, as many as the shape has.
    used = sorted(sorted(set(characters), key=lambda c: -characters.count(c))[: SHAPE.d_vocab])
    ids = torch.tensor([used.index(c) for c in characters if c in used])
    return ids[:-100_000], ids[-100_000:]


def train(contestant: str, precision: str, seed: int, steps: int) -> dict[str, float]:
    """Return the losses at the end of a run."""
    train_ids, val_ids = text()
    set_onednn_products(contestant == "ours" and precision == "float32" and try_onednn().accurate)
    torch.manual_seed(seed)
    fresh = GPT2(SHAPE.config).to(torch.float64 if precision == "float64" else torch.float32)
    model, step = (ours if contestant == "ours" else transformers_gpt2)(SHAPE, fresh)
    # Without weight decay, because the contestants do not agree which of their parameters decay.
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    source = torch.Generator().manual_seed(seed)

    def loss(starts: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        windows = torch.stack([ids[start : start + SHAPE.seq + 1] for start in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return step(windows[:, :-1], windows[:, 1:])

    last = []
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = warmup_decay(
            number, lr=1e-3, min_lr=1e-4, warmup_steps=100, decay_steps=steps
        )
        found = loss(torch.randint(len(train_ids) - SHAPE.seq, (SHAPE.batch,), generator=source), train_ids)
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
    found: dict[str, Any] = {}
    rows, firsts = [], {}
    for contestant, precision, seed in RUNS:
        losses = train(contestant, precision, seed, arguments.steps)
        found[f"{contestant}, {precision}, seed {seed}"] = losses
        first = firsts.setdefault("float32" if precision == "bf16" else precision, losses)
        rows.append(
            [contestant, precision, str(seed)]
            + [f"{losses[kind]:.6f} ({losses[kind] - first[kind]:+.1e})" for kind in ("train", "validation")]
        )
    print_table(
        f"losses after {arguments.steps:,} steps (less transformers')",
        ["", "", "seed", "last 100 steps", "validation"],
        rows,
        foreign=0.0,
    )
    if arguments.json:
        write_result(arguments.json, {"machine": machine(), "steps": arguments.steps, "losses": found})


if __name__ == "__main__":
    main()
