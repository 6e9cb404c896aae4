"""``generation_config.json``: where a text ends, for transformers and everything else that reads a model folder."""

import json
import os
from pathlib import Path
from typing import Any

from ..files import FileError, file_in, read_json, write_whole

__all__ = ["GENERATION_FILE", "read_generation_config", "special_ids", "write_generation_config"]

GENERATION_FILE = "generation_config.json"

_CONFIG_FILE = "config.json"
_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")


def write_generation_config(
    folder: str | os.PathLike[str],
    *,
    eos_id: int | None,
    bos_id: int | None,
    pad_id: int | None,
    max_length: int,
) -> None:
    """Write the end of a text, its beginning and its greatest length into a model folder.

    ``transformers.pipeline("text-generation", model=folder)`` then ends where the text ends, and at ``max_length``
    tokens, the prompt among them, at the latest. The three ids go into the folder's ``config.json`` too, if it has one.

    Args:
        folder: a model folder.
        eos_id: the token that ends a text, or None.
        bos_id: the token that begins a text, or None.
        pad_id: the token that fills up shorter texts of a batch (default: ``eos_id``).
        max_length: the model's ``n_ctx``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_generation_config(folder, eos_id=9, bos_id=9, pad_id=None, max_length=64)
    ...     read_generation_config(folder)
    {'bos_token_id': 9, 'eos_token_id': 9, 'max_length': 64, 'pad_token_id': 9}
    """
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; give the model's n_ctx")
    folder = Path(folder)
    ids = special_ids(eos_id, bos_id, pad_id)
    known = {name: i for name, i in ids.items() if i is not None}
    write_whole(folder / GENERATION_FILE, _json({**known, "max_length": max_length}))
    if (folder / _CONFIG_FILE).exists():
        config = read_json(file_in(folder, _CONFIG_FILE))
        write_whole(folder / _CONFIG_FILE, _json({**config, **ids}))


def special_ids(eos_id: int | None, bos_id: int | None, pad_id: int | None) -> dict[str, int | None]:
    """Return the fields of ``config.json`` that name the tokens at the end of a text, at its beginning, and in padding.

    >>> special_ids(9, None, None)
    {'eos_token_id': 9, 'bos_token_id': None, 'pad_token_id': 9}
    """
    pad_id = eos_id if pad_id is None else pad_id
    ids = dict(zip(_IDS, (eos_id, bos_id, pad_id), strict=True))
    # transformers takes other tokens than None for the first two if they are left out.
    return {name: i for name, i in ids.items() if i is not None or name != "pad_token_id"}


def read_generation_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the fields of a folder's ``generation_config.json``, or an empty dict if it has none.

    Raises:
        FileError: the file is damaged, or a token's id is not a whole number or a list of them.
    """
    folder = Path(folder)
    if not (folder / GENERATION_FILE).exists():
        return {}
    fields = read_json(file_in(folder, GENERATION_FILE))
    for name in _IDS:
        value = fields.get(name)
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if value is not None and not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise FileError(f"{folder / GENERATION_FILE}: {name} is {value!r:.80}, and must be the id of a token")
    return fields


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"
