"""Prepare a text once: from a `DataConfig` to a folder with the tokenizer and the token files.

The folder's name ends with a hash of the text and of the tokenizer, so that the same text and tokenizer lead to the
same folder, and others to another. The folder is written under a temporary name and then renamed, so it is always
complete.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...files import FileError, read_json, user_path, write_whole
from ...tokenizer import BPETokenizer, CharTokenizer, Tokenizer, load_tokenizer
from .config import DataConfig
from .corpus import Corpus, CorpusRecord, open_corpus
from .shards import Shard, open_shards, prepare_shards
from .text_files import named

__all__ = ["TextData", "load_data", "make_tokenizer", "open_text", "prepare_data", "prepared_folder", "read_facts"]

_FACTS = "prepared.json"
_FORMAT, _VERSION = "gptladder-prepared", 2
_FACT_TYPES = {
    "text": str,
    "text_sha256": str,
    "tokenizer": str,
    "vocabulary": int,
    "train_tokens": int,
    "val_tokens": int,
}
_LATER_FACTS = {"val_fraction": float, "vocab_size": int}  # version 1 lacks them
_OF_THE_FILE = ("format", "version", "val_fraction", "vocab_size")  # fields that a run does not record as facts
_ABANDONED = 24 * 3600.0  # seconds after which an unfinished folder counts as left over from a killed process


@dataclass(frozen=True)
class TextData:
    """A prepared text."""

    tokenizer: Tokenizer
    train: Shard
    val: Shard
    facts: dict[str, Any]
    """What a run records about the text."""


def prepare_data(config: DataConfig, *, say: Callable[[str], None]) -> Path:
    """Write the tokenizer and the token files of a text, unless they exist already.

    Args:
        config: the text, the tokenizer, the split.
        say: called with each message for the user.

    Returns:
        The folder, for `load_data`.

    Raises:
        ValueError: the text cannot be used, or is not available.
    """
    given = prepared_folder(config)
    if given is not None:
        _check_given(given, config)
        say(f"prepared already: {given}")
        return given
    corpus = open_text(config)
    record = corpus.record()
    for line in filter(None, (*_overlooked(config), record.note, record.left_out)):
        say(line)
    key = hashlib.sha256(json.dumps([_VERSION, record.sha256, config.val_fraction, *_cut_by(config)]).encode())
    kind = re.sub(r"[^\w-]+", "-", Path(config.tokenizer).name)[:60]
    folder = user_path(config.data_dir) / f"{config.name}-{kind}-{key.hexdigest()[:12]}"
    if folder.exists():
        try:
            load_data(folder)
        except (ValueError, OSError) as error:
            say(f"preparing again what is damaged: {error}")
        else:
            say(f"prepared already: {folder}")
            return folder
    say(f"preparing {record.source} in {folder}")
    with _unfinished(folder) as unfinished:
        _fill(unfinished, config, corpus, record, say)
        if corpus.record().sha256 != record.sha256:
            raise ValueError(f"{record.source} changed while it was prepared: run it again")
        _put_in_place(unfinished, folder)
    return folder


def load_data(folder: Path) -> TextData:
    """Open a folder that `prepare_data` has written.

    Raises:
        ValueError: a file is damaged, or the files do not belong together.
    """
    facts = read_facts(folder)
    tokenizer = load_tokenizer(folder)
    train, val = open_shards(folder, tokenizer)
    found = (train.header.source, train.header.n_vocab, train.header.tokens, val.header.tokens)
    if found != (facts["text_sha256"], facts["vocabulary"], facts["train_tokens"], facts["val_tokens"]):
        raise FileError(f"{folder / _FACTS} does not describe the files beside it: prepare the text again")
    return TextData(tokenizer, train, val, {name: value for name, value in facts.items() if name not in _OF_THE_FILE})


def prepared_folder(config: DataConfig) -> Path | None:
    """Return the folder of prepared data that ``--corpus`` names, or None if it names text."""
    if isinstance(config.corpus, str):
        folder = user_path(config.corpus)
        if (folder / _FACTS).is_file():
            return folder
    return None


def make_tokenizer(kind: str, corpus: Corpus, *, vocab_size: int, val_fraction: float) -> Tokenizer:
    """Return the tokenizer with a name.

    Args:
        kind: ``gpt2``, ``bpe`` (learnt from the corpus), ``char`` (its characters), or a folder or GGUF file with one.
        corpus: the text.
        vocab_size: number of tokens of a ``bpe`` tokenizer.
        val_fraction: share of the text, at its end, that a ``bpe`` tokenizer is not trained on. A ``char`` tokenizer
            has the characters of the whole text; otherwise it could not encode the validation part.

    Raises:
        ValueError: ``kind`` is none of these, or a folder without a tokenizer.
        OfflineError: GPT-2's vocabulary is not available.
    """
    if kind == "gpt2":
        return BPETokenizer.gpt2()
    if kind == "bpe":
        return BPETokenizer.train(corpus.beginning(1 - val_fraction), vocab_size)
    if kind == "char":
        several = sum(1 for _ in islice(corpus.documents(), 2)) > 1
        return CharTokenizer.from_text(corpus.text(), end_of_text=several)
    if user_path(kind).exists():
        return load_tokenizer(user_path(kind))
    raise ValueError(f"--tokenizer {kind}: there is no such folder; give gpt2, bpe, char or the folder of a tokenizer")


def _fill(folder: Path, config: DataConfig, corpus: Corpus, record: CorpusRecord, say: Callable[[str], None]) -> None:
    """Write the tokenizer, the token files and ``prepared.json``."""
    tokenizer = make_tokenizer(config.tokenizer, corpus, vocab_size=config.vocab_size, val_fraction=config.val_fraction)
    tokenizer.save(folder)
    train, val = prepare_shards(
        corpus,
        tokenizer,
        folder,
        val_fraction=config.val_fraction,
        record=record,
        progress=lambda tokens: say(f"{tokens / 1e6:,.0f} million tokens"),
    )
    facts = {
        "format": _FORMAT,
        "version": _VERSION,
        "text": record.source,
        **({"note": record.note} if record.note else {}),
        **({"left_out": record.left_out} if record.left_out else {}),
        "text_sha256": record.sha256,
        "tokenizer": config.tokenizer,
        "vocab_size": config.vocab_size,
        "val_fraction": config.val_fraction,
        "vocabulary": tokenizer.n_vocab,
        "train_tokens": train.header.tokens,
        "val_tokens": val.header.tokens,
    }
    write_whole(folder / _FACTS, json.dumps(facts, indent=2) + "\n")
    if train.header.divided and train.header.documents + val.header.documents > 2:
        say("the validation part begins inside a document: no document begins within 1% of the text from there")
    say(
        f"{train.header.tokens:,} tokens to train on, {val.header.tokens:,} to validate, of {tokenizer.n_vocab:,} kinds"
    )


def open_text(config: DataConfig) -> Corpus:
    """Return the corpus of a configuration.

    Raises:
        ValueError: the text cannot be read; if it no longer exists, the message names the folder prepared from it.
    """
    try:
        return open_corpus(
            config.corpus, fraction=config.fraction, size=int(config.stories_mb * 1e6), encoding=config.encoding
        )
    except FileError as error:
        paths = [config.corpus] if isinstance(config.corpus, str) else config.corpus
        if all("://" in path or user_path(path).exists() for path in paths):
            raise
        for folder in (path.parent for path in sorted(user_path(config.data_dir).glob(f"*/{_FACTS}"))):
            if _prepared_from(folder) == named(paths):
                raise FileError(f"{error}; it was prepared in {folder}: give --corpus {folder}") from error
        raise FileError(f"{error}: give --corpus PATH, the path from this folder to the text") from error


def _overlooked(config: DataConfig) -> Iterator[str]:
    """Yield a line for each option whose value has a meaning of its own, and is a file or folder here too."""
    names = (config.corpus,) if isinstance(config.corpus, str) else config.corpus
    for option, name, meanings in (
        ("--corpus", names[0] if len(names) == 1 else "", ("stories", "tinystories")),
        ("--tokenizer", config.tokenizer, ("gpt2", "bpe", "char")),
    ):
        if name in meanings and Path(name).exists():
            yield f"{option} {name} does not mean the file or folder {name} here: to use that, give {option} ./{name}"


def _prepared_from(folder: Path) -> str | None:
    """Return the source of the text that a folder was prepared from; None if the folder is damaged."""
    try:
        return read_facts(folder)["text"]
    except FileError:
        return None


def _cut_by(config: DataConfig) -> list[Any]:
    """Return values that differ if two configurations divide text into different tokens."""
    if config.tokenizer == "bpe":
        return ["bpe of the training part", config.vocab_size]
    if config.tokenizer in ("gpt2", "char"):
        return [config.tokenizer]
    folder = user_path(config.tokenizer)
    if not folder.exists():
        return [config.tokenizer]  # `make_tokenizer` refuses it
    tokenizer = load_tokenizer(folder)
    # The fingerprint covers the ids of texts; the others, such as a chat template, are saved with the model too.
    special = (tokenizer.eot_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.model_max_length)
    return [tokenizer.fingerprint, *special, dict(tokenizer.settings)]


def _check_given(folder: Path, config: DataConfig) -> None:
    """Refuse damaged data, and options that differ from those that the data was prepared with."""
    data = load_data(folder)
    facts = read_facts(folder)
    how = facts["tokenizer"]
    same = config.tokenizer == how or _cut_by(config)[:2] == [data.tokenizer.fingerprint, data.tokenizer.eot_id]
    given = [] if same else [("--tokenizer", config.tokenizer, how)]
    given += [("--val-fraction", config.val_fraction, facts.get("val_fraction", config.val_fraction))]
    if how == "bpe":
        given += [("--vocab-size", config.vocab_size, facts.get("vocab_size", config.vocab_size))]
    for option, value, was in given:
        if value != was:
            raise FileError(
                f"{folder} was prepared with {option} {was}, not {value}: leave {option} out, or give the text"
            )
    for option, idle in (("--fraction", config.fraction == 1), ("--encoding", config.encoding is None)):
        if not idle:
            raise FileError(f"{option} is for text, and {folder} holds prepared data: leave {option} out")


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the content of ``prepared.json``; version 0.1.0 wrote it without a format.

    Raises:
        FileError: the file is damaged, or of another version.
    """
    path = folder / _FACTS
    facts = read_json(path)
    version = facts.get("version", 1)
    if facts.get("format", _FORMAT) != _FORMAT or version not in (1, _VERSION) or type(version) is not int:
        raise FileError(f"{path} is not of this version of the program: prepare the text again")
    for name, kind in {**_FACT_TYPES, **{name: kind for name, kind in _LATER_FACTS.items() if name in facts}}.items():
        if type(facts.get(name)) is not kind:
            raise FileError(f"{path} is damaged, its {name!r} is missing or wrong: prepare the text again")
    return facts


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` to write to. What is still in it after the block is deleted."""
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f".{folder.name}-*"):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        path = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))
        (path / "new").mkdir()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileError(f"--data-dir {parent} cannot be written to ({reason}): give another folder") from None
    try:
        yield path / "new"
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Rename a finished folder. If another process has already written the same folder, that one stays."""
    try:
        os.rename(unfinished, folder)
        return
    except OSError:
        if not folder.exists():
            raise
    try:
        load_data(folder)
    except (ValueError, OSError):
        os.rename(folder, unfinished.with_name("damaged"))
        os.rename(unfinished, folder)
