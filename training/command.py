"""``gptladder train`` and ``gptladder prepare``."""

import dataclasses

from ..assembly.config import GPT2Config
from ..options import parse, take
from .data.config import DataConfig
from .data.prepare import prepare_data
from .loop import Sampler
from .presets import DROPOUTS, PRESETS, OptimConfig, RunConfig, TrainConfig, field_names, resized
from .run import train as run_training

DEFAULT_PRESET = "tinystories"

_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def train(argv: list[str], sample: Sampler | None = None) -> int:
    """Train by a preset, with fields changed: ``train --preset NAME [--field value …]``.

    Args:
        argv: what follows ``train`` on the command line.
        sample: draws the samples; without it there are none.

    Returns:
        0; 130 where Ctrl-C ended the training.

    Raises:
        ValueError, OSError: what `gptladder.training.run.train` raises.
    """
    preset, _ = _preset(argv, "gptladder train")
    given = given_fields(argv)
    base = preset.replace(dropout=None) if given & set(DROPOUTS) else preset
    config = _with_model(parse(TrainConfig, argv, prog="gptladder train", default=base), base, given)
    outcome = run_training(config, sample=sample, asked=given & field_names(config.model))
    return _INTERRUPTED if outcome.ending == "interrupted" else 0


def prepare(argv: list[str]) -> int:
    """Prepare the text of a preset, with fields changed: ``prepare --preset NAME [--field value …]``.

    Returns:
        0.

    Raises:
        ValueError, OSError: text that cannot be used, or not be had.
    """
    preset, rest = _preset(argv, "gptladder prepare")
    prepare_data(parse(DataConfig, rest, prog="gptladder prepare", default=preset.data), say=print)
    return 0


def given_fields(argv: list[str]) -> set[str]:
    """Return the names of the fields whose options stand on a command line.

    >>> sorted(given_fields(["--d-model", "8", "--no-tie-word-embeddings", "--lr=1e-3"]))
    ['d_model', 'lr', 'tie_word_embeddings']
    """
    names = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    known = {
        field for part in (TrainConfig, DataConfig, GPT2Config, OptimConfig, RunConfig) for field in field_names(part)
    }
    return {field for field in known if field in names or f"no_{field}" in names}


def _with_model(parsed: TrainConfig, base: TrainConfig, given: set[str]) -> TrainConfig:
    """Return the configuration with sizes of the model that follow from others following the given ones.

    Raises:
        ValueError: Sizes that do not divide; a vocabulary's size, which the tokenizer decides.
    """
    if "d_vocab" in given:
        raise ValueError("--d-vocab: the tokenizer decides it; --vocab-size N is the size of one that is learnt (bpe)")
    sizes = {field: getattr(parsed.model, field) for field in given & field_names(GPT2Config)}
    return dataclasses.replace(parsed, model=resized(base.model, **sizes))


def _preset(argv: list[str], prog: str) -> tuple[TrainConfig, list[str]]:
    """Return the preset that a command line names, which has the defaults for reading the rest, and that rest."""
    name, rest = take(argv, "--preset", prog=prog, values=list(PRESETS))
    return PRESETS[name or DEFAULT_PRESET], rest
