"""The characters of a nanoGPT model: ``meta.pkl``, which nanoGPT's ``prepare.py`` writes for a text of characters."""

import pickle
import pickletools
from pathlib import Path
from typing import Any

from ..files import FileError, read_bytes
from .characters import CharTokenizer

__all__ = ["META_FILE", "read_meta"]

META_FILE = "meta.pkl"

_LARGEST = 16_000_000  # bytes; Unicode has 160,000 characters

# Opcodes that make dictionaries, texts and numbers. No other is executed: a pickle can call any function.
_PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BININT", "BININT1", "BININT2", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
}


def read_meta(path: Path) -> CharTokenizer:
    """Return the tokenizer that nanoGPT's ``meta.pkl`` describes: its field ``stoi`` has the id of each character.

    Raises:
        FileError: no such file, or one that is damaged or holds anything else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, META_FILE)
    ...     _ = path.write_bytes(pickle.dumps({"stoi": {"a": 0, "b": 1}, "itos": {0: "a", 1: "b"}}))
    ...     read_meta(path).encode("ba")
    [1, 0]
    """
    content = read_bytes(path, limit=_LARGEST)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            # A number of a memo is memory that is allocated.
            if opcode.name not in _PLAIN or (opcode.name == "LONG_BINPUT" and (argument or 0) > len(content)):
                raise ValueError(f"it has the opcode {opcode.name}")
        return CharTokenizer(_characters(pickle.loads(content)))
    except (ValueError, TypeError, LookupError, EOFError, pickle.UnpicklingError) as error:
        raise FileError(
            f"{path}: is not the meta.pkl of nanoGPT's characters ({str(error)[:80]}); make it again with nanoGPT's "
            "prepare.py"
        ) from None


def _characters(meta: Any) -> list[str]:
    """Return the characters in the order of their ids."""
    ids = meta.get("stoi") if isinstance(meta, dict) else None
    if not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError("it has no 'stoi' with ids from 0 on")
    characters = sorted(ids, key=ids.__getitem__)
    if not characters or any(not isinstance(character, str) or len(character) != 1 for character in characters):
        raise ValueError("its 'stoi' has other keys than single characters")
    return characters
