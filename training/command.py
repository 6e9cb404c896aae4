"""``gptladder train`` and ``gptladder prepare``."""

import dataclasses
import os
import shlex
from pathlib import Path

from ..assembly.config import GPT2Config
from ..files import user_path
from ..options import named_by_option, parse, take
from .changes import recorded_config
from .data.config import DataConfig
from .data.prepare import prepare_data
from .display import JSONDisplay
from .idle_options import idle_data_options
from .lock import RunFolderError
from .own_text import Start, is_own_text, start_from_preset, start_from_recipe
from .presets import DROPOUTS, PRESETS, OptimConfig, RunConfig, TrainConfig, field_names, resized
from .record import read_record
from .resume import find_snapshot
from .run import train as run_training
from .samples import Sampler
from .snapshot_checks import SnapshotError

DEFAULT_PRESET = "tinystories"

_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def train(argv: list[str], sample: Sampler | None = None) -> int:
    """Run ``gptladder train``: train by a preset, a recipe or an earlier run's settings, with fields changed.

    Args:
        argv: what follows ``train`` on the command line.
        sample: draws the samples (default: there are none).

    Returns:
        0, or 130 if Ctrl-C ended the training.

    Raises:
        ValueError, OSError: what `gptladder.training.run.train` raises.
    """
    given = given_fields(argv)
    asked = given
    if "config" in given:
        preset, asked = _given_back(argv, given)
        recipe = None
    else:
        preset, recipe, _ = _start(argv, "gptladder train")
    config = _parsed(argv, preset, given)
    if config.run.resume is not None:
        config = _parsed(argv, _recorded(config, given), given)
    elif recipe is not None:
        _announce(recipe.line(config), json_lines=config.run.json)
    outcome = run_training(config, sample=sample, asked=asked)
    if outcome.ending != "interrupted":
        _announce(look_command(outcome.folder / "final", config.run.prompt), json_lines=config.run.json)
    return _INTERRUPTED if outcome.ending == "interrupted" else 0


def prepare(argv: list[str]) -> int:
    """Run ``gptladder prepare``: prepare the text of a preset, with fields changed.

    Returns:
        0.

    Raises:
        ValueError, OSError: The text cannot be used, or is not available.
    """
    preset, recipe, rest = _start(argv, "gptladder prepare")
    config = parse(DataConfig, rest, prog="gptladder prepare", default=preset.data)
    asked = given_fields(argv)
    if recipe is not None and "tokenizer" not in asked:
        print(f"tokenizer for this text: {config.tokenizer} (--tokenizer gives another)")
    for line in idle_data_options(config, asked):
        print(line)
    prepare_data(config, say=print)
    return 0


def given_fields(argv: list[str]) -> set[str]:
    """Return the names of the fields whose options are on a command line.

    >>> sorted(given_fields(["--d-model", "8", "--no-tie-word-embeddings", "--lr=1e-3"]))
    ['d_model', 'lr', 'tie_word_embeddings']
    """
    names = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    known = {
        field for part in (TrainConfig, DataConfig, GPT2Config, OptimConfig, RunConfig) for field in field_names(part)
    }
    return {field for field in known if field in names or f"no_{field}" in names}


def _given_back(argv: list[str], given: set[str]) -> tuple[TrainConfig, set[str]]:
    """Return the settings of an earlier run as the defaults of a command line, and the fields that count as asked for.

    Raises:
        ValueError: The file cannot be used; an option beside it would contradict it.
    """
    path = (_values(argv, "--config") or [""])[-1]
    for option, why in (
        ("preset", "both give every setting"),
        ("resume", "a run that continues has the settings of its snapshot"),
    ):
        if option in given:
            raise ValueError(f"--config and --{option} do not go together, because {why}: leave one of them out")
    if not path:
        raise ValueError("--config has no value: give the config.json of a run, such as runs/NAME/config.json")
    config, asked = read_record(user_path(path))
    return config, given | (asked if "init_from" not in given else set())


def _parsed(argv: list[str], base: TrainConfig, given: set[str]) -> TrainConfig:
    """Return the configuration of a command line whose options change ``base``."""
    if given & set(DROPOUTS):
        base = base.replace(dropout=None)
    return _with_model(parse(TrainConfig, argv, prog="gptladder train", default=base), base, given)


def _recorded(config: TrainConfig, given: set[str]) -> TrainConfig:
    """Return the options that a resumed run was started with: they stay the same unless they are on the command line.

    Its name and folder are those of the snapshot's run, unless others are given.
    """
    folder = config.folder
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
    with named_by_option(TrainConfig):
        return dataclasses.replace(parsed, model=resized(base.model, **sizes))


def _start(argv: list[str], prog: str) -> tuple[TrainConfig, Start | None, list[str]]:
    """Return what has the defaults for reading a command line, the recipe that it is from, and the rest of the line.

    The defaults are a preset's; for a text of the user's own without a preset they are a recipe's.
    """
    name, rest = take(argv, "--preset", prog=prog, values=list(PRESETS))
    preset = PRESETS[name or DEFAULT_PRESET]
    corpus = tuple(_values(argv, "--corpus"))
    if not corpus or not is_own_text(corpus) or corpus == (preset.data.corpus,) or {"-h", "--help"} & set(argv):
        return preset, None, rest
    encoding, fraction, tokenizer, init_from = (
        next(iter(_values(argv, option)), None) for option in ("--encoding", "--fraction", "--tokenizer", "--init-from")
    )
    data = DataConfig(
        corpus=corpus[0] if len(corpus) == 1 else corpus,
        encoding=encoding,
        fraction=_number(fraction),
        data_dir=preset.data.data_dir,
    )
    if name is not None:
        return start_from_preset(preset, data, tokenizer=tokenizer), None, rest
    recipe = start_from_recipe(data, tokenizer=tokenizer, init_from=init_from)
    return recipe.config, recipe, rest


def _values(argv: list[str], option: str) -> list[str]:
    """Return the values of one option on a command line; if it is there twice, those of the last."""
    values: list[str] = []
    taking = False
    for word in argv:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            values, taking = [value] if equals else [], not equals
        elif word.startswith("--"):
            taking = False
        elif taking:
            values.append(word)
    return values


def _number(text: str | None) -> float:
    """Return the fraction that an option gives; a wrong one is reported when all options are read."""
    try:
        fraction = float(text or 1)
    except ValueError:
        return 1.0
    return fraction if 0 < fraction <= 1 else 1.0


def look_command(model: Path, prompt: str) -> str:
    """Return a line that names the command to type next: it shows what the model does with the prompt.

    >>> look_command(Path("runs/x/final"), "Once upon a time")
    'look into it: gptladder look "Once upon a time" --model runs/x/final'
    """
    text = prompt if prompt.strip() and not set(prompt) & set('"$`\\!\n') else "your text"
    return f'look into it: gptladder look "{text}" --model {shlex.quote(str(model))}'


def _announce(line: str, *, json_lines: bool) -> None:
    """Print a line before or after a run, from one process of several."""
    if os.environ.get("RANK", "0") == "0":
        JSONDisplay().say(line) if json_lines else print(line, flush=True)
