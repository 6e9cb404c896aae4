"""Compare training steps with those of other libraries, in the same run.

    python benchmarks/training.py
    python benchmarks/training.py --shapes gpt2 --contestants ours transformers
    python benchmarks/training.py --contestants ours "ours compiled" "ours bf16" "ours bf16 compiled"

A step is that of a user's loop: forward, cross-entropy, backward, fused AdamW; no dropout. First the script checks that
the contestants with our weights compute the same loss. Each contestant has its own process, so that its peak of memory
can be measured, and they alternate in a new random order each round, so that other work on the machine affects all of
them. The figures are ratios of tokens per second to those of transformers, with their spread over the rounds. The
script waits until other processes are idle, and reports if they are not.

A turn before the first round is not counted. The column "first s" has its seconds: for the contestants that are
``compiled`` they contain the compilation.

``ours`` computes as ``gptladder train`` does: the loss in chunks, float32 products by oneDNN if that is as accurate,
and an allocator that keeps freed memory. ``plain`` is our model with logits and ``F.cross_entropy`` and without all
that; ``chunked`` has only the loss in chunks. ``bf16`` uses autocast.
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
from gptladder.training.loss import NextTokenLoss
from gptladder.training.optim import adamw
from gptladder.training.precision import keep_freed_memory, try_onednn
from gptladder.weights import to_hf, to_hooked_transformer


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and of its batches."""

    d_model: int
    n_layers: int
    n_heads: int
    d_vocab: int
    batch: int
    seq: int
    steps: int
    """Number of steps of a turn, which takes some seconds."""

    @property
    def config(self) -> GPT2Config:
        """The configuration of our model."""
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
    """Return our model, with the loss in chunks or (``plain``) by its logits."""
    if plain:
        return model, lambda tokens, targets: _loss(model(tokens), targets)
    objective = NextTokenLoss(model)
    return objective, lambda tokens, targets: objective(tokens, targets).loss / targets.numel()


def transformers_gpt2(shape: Shape, model: GPT2) -> tuple[nn.Module, Step]:
    """Return transformers' GPT-2 with its default attention, sdpa."""
    theirs = to_hf(model).train()
    theirs.config.use_cache = False
    assert theirs.config._attn_implementation == "sdpa"
    return theirs, lambda tokens, targets: _loss(theirs(tokens).logits, targets)


def transformer_lens_gpt2(shape: Shape, model: GPT2) -> tuple[nn.Module, Step]:
    """Return HookedTransformer, which unties the embeddings, with the same weights."""
    theirs = to_hooked_transformer(model).train()
    return theirs, lambda tokens, targets: _loss(theirs(tokens), targets)


def x_transformers_gpt2(shape: Shape, model: GPT2) -> tuple[nn.Module, Step]:
    """Return x-transformers' decoder of the same sizes, tied, with learned positions and its own initial weights."""
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
    """Return litgpt's model of the same sizes, with rotary positions, untied, and with its own initial weights."""
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


# How each contestant is built, whether it uses bf16 autocast, and whether it has our weights (and so our loss).
CONTESTANTS: dict[str, tuple[Callable[[Shape, GPT2], tuple[nn.Module, Step]], bool, bool]] = {
    "ours": (ours, False, True),
    "ours bf16": (ours, True, True),
    "ours compiled": (ours, False, True),
    "ours bf16 compiled": (ours, True, True),
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
    """Measurements of several steps of one contestant."""

    tokens_per_second: float
    seconds: float
    processors: float
    first_loss: float
    peak_gb: float
    foreign: float
    """Number of processors that other processes used meanwhile."""


def work(contestant: str, shape: Shape, pipe: Connection) -> None:
    """Answer each message with the measurements of one turn."""
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
    if "compiled" in contestant:
        model.compile()
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
                seconds=seconds,
                processors=(time.process_time() - processor) / seconds,
                first_loss=first_loss,
                peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,  # kilobytes on Linux
                foreign=load.processors,
            )
        )


def measure(shape: Shape, contestants: list[str], rounds: int) -> tuple[dict[str, Turn], dict[str, list[Turn]]]:
    """Return each contestant's first turn, in which memory is allocated and code is loaded, and its other turns."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for contestant in contestants:
        pipes[contestant], theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(contestant, shape, theirs), daemon=True))
        workers[-1].start()
    first: dict[str, Turn] = {}
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
            else:
                first[contestant] = turn
    for pipe in pipes.values():
        pipe.send(False)
    for worker in workers:
        worker.join()
    losses = {name: turns[name][0].first_loss for name in contestants if CONTESTANTS[name][2]}
    for name, loss in losses.items():
        if abs(loss - losses[contestants[0]]) > (2e-2 if CONTESTANTS[name][1] else 1e-4):
            raise SystemExit(f"they do not compute the same, there is nothing to compare: {losses}")
    return first, turns


def summary(shape: Shape, first: dict[str, Turn], turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Return speeds, ratios to transformers' float32 round by round, memory, and what the arithmetic alone takes."""
    found: dict[str, Any] = {}
    for name, own in turns.items():
        found[name] = {
            "tokens_per_second": statistics.median(turn.tokens_per_second for turn in own),
            "first_turn_seconds": first[name].seconds,
            "turn_seconds": statistics.median(turn.seconds for turn in own),
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
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--picture", type=Path, help="draw tokens per second and their bounds here (PNG)")
    arguments = parser.parse_args()
    contestants = arguments.contestants or ["ours", "ours bf16", "transformers"]

    speed = {name: matrix_speed(dtype) for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))}
    result: dict[str, Any] = {"machine": machine(), "matrix_product_flop_per_second": speed, "shapes": {}}
    for name in arguments.shapes:
        shape = SHAPES[name]
        found = summary(shape, *measure(shape, contestants, arguments.rounds))
        result["shapes"][name] = found
        for contestant, figures in found["contestants"].items():
            bound = speed["bf16" if "bf16" in contestant else "float32"] / found["flop_per_token"]
            figures["share_of_arithmetic_bound"] = figures["tokens_per_second"] / bound
        print_table(
            f"{name}: {shape.n_layers} layers, d {shape.d_model}, vocabulary {shape.d_vocab:,}, "
            f"batch {shape.batch} x {shape.seq}",
            ["", "tokens/s", "ratio", "from", "to", "of bound", "peak GB", "first s", "then s"],
            [
                [
                    contestant,
                    f"{f['tokens_per_second']:,.0f}",
                    *(f"{f['ratio'][key]:.2f}" if "ratio" in f else "" for key in ("median", "least", "most")),
                    f"{f['share_of_arithmetic_bound']:.0%}",
                    f"{f['peak_gb']:.2f}",
                    f"{f['first_turn_seconds']:.1f}",
                    f"{f['turn_seconds']:.1f}",
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
    """Draw the tokens per second of each contestant, and the bound that the speed of matrix products sets."""
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
        # A bound far above all bars would flatten them: its number stands at the edge instead.
        top = max(*speeds, *(bound for bound in bounds if bound < 3 * max(speeds)))
        panel.set_ylim(0, 1.2 * top)
        for i, (bound, speed) in enumerate(zip(bounds, speeds, strict=True)):
            if bound <= top:
                panel.hlines(bound, i - 0.35, i + 0.35, "k", "--")
            else:
                text = f"↑ bound: {bound / speed:.0f} times as high"
                panel.annotate(text, (i, 1.18 * top), ha="center", va="top", fontsize=8)
        # A bar that ends near its bound has its number inside.
        for bar, bound, figures in zip(bars, bounds, contestants.values(), strict=True):
            text = f"{figures['ratio']['median']:.2f} ×" if "ratio" in figures else f"{bar.get_height():,.0f}"
            inside = bound - bar.get_height() < 0.1 * top
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
