"""Files that are either the old one or the whole new one, whenever the machine stops."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file by way of a temporary name beside it, brought to the disk before it takes the file's place.

    Args:
        content: text is written as UTF-8, its line ends as they are; a function writes to the file itself, and what it
            raises leaves the old one in place.
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
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
