"""What every tokenizer here has: ids of a text, text of ids, special tokens, and files that transformers reads."""

import codecs
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from ..files import write_whole

__all__ = ["END_OF_TEXT", "MAX_ID", "TextDecoder", "Tokenizer"]

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's token between documents."""

MAX_ID = 1 << 22
"""Highest id of a token that is read or made. The largest vocabularies in use have 260,000 tokens."""

NO_TEMPLATE = {"Sequence": {"id": "A", "type_id": 0}}
"""The one step of a template that adds nothing; transformers 5 writes it into every ``tokenizer.json``."""

# Files of an older tokenizer that transformers would read beside a new `tokenizer.json`, and mix with it.
REPLACED_FILES = ("added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja")

_ATTRIBUTE = {"eos": "eot", "bos": "bos", "pad": "pad"}

# transformers writes 1e30 for a tokenizer without a limit.
_NO_LIMIT = 1e20

# Fields of `tokenizer_config.json` that name the class or files that it was read from, or repeat `tokenizer.json`.
_NOT_WRITTEN_AGAIN = {
    *("tokenizer_class", "auto_map", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file"),
    *("merges_file", "added_tokens_decoder", "add_bos_token", "add_eos_token", "backend", "is_local"),
    *("local_files_only", "files_loaded", "init_inputs", "use_fast", "processor_class", "model_max_length"),
    *("max_length", "stride", "truncation_strategy", "errors", "_commit_hash", "transformers_version"),
}


class TextDecoder(Protocol):
    """Turns ids into text as they come. All pieces together equal ``decode`` of all ids."""

    def push(self, token: int) -> str:
        """Return the text that one more id settles; it may lag behind the id."""
        ...

    def finish(self) -> str:
        """Return the text that is still held back, when no further id will come."""
        ...


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        n_vocab: one more than the highest id.
        eot_id: id of the token that ends a text (``eos_token`` in transformers), or None.
        bos_id: id of the token that begins a text, or None.
        pad_id: id of the token that fills up a batch, or None.
        model_max_length: number of tokens that the tokenizer's model reads at most, or None if unknown.
    """

    n_vocab: int
    eot_id: int | None = None
    bos_id: int | None = None
    pad_id: int | None = None
    model_max_length: int | None = None

    _config: dict[str, Any]
    """The fields of ``tokenizer_config.json`` that a saved folder gets."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the vocabulary does not have it.

        >>> from gptladder.tokenizer import CharTokenizer
        >>> CharTokenizer("abc").token_id("c")
        2
        """

    def take_config(self, config: Mapping[str, Any]) -> None:
        """Take the special tokens and the length from the fields of a ``tokenizer_config.json``.

        The fields are written again by `save`, but for those that say how the files were read.
        """
        for name in ("eos", "bos", "pad"):
            token = config.get(f"{name}_token")
            setattr(self, f"{_ATTRIBUTE[name]}_id", None if token is None else self.token_id(token))
        length = config.get("model_max_length")
        self.model_max_length = int(length) if isinstance(length, int | float) and 0 < length < _NO_LIMIT else None
        self._config = {name: value for name, value in config.items() if name not in _NOT_WRITTEN_AGAIN}
        if isinstance(self._config.get("extra_special_tokens"), list):  # the name in transformers 4, which 5 reads too
            self._config.setdefault("additional_special_tokens", self._config.pop("extra_special_tokens"))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The fields of ``tokenizer_config.json`` that `save` writes; they do not change the ids of a text."""
        return self._config

    @property
    def start_id(self) -> int | None:
        """The id that a text from nothing begins after: ``bos_id``, else ``eot_id``, else None."""
        return self.eot_id if self.bos_id is None else self.bos_id

    @property
    def n_text_vocab(self) -> int:
        """One more than the highest id that ordinary text turns into; special tokens may have higher ones."""
        return self.n_vocab

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text.

        A special token that is written in the text, as ``<|endoftext|>``, is ordinary text. Ids that the tokenizer's
        own template puts around every text are there in both cases.

        Args:
            allow_special: read special tokens in the text as tokens, as ``transformers.AutoTokenizer`` does by default.

        Raises:
            ValueError: a lone surrogate, or a character that the vocabulary lacks, with its position.

        >>> from gptladder.tokenizer import CharTokenizer
        >>> tokenizer = CharTokenizer("abc", end_of_text=True)
        >>> tokenizer.encode("cab")
        [2, 0, 1]
        >>> tokenizer.encode("ab<|endoftext|>", allow_special=True)
        [0, 1, 3]
        """
        check_utf8(text)
        return self._encode(text, 0, allow_special)

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of a text that comes in chunks: joined, they equal ``encode`` of the joined text.

        At any time one chunk is in memory, and the longest stretch of text that cannot be cut.

        Raises:
            ValueError: as for `encode`; the position is that in the whole text.

        >>> from gptladder.tokenizer import CharTokenizer
        >>> list(CharTokenizer("abc").encode_stream(["ca", "b"]))
        [[2, 0], [1]]
        """
        position = 0
        for text in self._cut(chunks):
            check_utf8(text, position)
            yield self._encode(text, position, False)
            position += len(text)

    def encode_document(self, chunks: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of one document of training data: those of `encode_stream`, ended by one end-of-text token.

        If the tokenizer's template puts that token before or after each text, it is there once all the same: documents
        follow each other, so the end of one is the beginning of the next.

        >>> from gptladder.tokenizer import CharTokenizer
        >>> list(CharTokenizer("abc", end_of_text=True).encode_document(["ca", "b"]))
        [[2, 0], [1], [3]]
        """
        last = None
        for ids in self.encode_stream(chunks):
            if last is None and ids[:1] == [self.eot_id]:
                ids = ids[1:]
            if ids:
                last = ids[-1]
                yield ids
        if self.eot_id is not None and last != self.eot_id:
            yield [self.eot_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids. Bytes that are not UTF-8, as of half a character, become U+FFFD.

        >>> from gptladder.tokenizer import CharTokenizer
        >>> CharTokenizer("abc").decode([2, 0, 1])
        'cab'
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the text of some ids as bytes; those of byte-level vocabularies may end within a character.

        Raises:
            ValueError: an id that the vocabulary does not have.
        """

    def text_decoder(self) -> TextDecoder:
        """Return a decoder for ids that come one by one.

        >>> from gptladder.tokenizer import CharTokenizer
        >>> decoder = CharTokenizer("abé").text_decoder()
        >>> [decoder.push(i) for i in (0, 2)], decoder.finish()
        (['a', 'é'], '')
        """
        return _ByteDecoder(self)

    def unused_ids(self, below: int) -> list[int]:
        """Return the ids under ``below`` and ``n_vocab`` that stand for no text: a model must not generate them.

        >>> from gptladder.tokenizer import CharTokenizer
        >>> CharTokenizer("abc").unused_ids(10)
        []
        """
        return []

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary: equal for two tokenizers exactly if they give the same ids."""
        return hashlib.sha256(repr((type(self).__name__, *self._identity())).encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str], *, max_length: int | None = None) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a folder, each of them whole or not at all.

        The files of an older tokenizer that transformers would mix with them, as ``added_tokens.json``, are removed.

        Args:
            max_length: number of tokens that the model reads at most (default: `model_max_length`).

        >>> from gptladder.tokenizer import CharTokenizer, load_tokenizer
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     CharTokenizer("abc").save(folder, max_length=64)
        ...     load_tokenizer(folder).model_max_length
        64
        """
        backend = self._backend()
        content = backend.to_str(pretty=True)  # first: if this raises, neither file is written
        max_length = self.model_max_length if max_length is None else max_length
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):  # transformers 4 takes it from here
            config["add_prefix_space"] = backend.pre_tokenizer.add_prefix_space
        if max_length is not None:
            config["model_max_length"] = max_length
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "tokenizer.json", content)
        write_whole(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        for name in REPLACED_FILES:
            (folder / name).unlink(missing_ok=True)

    @abstractmethod
    def _encode(self, text: str, position: int, allow_special: bool) -> list[int]:
        """Return the ids of a text that begins at ``position`` of the whole, without those of the template."""

    @abstractmethod
    def _cut(self, chunks: Iterable[str]) -> Iterator[str]:
        """Yield the same text in pieces that can be encoded one by one."""

    @abstractmethod
    def _identity(self) -> tuple[Any, ...]:
        """Return values that are equal for two tokenizers of this class exactly if they give the same ids."""

    @abstractmethod
    def _backend(self) -> Backend:
        """Return the same function from text to ids as a tokenizer of the ``tokenizers`` package."""


class _ByteDecoder:
    """Decodes ids of a vocabulary of bytes: a character appears when its last byte has come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def check_utf8(text: str, position: int = 0) -> None:
    """Raise ValueError for a lone surrogate in a text that begins at ``position`` of the whole."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"position {position + error.start} of the text is a lone surrogate (U+{ord(text[error.start]):04X}), "
            "which is no character: decode the bytes it came from as UTF-8"
        ) from None


def unknown_id(token: int, n_vocab: int) -> ValueError:
    """Return the error to raise for an id that the vocabulary does not have."""
    return ValueError(f"token id {token} is not in this vocabulary of {n_vocab}")


def default_config(end_of_text: bool) -> dict[str, Any]:
    """Return the fields of ``tokenizer_config.json`` for a vocabulary that was made here."""
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # "<|endoftext|>" in a user's text is text, as in `encode`
    }
    if end_of_text:
        config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    return config
