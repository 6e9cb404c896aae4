"""Snapshots of a run: written whole or not at all, read without running anything that they hold.

A snapshot is one ``torch.save`` file of tensors and plain values, ``snapshots/snapshot_step_N.pt``, so that
``torch.load`` at its default reads it. Its keys: ``model_state_dict`` and ``optimizer_state_dict`` (what
``load_state_dict`` of the model and of torch's AdamW take), ``step`` (updates made), ``loss`` (of the last of them),
and what resuming needs beside these:

    metrics       the row of metrics.csv that belongs to the step
    rng           for each process, the state of PyTorch's random number generators
    data          where the run is in its data
    config        the run's configuration
    model_config  the model's, as `weights.sources.config_to_ours` writes it (absent before version 0.2)
    tokenizer     fingerprint of the vocabulary
    text          SHA-256 of the text (absent before version 0.2)
    files         how long the files were that the run appends to
"""

import contextlib
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..files import FileError, file_size, first_sentence, sync_folder
from ..weights.files.torch_files import load_torch_file
from .snapshot_checks import SnapshotError, check_contents

_NAME = re.compile(r"snapshot_step_(\d+)\.pt")


def snapshot_path(folder: Path, step: int) -> Path:
    """Return the path of the snapshot of a step."""
    return folder / f"snapshot_step_{step}.pt"


def list_snapshots(folder: Path) -> list[Path]:
    """Return the snapshots of a folder, whole or not, oldest step first."""
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
            _seal(temporary)
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
    """Read a snapshot onto the CPU, and check every field of it that does not depend on the model.

    Raises:
        SnapshotError: There is no such file; it is damaged; it is not a snapshot, or holds more than tensors and plain
            values.
    """
    if not path.exists():
        raise SnapshotError(f"there is no snapshot {path}")
    try:
        sealed = _is_sealed(path)
        contents = check_contents(load_torch_file(path), path)
    except (FileError, OSError) as error:
        raise SnapshotError(str(error)) from None
    if not sealed and "model_config" in contents:  # version 0.1 had neither
        raise SnapshotError(f"{path} is damaged: its checksum is wrong; resume from another snapshot")
    return contents


def newest_snapshot(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest snapshot that can be read, with its contents, or None; ``say`` reports those passed over."""
    for path in reversed(list_snapshots(folder)):
        try:
            return path, load_snapshot(path)
        except SnapshotError as error:
            say(f"passed over: {error}")
    return None


def prune_snapshots(folder: Path, keep: int) -> None:
    """Delete all snapshots except the ``keep`` newest, and what a killed process left half-written."""
    for path in [*list_snapshots(folder)[:-keep], *folder.glob(".snapshot_step_*.part")]:
        path.unlink()


# The checksum of a whole file stands in the comment at the end of its zip archive, which `torch.load` passes over. The
# checksums of the archive itself leave out the bytes between its records.
_MARK = b"gptladder crc32 "
_COMMENT = len(_MARK) + 8


def _seal(path: Path) -> None:
    """Write the checksum of a file that ``torch.save`` wrote into it."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(_COMMENT.to_bytes(2, "little"))  # the last field of an archive is the length of its comment
        length = file.tell()
        file.write(_MARK + b"%08x" % _checksum(file, length))


def _is_sealed(path: Path) -> bool:
    """Return whether a file ends in the right checksum of all that is before it.

    Raises:
        FileError: It is not a regular file.
    """
    length = file_size(path) - _COMMENT
    with open(path, "rb") as file:
        if length <= 0:
            return False
        file.seek(length)
        comment = file.read()
        return comment == _MARK + b"%08x" % _checksum(file, length)


def _checksum(file: BinaryIO, length: int) -> int:
    """Return the CRC-32 of the first ``length`` bytes of a file, and leave it at their end."""
    file.seek(0)
    value = 0
    while length and (chunk := file.read(min(length, 2**22))):
        value, length = zlib.crc32(chunk, value), length - len(chunk)
    return value


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
    return (error.strerror or first_sentence(error)) if isinstance(error, OSError) else first_sentence(error)
