"""Limits of the options of a run: the largest numbers, and the names that a folder can have."""

import unicodedata
from pathlib import Path
from typing import Any

__all__ = ["MAX_COUNT", "MAX_SEED", "is_folder_name", "require_counts"]

MAX_COUNT = 10**12
"""Of steps, sequences, tokens: larger numbers do not fit into the 64 bits that native code counts with."""
MAX_SEED = 2**62


def is_folder_name(name: str) -> bool:
    """Return whether a run's folder can have this name, and the files beside it a longer one.

    >>> [is_folder_name(name) for name in ("mine", "a/b", "..", "", "two\\nlines")]
    [True, True, False, False, False]
    """
    last = Path(name).name  # empty for "." and "/"
    # Control characters: a terminal obeys them where the name is printed.
    if last in ("", "..") or any(unicodedata.category(each) == "Cc" for each in name):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:  # the model card and the plot of the losses have the name as text
        return False
    return len(last.encode()) <= 200


def require_counts(config: Any, *names: str, least: int = 1) -> None:
    """Check that some fields of a configuration, if they hold numbers, are above 0 and not too large.

    Args:
        config: The configuration.
        names: The names of the fields.
        least: 0 if the fields may be 0.

    Raises:
        ValueError: A number is out of range; the message names the first.
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float):
            continue
        if not (value > 0 if least else value >= 0):
            raise ValueError(f"{name} is {value}; it must {'be above 0' if least else 'not be negative'}")
        if value > MAX_COUNT:
            raise ValueError(f"{name} is {value}; it must be at most {MAX_COUNT:,}")
