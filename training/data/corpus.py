"""Sources of text: TinyStories on the hub, the user's files, or generated stories.

A corpus is a sequence of documents, and a document is an iterator over pieces of text. So a large file is never in
memory as a whole, even if it is one single document. Read all pieces of a document before the next document.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ...tokenizer import OfflineError
from .config import check_encoding
from .hub import tinystories_file
from .readers import end_of_share
from .stories import stories
from .text_files import find_text_files, named

__all__ = ["Corpus", "CorpusRecord", "StoryCorpus", "TextFiles", "open_corpus", "tinystories"]


@dataclass(frozen=True)
class CorpusRecord:
    """What a run records about its text.

    Attributes:
        source: where the text comes from, in words.
        sha256: hash of the text that is read, by which the same text is recognised in any place.
        note: information for the user, such as that there was no network; or empty.
        left_out: one line about files of a folder that are not read; or empty.
    """

    source: str
    sha256: str
    note: str = ""
    left_out: str = ""


class Corpus(ABC):
    """A sequence of documents."""

    @abstractmethod
    def documents(self) -> Iterator[Iterator[str]]:
        """Return the documents in order, each as an iterator of pieces of its text.

        Raises:
            ValueError: a file is not text.
        """

    @abstractmethod
    def record(self) -> CorpusRecord:
        """Return what a run records about the text."""

    def text(self) -> Iterator[str]:
        """Return the pieces of all documents one after another."""
        for document in self.documents():
            yield from document

    def length(self) -> int:
        """Return the number of characters, which takes reading the text once."""
        return sum(map(len, self.text()))

    def beginning(self, share: float) -> Iterator[str]:
        """Return the pieces of a share of the text, by characters, from its beginning."""
        left = round(self.length() * share)
        for piece in self.text():
            if left <= 0:
                return
            yield piece[:left]
            left -= len(piece)


class TextFiles(Corpus):
    """Text files: one, several, or all of a folder and its sub-folders in the order of their paths.

    The formats are plain text, JSON lines with a field ``text``, and Parquet with a column ``text`` (`readers`). Other
    files of a folder are left out (`text_files`). Line ends become ``\\n``; a byte-order mark is removed. Newlines next
    to ``<|endoftext|>`` are part of the separator.

    Args:
        paths: the file or folder, or several.
        fraction: share of each file's bytes to read, from its beginning. The document in which the share ends is read
            to its end, if a separator follows within a megabyte; otherwise only that line is.
        source: description for the record (default: the paths).
        encoding: encoding of files that are not UTF-8 (default: such a file is refused).

    Raises:
        ValueError: a path does not exist, there is no text, a file cannot be read, the fraction is outside (0, 1], or
            there is no such encoding.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        fraction: float = 1.0,
        source: str = "",
        encoding: str | None = None,
    ):
        if not 0 < fraction <= 1:
            raise ValueError(f"the fraction of the text to read is {fraction}; it must be above 0 and at most 1")
        check_encoding(encoding)
        paths = [paths] if isinstance(paths, str | os.PathLike) else paths
        found = find_text_files(paths, encoding=encoding)
        self._files, self._left_out = found.files, found.left_out
        self._source = source or named(paths)
        if fraction < 1:
            self._files = [replace(file, end=end_of_share(file, fraction)) for file in self._files]
            self._source += f", the first {fraction:g} of it"
        self._encoding = encoding

    @property
    def files(self) -> list[Path]:
        """The files that are read, in order."""
        return [file.path for file in self._files]

    @property
    def size(self) -> int:
        """Number of bytes that are read, as they are on the disk."""
        return sum(file.end for file in self._files)

    def documents(self) -> Iterator[Iterator[str]]:
        """Return the documents of all files, in order.

        Raises:
            ValueError: a file cannot be read, is damaged, or is not text; the message names the line.
        """
        for file in self._files:
            yield from file.documents()

    def record(self) -> CorpusRecord:
        """Return the paths and a hash of the bytes that are read. Hashing takes about a second per gigabyte."""
        digest = hashlib.sha256()
        for file in self._files:
            how = "" if (file.kind, file.packed) == ("text", False) else f" {file.kind} {file.packed}"
            digest.update(f"{file.end}{how}\n".encode())
            for block in file.raw():
                digest.update(block)
        if self._encoding is not None:
            digest.update(f"\n{self._encoding}".encode())
        return CorpusRecord(self._source, digest.hexdigest(), left_out=self._left_out)


class StoryCorpus(Corpus):
    """Generated stories (`gptladder.training.data.stories`), at least ``size`` bytes of them.

    Raises:
        ValueError: the size is below one byte.
    """

    def __init__(self, *, seed: int = 1337, size: int = 20_000_000, note: str = ""):
        if size < 1:
            raise ValueError(f"{size} bytes of stories were asked for; it must be at least 1")
        self._seed, self._size, self._note = seed, size, note

    def documents(self) -> Iterator[Iterator[str]]:
        """Return one document for each story."""
        size = 0
        for text in stories(self._seed):
            yield iter((text,))
            size += len(text)  # the stories are ASCII
            if size >= self._size:
                return

    def length(self) -> int:
        """Return the size that was asked for, which the last story may exceed; the stories are ASCII."""
        return self._size

    def record(self) -> CorpusRecord:
        """Return seed and size. The hash is of these and of the first stories, so that it changes with the grammar."""
        digest = hashlib.sha256(f"{self._seed} {self._size}".encode())
        for text in islice(stories(self._seed), 100):
            digest.update(text.encode())
        source = f"generated stories, seed {self._seed}, {self._size:,} bytes"
        return CorpusRecord(source, digest.hexdigest(), self._note)


def tinystories(
    *,
    fraction: float = 1.0,
    file: str = "TinyStories-train.txt",
    cache_dir: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> TextFiles:
    """Return TinyStories (Eldan and Li, 2023) as its authors published it on the hub.

    Args:
        fraction: see `TextFiles`; the complete file is downloaded.
        file, cache_dir, endpoint: see `gptladder.training.data.hub.tinystories_file`.

    Raises:
        OfflineError: the file is not in the cache, and the hub does not answer.
    """
    path = tinystories_file(file, cache_dir=cache_dir, endpoint=endpoint)
    source = f"roneneldan/TinyStories, {file}, revision {path.parent.name}"
    return TextFiles(path, fraction=fraction, source=source)


def open_corpus(
    name: str | Sequence[str],
    *,
    fraction: float = 1.0,
    seed: int = 1337,
    size: int = 20_000_000,
    encoding: str | None = None,
) -> Corpus:
    """Return the corpus with a name.

    Args:
        name: ``tinystories``, ``stories`` (generated), the path of a text file or folder, or several paths. If the hub
            cannot be reached, ``tinystories`` becomes ``stories``, and the record has a note about it.
        fraction: share of ``tinystories`` or of the files to read.
        seed: seed of generated stories.
        size: size of generated stories, in bytes.
        encoding: encoding of files that are not UTF-8.

    Raises:
        ValueError: as for `TextFiles` and `StoryCorpus`.
    """
    if name == "stories":
        return StoryCorpus(seed=seed, size=size)
    if name != "tinystories":
        return TextFiles(name, fraction=fraction, encoding=encoding)
    try:
        return tinystories(fraction=fraction)
    except OfflineError as error:
        return StoryCorpus(seed=seed, size=size, note=f"{error}; stories are generated on this machine instead")
