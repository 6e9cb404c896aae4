"""Training steps beside the libraries that one would otherwise take, in the same run.

    python benchmarks/training.py
    python benchmarks/training.py --shapes gpt2 --contestants ours transformers

A step is what a user's loop does: forward, cross-entropy, backward, fused AdamW; no dropout. The contestants that have
our weights are first seen to compute the same loss. Each has a process of its own, so that the peak of its memory is
its own, and they take turns in an order drawn anew each round, so that whatever else the machine does falls on all.
Figures are ratios of tokens per second to transformers', with their spread over the rounds. Other work on the machine
is waited for, and said where it does not end.

``ours`` computes as ``gptladder train`` does: the loss in chunks, float32 products by oneDNN where that is as accurate,
freed memory kept. ``plain`` is our model with logits and ``F.cross_entropy`` and none of that; ``chunked`` has
the loss in chunks alone. ``bf16`` is under autocast.
"""

import argparse
import math
import multiprocessing
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import (
    foreign_load,
    machine,
    matrix_speed,
    operations_per_token,
    print_table,
    spread,
    wait_for_quiet,
    write_result,
)
from torch import Tensor, nn

from gptladder.assembly import GPT2, GPT2Config
from gptladder.components.kernels import set_onednn_products
from gptladder.training.kernels import keep_freed_memory, try_onednn
from gptladder.training.loss import NextTokenLoss
from gptladder.training.optim import adamw
from gptladder.weights import to_hf, to_hooked_transformer


@dataclass(frozen=True)
class Shape:
    """What is trained, and on batches of what size."""

    d_model: int
    n_layers: int
    n_heads: int
    d_vocab: int
    batch: int
    seq: int
    steps: int
    """Of one turn: some seconds."""

    @property
    def config(self) -> GPT2Config:
        """Ours."""
        return GPT2Config(
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_vocab=self.d_vocab,
            n_ctx=self.seq,
        )


SHAPES = {
    "char": Shape(d_model=128, n_layers=4, n_heads=4, d_vocab=65, batch=12, seq=64, steps=60),
    "stories": Shape(d_model=64, n_layers=2, n_heads=4, d_vocab=50257, batch=16, seq=256, steps=2),
    "gpt2": Shape(d_model=768, n_layers=12, n_heads=12, d_vocab=50257, batch=4, seq=256, steps=1),
}

Step = Callable[[Tensor, Tensor], Tensor]


def ours(shape: Shape, model: GPT2, *, plain: bool = False) -> tuple[nn.Module, Step]:
    """Our model, with the loss in chunks or by its logits."""
    if plain:
        return model, lambda tokens, targets: _loss(model(tokens), targets)
    objective = NextTokenLoss(model)
    return objective, lambda tokens, targets: objective(tokens, targets).loss / targets.numel()


def transformers_gpt2(shape: Shape, model: GPT2) -> tuple[nn.Module, Step]:
    """transformers' GPT-2 with its default attention, sdpa."""
    theirs = to_hf(model).train()
    theirs.config.use_cache = False
    assert theirs.config._attn_implementation == "sdpa"
    return theirs, lambda tokens, targets: _loss(theirs(tokens).logits, targets)


def transformer_lens_gpt2(shape: Shape, model: GPT2) -> tuple[nn.Module, Step]:
    """HookedTransformer, which unties the embeddings, with the same weights."""
    theirs = to_hooked_transformer(model).train()
    return theirs, lambda tokens, targets: _loss(theirs(tokens), targets)


def x_transformers_gpt2(shape: Shape, model: GPT2) -> tuple[nn.Module, Step]:
    """x-transformers' decoder of the same sizes, tied, with learned positions. Its weights are its own."""
    from x_transformers import Decoder, TransformerWrapper  # pyright: ignore[reportMissingImports]

    theirs = TransformerWrapper(
        num_tokens=shape.d_vocab,
        max_seq_len=shape.seq,
        tie_embedding=True,
        attn_layers=Decoder(
            dim=shape.d_model,
            depth=shape.n_layers,
            heads=shape.n_heads,
            attn_dim_head=shape.d_model // shape.n_heads,
            attn_flash=True,
        ),
    )
    return theirs, lambda tokens, targets: _loss(theirs(tokens), targets)


def litgpt_gpt2(shape: Shape, model: GPT2) -> tuple[nn.Module, Step]:
    """litgpt's model of the same sizes; it has rotary positions and unties. Its weights are its own."""
    import litgpt  # pyright: ignore[reportMissingImports]

    config = litgpt.Config(
        block_size=shape.seq,
        padded_vocab_size=shape.d_vocab,
        vocab_size=shape.d_vocab,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        n_embd=shape.d_model,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=True,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
    )
    theirs = litgpt.GPT(config)
    return theirs, lambda tokens, targets: _loss(theirs(tokens), targets)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


# How each is built, whether under bf16 autocast, and whether it has our weights (and so must have our loss).
CONTESTANTS: dict[str, tuple[Callable[[Shape, GPT2], tuple[nn.Module, Step]], bool, bool]] = {
    "ours": (ours, False, True),
    "ours bf16": (ours, True, True),
    "chunked": (ours, False, True),
    "plain": (lambda shape, model: ours(shape, model, plain=True), False, True),
    "transformers": (transformers_gpt2, False, True),
    "transformers bf16": (transformers_gpt2, True, True),
    "TransformerLens": (transformer_lens_gpt2, False, True),
    "x-transformers": (x_transformers_gpt2, False, False),
    "litgpt": (litgpt_gpt2, False, False),
}


@dataclass(frozen=True)
class Turn:
    """What some steps of one contestant took."""

    tokens_per_second: float
    processors: float
    first_loss: float
    peak_gb: float
    foreign: float
    """Processors that others kept busy meanwhile."""


def work(contestant: str, shape: Shape, pipe: Connection) -> None:
    """Answer each message with a turn."""
    import warnings

    warnings.simplefilter("ignore")
    build, bf16, _ = CONTESTANTS[contestant]
    if contestant.startswith("ours"):
        keep_freed_memory()
        set_onednn_products(try_onednn().accurate)
    torch.manual_seed(1337)
    model, step = build(shape, GPT2(shape.config))
    optimizer = (
        adamw(model, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
        if build is ours
        else torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    )
    model.train()
    source = torch.Generator().manual_seed(0)
    first_loss = math.nan
    while pipe.recv():
        batches = torch.randint(shape.d_vocab, (shape.steps, 2, shape.batch, shape.seq), generator=source)
        with foreign_load() as load:
            began, processor = time.perf_counter(), time.process_time()
            for tokens, targets in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = step(tokens, targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                first_loss = loss.item() if math.isnan(first_loss) else first_loss
            seconds = time.perf_counter() - began
        pipe.send(
            Turn(
                tokens_per_second=shape.steps * shape.batch * shape.seq / seconds,
                processors=(time.process_time() - processor) / seconds,
                first_loss=first_loss,
                peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,  # kilobytes on Linux
                foreign=load.processors,
            )
        )


def measure(shape: Shape, contestants: list[str], rounds: int) -> dict[str, list[Turn]]:
    """The turns of each contestant, after one that does not count: it pays for memory and code that later ones find."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for contestant in contestants:
        pipes[contestant], theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(contestant, shape, theirs), daemon=True))
        workers[-1].start()
    turns: dict[str, list[Turn]] = {contestant: [] for contestant in contestants}
    for number in range(rounds + 1):
        order = random.sample(contestants, len(contestants))
        if number:
            wait_for_quiet()
        for contestant in order:
            pipes[contestant].send(True)
            turn = pipes[contestant].recv()
            if number:
                turns[contestant].append(turn)
    for pipe in pipes.values():
        pipe.send(False)
    for worker in workers:
        worker.join()
    losses = {name: turns[name][0].first_loss for name in contestants if CONTESTANTS[name][2]}
    for name, loss in losses.items():
        if abs(loss - losses[contestants[0]]) > (2e-2 if CONTESTANTS[name][1] else 1e-4):
            raise SystemExit(f"they do not compute the same, there is nothing to compare: {losses}")
    return turns


def summary(shape: Shape, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Speeds, ratios to transformers' float32 round by round, memory, and what the arithmetic alone takes."""
    found: dict[str, Any] = {}
    for name, own in turns.items():
        found[name] = {
            "tokens_per_second": statistics.median(turn.tokens_per_second for turn in own),
            "peak_gb": own[-1].peak_gb,
            "processors": statistics.median(turn.processors for turn in own),
            "loss_of_first_step": own[0].first_loss,
            "foreign_processors": max(turn.foreign for turn in own),
        }
        if peers := turns.get("transformers"):
            found[name]["ratio"] = spread(
                [a.tokens_per_second / b.tokens_per_second for a, b in zip(own, peers, strict=True)]
            )
    return {
        "shape": asdict(shape),
        "flop_per_token": operations_per_token(shape.config, shape.seq),
        "contestants": found,
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, metavar="NAME", default=None)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each gets (default: 5)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--picture", type=Path, help="draw tokens per second and their bounds here (PNG)")
    arguments = parser.parse_args()
    contestants = arguments.contestants or ["ours", "ours bf16", "transformers"]

    speed = {name: matrix_speed(dtype) for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))}
    result: dict[str, Any] = {"machine": machine(), "matrix_product_flop_per_second": speed, "shapes": {}}
    for name in arguments.shapes:
        shape = SHAPES[name]
        found = summary(shape, measure(shape, contestants, arguments.rounds))
        result["shapes"][name] = found
        for contestant, figures in found["contestants"].items():
            bound = speed["bf16" if "bf16" in contestant else "float32"] / found["flop_per_token"]
            figures["share_of_arithmetic_bound"] = figures["tokens_per_second"] / bound
        print_table(
            f"{name}: {shape.n_layers} layers, d {shape.d_model}, vocabulary {shape.d_vocab:,}, "
            f"batch {shape.batch} x {shape.seq}",
            ["", "tokens/s", "ratio", "from", "to", "of bound", "peak GB", "first loss"],
            [
                [
                    contestant,
                    f"{f['tokens_per_second']:,.0f}",
                    *(f"{f['ratio'][key]:.2f}" if "ratio" in f else "" for key in ("median", "least", "most")),
                    f"{f['share_of_arithmetic_bound']:.0%}",
                    f"{f['peak_gb']:.2f}",
                    f"{f['loss_of_first_step']:.4f}",
                ]
                for contestant, f in found["contestants"].items()
            ],
            foreign=max(f["foreign_processors"] for f in found["contestants"].values()),
        )
    if arguments.json:
        write_result(arguments.json, result)
    if arguments.picture:
        draw(result, arguments.picture)


_FLOAT32, _BF16 = "#2b6cb0", "#c05621"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw tokens per second of each contestant, under the bound that the measured matrix products set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(4 * len(result["shapes"]), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(result["shapes"]), squeeze=False)[0]
    for panel, (shape, found) in zip(panels, result["shapes"].items(), strict=True):
        contestants = found["contestants"]
        names = list(contestants)
        speeds = [figures["tokens_per_second"] for figures in contestants.values()]
        bounds = [
            figures["tokens_per_second"] / figures["share_of_arithmetic_bound"] for figures in contestants.values()
        ]
        bars = panel.bar(names, speeds, color=[_BF16 if "bf16" in name else _FLOAT32 for name in names], width=0.6)
        panel.hlines(bounds, [i - 0.35 for i in range(len(names))], [i + 0.35 for i in range(len(names))], "k", "--")
        # A bar that ends near its bound has its number inside.
        for bar, bound, figures in zip(bars, bounds, contestants.values(), strict=True):
            text = f"{figures['ratio']['median']:.2f} ×" if "ratio" in figures else f"{bar.get_height():,.0f}"
            inside = bound - bar.get_height() < 0.1 * max(bounds)
            panel.annotate(
                text,
                (bar.get_x() + bar.get_width() / 2, bar.get_height()),
                xytext=(0, -5 if inside else 4),
                textcoords="offset points",
                ha="center",
                va="top" if inside else "bottom",
                color="white" if inside else "black",
                weight="bold",
            )
        sizes = found["shape"]
        panel.set_title(
            f"{shape}: {sizes['n_layers']} layers of {sizes['d_model']}, {sizes['d_vocab']:,} tokens", fontsize=10
        )
        panel.set_ylim(0, 1.08 * max(bounds))
        panel.yaxis.set_major_formatter("{x:,.0f}")
    panels[0].set_ylabel("tokens per second in training")
    handles = [
        Patch(color=_FLOAT32, label="float32"),
        Patch(color=_BF16, label="bfloat16"),
        panels[0].plot([], [], "k--", label="bound: the matrix products alone, at their measured speed")[0],
        Patch(color="none", label="number: speed / speed of transformers in float32"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
