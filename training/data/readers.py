"""Read one file: its bytes, with or without gzip; its characters; and its documents.

A file is read in blocks, so a large file is never in memory as a whole, even if it is one single line.
``<|endoftext|>`` ends a document, as in the TinyStories files; a text without it is one document.
"""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, Literal

from ...files import FileError, first_sentence, refuse_pointer, unreadable
from ...tokenizer import END_OF_TEXT
from .records import json_records, parquet_records

__all__ = ["Kind", "TextFile", "end_of_share", "kind_of"]

Kind = Literal["text", "jsonl", "parquet"]

_KIND_OF: dict[str, Kind] = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
_BLOCK = 1 << 20
_MOST_HELD = 1 << 22  # newlines that may belong to a separator that follows
# gzip packs text to a third of its size, very uniform text to a hundredth. A file that unpacks to far more is no text.
_MOST_UNPACKED, _HARMLESS = 200, 100_000_000

_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SIGNATURES = {
    b"\x1f\x8b": "gzip data: let its name end in .gz",
    b"PK\x03\x04": "a zip archive, as .docx and .epub are: save its text as .txt",
    b"%PDF": "a PDF: save its text as .txt",
    b"PAR1": "a Parquet file: let its name end in .parquet",
}


def kind_of(path: Path) -> Kind | None:
    """Return the format of a file by its suffix, or None if it is unknown."""
    name = path.name.lower().removesuffix(".gz")
    kind = _KIND_OF.get(os.path.splitext(name)[1])
    return None if kind == "parquet" and path.name.lower().endswith(".gz") else kind


@dataclass(frozen=True)
class TextFile:
    """A file with text.

    Attributes:
        path: the file.
        kind: format of the file.
        end: number of bytes to read from the beginning; only plain text can be read in part.
        encoding: encoding of the file if it is not UTF-8 (default: such a file is refused).
    """

    path: Path
    kind: Kind
    end: int
    encoding: str | None = None

    def documents(self) -> Iterator[Iterator[str]]:
        """Return the documents in order, each as an iterator of pieces of text.

        Raises:
            FileError: the file cannot be read, is damaged, or is not text; the message names the line.
        """
        if self.kind == "jsonl":
            texts = json_records(self._blocks(), self.path)
        elif self.kind == "parquet":
            texts = parquet_records(self.path)
        else:
            texts = iter([self._blocks()])
        for pieces in texts:
            for _, document in groupby(_numbered(pieces), key=itemgetter(0)):
                yield (piece for _, piece in document)

    def has_text(self) -> bool:
        """Return whether the file holds anything but white space. It is read only as far as necessary."""
        return any(not piece.isspace() for document in self.documents() for piece in document)

    def raw(self) -> Iterator[bytes]:
        """Return the bytes of the file up to its end, as they are on the disk."""
        with _reading(self.path), open(self.path, "rb") as stream:
            yield from _read(stream, self.end)

    @property
    def packed(self) -> bool:
        """Whether the file is packed by gzip."""
        return self.path.name.lower().endswith(".gz")

    def _unpacked(self) -> Iterator[bytes]:
        """Return the bytes of the text, unpacked."""
        if not self.packed:
            yield from self.raw()
            return
        size, limit = 0, max(_HARMLESS, _MOST_UNPACKED * self.end)
        with _reading(self.path), gzip.open(self.path, "rb") as stream:
            while block := stream.read(_BLOCK):
                size += len(block)
                if size > limit:
                    raise FileError(
                        f"{self.path} unpacks to more than {_MOST_UNPACKED} times its size, as no text does: "
                        "look at it with gunzip first"
                    )
                yield block

    def _blocks(self) -> Iterator[str]:
        """Return the text in blocks, with line ends as ``\\n`` and without a byte-order mark."""
        encoding = "utf-8"
        if self.encoding is not None and not self._is_utf8():
            encoding = self.encoding
        decoder = codecs.getincrementaldecoder(encoding)()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        position = 0
        first = True
        for block in chain(self._unpacked(), (b"",)):
            if first:
                refuse_pointer(self.path, block)
            pending = len(decoder.getstate()[0])
            try:
                text = newlines.decode(decoder.decode(block, final=not block), final=not block)
            except UnicodeDecodeError as error:
                raise self._not_text(encoding, block, position, error.start - pending) from None
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            if "\0" in text:
                raise self._not_text(encoding, block, position, max(0, block.find(b"\0")))
            position += len(block)
            if text:
                yield text

    def _is_utf8(self) -> bool:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for block in chain(self._unpacked(), (b"",)):
                decoder.decode(block, final=not block)
                if b"\0" in block:
                    return False
        except UnicodeDecodeError:
            return False
        return True

    def _not_text(self, encoding: str, block: bytes, start_of_block: int, at: int) -> FileError:
        """Return the error for a byte that is not text, with a guess what the file is and what to type."""
        place = self._place(start_of_block + at)
        if encoding != "utf-8":
            return FileError(f"{place} is not {encoding} text: give another --encoding, or save it as UTF-8")
        start = next(self._unpacked(), b"")
        for mark, name in _MARKS.items():
            if start.startswith(mark):
                return FileError(f"{self.path} is {name.upper()} text: add --encoding {name}, or save it as UTF-8")
        for signature, what in _SIGNATURES.items():
            if start.startswith(signature):
                return FileError(f"{self.path} is {what}")
        if (zero := block.find(b"\0")) >= 0:
            return FileError(
                f"{self._place(start_of_block + zero)} has a zero byte, so it is no text, or UTF-16 text: for "
                "that, add --encoding utf-16-le"
            )
        return FileError(
            f"{place} is not UTF-8: add --encoding cp1252 for Western European text (Chinese: gb18030, Japanese: "
            "shift_jis), or save it as UTF-8"
        )

    def _place(self, position: int) -> str:
        """Return the place of a byte in the file, for a message."""
        lines, left, returns = 1, position, 1
        for block in self._unpacked():
            part = block[:left]
            lines, returns, left = lines + part.count(b"\n"), returns + part.count(b"\r"), left - len(part)
            if not left:
                break
        return f"{self.path}, line {lines if lines > 1 else returns} (byte {position:,})"


def end_of_share(file: TextFile, fraction: float) -> int:
    """Return the byte at which a share of a plain text file ends: the next end of a document, line or word.

    Raises:
        FileError: the file has another format, which can only be read as a whole.
    """
    if file.kind != "text" or file.packed:
        raise FileError(f"{file.path}: --fraction takes a part of plain text files only: unpack it, or leave that out")
    size = file.path.stat().st_size
    share = int(size * fraction)
    with _reading(file.path), open(file.path, "rb") as stream:
        stream.seek(share)
        ahead = stream.read(_BLOCK)
    for mark in (END_OF_TEXT.encode(), b"\n", b" "):
        if (at := ahead.find(mark)) >= 0:
            return share + at + len(mark)
    return size


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of the system and of gzip within the block into errors that name the file."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileError(f"{path} is damaged ({first_sentence(error)}): fetch it or pack it again") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _read(stream: BinaryIO, end: int) -> Iterator[bytes]:
    """Return the first ``end`` bytes of a stream, in blocks."""
    left = end
    while left > 0 and (block := stream.read(min(_BLOCK, left))):
        left -= len(block)
        yield block


def _numbered(blocks: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Return pieces of text, each with the number of its document. An empty document has no pieces."""
    number, fresh, held = 0, False, ""
    for block in chain(blocks, (None,)):
        text = held + (block or "")
        settled = len(text) if block is None else _settled(text)
        parts, held = text[:settled].split(END_OF_TEXT), text[settled:]
        for i, part in enumerate(parts):
            if i > 0:
                number, fresh = number + 1, True
            if i < len(parts) - 1:
                part = part.rstrip("\n")
            if fresh:
                part = part.lstrip("\n")
            if part:
                fresh = False
                yield number, part


def _settled(text: str) -> int:
    """Return the length of the text that does not depend on the next block.

    Newlines at the end may belong to a separator, and the end may be the beginning of a separator.
    """
    begun = text.rfind("<", max(0, len(text) - len(END_OF_TEXT) + 1))
    end = begun if begun >= 0 and END_OF_TEXT.startswith(text[begun:]) else len(text)
    return max(len(text[:end].rstrip("\n")), len(text) - _MOST_HELD)
