"""Read texts from files of records: the field ``text`` of JSON lines, and the column ``text`` of Parquet.

A record whose text is null or empty is no document.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...files import FileError, first_sentence

__all__ = ["json_records", "parquet_records"]

_LONGEST = 1 << 26  # characters of a line


def json_records(blocks: Iterator[str], path: Path) -> Iterator[Iterator[str]]:
    """Return the field ``text`` of each line of a file; blank lines are left out.

    Args:
        blocks: the content of the file.
        path: its name, for messages.

    Raises:
        FileError: a line is not a JSON object with such a field; the message has the number of the line.
    """
    for number, line in enumerate(_lines(blocks, path), 1):
        if line and not line.isspace():
            yield iter((_text_of(line, f"{path}, line {number}"),))


def parquet_records(path: Path) -> Iterator[Iterator[str]]:
    """Return the column ``text`` of a Parquet file, row by row.

    Raises:
        FileError: pyarrow is not installed, the file is damaged, or it has no such column.
    """
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise FileError(f"{path} is a Parquet file, which needs pyarrow: pip install pyarrow") from None
    try:
        yield from _column(path, arrow, parquet)
    except (arrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        reason = first_sentence(error)
        raise FileError(f"{path} cannot be read as Parquet ({reason}): fetch it or save it again") from error


def _column(path: Path, arrow: Any, parquet: Any) -> Iterator[Iterator[str]]:
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        if "text" not in schema.names:
            names = ", ".join(repr(name[:40]) for name in schema.names[:5])
            raise FileError(f"{path} has no column 'text' but {names}: rename the one to read")
        kind = schema.field("text").type
        plain = kind.value_type if arrow.types.is_dictionary(kind) else kind
        if not (arrow.types.is_string(plain) or arrow.types.is_large_string(plain)):
            raise FileError(f"{path} has a column 'text' of type {kind}, not of strings: save it as strings")
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                row += 1
                if text:
                    yield iter((_checked(text, f"{path}, row {row}"),))


def _lines(blocks: Iterator[str], path: Path) -> Iterator[str]:
    """Return the lines of a file. Only a newline ends a line, since JSON strings may hold others, such as U+2028."""
    held: list[str] = []
    size, number = 0, 1
    for block in blocks:
        *ended, rest = block.split("\n")
        for line in ended:
            yield "".join((*held, line))
            held, size, number = [], 0, number + 1
        held.append(rest)
        size += len(rest)
        if size > _LONGEST:
            raise FileError(
                f"{path}, line {number} is longer than {_LONGEST:,} characters: give one JSON object on each line, or "
                "a .txt file"
            )
    yield "".join(held)


def _text_of(line: str, place: str) -> str:
    """Return the text of one line of JSON."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        reason = first_sentence(error)
        raise FileError(f"{place} is not one whole JSON value ({reason}): correct it or delete it") from None
    if not isinstance(record, dict):
        raise FileError(f'{place} is a JSON {type(record).__name__}: give an object like {{"text": "…"}} on each line')
    if "text" not in record:
        fields = ", ".join(repr(str(name)[:40]) for name in list(record)[:5]) or "no fields"
        raise FileError(f"{place} has no field 'text' but {fields}: rename the one to read")
    text = record["text"]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise FileError(f"{place} has a field 'text' that is a {type(text).__name__}, not a string: correct it")
    if line.count('"text"') > 1:
        pairs = json.loads(line, object_pairs_hook=list)  # an object becomes the list of its fields
        if sum(name == "text" for name, _ in pairs) > 1:
            raise FileError(f"{place} has the field 'text' more than once: keep one of them")
    return _checked(text, place)


def _checked(text: str, place: str) -> str:
    """Return the text of a record with line ends as ``\\n``. A lone surrogate, which no file can hold, is refused."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise FileError(f"{place} has a lone surrogate (U+{code:04X}), which is no character: delete it") from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
