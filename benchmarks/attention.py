"""Compare PyTorch's fused kernel with batched products: causal attention, forward and backward on a CPU.

    python benchmarks/attention.py

The result is the reason why `Attention` uses batched products for gradients in bfloat16 up to 512 positions.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import busy_elsewhere, machine, print_table, spread, wait_for_quiet, write_result
from torch import Tensor

from gptladder.components.kernels import _attention_by_products

# batch, heads, positions, width of a head
SHAPES = {
    "char": (12, 4, 64, 32),
    "stories": (16, 4, 256, 16),
    "gpt2": (4, 12, 256, 64),
    "512 positions": (2, 12, 512, 64),
    "1,024 positions": (1, 12, 1024, 64),
}
Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""From queries, keys and values [batch n_heads positions d_head] and the scale to the weighted values."""

KERNELS: dict[str, Kernel] = {
    "fused kernel": lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale),
    "products": lambda q, k, v, scale: _attention_by_products(q, k, v, scale=scale, padding_mask=None, dropout=0.0),
}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="number of rounds (default: 30)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    wait_for_quiet()
    foreign = busy_elsewhere()
    found = {}
    for name, (batch, n_heads, seq, d_head) in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            qkv = torch.randn(batch, seq, 3, n_heads, d_head, dtype=dtype, requires_grad=True)
            d_z = torch.randn(batch, seq, n_heads, d_head, dtype=dtype).transpose(1, 2)
            seconds: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
            outputs = {}
            for turn in range(arguments.rounds + 3):
                for kernel in random.sample(list(KERNELS), len(KERNELS)):
                    began = time.perf_counter()
                    q, k, v = qkv.transpose(1, 3).unbind(2)
                    outputs[kernel] = KERNELS[kernel](q, k, v, d_head**-0.5)
                    outputs[kernel].backward(d_z)
                    if turn >= 3:
                        seconds[kernel].append(time.perf_counter() - began)
                    qkv.grad = None
            off = (outputs["products"] - outputs["fused kernel"]).abs().max().item()
            assert off < (1e-5 if dtype == torch.float32 else 0.1), f"they do not compute the same: {off}"
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = {
                **{kernel: 1000 * statistics.median(taken) for kernel, taken in seconds.items()},
                "ratio": spread([a / b for a, b in zip(*seconds.values(), strict=True)]),
            }
    print_table(
        "attention, forward and backward, ms",
        ["", *KERNELS, "ratio", "from", "to"],
        [
            [name, *(f"{f[kernel]:.2f}" for kernel in KERNELS), *(f"{r:.2f}" for r in f["ratio"].values())]
            for name, f in found.items()
        ],
        foreign=foreign,
    )
    if arguments.json:
        write_result(arguments.json, {"machine": machine(), "milliseconds": found})


if __name__ == "__main__":
    main()
