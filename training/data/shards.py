"""Token files: ``train.bin`` and ``val.bin``, each a described header and then nothing but token ids, memory-mapped.

Layout, little-endian:

    bytes 0-7        ``GPTSHARD``
    bytes 8-4095     the header, JSON padded with blanks to a whole page (``head -c 4096 train.bin`` shows it)
    from byte 4096   the tokens, uint16 if every id fits, otherwise uint32

Every document is followed by the end-of-text token, if the tokenizer has one. The two files are a contiguous split:
joined, their tokens are those of the whole text; `split` decides where. Each file is read by itself, so no pair of an
input and its target crosses the split.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from io import BufferedRandom
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from ...files import FileError, file_size, naming, parse_json, sync_folder, unreadable
from ...tokenizer import Tokenizer
from .corpus import Corpus, CorpusRecord
from .split import validation_start

__all__ = ["Shard", "ShardHeader", "open_shards", "prepare_shards"]

_MAGIC = b"GPTSHARD"
_VERSION = 2
_HEADER_BYTES = 4096
_BLOCK = 1 << 20  # tokens
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """The header of a token file.

    Attributes:
        version: version of the file format.
        split: ``train`` or ``val``.
        val_fraction: the requested share of validation tokens.
        dtype: ``uint16`` or ``uint32``.
        tokens: number of tokens in the file.
        documents: number of documents in the file, complete or in part.
        n_vocab: size of the tokenizer's vocabulary.
        eot_id: the tokenizer's end-of-text token, or None.
        tokenizer: fingerprint of the tokenizer.
        source: SHA-256 of the text, from the corpus's record.
        described: description of the text, shortened to 250 characters.
        divided: whether the split is inside a document (version 1: never).
        crc32: checksum of the tokens (version 1: none).
    """

    version: int
    split: str
    val_fraction: float
    dtype: str
    tokens: int
    documents: int
    n_vocab: int
    eot_id: int | None
    tokenizer: str
    source: str
    described: str
    divided: bool = False
    crc32: int | None = None


@dataclass(frozen=True)
class Shard:
    """A token file: its path, its header, and the tokens, mapped from the disk and read-only."""

    path: Path
    header: ShardHeader
    tokens: Tokens


def prepare_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: str | os.PathLike[str],
    *,
    val_fraction: float = 0.1,
    record: CorpusRecord | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[Shard, Shard]:
    """Write the train and val shards of a corpus into a folder, and open them.

    Args:
        corpus: the text.
        tokenizer: encodes the text.
        folder: folder for ``train.bin`` and ``val.bin``; both are written completely or not at all.
        val_fraction: share of the tokens, taken from the end, for ``val.bin``.
        record: record of the corpus (default: computed here, which reads the text once more).
        progress: called about once per million tokens with the number of tokens written so far.

    Raises:
        ValueError: the corpus has several documents and the tokenizer no end-of-text token; a file is not text, or the
            text has fewer than two tokens.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; it must be between 0 and 1")
    folder = Path(folder)
    record = record or corpus.record()
    dtype = _DTYPES["uint16" if tokenizer.n_vocab <= 1 << 16 else "uint32"]
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing([folder / "train.bin", folder / "val.bin"]) as (train, val):
        # Write all tokens to the train file, then move those beyond the split to the val file.
        tokens, documents = _encode(corpus, tokenizer, dtype, train, progress)
        ends = partial(_document_ends, train, dtype, tokenizer.eot_id)
        cut, divided = validation_start(tokens, documents, val_fraction, ends)
        train.seek(_HEADER_BYTES + cut * dtype.itemsize)
        val.seek(_HEADER_BYTES)
        shutil.copyfileobj(train, val, _BLOCK)
        train.truncate(_HEADER_BYTES + cut * dtype.itemsize)

        val_documents = sum(1 for _ in _document_ends(val, dtype, tokenizer.eot_id, 0, tokens)) if documents > 1 else 1
        train_documents = max(1, documents - val_documents + divided)
        sizes = (("train", train, cut, train_documents), ("val", val, tokens - cut, val_documents))
        for split, file, tokens_here, documents_here in sizes:
            header = ShardHeader(
                version=_VERSION,
                split=split,
                val_fraction=val_fraction,
                dtype=dtype.name,
                tokens=tokens_here,
                documents=documents_here,
                n_vocab=tokenizer.n_vocab,
                eot_id=tokenizer.eot_id,
                tokenizer=tokenizer.fingerprint,
                source=record.sha256,
                described=record.source[:250],
                divided=divided,
                crc32=_crc32(file),
            )
            file.seek(0)
            file.write(_MAGIC + json.dumps(asdict(header)).encode().ljust(_HEADER_BYTES - len(_MAGIC)))
    return open_shards(folder, tokenizer)


def open_shards(folder: str | os.PathLike[str], tokenizer: Tokenizer) -> tuple[Shard, Shard]:
    """Open the train and val shards in a folder.

    Raises:
        FileError: a file is missing, damaged, not a token file, of another tokenizer, or not of the same text as the
            other one.
    """
    train, val = (_open(Path(folder) / f"{split}.bin", split, tokenizer) for split in ("train", "val"))
    if (train.header.source, train.header.val_fraction) != (val.header.source, val.header.val_fraction):
        raise FileError(f"train.bin and val.bin in {folder} are not of the same text and split: prepare the text again")
    return train, val


def _open(path: Path, split: str, tokenizer: Tokenizer) -> Shard:
    size = file_size(path)
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    if not start.startswith(_MAGIC):
        raise FileError(f"{path} is no token file of this program: prepare the text in another folder")
    header = _header(path, start)
    dtype = _DTYPES[header.dtype]
    expected = _HEADER_BYTES + header.tokens * dtype.itemsize
    if size != expected:
        raise FileError(f"{path} has {size:,} bytes instead of {expected:,}: prepare the text again")
    if header.split != split:
        raise FileError(f"{path} holds the {header.split} tokens: prepare the text again")
    if (header.tokenizer, header.n_vocab, header.eot_id) != (
        tokenizer.fingerprint,
        tokenizer.n_vocab,
        tokenizer.eot_id,
    ):
        raise FileError(
            f"{path} was written with another tokenizer ({header.n_vocab:,} tokens, {header.tokenizer[:8]}) than this "
            f"one ({tokenizer.n_vocab:,} tokens, {tokenizer.fingerprint[:8]}): prepare the text again"
        )
    _check_tokens(path, header, dtype)
    tokens = cast(Tokens, np.memmap(path, dtype, mode="r", offset=_HEADER_BYTES, shape=(header.tokens,)))
    return Shard(path, header, tokens)


def _header(path: Path, start: bytes) -> ShardHeader:
    """Return the header at the start of a file, with every field checked before NumPy uses it."""
    try:
        values = parse_json(path, start[len(_MAGIC) :])
    except FileError as error:
        raise FileError(f"the header of {path} is damaged: prepare the text again") from error
    version = values.get("version")
    if type(version) is int and version > _VERSION:
        raise FileError(f"{path} is of format {version}, and this program reads {_VERSION}: prepare the text again")
    names = [field.name for field in fields(ShardHeader)]
    if version == 1:
        names = [name for name in names if name not in ("divided", "crc32")]
    if sorted(values) != sorted(names) or not _is_sound(header := ShardHeader(**values)):
        raise FileError(f"the header of {path} is damaged: prepare the text again")
    return header


def _is_sound(header: ShardHeader) -> bool:
    """Return whether every field has the right type and range."""
    whole = (header.version, header.tokens, header.documents, header.n_vocab)
    if any(type(number) is not int or number < 1 for number in whole) or header.version > _VERSION:
        return False
    eot, crc = header.eot_id, header.crc32
    return (
        header.split in ("train", "val")
        and type(header.val_fraction) is float
        and 0 < header.val_fraction < 1
        and header.dtype in ("uint16", "uint32")
        and header.documents <= header.tokens
        and header.n_vocab <= (1 << 16 if header.dtype == "uint16" else 1 << 32)
        and (eot is None or (type(eot) is int and 0 <= eot < header.n_vocab))
        and all(type(text) is str for text in (header.tokenizer, header.source, header.described))
        and re.fullmatch("[0-9a-f]{64}", header.tokenizer) is not None
        and type(header.divided) is bool
        and (header.version == 1 if crc is None else type(crc) is int)
    )


def _check_tokens(path: Path, header: ShardHeader, dtype: np.dtype) -> None:
    """Read all tokens once, and check that each is in the vocabulary and that their checksum is right.

    They are read instead of mapped, because a mapped page that has been read counts as memory of the process.
    """
    crc = 0
    with open(path, "rb") as file:
        file.seek(_HEADER_BYTES)
        while block := file.read(_BLOCK * dtype.itemsize):
            crc = zlib.crc32(block, crc)
            if (highest := int(np.frombuffer(block, dtype).max())) >= header.n_vocab:
                raise FileError(
                    f"{path} holds token {highest}, beyond its vocabulary of {header.n_vocab}: prepare the text again"
                )
    if header.crc32 not in (None, crc):
        raise FileError(f"{path} is damaged, its checksum does not match: prepare the text again")


def _crc32(file: BufferedRandom) -> int:
    """Return the checksum of the tokens in a file."""
    file.seek(_HEADER_BYTES)
    crc = 0
    while block := file.read(_BLOCK):
        crc = zlib.crc32(block, crc)
    return crc


def _encode(
    corpus: Corpus, tokenizer: Tokenizer, dtype: np.dtype, file: BufferedRandom, progress: Callable[[int], None]
) -> tuple[int, int]:
    """Write the tokens of a corpus, and leave space for the header. Return the number of tokens and of documents."""
    file.seek(_HEADER_BYTES)
    tokens = documents = reported = 0
    for document in corpus.documents():
        if documents == 1 and tokenizer.eot_id is None:
            raise ValueError(
                "the text has several documents, and this tokenizer has no end-of-text token to put between them; "
                "build it with one (end_of_text=True)"
            )
        documents += 1
        for ids in tokenizer.encode_document(document):
            tokens += file.write(np.array(ids, dtype).tobytes()) // dtype.itemsize
            if tokens - reported >= _BLOCK:
                progress(reported := tokens)
    return tokens, documents


def _document_ends(file: BufferedRandom, dtype: np.dtype, eot_id: int | None, first: int, last: int) -> Iterator[int]:
    """Return the position after each end-of-text token among tokens ``first`` to ``last``."""
    while first < last:
        file.seek(_HEADER_BYTES + first * dtype.itemsize)
        block = np.frombuffer(file.read(min(_BLOCK, last - first) * dtype.itemsize), dtype)
        if not len(block):
            return
        yield from (first + 1 + np.flatnonzero(block == eot_id)).tolist()
        first += len(block)


@contextmanager
def _replacing(paths: list[Path]) -> Iterator[list[BufferedRandom]]:
    """Give temporary files that replace ``paths`` together, after the block has ended without an error."""
    temporary = [path.with_name(f".{path.name}.{os.getpid()}") for path in paths]
    try:
        with naming(paths[0].parent), ExitStack() as stack:
            files = [stack.enter_context(open(path, "w+b")) for path in temporary]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for path, final in zip(temporary, paths, strict=True):
            os.replace(path, final)
        sync_folder(paths[0].parent)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
