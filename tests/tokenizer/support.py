"""Texts to draw, and helpers, for the tests of tokenizers."""

import string
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import strategies as st

from gptladder.tokenizer import Tokenizer

from . import drawn

SHARED = Path(__file__).parents[2].parent / "shared"

PIECES = [piece for group in drawn.PIECES for piece in group]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)).map("".join)
ALPHABET = sorted(set("".join(PIECES) + string.printable))
CHAR_TEXTS = st.lists(st.sampled_from(PIECES) | st.text(st.sampled_from(ALPHABET), max_size=6)).map("".join)


def shared_text(name: str) -> str:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path.read_text(encoding="utf-8")


def streamed(tokenizer: Tokenizer, chunks: list[str]) -> list[int]:
    return list(chain.from_iterable(tokenizer.encode_stream(chunks)))


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]
