"""A vocabulary of characters: one id for each."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from .base import END_OF_TEXT, NO_TEMPLATE, Tokenizer, check_utf8, default_config, unknown_id

__all__ = ["CharTokenizer"]


class CharTokenizer(Tokenizer):
    """One id for each character, in the order given.

    Args:
        characters: the vocabulary.
        end_of_text: add an end-of-text token after them. A text in one document needs none; without it, a
            sequence of ids does not show where a document ends.

    Raises:
        ValueError: no characters, one given twice, or something that is not one character.

    >>> CharTokenizer("abc").encode("cab")
    [2, 0, 1]
    """

    def __init__(self, characters: Sequence[str], *, end_of_text: bool = False):
        if not characters or len(set(characters)) < len(characters) or any(len(c) != 1 for c in characters):
            raise ValueError("a character vocabulary is one or more different single characters")
        check_utf8("".join(characters))
        self._ids = {character: i for i, character in enumerate(characters)}
        self._end_id = len(characters) if end_of_text else None
        self.eot_id = self.bos_id = self._end_id
        self.n_vocab = len(characters) + end_of_text
        self._bytes = [c.encode() for c in characters] + [END_OF_TEXT.encode()] * end_of_text
        self._config = default_config(end_of_text)

    @classmethod
    def from_text(cls, texts: str | Iterable[str], *, end_of_text: bool = False) -> "CharTokenizer":
        """Return a tokenizer of the sorted distinct characters of one text or several, which are read once.

        Raises:
            ValueError: no text.

        >>> CharTokenizer.from_text(["cab", "bad"]).decode([0, 3])
        'ad'
        """
        characters = sorted(set().union(*[texts] if isinstance(texts, str) else texts))
        if not characters:
            raise ValueError("there is no text to take the characters from")
        return cls(characters, end_of_text=end_of_text)

    @classmethod
    def from_pipeline(cls, pipeline: Mapping[str, Any]) -> "CharTokenizer | None":
        """Return the same function as the pipeline in a ``tokenizer.json``, or None if it is no such vocabulary.

        Args:
            pipeline: the JSON as ``tokenizers`` itself writes it.
        """
        model = pipeline["model"]
        if model["type"] != "WordLevel":
            return None
        characters = sorted(model["vocab"].keys() - {END_OF_TEXT}, key=model["vocab"].__getitem__)
        if not characters or any(len(character) != 1 for character in characters):
            return None
        tokenizer = cls(characters, end_of_text=END_OF_TEXT in model["vocab"])
        same = json.loads(tokenizer._backend().to_str())
        parts = ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")
        template = pipeline["post_processor"] or {"type": "TemplateProcessing", "single": [NO_TEMPLATE]}
        unchanged = template["type"] == "TemplateProcessing" and template["single"] == [NO_TEMPLATE]
        return tokenizer if unchanged and all(pipeline[part] == same[part] for part in parts) else None

    def token_id(self, token: str) -> int | None:
        """Return the id of a character or of the end-of-text token, or None if the vocabulary does not have it."""
        return self._ids.get(token, self._end_id if token == END_OF_TEXT else None)

    @property
    def n_text_vocab(self) -> int:
        """The number of characters, see `Tokenizer.n_text_vocab`."""
        return len(self._ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of some ids. Raises ValueError for an id that the vocabulary does not have."""
        ids = list(ids)
        for i in ids:
            if not 0 <= i < self.n_vocab:
                raise unknown_id(i, self.n_vocab)
        return b"".join([self._bytes[i] for i in ids])

    def _encode(self, text: str, position: int, allow_special: bool) -> list[int]:
        if allow_special and self._end_id is not None:
            first, *rest = text.split(END_OF_TEXT)
            ids = self._encode(first, position, False)
            position += len(first)
            for part in rest:
                position += len(END_OF_TEXT)
                ids += [self._end_id, *self._encode(part, position, False)]
                position += len(part)
            return ids
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            position += text.index(character)
            raise ValueError(
                f"character {character!r} (U+{ord(character):04X}) at position {position} is not among the "
                f"{len(self._ids)} characters of this tokenizer: take it out of the text, or build the tokenizer from "
                "text that has it"
            ) from None

    def _cut(self, chunks: Iterable[str]) -> Iterator[str]:
        yield from chunks

    def _identity(self) -> tuple[Any, ...]:
        return (list(enumerate(self._bytes)),)

    def _backend(self) -> Backend:
        vocab = dict(self._ids) if self._end_id is None else self._ids | {END_OF_TEXT: self._end_id}
        backend = Backend(models.WordLevel(vocab=vocab, unk_token=""))  # no unknown token: it raises, as we do
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        backend.decoder = decoders.Fuse()
        if self._end_id is not None:
            backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
        return backend
