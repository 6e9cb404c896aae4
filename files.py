"""Reading files that may be damaged or hostile, and writing files whole or not at all.

Every file that comes from outside is opened through this module, so that all readers have the same guards: a pipe or a
device would block, a link may lead out of its folder, a file may be far too large, and JSON may name a key twice.
"""

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 25_000_000
"""Largest JSON file that is read. The largest genuine one here, GPT-2's ``tokenizer.json``, has 4 MB."""


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class FileError(ValueError):
    """A file or folder that cannot or must not be read. The message names it, the fault, and the fix in one line.

    Example:
        >>> file_size(Path("no-such-file"))
        Traceback (most recent call last):
        gptladder.files.FileError: no-such-file: cannot be read (No such file or directory); ...
    """


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return the path that a user gave; ``~`` or ``~name`` at its beginning is replaced by that home folder.

    What names no home folder stays as it is, as in a shell: ``Path.expanduser`` raises an error for a file "~.txt".

    Example:
        >>> str(user_path("~.txt"))
        '~.txt'
    """
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a zero byte in the name of a user
        return Path(path)


def file_size(path: Path) -> int:
    """Return the size of a regular, non-empty file, in bytes.

    Raises:
        FileError: there is no such file; it is a folder, a pipe or a device; or it is empty.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path}: is a folder, pipe or device, not a file; put the file itself there")
    if not status.st_size:
        raise FileError(f"{path}: is empty; fetch it or save it again")
    return status.st_size


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    Raises:
        FileError: as `file_size` does, and for a larger file.
    """
    if (size := file_size(path)) > limit:
        raise FileError(f"{path}: has {size:,} bytes, where at most {limit:,} are expected; fetch it or save it again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    refuse_pointer(path, content)
    return content


def refuse_pointer(path: Path, start: bytes) -> None:
    """Raise FileError if a file that begins with ``start`` is only a pointer to the real one: a clone without Git LFS.

    Example:
        >>> refuse_pointer(Path("model.safetensors"), b"version https://git-lfs.github.com/spec/v1")
        Traceback (most recent call last):
        gptladder.files.FileError: model.safetensors: is a pointer of Git LFS, not the file itself; run git lfs pull
    """
    if start.startswith(_LFS_POINTER):
        raise FileError(f"{path}: is a pointer of Git LFS, not the file itself; run git lfs pull")


def read_json(path: Path, *, limit: int | None = None) -> dict[str, Any]:
    """Return the one JSON object that a file of at most ``limit`` bytes holds (default: `MAX_JSON_BYTES`).

    Raises:
        FileError: as `read_bytes` and `parse_json` do.
    """
    return parse_json(path, read_bytes(path, limit=MAX_JSON_BYTES if limit is None else limit))


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """Return the JSON object in ``text``, which was read from ``path``.

    The rules are those of RFC 8259: UTF-8, no key twice in an object, no NaN and no infinity.

    Raises:
        FileError: the text breaks one of these rules, is nested too deeply, or is not an object.
    """
    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:  # ValueError: wrong UTF-8, wrong JSON, and the hooks
        raise FileError(f"{path}: is not valid JSON ({first_sentence(error)}); fetch it or save it again") from error
    if not isinstance(value, dict):
        raise FileError(f"{path}: is a JSON {type(value).__name__} where an object belongs; fetch it again")
    return value


def file_in(folder: Path, name: str) -> Path:
    """Return ``folder/name`` if the file is there: a link must stay in the folder, or in its hub cache.

    Raises:
        FileError: the file does not exist, or the link leads out of the folder.
    """
    folder = Path(folder)
    try:
        home = folder.resolve(strict=True)
        target = (home / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        there = "no such file" if folder.is_dir() else "no such folder"
        fault = there if isinstance(error, FileNotFoundError) else "leads nowhere"
        raise FileError(f"{folder / name}: {fault}; give a folder that holds {name}") from error
    homes = [home]
    # The hub's cache keeps <repository>/snapshots/<commit>/<name> as links to <repository>/blobs/<checksum>, and
    # lately those as links to a store that its repositories share.
    repository = home.parent.parent
    if home.parent.name == "snapshots" and repository.name.startswith("models--"):
        homes += [repository / "blobs", repository.parent / "blobs"]
    if not any(target.is_relative_to(home) for home in homes):
        raise FileError(f"{folder / name}: is a link to {target}, outside the folder; put the file itself there")
    return folder / name


def unreadable(path: Path, error: Exception) -> FileError:
    """Return the error to raise for a file that the system refuses to open."""
    reason = getattr(error, "strerror", None) or first_sentence(error)
    return FileError(f"{path}: cannot be read ({reason}); check that it exists and that you may read it")


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of another package's error, as one plain line of at most 120 characters.

    The error may quote the file, so characters that a terminal would interpret are replaced by blanks.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in str(error).split(". ")[0])
    return " ".join(printable.split())[:120] or type(error).__name__


def listed(names: Iterable[object]) -> str:
    """Return up to three names for a message, quoted, escaped and shortened: their text may come from a file."""
    names = list(names)
    shown = [f"{str(name)[:80]!r}" for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that, whenever the process or machine stops, either the old or the whole new file is there.

    The content goes to a temporary file beside it, is flushed to the disk, and then takes the file's place.

    Args:
        content: text is written as UTF-8 with its line ends unchanged. A function receives the open file and writes to
            it; if it raises, the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk names no file, and others the temporary one
        if error.filename is None or str(error.filename) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system within the block name a file, if it names none, as that of a full disk.

    Example:
        >>> with naming(Path("metrics.csv")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'metrics.csv'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, on systems that can."""
    if not hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"it has {listed(sorted(name for name, n in counts.items() if n > 1))} more than once")
    return table


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.20} is too large a number")
    return value
