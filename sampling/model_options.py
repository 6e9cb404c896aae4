"""The options that choose a model and a tokenizer for a command, and the functions that load both."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro

from ..assembly import GPT2, GPT2Config, pick_device
from ..tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer, load_tokenizer
from ..weights import from_pretrained, open_source, resolve, tokenizer_folder

__all__ = ["ModelOptions", "Models", "load", "load_with_tokenizer"]

Models = Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER|FILE")]

SMALL = GPT2Config(d_model=128, n_layers=4, n_heads=4, d_vocab=257, n_ctx=256)
"""The model of ``--random-init`` without ``--model``. Its tokens are the bytes, and one for the end of text."""

_INIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options that choose the model."""

    model: Models = None
    """A model's folder (runs/x/final), a run's folder (runs/x), a snapshot, nanoGPT checkpoint or GGUF file, or a
    published model's name (gpt2)."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """A folder with a tokenizer, or gpt2 (default: the tokenizer in the model's folder)."""
    random_init: bool = False
    """Use random weights: with the sizes and the tokenizer of --model, or, without --model, a small model of bytes."""
    device: str | None = None
    """cuda, mps or cpu (default: the first of these that is available)."""


class LoadedModel(NamedTuple):
    """A model, its tokenizer, and the path of its weights (None: random weights)."""

    model: GPT2
    tokenizer: Tokenizer
    path: Path | None


def load(options: ModelOptions) -> LoadedModel:
    """Load the model and the tokenizer that options name, and print to standard error which weights are used.

    Raises:
        ValueError: no model is named, or no tokenizer is found.
        OSError: a model or a tokenizer cannot be read.
    """
    if options.model is not None and not options.random_init:
        return load_with_tokenizer(options.model, options.tokenizer, options.device)
    if not options.random_init:
        raise ValueError("which model? Give --model FOLDER or --model NAME, or --random-init for random weights")
    device = pick_device(options.device)
    path = None if options.model is None else resolve(options.model)
    if path is None and options.tokenizer is None:
        tokenizer: Tokenizer = _bytes()
    else:
        tokenizer = _tokenizer(options.model, path, options.tokenizer)
    config = SMALL if path is None else from_pretrained(path).config
    torch.manual_seed(_INIT_SEED)
    model = GPT2(config, device=device).eval()
    sizes = "a small model of bytes" if path is None else f"the sizes of {options.model}"
    _print_weights(f"random ones (seed {_INIT_SEED}, {sizes}), so expect noise", model)
    return LoadedModel(model, tokenizer, None)


def load_with_tokenizer(name: str, tokenizer: str | None = None, device: str | None = None) -> LoadedModel:
    """Load a model by its name or path, with its own tokenizer or another one.

    Raises:
        ValueError: no tokenizer is found.
        OSError: a model or a tokenizer cannot be read.
    """
    place = pick_device(device)
    path = resolve(name)
    open_source(path)  # another kind of model is reported as such, and not as one without a tokenizer
    words = _tokenizer(name, path, tokenizer)
    model = from_pretrained(path, device=place)
    shown = str(path) if path == Path(name) else f"{name} ({path})"
    _print_weights(shown, model)
    return LoadedModel(model, words, path)


def _tokenizer(name: str | None, path: Path | None, given: str | None) -> Tokenizer:
    if given is not None:
        return load_tokenizer(given)
    assert path is not None
    folder = tokenizer_folder(path)
    if folder is None:
        raise ValueError(
            f"no tokenizer in {path if path.is_dir() else path.parent}: it has neither tokenizer.json nor vocab.json "
            f"and merges.txt; give the tokenizer that {name} was trained with: --tokenizer FOLDER (of a nanoGPT model "
            "of characters, the one with meta.pkl), or --tokenizer gpt2"
        )
    return load_tokenizer(folder)


def _bytes() -> BPETokenizer:
    """Return a tokenizer with a token for each byte and one for the end of text: it encodes any text."""
    return BPETokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})


def _print_weights(name: str, model: GPT2) -> None:
    device = model.embed.W_E.device
    print(f"weights: {name}; {model.num_parameters():,} parameters, on {device}", file=sys.stderr, flush=True)
