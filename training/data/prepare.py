"""From a `DataConfig` to token files: a text is prepared once, into a folder that says what it holds."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...tokenizer import BPETokenizer, CharTokenizer, Tokenizer, load_tokenizer
from .config import DataConfig
from .corpus import Corpus, open_corpus
from .shards import Shard, open_shards, prepare_shards


@dataclass(frozen=True)
class TextData:
    """A text that has been prepared."""

    tokenizer: Tokenizer
    train: Shard
    val: Shard
    facts: dict[str, Any]
    """What a run writes down about it."""


def prepare_data(config: DataConfig, *, say: Callable[[str], None]) -> Path:
    """Make token files of a text, with their tokenizer, unless they are there already.

    They are kept under ``data_dir`` in a folder whose name ends in a hash of the text and of how it is cut into tokens;
    so another text or another tokenizer gets another folder, and the same ones are found again.

    Args:
        config: the text, the tokenizer, the split.
        say: told what takes time, in lines.

    Returns:
        The folder.

    Raises:
        ValueError: text that cannot be used, or not be had.
    """
    corpus = open_corpus(config.corpus, fraction=config.fraction, size=int(config.stories_mb * 1e6))
    record = corpus.record()
    if record.note:
        say(record.note)
    kind = config.tokenizer
    how = [record.sha256, kind, config.vocab_size if kind == "bpe" else None, config.val_fraction]
    key = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:12]
    folder = Path(config.data_dir, f"{Path(config.corpus).stem}-{Path(kind).name}-{key}")
    if (folder / "prepared.json").exists():
        say(f"prepared already: {folder}")
        return folder
    say(f"preparing {record.source} in {folder}")
    tokenizer = make_tokenizer(kind, corpus, vocab_size=config.vocab_size)
    tokenizer.save(folder)
    train, val = prepare_shards(
        corpus,
        tokenizer,
        folder,
        val_fraction=config.val_fraction,
        progress=lambda tokens: say(f"{tokens / 1e6:,.0f} million tokens"),
    )
    facts = {
        "text": record.source,
        **({"note": record.note} if record.note else {}),
        "text_sha256": record.sha256,
        "tokenizer": kind,
        "vocabulary": tokenizer.n_vocab,
        "train_tokens": train.header.tokens,
        "val_tokens": val.header.tokens,
    }
    # Last, and so the sign that the rest is whole.
    (folder / "prepared.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    say(
        f"{train.header.tokens:,} tokens to train on, {val.header.tokens:,} to validate, of {tokenizer.n_vocab:,} kinds"
    )
    return folder


def make_tokenizer(kind: str, corpus: Corpus, *, vocab_size: int) -> Tokenizer:
    """The tokenizer that goes by a name: ``gpt2``, ``bpe`` (learnt from the corpus), ``char`` (its characters), a
    folder.

    Raises:
        ValueError: none of these; a folder without a tokenizer.
        OfflineError: GPT-2's vocabulary is not to be had.
    """
    if kind == "gpt2":
        return BPETokenizer.gpt2()
    if kind == "bpe":
        return BPETokenizer.train(corpus.text(), vocab_size)
    if kind == "char":
        several = sum(1 for _ in islice(corpus.documents(), 2)) > 1
        return CharTokenizer.from_text(corpus.text(), end_of_text=several)
    if Path(kind).is_dir():
        return load_tokenizer(kind)
    raise ValueError(f"there is no tokenizer {kind!r}: it can be gpt2, bpe, char, or the folder of one")


def load_data(folder: Path) -> TextData:
    """What `prepare_data` left in a folder.

    Raises:
        ValueError: files that do not belong together, or are damaged.
    """
    tokenizer = load_tokenizer(folder)
    train, val = open_shards(folder, tokenizer)
    return TextData(tokenizer, train, val, json.loads((folder / "prepared.json").read_text(encoding="utf-8")))
