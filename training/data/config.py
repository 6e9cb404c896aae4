"""The configuration of a run's text and tokenizer."""

import codecs
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ...files import user_path
from ...tokenizer import MAX_ID


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, its tokenizer, and the split into training and validation data."""

    corpus: str | tuple[str, ...] = "stories"
    """Text to train on: a file or folder, or several; "stories" (generated here), "tinystories" (from the hub); or a
    folder of prepared data, written by `gptladder prepare`."""
    encoding: str | None = None
    """Encoding of files that are not UTF-8, such as cp1252, utf-16 or gb18030 (default: such a file is refused)."""
    fraction: float = 1.0
    """Share of the text to use, from its beginning."""
    stories_mb: float = 20.0
    """Size of the generated stories in megabytes."""
    tokenizer: str = "gpt2"
    """"gpt2", "bpe" (byte pairs, trained on the text), "char" (one token per character), or a folder with a
    tokenizer."""
    vocab_size: int = 4096
    """Number of tokens of a "bpe" tokenizer."""
    val_fraction: float = 0.1
    """Share of the tokens for validation, taken from the end of the text."""
    data_dir: str = "data"
    """Folder where prepared data is stored and found again."""

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ValueError("--corpus has no value: give a text file or a folder")
        for option, value in (("--tokenizer", self.tokenizer), ("--data-dir", self.data_dir)):
            if not value:
                raise ValueError(f"{option} has no value: give a folder")
        if not 0 < self.stories_mb < 1e6:
            raise ValueError(f"--stories-mb is {self.stories_mb}; it must be above 0 and below a million")
        if self.vocab_size < 257:
            raise ValueError(f"--vocab-size is {self.vocab_size}; 256 bytes and the end of text take 257 already")
        if self.vocab_size > MAX_ID:
            raise ValueError(f"--vocab-size is {self.vocab_size}; it must be at most {MAX_ID:,}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"--fraction is {self.fraction}; it must be above 0 and at most 1")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}; it must be between 0 and 1")
        check_encoding(self.encoding)

    @property
    def name(self) -> str:
        """A short name of the text, for folders: the name of its file or folder, without the suffix."""
        first = self.corpus if isinstance(self.corpus, str) else self.corpus[0]
        stem = Path(os.path.abspath(user_path(first))).name.split(".")[0]
        return re.sub(r"[^\w-]+", "-", stem).strip("-")[:60] or "text"


def check_encoding(name: str | None) -> None:
    """Raise ValueError for an encoding that Python does not know."""
    if name is not None and not _is_encoding(name):
        raise ValueError(f"--encoding is {name!r}, which Python does not know: try cp1252 or utf-16")


def _is_encoding(name: str) -> bool:
    try:
        return bool(codecs.lookup(name).incrementaldecoder) and isinstance(b"a".decode(name), str)
    except UnicodeDecodeError:  # one byte is no character of it, as in UTF-16
        return True
    except (LookupError, ValueError):
        return False
