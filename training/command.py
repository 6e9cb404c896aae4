"""``gptladder train`` and ``gptladder prepare``."""

import argparse
from typing import Any, TypeVar

import tyro

from .data.config import DataConfig
from .data.prepare import prepare_data
from .loop import Sampler
from .presets import PRESETS, TrainConfig
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
    preset, _ = _preset(argv)
    config = _parse(TrainConfig, preset, argv, prog="gptladder train")
    return _INTERRUPTED if run_training(config, sample=sample).ending == "interrupted" else 0


def prepare(argv: list[str]) -> int:
    """Prepare the text of a preset, with fields changed: ``prepare --preset NAME [--field value …]``.

    Returns:
        0.

    Raises:
        ValueError, OSError: text that cannot be used, or not be had.
    """
    preset, rest = _preset(argv)
    prepare_data(_parse(DataConfig, preset.data, rest, prog="gptladder prepare [--preset NAME]"), say=print)
    return 0


def _preset(argv: list[str]) -> tuple[TrainConfig, list[str]]:
    """The preset that a command line names, which has the defaults for reading the rest, and that rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=DEFAULT_PRESET)
    named, rest = parser.parse_known_args(argv)
    if named.preset not in PRESETS:
        raise ValueError(f"there is no preset {named.preset!r}; there are {', '.join(PRESETS)}")
    return PRESETS[named.preset], rest


def _parse(kind: type[T], default: Any, argv: list[str], *, prog: str) -> T:
    return tyro.cli(kind, default=default, args=argv, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
