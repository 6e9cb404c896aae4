"""Vocabularies made here: byte pairs learnt from a text, and characters."""

from pathlib import Path

import pytest

from gptladder.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
)

from .support import shared_text, streamed

# Learning a vocabulary


def test_a_trained_bpe_has_bytes_merges_and_an_end_of_text(bpe: BPETokenizer) -> None:
    assert bpe.n_vocab == 320
    assert bpe.eot_id == 319
    assert {bpe.decode_bytes([i]) for i in range(256)} == {bytes([b]) for b in range(256)}
    assert len(bpe.encode(" the")) == 1  # a common word is one token
    assert bpe.encode("isn't it") == [*bpe.encode("isn"), *bpe.encode("'t"), *bpe.encode(" it")]


@pytest.mark.parametrize("text", ["aaaaaaaaaa", "ababab aaa baa", "the cat's ball  \n 🙂🙂"])
def test_a_trained_bpe_merges_as_the_package_that_trained_it(bpe: BPETokenizer, tmp_path: Path, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    bpe.save(tmp_path)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == bpe.encode(text)


def test_training_twice_gives_the_same_vocabulary() -> None:
    texts = ["a rose is a rose is a rose", "the sun also rises", "roses are red, violets are blue"] * 3
    first = BPETokenizer.train(texts, 300)
    assert BPETokenizer.train(iter(texts), 300).fingerprint == first.fingerprint
    assert BPETokenizer.train("".join(texts), 280).n_vocab == 280


def test_a_short_text_has_fewer_merges() -> None:
    assert BPETokenizer.train("ab ab", 1000).n_vocab == 258  # the 256 bytes, "ab", end of text


@pytest.mark.parametrize("size", [256, 0, -1])
def test_a_vocabulary_under_257_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"vocab_size is {size}, and the 256 bytes and the end of text take 257"):
        BPETokenizer.train("text", size)


@pytest.mark.parametrize("texts", ["", [], ["", ""]])
def test_no_text_to_learn_from_is_refused(texts: str | list[str]) -> None:
    with pytest.raises(ValueError, match="no text to learn a vocabulary from"):
        BPETokenizer.train(texts, 300)
    with pytest.raises(ValueError, match="no text to take the characters from"):
        CharTokenizer.from_text(texts)


# Characters


def test_characters_are_sorted_and_distinct() -> None:
    tokenizer = CharTokenizer.from_text(["cab", "bad\n"])
    assert tokenizer.encode("\nabcd") == [0, 1, 2, 3, 4]
    assert (tokenizer.n_vocab, tokenizer.eot_id) == (5, None)
    assert CharTokenizer.from_text("cab", end_of_text=True).eot_id == 3


def test_shakespeare_has_65_characters() -> None:
    assert CharTokenizer.from_text(shared_text("tinyshakespeare.txt")).n_vocab == 65


@pytest.mark.parametrize(
    ("chunks", "position"),
    [(["ab", "bé", "a"], 3), (["é"], 0), (["a" * 100, "b" * 50 + "é"], 150), (["ab", "", "é"], 2)],
)
def test_an_unknown_character_is_named_with_its_place(chunks: list[str], position: int) -> None:
    tokenizer = CharTokenizer("ab")
    message = rf"character 'é' \(U\+00E9\) at position {position} is not among the 2 characters"
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("".join(chunks))
    with pytest.raises(ValueError, match=message):
        streamed(tokenizer, chunks)


def test_the_place_counts_what_stands_before_an_end_of_text() -> None:
    tokenizer = CharTokenizer("ab", end_of_text=True)
    with pytest.raises(ValueError, match=r"character 'c' .* at position 17 "):
        tokenizer.encode(f"a{END_OF_TEXT}babc", allow_special=True)


@pytest.mark.parametrize("size", [0, 256, 10**7, 10**20])
def test_a_vocabulary_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"vocab_size is {size}"):
        BPETokenizer.train("the cat", size)


@pytest.mark.parametrize("characters", ["", "aa", ["ab", "c"], ["a", ""]])
def test_what_is_no_set_of_characters_is_refused(characters: str | list[str]) -> None:
    with pytest.raises(ValueError, match="one or more different single characters"):
        CharTokenizer(characters)
