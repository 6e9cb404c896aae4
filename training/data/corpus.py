"""Where text comes from: TinyStories on the hub, files of the user's own, or stories made on the spot.

A corpus is a sequence of documents, and a document is an iterator of pieces of text, so that neither a large file nor a
file that is one single document is ever held in memory. A document's pieces are to be read before the next document.

In files, ``<|endoftext|>`` ends a document, as in the TinyStories files; a file without it is one document.
"""

import codecs
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path

from ...tokenizer import END_OF_TEXT, OfflineError, answer_within
from .stories import stories

__all__ = ["Corpus", "CorpusRecord", "StoryCorpus", "TextFiles", "open_corpus", "tinystories"]

_BLOCK = 1 << 20
_SECONDS_TO_ANSWER = 3.0  # a run may ask two hosts, and is to say within 10 seconds that it is offline


@dataclass(frozen=True)
class CorpusRecord:
    """What a run writes down about its text.

    Attributes:
        source: where the text is from, in words.
        sha256: of the text that is read, so that the same text is known again wherever it lies.
        note: what a reader of the run should know, such as that there was no network; or empty.
    """

    source: str
    sha256: str
    note: str = ""


class Corpus(ABC):
    """Documents, and what is known about them."""

    @abstractmethod
    def documents(self) -> Iterator[Iterator[str]]:
        """The documents in order, each as an iterator of pieces of its text.

        Raises:
            ValueError: a file that is no text.
        """

    @abstractmethod
    def record(self) -> CorpusRecord:
        """What a run writes down."""

    def text(self) -> Iterator[str]:
        """The pieces of all documents one after another: what a vocabulary is learnt from."""
        for document in self.documents():
            yield from document


class TextFiles(Corpus):
    """One text file, or all the ``.txt`` files of a folder and its sub-folders in the order of their paths.

    Files are UTF-8; a byte-order mark is dropped, and line ends become ``\\n``, as Python reads text. Newlines next to
    ``<|endoftext|>`` belong to it.

    Args:
        path: the file or folder.
        fraction: how much of each file to read, from its beginning: up to the end of the document in which that share
            of its bytes ends, if a separator follows within a megabyte, or else of the line.
        source: what to call it in the record; the path by default.

    Raises:
        ValueError: nothing at ``path``, a folder without ``.txt`` files, an empty file, or a fraction outside (0, 1].
    """

    def __init__(self, path: str | os.PathLike[str], *, fraction: float = 1.0, source: str = ""):
        path = Path(path)
        if not 0 < fraction <= 1:
            raise ValueError(f"the fraction of the text to read is {fraction}; it has to be above 0 and at most 1")
        if path.is_dir():
            files = sorted(file for file in path.rglob("*.txt") if file.is_file())
            if not files:
                raise ValueError(f"{path} is a folder without any .txt file")
        elif path.is_file():
            files = [path]
        else:
            raise ValueError(f"there is no file or folder {path}")
        for file in files:
            if not file.stat().st_size:
                raise ValueError(f"{file} is empty")
        part = "" if fraction == 1 else f", the first {fraction:g} of it"
        self._source = (source or str(path)) + part
        self._files = [(file, _end_of_share(file, fraction)) for file in files]

    def documents(self) -> Iterator[Iterator[str]]:
        """The documents of every file, in order. Raises ValueError for a file that is no UTF-8 text, or has none."""
        for file, end in self._files:
            empty = True
            for _, pieces in groupby(_numbered(_blocks(file, end)), key=itemgetter(0)):
                empty = False
                yield (piece for _, piece in pieces)
            if empty:
                raise ValueError(f"{file} holds no text")

    def record(self) -> CorpusRecord:
        """The path and the hash of what is read from it, which takes a second or so for each gigabyte."""
        digest = hashlib.sha256()
        for file, end in self._files:
            digest.update(f"{end}\n".encode())
            with open(file, "rb") as stream:
                for block in _read(stream, end):
                    digest.update(block)
        return CorpusRecord(self._source, digest.hexdigest())


class StoryCorpus(Corpus):
    """Stories of `gptladder.training.stories`, as many as make up ``size`` bytes.

    Raises:
        ValueError: a size under one byte.
    """

    def __init__(self, *, seed: int = 1337, size: int = 20_000_000, note: str = ""):
        if size < 1:
            raise ValueError(f"{size} bytes of stories were asked for; it has to be at least 1")
        self._seed, self._size, self._note = seed, size, note

    def documents(self) -> Iterator[Iterator[str]]:
        """One document for each story."""
        size = 0
        for text in stories(self._seed):
            yield iter((text,))
            size += len(text)  # the stories are ASCII
            if size >= self._size:
                return

    def record(self) -> CorpusRecord:
        """Seed and size. The hash is of these and of the first stories, so that a change to the grammar shows."""
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
    """TinyStories (Eldan and Li, 2023) as its authors published it on the hub: fetched once, then from the hub's cache.

    Args:
        fraction: see `TextFiles`; the file is fetched whole, and a fetch that broke off is taken up again.
        file: which of the data set's text files.
        cache_dir: the hub's cache, where it is not in its usual place.
        endpoint: the hub's address, where it is not the usual one.

    Raises:
        OfflineError: not in the cache, and the hub does not answer; said within 10 seconds.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = {"repo_id": "roneneldan/TinyStories", "filename": file, "repo_type": "dataset"}
    where = {"cache_dir": cache_dir, "endpoint": endpoint}
    try:
        path = hf_hub_download(**name, **where, local_files_only=True)
    except LocalEntryNotFoundError:
        url = hf_hub_url(**name, endpoint=endpoint)
        try:
            answer_within(_SECONDS_TO_ANSWER, lambda: get_hf_file_metadata(url, timeout=_SECONDS_TO_ANSWER))
        except Exception as error:  # the hub's client raises the errors of whichever HTTP library it is built on
            raise OfflineError(
                f"TinyStories is not in the hub's cache and {url} does not answer ({type(error).__name__})"
            ) from None
        try:
            path = hf_hub_download(**name, **where)
        except Exception as error:
            raise ConnectionError(
                f"fetching {url} broke off ({error}); run it again to take it up from there"
            ) from None
    return TextFiles(
        path, fraction=fraction, source=f"roneneldan/TinyStories, {file}, revision {Path(path).parent.name}"
    )


def open_corpus(name: str, *, fraction: float = 1.0, seed: int = 1337, size: int = 20_000_000) -> Corpus:
    """The corpus that goes by a name.

    Args:
        name: ``tinystories``, ``stories`` for generated ones, or the path of a text file or of a folder of them.
            ``tinystories`` turns into ``stories`` where the hub cannot be reached, and the record's note says so.
        fraction: of ``tinystories`` or of files.
        seed: of generated stories.
        size: of generated stories, in bytes.

    Raises:
        ValueError: as `TextFiles` and `StoryCorpus` do.
    """
    if name == "stories":
        return StoryCorpus(seed=seed, size=size)
    if name != "tinystories":
        return TextFiles(name, fraction=fraction)
    try:
        return tinystories(fraction=fraction)
    except OfflineError as error:
        return StoryCorpus(seed=seed, size=size, note=f"{error}; stories are generated on this machine instead")


def _read(stream: io.BufferedReader, end: int) -> Iterator[bytes]:
    """The first ``end`` bytes, in blocks."""
    while (left := end - stream.tell()) > 0 and (block := stream.read(min(_BLOCK, left))):
        yield block


def _end_of_share(file: Path, fraction: float) -> int:
    """The byte at which a share of a file ends, moved on to the end of its document, or else of its line or word."""
    size = file.stat().st_size
    if fraction == 1:
        return size
    share = int(size * fraction)
    with open(file, "rb") as stream:
        stream.seek(share)
        ahead = stream.read(_BLOCK)
    for mark in (END_OF_TEXT.encode(), b"\n", b" "):
        if (at := ahead.find(mark)) >= 0:
            return share + at + len(mark)
    return size


def _blocks(file: Path, end: int) -> Iterator[str]:
    """The text of the first ``end`` bytes of a file, in blocks."""
    decode = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    with open(file, "rb") as stream:
        if stream.peek(3)[:3] == codecs.BOM_UTF8:
            stream.seek(3)
        for block in _read(stream, end):
            last = stream.tell() >= end
            before = stream.tell() - len(block)
            if (nul := block.find(b"\0")) >= 0:
                raise ValueError(
                    f"{file} is no UTF-8 text: byte {before + nul} is zero; save it as UTF-8, if it is text"
                )
            pending = len(decode.getstate()[0])
            try:
                yield newlines.decode(decode.decode(block, final=last), final=last)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file} is no UTF-8 text: {error.reason} at byte {before - pending + error.start}; "
                    "save it as UTF-8, if it is text"
                ) from None


def _numbered(blocks: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Pieces of text, each with the number of its document. A document without text has no pieces."""
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
    """How much of a text can be told apart before the next block: all but newlines and the beginning of a separator."""
    begun = text.rfind("<", max(0, len(text) - len(END_OF_TEXT) + 1))
    end = begun if begun >= 0 and END_OF_TEXT.startswith(text[begun:]) else len(text)
    return len(text[:end].rstrip("\n"))
