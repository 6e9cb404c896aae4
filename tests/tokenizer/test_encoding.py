"""Text to ids and back, whole and in a stream."""

import codecs
from collections.abc import Iterator

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from gptladder.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    Tokenizer,
)

from .support import CHAR_TEXTS, TEXTS, pieces, shared_text, streamed

# Text to ids and back


@given(text=CHAR_TEXTS)
def test_every_accepted_text_comes_back(any_tokenizer: Tokenizer, text: str) -> None:
    assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


@given(text=TEXTS)
def test_a_bpe_accepts_every_text(bpe: BPETokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


@given(text=CHAR_TEXTS)
def test_bytes_come_in_order_and_need_an_incremental_decoder(any_tokenizer: Tokenizer, text: str) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    ids = any_tokenizer.encode(text)
    shown = [decoder.decode(any_tokenizer.decode_bytes([i])) for i in ids]
    assert "".join(shown) == text
    assert decoder.decode(b"", final=True) == ""


def test_gpt2_is_tiktokens(gpt2: BPETokenizer) -> None:
    assert (gpt2.n_vocab, gpt2.eot_id) == (50257, 50256)
    text = "Hello world! It's 2024 — naïve café 🙂\n\n  indented\tand <|endoftext|>"
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)
    assert gpt2.encode("hello world") == [31373, 995]  # from tiktoken's own documentation


def test_gpt2_counts_on_a_known_text(gpt2: BPETokenizer) -> None:
    # 301,966 + 36,059: what the best-known preparation of this text reports for its two splits.
    assert abs(len(gpt2.encode(shared_text("tinyshakespeare.txt"))) - 338_025) <= 1


def test_half_a_character_is_shown_as_a_replacement(gpt2: BPETokenizer) -> None:
    ids = gpt2.encode("🙂")
    assert len(ids) > 1
    assert "\ufffd" in gpt2.decode(ids[:1])


def test_end_of_text_is_ordinary_text_unless_allowed(any_tokenizer: Tokenizer) -> None:
    text = f"a{END_OF_TEXT}b{END_OF_TEXT}"
    plain, parsed = any_tokenizer.encode(text), any_tokenizer.encode(text, allow_special=True)
    eot = any_tokenizer.eot_id
    assert eot not in plain
    if eot is None:
        assert parsed == plain
    else:
        assert parsed == [*any_tokenizer.encode("a"), eot, *any_tokenizer.encode("b"), eot]
    assert any_tokenizer.decode(plain) == any_tokenizer.decode(parsed) == text


@pytest.mark.parametrize("wrong", [-1, 10**6, "n_vocab"])
def test_an_unknown_id_is_named(any_tokenizer: Tokenizer, wrong: int | str) -> None:
    wrong = any_tokenizer.n_vocab if isinstance(wrong, str) else wrong
    with pytest.raises(ValueError, match=rf"token id {wrong} is not in this vocabulary of {any_tokenizer.n_vocab}"):
        any_tokenizer.decode([0, wrong])


def test_a_lone_surrogate_is_refused_with_its_position(any_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"position 2 of the text is a lone surrogate \(U\+D83D\)"):
        any_tokenizer.encode("ab\ud83d")
    with pytest.raises(ValueError, match="position 4 of the text is a lone surrogate"):
        streamed(any_tokenizer, ["ab", " a", "\udc00"])


def test_a_long_run_of_blanks_is_no_trouble(gpt2: BPETokenizer) -> None:
    # The regex engine below gives up at about a million.
    for blank in (" ", "\n", " \n"):
        ordinary = "x" + blank * 60_000 + "y z" + blank * 60_000
        assert gpt2.encode(ordinary) == tiktoken.get_encoding("gpt2").encode_ordinary(ordinary)
    for blank, run in ((" ", 250_000), ("\n", 250_001), (" \n", 150_000)):  # cut by us, and not too long for it
        for text in ("x" + blank * run + "y", "x" + blank * run, blank * run + "\u3000y " + blank * run):
            assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)
    endless = "x" + " " * 1_500_000 + "y" + "\n" * 1_200_000
    ids = gpt2.encode(endless)
    assert gpt2.decode(ids) == endless
    assert streamed(gpt2, pieces(endless, list(range(0, len(endless), 99_999)))) == ids


# Streaming


@given(text=CHAR_TEXTS, cuts=st.lists(st.integers(0, 80)))
def test_streaming_equals_encoding_whole(any_tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    assert streamed(any_tokenizer, pieces(text, cuts)) == any_tokenizer.encode(text)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 80)))
def test_streaming_equals_encoding_whole_for_any_text(bpe: BPETokenizer, text: str, cuts: list[int]) -> None:
    assert streamed(bpe, pieces(text, cuts)) == bpe.encode(text)


@pytest.mark.parametrize("size", [1, 7, 1000, 65_536])
@pytest.mark.parametrize("name", ["the-verdict.txt", "tinystories_excerpt.txt", "tinyshakespeare.txt"])
def test_streaming_real_text_equals_encoding_it_whole(gpt2: BPETokenizer, name: str, size: int) -> None:
    text = shared_text(name)[: 50_000 if size < 1000 else None]
    assert streamed(gpt2, pieces(text, list(range(0, len(text), size)))) == gpt2.encode(text)


def test_a_cut_at_every_line_would_differ(gpt2: BPETokenizer) -> None:
    # So the test above can tell.
    text = shared_text("tinyshakespeare.txt")
    assert [i for line in text.splitlines(keepends=True) for i in gpt2.encode(line)] != gpt2.encode(text)


def test_streaming_holds_only_what_cannot_be_cut_yet(bpe: BPETokenizer) -> None:
    longest = 0

    def chunks() -> Iterator[str]:
        nonlocal longest
        for _ in range(200):
            yield "the cat sat on " * 10

    for ids in bpe.encode_stream(chunks()):
        longest = max(longest, len(ids))
    assert longest <= 2 * len(bpe.encode("the cat sat on " * 10))
