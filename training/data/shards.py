"""Token files: ``train.bin`` and ``val.bin``, each a described header and then nothing but token ids, memory-mapped.

Layout, little-endian:

    bytes 0-7        ``GPTSHARD``
    bytes 8-4095     the header, JSON padded with blanks to a whole page (``head -c 4096 train.bin`` shows it)
    from byte 4096   the tokens, uint16 where every id fits, else uint32

Every document is followed by the end-of-text token, where the tokenizer has one. The two files are a contiguous split:
joined, their tokens are those of the whole text. It falls between two documents wherever there are two, so that nothing
of a document that is validated on was trained on; and since each file is read by itself, no pair of an input and its
target crosses it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from io import BufferedRandom
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...files import sync_folder
from ...tokenizer import Tokenizer
from .corpus import Corpus

__all__ = ["Shard", "ShardHeader", "open_shards", "prepare_shards"]

_MAGIC = b"GPTSHARD"
_VERSION = 1
_HEADER_BYTES = 4096
_BLOCK = 1 << 20  # tokens

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says about itself.

    Attributes:
        version: of the file format.
        split: ``train`` or ``val``.
        val_fraction: the share of all tokens that was asked for as ``val``.
        dtype: ``uint16`` or ``uint32``.
        tokens: how many there are.
        documents: how many documents are in it, whole or in part.
        n_vocab: of the tokenizer.
        eot_id: its end-of-text token, or None.
        tokenizer: its fingerprint.
        source: SHA-256 of the text, from the corpus's record.
        described: the text in words, shortened to 250 characters.
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
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[Shard, Shard]:
    """The train and val shards of a corpus in a folder: those already there if nothing has changed, or else new ones.

    Args:
        corpus: the text.
        tokenizer: what encodes it.
        folder: where ``train.bin`` and ``val.bin`` are, or will be; both are written whole or not at all.
        val_fraction: share of the tokens, taken from the end, that goes to ``val.bin``.
        progress: called now and then with the number of tokens written so far.

    Raises:
        ValueError: files of another tokenizer, or no whole token files, lie there; the corpus has several documents and
            the tokenizer no end-of-text token; the text is no text, or too short to split.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; it has to lie between 0 and 1")
    folder = Path(folder)
    record = corpus.record()
    paths = [folder / "train.bin", folder / "val.bin"]
    there = [_open(path, tokenizer) for path in paths if path.exists()]
    wanted = (record.sha256, val_fraction)
    if len(there) == 2 and all((shard.header.source, shard.header.val_fraction) == wanted for shard in there):
        return there[0], there[1]

    dtype = np.dtype("<u2" if tokenizer.n_vocab <= 1 << 16 else "<u4")
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(paths) as (train, val):
        tokens, documents = _encode(corpus, tokenizer, dtype, train, progress)
        cut = _cut(train, dtype, tokens, documents, val_fraction, tokenizer.eot_id)
        train.seek(_HEADER_BYTES + cut * dtype.itemsize)
        val.seek(_HEADER_BYTES)
        shutil.copyfileobj(train, val, _BLOCK)
        train.truncate(_HEADER_BYTES + cut * dtype.itemsize)

        val_documents = 1 if documents == 1 else sum(1 for _ in _document_ends(val, dtype, 0, tokens, tokenizer.eot_id))
        train_documents = 1 if documents == 1 else documents - val_documents
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
            )
            file.seek(0)
            file.write(_MAGIC + json.dumps(asdict(header)).encode().ljust(_HEADER_BYTES - len(_MAGIC)))
    return open_shards(folder, tokenizer)


def open_shards(folder: str | os.PathLike[str], tokenizer: Tokenizer) -> tuple[Shard, Shard]:
    """The train and val shards in a folder.

    Raises:
        ValueError: a file is missing, truncated, no token file, of another tokenizer, or not of the same text as the
            other one.
    """
    train, val = (_open(Path(folder) / f"{split}.bin", tokenizer) for split in ("train", "val"))
    if (train.header.source, train.header.val_fraction) != (val.header.source, val.header.val_fraction):
        raise ValueError(f"train.bin and val.bin in {folder} are not of the same text and split; prepare them again")
    return train, val


def _open(path: Path, tokenizer: Tokenizer) -> Shard:
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; prepare the text first") from None
    if not start.startswith(_MAGIC):
        raise ValueError(f"{path} is no token file of this program; move it away, or use another folder")
    damaged = ValueError(f"the header of {path} is damaged; delete the file and prepare the text again")
    try:
        fields = json.loads(start[len(_MAGIC) :])
        version = fields["version"]
    except (ValueError, TypeError, KeyError):
        raise damaged from None
    if version != _VERSION:
        raise ValueError(f"{path} is of format {version}, not {_VERSION}; delete it and prepare the text again")
    try:
        header, dtype = ShardHeader(**fields), np.dtype(fields["dtype"]).newbyteorder("<")
    except (TypeError, KeyError):
        raise damaged from None
    expected = _HEADER_BYTES + header.tokens * dtype.itemsize
    if size != expected:
        raise ValueError(f"{path} has {size:,} bytes instead of {expected:,}; delete it and prepare the text again")
    if header.tokenizer != tokenizer.fingerprint:
        raise ValueError(
            f"{path} was written with another tokenizer ({header.n_vocab:,} tokens, {header.tokenizer[:8]}) than this "
            f"one ({tokenizer.n_vocab:,} tokens, {tokenizer.fingerprint[:8]}); use another folder, or delete the file"
        )
    return Shard(path, header, np.memmap(path, dtype, mode="r", offset=_HEADER_BYTES, shape=(header.tokens,)))


def _encode(
    corpus: Corpus, tokenizer: Tokenizer, dtype: np.dtype, file: BufferedRandom, progress: Callable[[int], None]
) -> tuple[int, int]:
    """Write the tokens of a corpus behind the room for the header; how many tokens and documents there were."""
    file.seek(_HEADER_BYTES)
    tokens = documents = told = 0
    for document in corpus.documents():
        if documents == 1 and tokenizer.eot_id is None:
            raise ValueError(
                "the text has several documents, and this tokenizer has no end-of-text token to put between them; "
                "build it with one (end_of_text=True)"
            )
        documents += 1
        for ids in tokenizer.encode_stream(document):
            tokens += file.write(np.array(ids, dtype).tobytes()) // dtype.itemsize
            if tokens - told >= _BLOCK:
                progress(told := tokens)
        if tokenizer.eot_id is not None:
            tokens += file.write(np.array([tokenizer.eot_id], dtype).tobytes()) // dtype.itemsize
    return tokens, documents


def _cut(
    file: BufferedRandom, dtype: np.dtype, tokens: int, documents: int, val_fraction: float, eot_id: int | None
) -> int:
    """Where val begins: at its share of the tokens, moved to the next beginning of a document, or else to the last."""
    cut = int(tokens * (1 - val_fraction))
    if documents > 1:
        after = next(_document_ends(file, dtype, max(0, cut - 1), tokens, eot_id))
        cut = after if after < tokens else max(_document_ends(file, dtype, 0, cut, eot_id))
    if not 0 < cut < tokens:
        raise ValueError(f"the text has {tokens} tokens, too few to hold {val_fraction:g} of them back for validation")
    return cut


def _document_ends(file: BufferedRandom, dtype: np.dtype, first: int, last: int, eot_id: int | None) -> Iterator[int]:
    """The positions just after each end-of-text token among tokens ``first`` to ``last``."""
    while first < last:
        file.seek(_HEADER_BYTES + first * dtype.itemsize)
        block = np.frombuffer(file.read(min(_BLOCK, last - first) * dtype.itemsize), dtype)
        if not len(block):
            return
        yield from (first + 1 + np.flatnonzero(block == eot_id)).tolist()
        first += len(block)


@contextmanager
def _replacing(paths: list[Path]) -> Iterator[list[BufferedRandom]]:
    """Temporary files that take the places of ``paths``, together and whole, once the block has ended without error."""
    temporary = [path.with_name(f".{path.name}.{os.getpid()}") for path in paths]
    try:
        with ExitStack() as stack:
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
