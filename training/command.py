"""``gptladder train`` and ``gptladder prepare``."""

import argparse
import dataclasses
import os
import re
from typing import Any, TypeVar

import tyro

from ..assembly.config import GPT2Config
from .data.config import DataConfig
from .data.prepare import prepare_data
from .display import JSONDisplay
from .loop import Sampler
from .own_text import Start, is_own_text, start_from_preset, start_from_recipe
from .presets import DROPOUTS, PRESETS, OptimConfig, RunConfig, TrainConfig, field_names, resized
from .run import train as run_training

T = TypeVar("T")

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
    preset, recipe, _ = _start(argv)
    given = given_fields(argv)
    base = preset.replace(dropout=None) if given & set(DROPOUTS) else preset
    config = _with_model(_parse(TrainConfig, base, argv, prog="gptladder train"), base, given)
    if recipe is not None:
        _announce(recipe.line(config), json_lines=config.run.json)
    outcome = run_training(config, sample=sample, asked=given & field_names(config.model))
    return _INTERRUPTED if outcome.ending == "interrupted" else 0


def prepare(argv: list[str]) -> int:
    """Prepare the text of a preset, with fields changed: ``prepare --preset NAME [--field value …]``.

    Returns:
        0.

    Raises:
        ValueError, OSError: text that cannot be used, or not be had.
    """
    preset, recipe, rest = _start(argv)
    config = _parse(DataConfig, preset.data, rest, prog="gptladder prepare [--preset NAME]")
    if recipe is not None and "tokenizer" not in given_fields(argv):
        print(f"tokenizer for this text: {config.tokenizer} (--tokenizer gives another)")
    prepare_data(config, say=print)
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


def in_options(message: str) -> str:
    """Return a message about the model's configuration in words of the command line.

    >>> in_options("n_heads=3 does not divide d_model=64: change one of them")
    '--n-heads 3 does not divide --d-model 64: change one of them'
    """
    fields = "|".join(sorted(field_names(GPT2Config), key=len, reverse=True))
    return re.sub(
        rf"\b({fields})\b(=?)", lambda found: f"--{found[1].replace('_', '-')}{' ' if found[2] else ''}", message
    )


def _with_model(parsed: TrainConfig, base: TrainConfig, given: set[str]) -> TrainConfig:
    """Return the configuration with sizes of the model that follow from others following the given ones.

    Raises:
        ValueError: Sizes that do not divide; a vocabulary's size, which the tokenizer decides.
    """
    if "d_vocab" in given:
        raise ValueError("--d-vocab: the tokenizer decides it; --vocab-size N is the size of one that is learnt (bpe)")
    sizes = {field: getattr(parsed.model, field) for field in given & field_names(GPT2Config)}
    try:
        return dataclasses.replace(parsed, model=resized(base.model, **sizes))
    except ValueError as error:
        raise ValueError(in_options(str(error))) from None


def _start(argv: list[str]) -> tuple[TrainConfig, Start | None, list[str]]:
    """The values that have the defaults for reading a command line, the recipe that they are from, and the rest of it.

    They are a preset's, or for a text of the user's own without a preset a recipe's.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    early, rest = parser.parse_known_args(argv)
    if early.preset not in (None, *PRESETS):
        raise ValueError(f"there is no preset {early.preset!r}; there are {', '.join(PRESETS)}")
    preset = PRESETS[early.preset or DEFAULT_PRESET]
    for option, kind in (("tokenizer", str), ("init-from", str), ("encoding", str), ("fraction", float)):
        parser.add_argument(f"--{option}", f"--{option.replace('-', '_')}", type=kind)
    parser.add_argument("--corpus", nargs="+")
    parser.add_argument("-h", "--help", action="store_true")
    early, _ = parser.parse_known_args(argv)
    corpus = early.corpus and (early.corpus[0] if len(early.corpus) == 1 else tuple(early.corpus))
    if early.help or not corpus or not is_own_text(corpus) or corpus == preset.data.corpus:
        return preset, None, rest
    data = DataConfig(corpus=corpus, encoding=early.encoding, fraction=early.fraction or 1.0)
    data = dataclasses.replace(data, data_dir=preset.data.data_dir)
    if early.preset is not None:
        return start_from_preset(preset, data, tokenizer=early.tokenizer), None, rest
    recipe = start_from_recipe(data, tokenizer=early.tokenizer, init_from=early.init_from)
    return recipe.config, recipe, rest


def _announce(line: str, *, json_lines: bool) -> None:
    """Print a line before a run begins, from one process of several."""
    if os.environ.get("RANK", "0") == "0":
        JSONDisplay().say(line) if json_lines else print(line, flush=True)


def _parse(kind: type[T], default: Any, argv: list[str], *, prog: str) -> T:
    return tyro.cli(kind, default=default, args=argv, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
