"""Measure a text before it is prepared: the numbers by which a recipe for training on it is chosen."""

from dataclasses import dataclass

from .corpus import Corpus

__all__ = ["MANY_CHARACTERS", "TextSurvey", "prompt_from", "survey"]

MANY_CHARACTERS = 1000
"""Largest number of different characters that is counted; a text with more gets no character tokenizer."""

_OPENING = 200
_PROMPT = 24


@dataclass(frozen=True)
class TextSurvey:
    """Measurements of a text.

    Attributes:
        size_bytes: length of the text in UTF-8.
        documents: number of documents.
        characters: number of different characters, at most `MANY_CHARACTERS`.
        opening: the first 200 characters that are not white space.
        length: length of the text in characters.
        blanks: number of spaces and line ends among them.
    """

    size_bytes: int
    documents: int
    characters: int
    opening: str
    length: int
    blanks: int

    @property
    def kinds(self) -> str:
        """The number of different characters, for a message."""
        return f"{self.characters:,}" + (" or more" if self.characters == MANY_CHARACTERS else "")


def survey(corpus: Corpus) -> TextSurvey:
    """Read a corpus once, and return the measurements that a recipe needs.

    Raises:
        ValueError: a file cannot be read as text.
    """
    size = length = blanks = documents = 0
    characters: set[str] = set()
    opening = ""
    for document in corpus.documents():
        documents += 1
        for piece in document:
            length += len(piece)
            blanks += piece.count(" ") + piece.count("\n")
            size += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogatepass"))
            if len(characters) < MANY_CHARACTERS:
                characters.update(piece)
            if len(opening) < _OPENING:
                opening = (opening + piece).lstrip()[:_OPENING]
    return TextSurvey(size, documents, min(len(characters), MANY_CHARACTERS), opening, length, blanks)


def prompt_from(opening: str) -> str:
    """Return the beginning of a text's first line, cut between two words, as a prompt for samples.

    Example:
        >>> prompt_from("Call me Ishmael. Some years ago, never mind how long")
        'Call me Ishmael. Some'
    """
    line = opening.strip().split("\n")[0]
    if len(line) <= _PROMPT:
        return line
    words = line[: _PROMPT + 1].rpartition(" ")[0].rstrip()
    return words or line[:_PROMPT]
