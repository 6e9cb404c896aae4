"""``gptladder convert`` and ``gptladder push``."""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..components.mlp import ActFn
from ..options import parse
from .convert import Converted, Target, mapping
from .convert import convert as convert_model
from .push import push_to_hub
from .sources import resolve, tokenizer_folder

_DTYPES: dict[str, torch.dtype | Literal["q8_0"]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "f32": torch.float32,
    "f16": torch.float16,
    "q8_0": "q8_0",
}


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Convert a model from one format into another. The result appears when it is whole and has the same logits."""

    source: Annotated[str, tyro.conf.arg(metavar="SOURCE"), tyro.conf.Positional]
    """A folder or file of any format (transformers, ours, HookedTransformer, OpenAI's TensorFlow checkpoint, nanoGPT's
    ckpt.pt, GGUF, a snapshot of a training run), or a name on the hub."""
    destination: Annotated[Path, tyro.conf.arg(metavar="DESTINATION"), tyro.conf.Positional]
    """A new folder; for nanogpt and gguf a file, such as out/ckpt.pt or stories.gguf."""
    to: Target
    """hf: what transformers reads. hooked: HookedTransformer's configuration and state dict. ours: our own names, which
    every model fits. nanogpt: a checkpoint for nanoGPT. gguf: model and tokenizer in one file for llama.cpp, Ollama and
    LM Studio."""
    dtype: Literal["float32", "float16", "bfloat16", "f32", "f16", "q8_0"] | None = None
    """Dtype of the written weights (default: the source's). f32 and f16 are other names of float32 and float16; q8_0,
    8 bits a number with a scale for each 32 of them, is for gguf alone."""
    act_fn: ActFn | None = None
    """Activation of the nanoGPT version that wrote the source or will read the result (default: gelu)."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """A folder with a tokenizer, or gpt2, for the result (default: the source's; for a nanoGPT checkpoint with GPT-2's
    vocabulary, GPT-2's)."""
    shard_gb: float = 5.0
    """Weights of more gigabytes (of 2^30 bytes) than this are split into several files."""
    overwrite: bool = False
    """Replace the model that is there, with its tokenizer."""
    dry_run: bool = False
    """Write nothing, and print how each tensor would be converted."""
    json: bool = False
    """Print one JSON object, and no progress."""


def convert(argv: list[str]) -> int:
    """Run ``gptladder convert``.

    Returns:
        0.

    Raises:
        ValueError, OSError, ImportError: what `gptladder.weights.convert.convert` raises.
    """
    arguments = parse(ConvertArguments, argv, prog="gptladder convert")
    if arguments.tokenizer is not None and arguments.to == "nanogpt":
        raise ValueError("--tokenizer does nothing with --to nanogpt, whose checkpoint is one file; leave it out")
    if not arguments.shard_gb > 0:
        raise ValueError(f"--shard-gb is {arguments.shard_gb}; it must be above 0")
    if "" in argv:  # which would be the present folder
        raise ValueError("SOURCE or DESTINATION is empty: give a folder or a file")
    source = resolve(arguments.source)
    if arguments.dry_run:
        _print_mapping(source, arguments)
        return 0
    console = Console(stderr=True)
    began = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = arguments.json or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("writing", total=None)

        def show(done: int, of: int) -> None:
            what = "writing" if done < of else "comparing with the source"
            progress.update(task, completed=done, total=of, description=what)

        result = convert_model(
            source,
            arguments.destination,
            to=arguments.to,
            dtype=None if arguments.dtype is None else _DTYPES[arguments.dtype],
            act_fn=arguments.act_fn,
            tokenizer=arguments.tokenizer,
            max_shard_size=int(arguments.shard_gb * 2**30),
            overwrite=arguments.overwrite,
            progress=show,
        )
    seconds = time.perf_counter() - began
    if arguments.json:
        print(json.dumps({"destination": str(arguments.destination), **dataclasses.asdict(result), "seconds": seconds}))
    else:
        print(_summary(result, arguments, seconds))
    return 0


def _summary(result: Converted, arguments: ConvertArguments, seconds: float) -> str:
    weights = "every weight is the same, bit for bit" if result.identical else "the function is the same"
    if arguments.dtype is not None:
        weights += f", as {arguments.dtype} (which moves logits by up to {result.rounding:.1e})"
    return (
        f"{arguments.destination}: {result.parameters:,} parameters, from {result.kind} to {arguments.to} in "
        f"{seconds:.1f} s. Read back, {weights}; logits differ by at most {result.difference:.1e}"
        + (f". With {result.tokenizer}" if result.tokenizer else "")
        + (f"\nTo read it, give {result.reading}" if result.reading else "")
    )


def _print_mapping(source: Path, arguments: ConvertArguments) -> None:
    names = ("from", "shape", "transform", "to")
    table = list(mapping(source, to=arguments.to, act_fn=arguments.act_fn))
    if arguments.json:
        print(json.dumps([dict(zip(names, row, strict=True)) for row in table]))
        return
    print(f"{source}: these tensors would be written")
    cells = [names, *((origin or "-", str(shape), how, name) for origin, shape, how, name in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@dataclass(frozen=True, kw_only=True)
class PushArguments:
    """Push a model folder to the hub: model, tokenizer and card in one commit, in place of what was there."""

    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER"), tyro.conf.Positional]
    """A model folder in transformers' format, or a training run's folder, whose best model is pushed."""
    name: Annotated[str, tyro.conf.arg(metavar="NAME"), tyro.conf.Positional]
    """Where: owner/name. The repository is made if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    message: str | None = None
    """Message of the commit."""


def push(argv: list[str]) -> int:
    """Run ``gptladder push``.

    Returns:
        0.

    Raises:
        ValueError, OSError: what `gptladder.weights.push.push_to_hub` raises.
    """
    arguments = parse(PushArguments, argv, prog="gptladder push")
    if tokenizer_folder(arguments.folder) is None:
        print(f"{arguments.folder} has no tokenizer, so what is pushed has none", file=sys.stderr)
    address = push_to_hub(
        arguments.folder, arguments.name, private=arguments.private or None, message=arguments.message
    )
    print(f"pushed: {address}")
    return 0
