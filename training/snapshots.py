"""Snapshots of a run: written completely or not at all, and read without running code that a file may contain.

A snapshot is one ``torch.save`` file of tensors and plain values, ``snapshots/snapshot_step_N.pt``, so that
``torch.load`` at its default reads it. Its keys: ``model_state_dict`` and ``optimizer_state_dict`` (what
``load_state_dict`` of the model and of the optimizer take), ``step`` (number of updates), ``loss`` (of the last
update), and what else resuming needs:

    metrics       the row of metrics.csv of the step
    rng           for each process, the state of PyTorch's random number generators
    data          the position in the training data
    config        the run's configuration
    model_config  the model's configuration, as `weights.sources.config_to_ours` writes it (absent before version 0.2)
    tokenizer     fingerprint of the vocabulary
    text          SHA-256 of the text (absent before version 0.2)
    files         lengths of the files that the run appends to
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
    """Return the snapshots of a folder, damaged ones too, sorted by their step."""
    found = {int(match[1]): path for path in folder.glob("*.pt") if (match := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def save_snapshot(folder: Path, contents: Mapping[str, Any]) -> Path:
    """Write the snapshot of ``contents["step"]``.

    The file is written under a temporary name, flushed to the disk, and then renamed. If the process is killed or the
    machine stops, there is either the complete file or none.

    Raises:
        SnapshotError: the file cannot be written, for example because the disk is full. Older snapshots are unharmed.
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
    # PyTorch raises a RuntimeError for a failed write, with the OSError as its context.
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise SnapshotError(
            f"the snapshot of step {contents['step']} could not be written to {folder}: {_cause(error)}; "
            f"{_last_good(folder)}"
        ) from error
    return path


def load_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot onto the CPU, and check every field as far as that is possible without the model.

    Raises:
        SnapshotError: The file does not exist, is damaged, is not a snapshot, or holds more than tensors and plain
            values.
    """
    if not path.exists():
        raise SnapshotError(f"there is no snapshot {path}")
    try:
        sealed = _is_sealed(path)
        contents = check_contents(load_torch_file(path), path)
    except (FileError, OSError) as error:
        raise SnapshotError(str(error)) from None
    if not sealed and "model_config" in contents:  # version 0.1 wrote neither a checksum nor this field
        raise SnapshotError(f"{path} is damaged: its checksum is wrong; resume from another snapshot")
    return contents


def newest_snapshot(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest snapshot that can be read, with its contents, or None.

    Args:
        folder: The folder of the snapshots.
        say: Called with a message for each newer snapshot that cannot be read.
    """
    for path in reversed(list_snapshots(folder)):
        try:
            return path, load_snapshot(path)
        except SnapshotError as error:
            say(f"passed over: {error}")
    return None


def prune_snapshots(folder: Path, keep: int) -> None:
    """Delete all snapshots except the ``keep`` newest, and incomplete files of killed processes."""
    for path in [*list_snapshots(folder)[:-keep], *folder.glob(".snapshot_step_*.part")]:
        path.unlink()


# The checksum of the whole file is in the comment at the end of its zip archive, which `torch.load` ignores. The
# checksums in the archive do not cover the bytes between its records.
_MARK = b"gptladder crc32 "
_COMMENT = len(_MARK) + 8


def _seal(path: Path) -> None:
    """Write a checksum to the end of a file that ``torch.save`` has written."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(_COMMENT.to_bytes(2, "little"))  # the last field of an archive is the length of its comment
        length = file.tell()
        file.write(_MARK + b"%08x" % _checksum(file, length))


def _is_sealed(path: Path) -> bool:
    """Return whether a file ends with the right checksum of everything before it.

    Raises:
        FileError: The path is not a regular file.
    """
    length = file_size(path) - _COMMENT
    with open(path, "rb") as file:
        if length <= 0:
            return False
        file.seek(length)
        comment = file.read()
        return comment == _MARK + b"%08x" % _checksum(file, length)


def _checksum(file: BinaryIO, length: int) -> int:
    """Return the CRC-32 of the first ``length`` bytes of a file. Afterwards the file's position is at their end."""
    file.seek(0)
    value = 0
    while length and (chunk := file.read(min(length, 2**22))):
        value, length = zlib.crc32(chunk, value), length - len(chunk)
    return value


def _rebuilt(value: Any) -> Any:
    """Return a copy in new containers, with one object for all equal strings.

    The bytes that pickle writes depend on which parts are the same object. After this, equal runs write equal bytes.
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
