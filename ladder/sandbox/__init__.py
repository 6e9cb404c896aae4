"""The process that a user's layers run in, and what it may use: it may hang, crash or be hostile."""

from dataclasses import dataclass

OVER_LIMIT = 125
"""Status of a process that was ended because it used more than it may."""


@dataclass(frozen=True)
class Limits:
    """What a process, with all that it starts, may use.

    Args:
        memory: bytes of all its processes together.
        processes: how many it may have at a time, threads not counted.
        file_bytes: size of one file that it writes.
        disk_bytes: size of all files in its folder.
        cpu_seconds: of one process.
        hidden: folders that it may not read.
        visible: files and folders below the hidden ones that it may read.
    """

    memory: int = 2 * 2**30
    processes: int = 32
    file_bytes: int = 16 * 2**20
    disk_bytes: int = 256 * 2**20
    cpu_seconds: int = 600
    hidden: tuple[str, ...] = ()
    visible: tuple[str, ...] = ()
