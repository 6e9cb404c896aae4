"""Where text comes from: TinyStories on the hub, files of the user's own, or generated stories.

A corpus is a sequence of documents, and a document is an iterator of pieces of text, so that neither a large file nor a
file that is one single document is ever held in memory. A document's pieces must be read before the next document.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ...tokenizer import OfflineError
from .hub import tinystories_file
from .readers import end_of_share
from .stories import stories
from .text_files import find_text_files, named

__all__ = ["Corpus", "CorpusRecord", "StoryCorpus", "TextFiles", "open_corpus", "tinystories"]


@dataclass(frozen=True)
class CorpusRecord:
    """What a run writes down about its text.

    Attributes:
        source: where the text is from, in words.
        sha256: hash of the text that is read, by which the same text is recognised wherever it lies.
        note: what a reader of the run should know, such as that there was no network; or empty.
        left_out: which files of a folder are not read, in one line; or empty.
    """

    source: str
    sha256: str
    note: str = ""
    left_out: str = ""


class Corpus(ABC):
    """Documents, and what is known about them."""

    @abstractmethod
    def documents(self) -> Iterator[Iterator[str]]:
        """Return the documents in order, each as an iterator of pieces of its text.

        Raises:
            ValueError: a file is not text.
        """

    @abstractmethod
    def record(self) -> CorpusRecord:
        """Return what a run writes down."""

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

    Plain text, JSON lines with a field ``text``, and Parquet with a column ``text`` are read (`readers`); what a folder
    holds besides is left out (`text_files`). Line ends become ``\\n``; a byte-order mark is dropped. Newlines next to
    ``<|endoftext|>`` belong to it.

    Args:
        paths: the file or folder, or several.
        fraction: how much of each file to read, from its beginning: up to the end of the document in which that share
            of its bytes ends, if a separator follows within a megabyte, or else of the line.
        source: what to call it in the record (default: the paths).
        encoding: encoding of files that are not UTF-8 (default: such a file is refused).

    Raises:
        ValueError: nothing at a path, no text, a file that cannot be read, or a fraction outside (0, 1].
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
        """The documents of every file, in order.

        Raises:
            ValueError: a file cannot be read, is damaged, or is not text; with the line.
        """
        for file in self._files:
            yield from file.documents()

    def record(self) -> CorpusRecord:
        """The paths and the hash of what is read from them, which takes a second or so for each gigabyte."""
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
    """Stories of `gptladder.training.data.stories`, as many as make up ``size`` bytes.

    Raises:
        ValueError: a size under one byte.
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
        fraction: see `TextFiles`; the file is fetched whole.
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
    """Return the corpus that goes by a name.

    Args:
        name: ``tinystories``, ``stories`` for generated ones, or the path of a text file or of a folder of them, or
            several paths. ``tinystories`` turns into ``stories`` if the hub cannot be reached, and the record's note
            says so.
        fraction: of ``tinystories`` or of files.
        seed: of generated stories.
        size: of generated stories, in bytes.
        encoding: encoding of files that are not UTF-8.

    Raises:
        ValueError: as `TextFiles` and `StoryCorpus` do.
    """
    if name == "stories":
        return StoryCorpus(seed=seed, size=size)
    if name != "tinystories":
        return TextFiles(name, fraction=fraction, encoding=encoding)
    try:
        return tinystories(fraction=fraction)
    except OfflineError as error:
        return StoryCorpus(seed=seed, size=size, note=f"{error}; stories are generated on this machine instead")
