"""The settings that a run records in its ``config.json``, read back to start another run with."""

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..assembly.config import GPT2Config
from ..files import FileError, first_sentence, read_json
from ..weights.sources import RUN_FORMAT
from .data.config import DataConfig
from .presets import DROPOUTS, PARTS, OptimConfig, RunConfig, TrainConfig, field_names

__all__ = ["VERSION", "fields_of", "read_record"]

VERSION = 2
"""Of the record. Runs of 0.1.0 wrote none."""

_KINDS: dict[str, Any] = {"data": DataConfig, "model": GPT2Config, "optim": OptimConfig, "run": RunConfig}
_LARGEST = 2.0**63  # of a seed; no other setting comes near
_NEW = frozenset({"wandb", "license", "gradient_checkpointing"})  # fields that a record of this version may lack


def read_record(path: Path) -> tuple[TrainConfig, set[str]]:
    """Return the configuration in a run's ``config.json``, and the fields that count as asked for by the user.

    The record must be whole and exactly what such a configuration records: no field is guessed or passed over.

    Args:
        path: the file, or the run's folder.

    Raises:
        FileError: the file is missing, damaged, of another program or version, or holds a value that cannot be.
    """
    path = path / "config.json" if path.is_dir() else path
    record = read_json(path)
    if record.get("format") != RUN_FORMAT or record.get("version") != VERSION:
        raise FileError(
            f"{path}: is not the config.json of a run of this version of gptladder; give that of a run's folder, such "
            "as runs/NAME/config.json"
        )
    facts = record.get("facts")
    settings = {name: value for name, value in record.items() if name not in ("format", "version", "facts")}
    try:
        if not isinstance(facts, dict):
            raise ValueError("facts is missing or is no object")
        config = _configured(settings)
        if where := _difference(config.recorded(), settings):
            raise ValueError(where)
    except (ValueError, TypeError) as error:
        raise FileError(f"{path}: holds settings that cannot be ({first_sentence(error)}); copy it again") from error
    # The dropout is the run's own, even if a model to start from has another one; so is a tokenizer that was chosen.
    asked = {*DROPOUTS} | ({"tokenizer"} if facts.get("tokenizer") == config.data.tokenizer else set())
    return config, asked


def fields_of(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some values that are fields of a configuration, each of the type that the field has.

    Raises:
        ValueError: a value is of another type.
    """
    hints = get_type_hints(kind)
    found = {name: values[name] for name in field_names(kind) if name in values}
    for name, value in found.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
        if isinstance(value, list):
            found[name] = tuple(value)
    return found


def _configured(settings: Mapping[str, Any]) -> TrainConfig:
    made: dict[str, Any] = {}
    for part, kind in _KINDS.items():
        values = settings.get(part)
        if not isinstance(values, dict):
            raise ValueError(f"{part} is missing or is no object")
        _check_numbers(values)
        made[part] = kind(**fields_of(kind, values))
    _check_numbers({name: value for name, value in settings.items() if name not in PARTS})
    return TrainConfig(**made, **fields_of(TrainConfig, settings))


def _check_numbers(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float) and not -_LARGEST < value < _LARGEST:
            raise ValueError(f"{name} is {str(value)[:40]}")


def _difference(made: Any, written: Any, name: str = "") -> str:
    """Return how a record differs from the one that its configuration makes; an empty string if it does not."""
    if isinstance(made, dict) and isinstance(written, dict):
        for key in sorted(made.keys() | written.keys()):
            if key not in written:
                if key in _NEW:
                    continue
                return f"{key[:40]} is missing"
            if key not in made:
                return f"{key[:40]!r} is no setting"
            if found := _difference(made[key], written[key], key):
                return found
        return ""
    written = tuple(written) if isinstance(written, list) else written
    same = made == written and isinstance(made, bool) == isinstance(written, bool)
    return "" if same else f"{name} is {str(written)[:40]!r}, which does not fit the others"


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a plain value is of a field's type."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    if hint is float:
        return type(value) in (int, float)
    return value is None if hint is type(None) else type(value) is hint
