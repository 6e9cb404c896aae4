"""Where a long text can be cut so that its parts have the ids of the whole.

Most tokenizers begin a new word where a blank follows something else, whatever stands before and after. There a text
can be cut. Whether that holds is read off the parts of the tokenizer; if any part is not known to work word by word,
the text is not cut at all.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["BEFORE_BLANK", "cut", "cutting_place"]

BEFORE_BLANK = re.compile(r"(?s).*\S(?=[ \n\t])")
"""Matches up to the last place where a blank follows something else."""

BEFORE_SPACE = re.compile(r"(?s).*\S(?= )")
"""The same for tokenizers that know one kind of blank only."""

# Normalisers that change each character by itself, or with the marks that follow it; so a blank is a border.
_LOCAL = {"Lowercase", "NFC", "NFD", "NFKC", "NFKD"}

# These may also remove characters before a blank, which is harmless if the words are taken without blanks.
_REMOVING = {"BertNormalizer", "StripAccents"}

# Pre-tokenizers that take words without the blanks between them.
_WITHOUT_BLANKS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}


def cut(chunks: Iterable[str], place: re.Pattern[str] | None) -> Iterator[str]:
    """Yield a text that comes in chunks in pieces that end at ``place``; all in one piece if that is None.

    >>> list(cut(["one tw", "o three"], BEFORE_BLANK))
    ['one', ' two', ' three']
    """
    if place is None:
        yield "".join(chunks)
        return
    held = ""
    for chunk in chunks:
        seen = max(0, len(held) - 1)  # what was held has no place to cut
        held += chunk
        found = place.match(held, seen)
        if found:
            yield held[: found.end()]
            held = held[found.end() :]
    if held:
        yield held


def cutting_place(pipeline: dict[str, Any]) -> re.Pattern[str] | None:
    """Return where texts can be cut for the pipeline in a ``tokenizer.json``, or None if nowhere for certain."""
    for token in pipeline.get("added_tokens") or []:
        if token["rstrip"] or any(blank in token["content"] for blank in " \n\t"):
            return None
    words = pipeline.get("pre_tokenizer") or {}
    kind = words.get("type")
    normalizers = _parts(pipeline.get("normalizer"), "normalizers")
    kinds = {part["type"] for part in normalizers}
    if kind == "Sequence":  # the first pre-tokenizer makes the border, and the others work within its words
        words = words["pretokenizers"][0] if words["pretokenizers"] else {}
        kind = words.get("type")
    if kind in _WITHOUT_BLANKS:
        return BEFORE_BLANK if kinds <= _LOCAL | _REMOVING else None
    if kind == "ByteLevel" and words.get("use_regex", True) and kinds <= _LOCAL:
        return BEFORE_SPACE if words.get("add_prefix_space") else BEFORE_BLANK  # it adds a space before other blanks
    if kind == "Metaspace" and words.get("split", True):
        return BEFORE_SPACE if kinds <= _LOCAL else None
    return None


def _parts(stage: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return the steps of a stage of the pipeline that may be a sequence of steps, or of sequences."""
    if stage is None:
        return []
    if stage["type"] == "Sequence":
        return [step for part in stage[name] for step in _parts(part, name)]
    return [stage]
