"""Any tokenizer that the ``tokenizers`` package can run: normaliser, pre-tokenizer, model, template, decoder."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Backend

from ..files import first_sentence
from .base import TextDecoder, Tokenizer, check_utf8, unknown_id
from .byte_pairs import bytes_of
from .cutting import cut, cutting_place

__all__ = ["PipelineTokenizer"]

# Texts to find out what a template puts around them; at least one of them has an id in any useful vocabulary.
_PROBES = ("a", "e", "1", ".", "的")


class PipelineTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` package, with its added tokens, normaliser, pre-tokenizer and template.

    Args:
        backend: the tokenizer, which is copied. Its truncation and padding are left out, as transformers does.

    >>> from tokenizers import models, pre_tokenizers
    >>> words = Backend(models.WordLevel({"hello": 0, "world": 1, "?": 2}, unk_token="?"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> PipelineTokenizer(words).encode("hello you")
    [0, 2]
    """

    def __init__(self, backend: Backend):
        backend = Backend.from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
        self._json = backend.to_str()
        backend.encode_special_tokens = True
        self._text_backend = backend
        self._pipeline: dict[str, Any] = json.loads(self._json)
        self._token_of = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
        if not self._token_of:
            raise ValueError("the tokenizer has no token at all: train it first, or load it from its files")
        self.n_vocab = max(self._token_of) + 1
        self._of_bytes = (self._pipeline["decoder"] or {}).get("type") == "ByteLevel"
        self._config = {}

    @cached_property
    def _special_backend(self) -> Backend:
        return Backend.from_str(self._json)  # a second one: which tokens are matched is a state of the backend

    @cached_property
    def _template(self) -> tuple[list[int], list[int]] | None:
        """The ids before and after every text, or None if the template does not work in this way."""
        if self._pipeline["post_processor"] is None:
            return [], []
        for probe in _PROBES:
            try:
                body = self._text_backend.encode(probe, add_special_tokens=False).ids
                whole = self._text_backend.encode(probe)
            except Exception:  # a vocabulary without an unknown token raises
                continue
            if body:
                start = whole.special_tokens_mask.index(0) if 0 in whole.special_tokens_mask else 0
                before, after = whole.ids[:start], whole.ids[start + len(body) :]
                return (before, after) if [*before, *body, *after] == whole.ids else None
        return None

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text, see `Tokenizer.encode`."""
        check_utf8(text)
        return self._run(text, allow_special, template=True)

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of a text that comes in chunks, see `Tokenizer.encode_stream`."""
        if self._template is None:
            yield self.encode("".join(chunks))
            return
        before, after = self._template
        if before:
            yield before
        yield from super().encode_stream(chunks)
        if after:
            yield after

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the vocabulary does not have it."""
        return self._text_backend.token_to_id(token)

    @property
    def n_text_vocab(self) -> int:
        """One more than the highest id that ordinary text turns into."""
        special = {token["id"] for token in self._pipeline["added_tokens"] if token["special"]}
        return max((i for i in self._token_of if i not in special), default=-1) + 1

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids, as ``transformers`` decodes them."""
        return self._text_backend.decode(self._checked(ids), skip_special_tokens=False)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the text of some ids as bytes; those of byte-level vocabularies may end within a character."""
        if self._of_bytes:
            return b"".join(bytes_of(self._token_of[i]) for i in self._checked(ids))
        return self.decode(ids).encode()

    def text_decoder(self) -> TextDecoder:
        """Return a decoder for ids that come one by one."""
        return super().text_decoder() if self._of_bytes else _PipelineDecoder(self)

    def unused_ids(self, below: int) -> list[int]:
        """Return the ids under ``below`` and ``n_vocab`` that stand for no text."""
        return [i for i in range(min(below, self.n_vocab)) if i not in self._token_of]

    def is_byte_token(self, token: int) -> bool:
        """Tell whether an id stands for one byte, as ``<0x0A>``, that is decoded together with its neighbours."""
        text = self._token_of.get(token, "")
        return len(text) == 6 and text.startswith("<0x") and text.endswith(">")

    def _run(self, text: str, allow_special: bool, *, template: bool) -> list[int]:
        backend = self._special_backend if allow_special else self._text_backend
        try:
            return backend.encode_batch_fast([text], add_special_tokens=template)[0].ids
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the package's Rust code is no Exception
            reason = first_sentence(error)
            raise ValueError(
                f"the tokenizer cannot encode the text ({reason}); leave out what its vocabulary lacks"
            ) from None

    def _encode(self, text: str, position: int, allow_special: bool) -> list[int]:
        return self._run(text, allow_special, template=False)

    def _cut(self, chunks: Iterable[str]) -> Iterator[str]:
        return cut(chunks, cutting_place(self._pipeline))

    def _checked(self, ids: Iterable[int]) -> list[int]:
        ids = list(ids)
        for i in ids:
            if i not in self._token_of:
                raise unknown_id(i, self.n_vocab)
        return ids

    def _identity(self) -> tuple[Any, ...]:
        parts: Mapping[str, Any] = {k: v for k, v in self._pipeline.items() if k not in ("truncation", "padding")}
        return (json.dumps(parts, sort_keys=True),)

    def _backend(self) -> Backend:
        return self._special_backend


class _PipelineDecoder:
    """Decodes ids of any vocabulary, by decoding them all at each step: what comes later may join what came before."""

    def __init__(self, tokenizer: PipelineTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._settled = 0  # ids; what follows are bytes of a character that may not be whole
        self._given = ""

    def push(self, token: int) -> str:
        self._ids.append(token)
        if self._tokenizer.is_byte_token(token):
            return ""
        self._settled = len(self._ids)
        text = self._tokenizer.decode(self._ids)
        return self._give(text.rstrip("\ufffd"))

    def finish(self) -> str:
        return self._give(self._tokenizer.decode(self._ids)) if self._ids else ""

    def _give(self, text: str) -> str:
        if not text.startswith(self._given):
            return ""
        new, self._given = text[len(self._given) :], text
        return new
