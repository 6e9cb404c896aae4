"""``gptladder train`` and ``gptladder prepare``."""

import dataclasses
from pathlib import Path

from ..assembly.config import GPT2Config
from ..options import parse, take
from .changes import recorded_config
from .data.config import DataConfig
from .data.prepare import prepare_data
from .lock import RunFolderError
from .presets import DROPOUTS, PRESETS, OptimConfig, RunConfig, TrainConfig, field_names, resized
from .resume import find_snapshot
from .run import train as run_training
from .runlog import Sampler
from .snapshot_checks import SnapshotError

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
    config = _parsed(argv, preset, given)
    if config.run.resume is not None:
        config = _parsed(argv, _recorded(config, given), given)
    outcome = run_training(config, sample=sample, asked=given)
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


def _parsed(argv: list[str], base: TrainConfig, given: set[str]) -> TrainConfig:
    """Return the configuration of a command line whose options change ``base``."""
    if given & set(DROPOUTS):
        base = base.replace(dropout=None)
    return _with_model(parse(TrainConfig, argv, prog="gptladder train", default=base), base, given)


def _recorded(config: TrainConfig, given: set[str]) -> TrainConfig:
    """Return what a run that resumes was started with: options that are not given again stay as they were.

    Its name and folder are those of the snapshot's run, unless others are given.
    """
    folder = Path(config.run.runs_dir, config.name).expanduser()
    try:
        found = find_snapshot(config.run.resume, folder, lambda line: None)
        if found is None:
            return config
        recorded = recorded_config(found.contents, found.path)
    except (SnapshotError, RunFolderError):
        return config  # training reports it
    if "preset" in given and config.preset != recorded.preset:
        return config
    home = found.path.resolve().parent.parent
    alone = found.path.parent.name != "snapshots"
    named = alone or "name" in given or "runs_dir" in given or config.run.resume == "auto"
    where = (config.run.runs_dir, config.run.name) if named else (str(home.parent), home.name)
    run = dataclasses.replace(recorded.run, runs_dir=where[0], name=where[1])
    return dataclasses.replace(recorded, run=run)


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
