"""Snapshots of a run: written whole or not at all, read without running anything that they hold.

A snapshot is one ``torch.save`` file of tensors and plain values, ``snapshots/snapshot_step_N.pt``, so that
``torch.load`` at its default reads it. Its keys: ``model_state_dict`` and ``optimizer_state_dict`` (what
``load_state_dict`` of the model and of torch's AdamW take), ``step`` (updates made), ``loss`` (of the last of them),
and what resuming needs beside these:

    metrics    the row of metrics.csv that belongs to the step
    rng        for each process, the state of PyTorch's random number generators
    data       where the run is in its data
    config     the run's configuration
    tokenizer  fingerprint of the vocabulary
    files      how long the files were that the run appends to
"""

import contextlib
import os
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import sync_folder

_NAME = re.compile(r"snapshot_step_(\d+)\.pt")
_KEYS = {
    "model_state_dict",
    "optimizer_state_dict",
    "step",
    "loss",
    "metrics",
    "rng",
    "data",
    "config",
    "tokenizer",
    "files",
}


class SnapshotError(ValueError):
    """A snapshot that cannot be written, read, or used here."""


def snapshot_path(folder: Path, step: int) -> Path:
    """Where the snapshot of a step stands."""
    return folder / f"snapshot_step_{step}.pt"


def list_snapshots(folder: Path) -> list[Path]:
    """The snapshots of a folder, whole or not, oldest step first."""
    found = {int(match[1]): path for path in folder.glob("*.pt") if (match := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def save_snapshot(folder: Path, contents: Mapping[str, Any]) -> Path:
    """Write the snapshot of ``contents["step"]``.

    It is written under another name, brought to the disk, and then renamed: a process that is killed, or a machine that
    stops, leaves either the whole file or none.

    Raises:
        SnapshotError: it cannot be written, as on a full disk; the snapshots that were there still are.
    """
    path = snapshot_path(folder, contents["step"])
    temporary = path.with_name(f".{path.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(_rebuilt(contents), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    # What PyTorch makes of a failed write is a RuntimeError, with the OSError as its context.
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise SnapshotError(
            f"the snapshot of step {contents['step']} could not be written to {folder}: {_cause(error)}; "
            f"{_last_good(folder)}"
        ) from error
    return path


def load_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot, onto the CPU.

    Raises:
        SnapshotError: no such file; one that is not whole; one that is no snapshot, or holds more than tensors and
            plain values.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SnapshotError(f"there is no snapshot {path}") from None
    except pickle.UnpicklingError as error:
        raise SnapshotError(
            f"{path} is refused: it holds more than tensors and plain values, and reading it could run code "
            f"({_first_line(error)})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise SnapshotError(f"{path} is not whole, or no snapshot: {_first_line(error)}") from None
    if not isinstance(contents, dict) or not contents.keys() >= _KEYS:
        missing = sorted(_KEYS - contents.keys()) if isinstance(contents, dict) else sorted(_KEYS)
        raise SnapshotError(f"{path} is not a snapshot of a run: it lacks {', '.join(missing)}")
    return contents


def newest_snapshot(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest snapshot that can be read, with its contents, or None; ``say`` is told of those passed over."""
    for path in reversed(list_snapshots(folder)):
        try:
            return path, load_snapshot(path)
        except SnapshotError as error:
            say(f"passed over: {error}")
    return None


def prune_snapshots(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest snapshots, and what a killed process left half-written."""
    for path in [*list_snapshots(folder)[:-keep], *folder.glob(".snapshot_step_*.part")]:
        path.unlink()


def check_same_model(snapshot: Mapping[str, Any], model: nn.Module, tokenizer: str, source: Path) -> None:
    """Make sure that a snapshot's weights fit a model, and mean the same tokens.

    Args:
        snapshot: its contents.
        model: what is to take its weights.
        tokenizer: the fingerprint of the vocabulary that is used here.
        source: the snapshot's path, for the message.

    Raises:
        SnapshotError: another parameter, another shape (the first of them is named), another vocabulary.
    """
    there, here = (
        {name: list(tensor.shape) for name, tensor in state.items()}
        for state in (snapshot["model_state_dict"], model.state_dict())
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise SnapshotError(
                f"{source} is of another model: {name} is {there.get(name, 'absent')} in it and "
                f"{here.get(name, 'absent')} here; resume with the sizes that it was made with (they are in the run's "
                "config.json), or begin another run"
            )
    if snapshot["tokenizer"] != tokenizer:
        raise SnapshotError(
            f"{source} is of a model of another vocabulary, though as large: resume with the tokenizer that it was "
            "made with"
        )


def _rebuilt(value: Any) -> Any:
    """The same values in containers of their own and with one object for equal strings.

    What pickle writes depends on which parts are one object; so equal runs get equal bytes.
    """
    if isinstance(value, Mapping):
        return {_rebuilt(key): _rebuilt(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_rebuilt, value))
    return sys.intern(value) if isinstance(value, str) else value


def _last_good(folder: Path) -> str:
    for path in reversed(list_snapshots(folder)):
        try:
            load_snapshot(path)
        except SnapshotError:
            continue
        return f"{path} is whole, and a run can resume from it"
    return "there is no earlier one"


def _cause(error: BaseException) -> str:
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return (error.strerror or _first_line(error)) if isinstance(error, OSError) else _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
