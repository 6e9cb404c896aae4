"""``gptladder train`` and ``gptladder prepare``."""

from ..options import parse, take
from .data import prepare_data
from .loop import Sampler
from .presets import PRESETS, DataConfig, TrainConfig
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
    config = parse(TrainConfig, argv, prog="gptladder train", default=preset)
    return _INTERRUPTED if run_training(config, sample=sample).ending == "interrupted" else 0


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


def _preset(argv: list[str], prog: str) -> tuple[TrainConfig, list[str]]:
    """Return the preset that a command line names, which has the defaults for reading the rest, and that rest."""
    name, rest = take(argv, "--preset", prog=prog, values=list(PRESETS))
    return PRESETS[name or DEFAULT_PRESET], rest
