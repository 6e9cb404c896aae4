"""``gptladder evaluate``: how well a model predicts a text."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..options import named_by_option, parse
from .evaluation import Evaluation
from .evaluation import evaluate as evaluate_model
from .model_options import load_with_tokenizer

Documents = Callable[[str, str | None], Iterable[Iterable[str]]]
"""The documents of a file, of a folder, or, by the name "-", of standard input, and their encoding if not UTF-8."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Measure how well a model predicts a text: loss, perplexity, bits per byte, accuracy.

    Every token is counted once. Bits per byte can be compared between models with different tokenizers.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODEL"), tyro.conf.Positional]
    """A model's folder, a run's folder, a snapshot or nanoGPT checkpoint, or a published model's name (gpt2)."""
    text: Annotated[str, tyro.conf.arg(metavar="TEXT"), tyro.conf.Positional]
    """A text file, a folder of texts, or - for standard input. <|endoftext|> separates documents."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """A folder with a tokenizer, or gpt2 (default: the model's own)."""
    encoding: str | None = None
    """Encoding of files that are not UTF-8, such as cp1252 (default: such a file is refused)."""
    stride: int | None = None
    """Number of tokens that each window of n_ctx tokens predicts (default: n_ctx / 2). Each token is predicted from all
    tokens before it in its document, or from at least n_ctx - stride of them."""
    batch: int = 8
    """Number of windows to compute together; this changes speed and memory, not the result."""
    device: str | None = None
    """cuda, mps or cpu (default: the first of these that is available)."""
    json: bool = False
    """Print one JSON object."""


def evaluate(argv: list[str], documents: Documents) -> int:
    """Run ``gptladder evaluate``.

    Returns:
        0.

    Raises:
        ValueError, OSError: A model, a tokenizer or a text cannot be used.
    """
    options = parse(EvaluateArguments, argv, prog="gptladder evaluate")
    texts = documents(options.text, options.encoding)
    model, tokenizer, _ = load_with_tokenizer(options.model, options.tokenizer, options.device)
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.fields[done]:,} tokens"), TimeElapsedColumn())
    with (
        named_by_option(EvaluateArguments),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=None, done=0)
        found = evaluate_model(
            model,
            texts,
            tokenizer=tokenizer,
            stride=options.stride,
            batch=options.batch,
            progress=lambda done: progress.update(task, done=done),
        )
    n_ctx = model.config.n_ctx
    stride = max(1, n_ctx // 2) if options.stride is None else options.stride
    if options.json:
        print(json.dumps(_record(found, n_ctx, stride)))
    else:
        print("\n".join(_lines(found, n_ctx, stride)))
    return 0


def _record(found: Evaluation, n_ctx: int, stride: int) -> dict[str, float]:
    return {
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "accuracy": found.accuracy,
        "tokens": found.tokens,
        "predicted": found.predicted,
        "bytes": found.bytes,
        "documents": found.documents,
        "n_ctx": n_ctx,
        "stride": stride,
    }


def _lines(found: Evaluation, n_ctx: int, stride: int) -> list[str]:
    first = found.tokens - found.predicted
    unpredicted = f", except the first of each text ({first:,})" if first else ""
    return [
        f"loss           {found.loss:.4f} nats per token",
        f"perplexity     {found.perplexity:,.4g}",
        f"bits per byte  {found.bits_per_byte:.4f}",
        f"accuracy       {found.accuracy:.2%}",
        f"tokens         {found.tokens:,}, each counted once{unpredicted}",
        f"text           {found.bytes:,} bytes counted, documents: {found.documents:,}",
        f"context        all tokens before, or {n_ctx - stride:,} to {n_ctx:,}",
    ]
