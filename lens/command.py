"""``gptladder look``."""

import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..device import pick_device
from ..files import user_path
from ..options import parse
from ..tokenizer import load_tokenizer
from ..weights import from_pretrained, open_source, resolve, tokenizer_folder
from .page import look as look_at


@dataclass(frozen=True, kw_only=True)
class LookArguments:
    """Write one page that shows what a model does with a text: surprise, next tokens, attention, layers, parts."""

    text: Annotated[str, tyro.conf.arg(metavar="TEXT"), tyro.conf.Positional]
    """The text to look at."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")]
    """A run folder, a model folder such as runs/x/final, a snapshot, or a published model's name such as gpt2."""
    tokenizer: str | None = None
    """A folder with a tokenizer, or "gpt2" (default: the model's own)."""
    out: Path = Path("look.html")
    """The page to write."""
    large: bool = False
    """Write a page of more than 32 MB too, for a long text; browsers are slow to open it."""
    open: bool = False
    """Open the page in a browser."""
    device: str | None = None
    """cuda, mps or cpu (default: the first of these that is available)."""


def look(argv: list[str]) -> int:
    """Run ``gptladder look`` and return 0.

    Raises:
        ValueError, OSError: a model, a tokenizer or a text that cannot be used, or a page that cannot be written.
    """
    arguments = parse(LookArguments, argv, prog="gptladder look")
    source = resolve(arguments.model)
    open_source(source)  # another kind of model is reported as such, and not as one without a tokenizer
    folder = arguments.tokenizer or tokenizer_folder(source)
    if folder is None:
        raise ValueError(f"{arguments.model} brings no tokenizer: give one with --tokenizer")
    tokenizer = load_tokenizer(folder)
    model = from_pretrained(source, device=pick_device(arguments.device), dtype=torch.float32)
    page = look_at(model, arguments.text, tokenizer=tokenizer, name=arguments.model, large=arguments.large)
    out = user_path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    page.html(out)
    print(f"{out} shows what {arguments.model} does with {len(page.prompt.labels)} tokens; it opens without a network")
    if arguments.open and not webbrowser.open(out.resolve().as_uri()):
        print(f"no browser could be started: open {out} yourself", file=sys.stderr)
    return 0
