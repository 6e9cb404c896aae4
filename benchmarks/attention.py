"""Causal attention, forward and backward on a CPU: PyTorch's fused kernel beside batched products.

    python benchmarks/attention.py

Our `Attention` takes the products in bfloat16 up to 512 positions where there are gradients: this is why.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import busy_elsewhere, machine, print_table, spread, wait_for_quiet, write_result

from gptladder.components import Attention

# batch, heads, positions, width of a head
SHAPES = {
    "char": (12, 4, 64, 32),
    "stories": (16, 4, 256, 16),
    "gpt2": (4, 12, 256, 64),
    "512 positions": (2, 12, 512, 64),
    "1,024 positions": (1, 12, 1024, 64),
}
KERNELS = ("fused kernel", "products")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="calls of each (default: 30)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    wait_for_quiet()
    foreign = busy_elsewhere()
    found = {}
    for name, (batch, n_heads, seq, d_head) in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            layer = Attention(d_model=n_heads * d_head, n_heads=n_heads)
            qkv = torch.randn(batch, seq, 3, n_heads, d_head, dtype=dtype, requires_grad=True)
            d_z = torch.randn(batch, seq, n_heads, d_head, dtype=dtype)
            seconds: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
            outputs = {}
            for turn in range(arguments.rounds + 3):
                for kernel in random.sample(KERNELS, len(KERNELS)):
                    began = time.perf_counter()
                    q, k, v = qkv.unbind(2)
                    k, v = k.transpose(1, 2), v.transpose(1, 2)
                    outputs[kernel] = (
                        layer._by_products(q, k, v)
                        if kernel == "products"
                        else F.scaled_dot_product_attention(
                            q.transpose(1, 2), k, v, is_causal=True, scale=layer.scale
                        ).transpose(1, 2)
                    )
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
