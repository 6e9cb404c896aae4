"""Text to ids and back: GPT-2's vocabulary, trained ones, characters; training, saving, streaming, no network."""

import codecs
import hashlib
import json
import os
import shutil
import string
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import pytest
import requests
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gptladder.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    OfflineError,
    Tokenizer,
    answer_within,
    load_tokenizer,
)
from gptladder.tokenizer import network as module

SHARED = Path(__file__).parents[2].parent / "shared"

# Pieces that tokenizers have stumbled over, between which any other text may stand.
PIECES = (
    *(
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "   \n ",
        "\u00a0",
        "\u0085",
        "\u2028",
        "\u3000",
        "\u180e",
        "\x1c",
        "\x00",
        "\ufeff",
    ),
    *(
        "'",
        "'s",
        "'re",
        "'ll",
        "'LL",
        "don't",
        "I'",
        "''t",
        "’s",
        "a",
        "B",
        "word",
        "Ünïcödé",
        "e\u0301",
        "ﬁ",
        "ß",
        "İ",
    ),
    *(
        "1",
        "2024",
        "½",
        "٣",
        "²",
        "Ⅷ",
        "!",
        "...",
        "?!",
        "_",
        "--",
        "<",
        "<|",
        "|>",
        END_OF_TEXT,
        "<|endoftext",
        "endoftext|>",
    ),
    *("日本語", "한국어", "ไทย", "हिन्दी", "🙂", "👩‍👩‍👧‍👦", "🇫🇷", "\u200d", "\u200b", "𝒳", "\U000e0001", "\U0010ffff"),
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)).map("".join)
ALPHABET = sorted(set("".join(PIECES) + string.printable))
CHAR_TEXTS = st.lists(st.sampled_from(PIECES) | st.text(st.sampled_from(ALPHABET), max_size=6)).map("".join)


def shared_text(name: str) -> str:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def gpt2() -> Iterator[BPETokenizer]:
    with pytest.MonkeyPatch.context() as patch:
        if "TIKTOKEN_CACHE_DIR" not in os.environ:
            if not (SHARED / "tiktoken").is_dir():
                pytest.skip("GPT-2's vocabulary is not here: neither TIKTOKEN_CACHE_DIR nor a shared folder")
            patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
        yield BPETokenizer.gpt2()


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    text = "the cat sat on the mat, and the dog's ball isn't there; it'll rain 2024 🙂 日本語 ünï aaaaaaa ababab\n\t"
    return BPETokenizer.train([text[i:] + text[:i] for i in range(len(text))], 320)


@pytest.fixture(scope="module")
def char() -> CharTokenizer:
    return CharTokenizer(ALPHABET)


@pytest.fixture(scope="module")
def char_eot() -> CharTokenizer:
    return CharTokenizer(ALPHABET, end_of_text=True)


@pytest.fixture(scope="module", params=["gpt2", "bpe", "char", "char_eot"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def saved(any_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    any_tokenizer.save(folder)
    return folder


def streamed(tokenizer: Tokenizer, chunks: list[str]) -> list[int]:
    return list(chain.from_iterable(tokenizer.encode_stream(chunks)))


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


# Text to ids and back


@given(text=CHAR_TEXTS)
def test_every_accepted_text_comes_back(any_tokenizer, text):
    assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


@given(text=TEXTS)
def test_a_bpe_accepts_every_text(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


@given(text=CHAR_TEXTS)
def test_bytes_come_in_order_and_need_an_incremental_decoder(any_tokenizer, text):
    decoder = codecs.getincrementaldecoder("utf-8")()
    ids = any_tokenizer.encode(text)
    shown = [decoder.decode(any_tokenizer.decode_bytes([i])) for i in ids]
    assert "".join(shown) == text
    assert decoder.decode(b"", final=True) == ""


def test_gpt2_is_tiktokens(gpt2):
    assert (gpt2.n_vocab, gpt2.eot_id) == (50257, 50256)
    text = "Hello world! It's 2024 — naïve café 🙂\n\n  indented\tand <|endoftext|>"
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)
    assert gpt2.encode("hello world") == [31373, 995]  # from tiktoken's own documentation


def test_gpt2_counts_on_a_known_text(gpt2):
    # 301,966 + 36,059: what the best-known preparation of this text reports for its two splits.
    assert abs(len(gpt2.encode(shared_text("tinyshakespeare.txt"))) - 338_025) <= 1


def test_half_a_character_is_shown_as_a_replacement(gpt2):
    ids = gpt2.encode("🙂")
    assert len(ids) > 1
    assert "\ufffd" in gpt2.decode(ids[:1])


def test_end_of_text_is_ordinary_text_unless_allowed(any_tokenizer):
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
def test_an_unknown_id_is_named(any_tokenizer, wrong):
    wrong = any_tokenizer.n_vocab if wrong == "n_vocab" else wrong
    with pytest.raises(ValueError, match=rf"token id {wrong} is not in this vocabulary of {any_tokenizer.n_vocab}"):
        any_tokenizer.decode([0, wrong])


def test_a_lone_surrogate_is_refused_with_its_position(any_tokenizer):
    with pytest.raises(ValueError, match=r"position 2 of the text is a lone surrogate \(U\+D83D\)"):
        any_tokenizer.encode("ab\ud83d")
    with pytest.raises(ValueError, match="position 4 of the text is a lone surrogate"):
        streamed(any_tokenizer, ["ab", " a", "\udc00"])


def test_a_long_run_of_blanks_is_no_trouble(gpt2):
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
def test_streaming_equals_encoding_whole(any_tokenizer, text, cuts):
    assert streamed(any_tokenizer, pieces(text, cuts)) == any_tokenizer.encode(text)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 80)))
def test_streaming_equals_encoding_whole_for_any_text(bpe, text, cuts):
    assert streamed(bpe, pieces(text, cuts)) == bpe.encode(text)


@pytest.mark.parametrize("size", [1, 7, 1000, 65_536])
@pytest.mark.parametrize("name", ["the-verdict.txt", "tinystories_excerpt.txt", "tinyshakespeare.txt"])
def test_streaming_real_text_equals_encoding_it_whole(gpt2, name, size):
    text = shared_text(name)[: 50_000 if size < 1000 else None]
    assert streamed(gpt2, pieces(text, list(range(0, len(text), size)))) == gpt2.encode(text)


def test_a_cut_at_every_line_would_differ(gpt2):
    # So the test above can tell.
    text = shared_text("tinyshakespeare.txt")
    assert [i for line in text.splitlines(keepends=True) for i in gpt2.encode(line)] != gpt2.encode(text)


def test_streaming_holds_only_what_cannot_be_cut_yet(bpe):
    longest = 0

    def chunks() -> Iterator[str]:
        nonlocal longest
        for _ in range(200):
            yield "the cat sat on " * 10

    for ids in bpe.encode_stream(chunks()):
        longest = max(longest, len(ids))
    assert longest <= 2 * len(bpe.encode("the cat sat on " * 10))


# What is saved, and what others make of it


def test_what_is_saved_is_loaded(any_tokenizer, saved):
    loaded = load_tokenizer(saved)
    assert type(loaded) is type(any_tokenizer)
    assert loaded.fingerprint == any_tokenizer.fingerprint
    assert (loaded.n_vocab, loaded.eot_id) == (any_tokenizer.n_vocab, any_tokenizer.eot_id)
    assert sorted(path.name for path in saved.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    text = "the cat's  <|endoftext|>"
    assert loaded.encode(text) == any_tokenizer.encode(text)


@pytest.fixture(scope="module")
def theirs(saved):
    """The same tokenizer, as transformers reads it."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(saved)


@pytest.fixture(scope="module")
def gpt2_folder(gpt2, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2.save(folder)
    return folder


@settings(max_examples=150)
@given(text=CHAR_TEXTS)
def test_transformers_gives_the_same_ids(any_tokenizer, theirs, text):
    ids = any_tokenizer.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.encode(text) == ids
    assert theirs.decode(ids) == text


@pytest.fixture(scope="module")
def gpt2_theirs(gpt2_folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(gpt2_folder)


@settings(max_examples=150)
@given(text=TEXTS)
def test_transformers_gives_the_same_ids_for_any_text(gpt2, gpt2_theirs, text):
    assert gpt2_theirs(text)["input_ids"] == gpt2.encode(text)


def test_transformers_gives_the_same_ids_beside_a_model(any_tokenizer, saved, tmp_path):
    # With a model's config in the folder, transformers could take the tokenizer that is usual for such a model instead.
    transformers = pytest.importorskip("transformers")
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    transformers.GPT2Config(vocab_size=any_tokenizer.n_vocab).save_pretrained(tmp_path)
    text = f"  the cat's\n\n ball {END_OF_TEXT} 2024  "
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == any_tokenizer.encode(text)


def test_every_letter_number_and_blank_splits_alike(gpt2, gpt2_theirs):
    # The two libraries bring their own tables of Unicode.
    characters = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] in "LNZMC"]
    characters = [c for c in characters if unicodedata.category(c) not in ("Cs", "Co", "Cn")]
    # Of the ideographs and of Hangul, each of one kind, every 50th will do.
    characters = [c for i, c in enumerate(characters) if unicodedata.category(c) != "Lo" or i % 50 == 0]
    assert len(characters) > 7000
    for first in range(0, len(characters), 500):
        text = "".join(f"a{c}1{c}!{c} {c}{c}\n{c}" for c in characters[first : first + 500])
        assert gpt2_theirs.encode(text) == gpt2.encode(text)


def test_transformers_knows_the_end_of_text(any_tokenizer, theirs):
    assert theirs.eos_token_id == any_tokenizer.eot_id
    assert len(theirs) == any_tokenizer.n_vocab
    if any_tokenizer.eot_id is not None:
        text = f"a{END_OF_TEXT}b"
        ids = any_tokenizer.encode(text, allow_special=True)
        assert theirs(text, split_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == "ab"


def test_an_unknown_character_fails_in_transformers_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    CharTokenizer("abc").save(tmp_path)
    with pytest.raises(Exception, match="UNK"):
        transformers.AutoTokenizer.from_pretrained(tmp_path)("abd")


def older_folder(saved: Path, folder: Path) -> Path:
    """The files that GPT-2 was published with, made from those that we write."""
    model = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def older_bpe(bpe, tmp_path) -> Path:
    bpe.save(tmp_path / "saved")
    return older_folder(tmp_path / "saved", tmp_path)


def test_vocab_json_and_merges_txt_are_read(bpe, older_bpe):
    loaded = load_tokenizer(older_bpe)
    assert loaded.fingerprint == bpe.fingerprint
    text = "it's a <|endoftext|> test"
    assert loaded.encode(text, allow_special=True) == bpe.encode(text, allow_special=True)


def test_gpt2s_own_vocab_json_and_merges_txt_are_read(gpt2, gpt2_folder, tmp_path):
    assert load_tokenizer(older_folder(gpt2_folder, tmp_path)).fingerprint == gpt2.fingerprint


@pytest.mark.usefixtures("gpt2")
def test_the_published_merges_are_found_again(gpt2_folder):
    cache = module.tiktoken_cache()
    published = cache and cache / hashlib.sha1(f"{module._GPT2_FILES}/vocab.bpe".encode()).hexdigest()
    if not published or not published.exists():
        pytest.skip("the published merges are not in tiktoken's cache")
    model = json.loads((gpt2_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert [" ".join(pair) for pair in model["merges"]] == published.read_text(encoding="utf-8").split("\n")[1:-1]


def test_tokenizer_json_as_published_is_read(bpe, tmp_path):
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["model"]["type"]
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    del data["pre_tokenizer"]["use_regex"]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert load_tokenizer(tmp_path).fingerprint == bpe.fingerprint


def test_a_token_that_no_merge_makes_is_not_exported(tmp_path):
    ranks = {bytes([b]): b for b in range(256)} | {b"abc": 256}
    with pytest.raises(ValueError, match=r"token 256 \(b'abc'\) cannot be made by merging"):
        BPETokenizer(ranks, {}).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("special", [{END_OF_TEXT: 5}, {END_OF_TEXT: -1}])
def test_an_id_given_twice_or_negative_is_refused(special):
    with pytest.raises(ValueError, match="two tokens have the same id, or an id is negative"):
        BPETokenizer({bytes([b]): b for b in range(256)}, special)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 3}', '{"model": {"type": "BPE"}}', "\udcff"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"damaged|tokenizer\.json is neither"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_it_lacks(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"neither tokenizer\.json nor both of vocab\.json and merges\.txt"):
            load_tokenizer(folder)


def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch):
    CharTokenizer("ab").save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        CharTokenizer("abcdef").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fingerprints_tell_vocabularies_apart(gpt2, bpe, char, char_eot):
    others = [CharTokenizer("ab"), CharTokenizer("ba"), CharTokenizer("ab", end_of_text=True)]
    prints = {t.fingerprint for t in (gpt2, bpe, char, char_eot, *others)}
    assert len(prints) == 7
    assert CharTokenizer("ab").fingerprint == CharTokenizer.from_text("baab").fingerprint
    assert gpt2.fingerprint == "b8442be8f448890de445ffa62abb4f0e6909465f83acda8af2cd95f59d2a3061"  # on every machine


# Learning a vocabulary


def test_a_trained_bpe_has_bytes_merges_and_an_end_of_text(bpe):
    assert bpe.n_vocab == 320
    assert bpe.eot_id == 319
    assert {bpe.decode_bytes([i]) for i in range(256)} == {bytes([b]) for b in range(256)}
    assert len(bpe.encode(" the")) == 1  # a common word is one token
    assert bpe.encode("isn't it") == [*bpe.encode("isn"), *bpe.encode("'t"), *bpe.encode(" it")]


@pytest.mark.parametrize("text", ["aaaaaaaaaa", "ababab aaa baa", "the cat's ball  \n 🙂🙂"])
def test_a_trained_bpe_merges_as_the_package_that_trained_it(bpe, tmp_path, text):
    tokenizers = pytest.importorskip("tokenizers")
    bpe.save(tmp_path)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == bpe.encode(text)


def test_training_twice_gives_the_same_vocabulary():
    texts = ["a rose is a rose is a rose", "the sun also rises", "roses are red, violets are blue"] * 3
    first = BPETokenizer.train(texts, 300)
    assert BPETokenizer.train(iter(texts), 300).fingerprint == first.fingerprint
    assert BPETokenizer.train("".join(texts), 280).n_vocab == 280


def test_a_short_text_has_fewer_merges():
    assert BPETokenizer.train("ab ab", 1000).n_vocab == 258  # the 256 bytes, "ab", end of text


@pytest.mark.parametrize("size", [256, 0, -1])
def test_a_vocabulary_under_257_is_refused(size):
    with pytest.raises(ValueError, match=f"vocab_size is {size}, and the 256 bytes and the end of text take 257"):
        BPETokenizer.train("text", size)


@pytest.mark.parametrize("texts", ["", [], ["", ""]])
def test_no_text_to_learn_from_is_refused(texts):
    with pytest.raises(ValueError, match="no text to learn a vocabulary from"):
        BPETokenizer.train(texts, 300)
    with pytest.raises(ValueError, match="no text to take the characters from"):
        CharTokenizer.from_text(texts)


# Characters


def test_characters_are_sorted_and_distinct():
    tokenizer = CharTokenizer.from_text(["cab", "bad\n"])
    assert tokenizer.encode("\nabcd") == [0, 1, 2, 3, 4]
    assert (tokenizer.n_vocab, tokenizer.eot_id) == (5, None)
    assert CharTokenizer.from_text("cab", end_of_text=True).eot_id == 3


def test_shakespeare_has_65_characters():
    assert CharTokenizer.from_text(shared_text("tinyshakespeare.txt")).n_vocab == 65


@pytest.mark.parametrize(
    ("chunks", "position"),
    [(["ab", "bé", "a"], 3), (["é"], 0), (["a" * 100, "b" * 50 + "é"], 150), (["ab", "", "é"], 2)],
)
def test_an_unknown_character_is_named_with_its_place(chunks, position):
    tokenizer = CharTokenizer("ab")
    said = rf"character 'é' \(U\+00E9\) at position {position} is not among the 2 characters"
    with pytest.raises(ValueError, match=said):
        tokenizer.encode("".join(chunks))
    with pytest.raises(ValueError, match=said):
        streamed(tokenizer, chunks)


def test_the_place_counts_what_stands_before_an_end_of_text():
    tokenizer = CharTokenizer("ab", end_of_text=True)
    with pytest.raises(ValueError, match=r"character 'c' .* at position 17 "):
        tokenizer.encode(f"a{END_OF_TEXT}babc", allow_special=True)


@pytest.mark.parametrize("characters", ["", "aa", ["ab", "c"], ["a", ""]])
def test_what_is_no_set_of_characters_is_refused(characters):
    with pytest.raises(ValueError, match="one or more different single characters"):
        CharTokenizer(characters)


# Without a network


@pytest.fixture
def no_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    return tmp_path


def test_offline_is_said_in_one_line_with_the_files_to_get(no_cache, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "head", refuse)
    with pytest.raises(OfflineError) as caught:
        BPETokenizer.gpt2()
    said = str(caught.value)
    assert "\n" not in said
    for part in (str(no_cache), "ConnectionError", "TIKTOKEN_CACHE_DIR", "vocab.json and merges.txt"):
        assert part in said
    for name in ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"):
        assert name in said


@pytest.mark.usefixtures("no_cache")
def test_a_network_that_never_answers_is_noticed(monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: hanging.wait(60))
    monkeypatch.setattr(module, "_SECONDS_TO_ANSWER", 0.2)
    began = time.monotonic()
    with pytest.raises(OfflineError, match="TimeoutError"):
        BPETokenizer.gpt2()
    assert time.monotonic() - began < 5
    hanging.set()


def test_two_hosts_are_given_up_within_ten_seconds():
    assert 2 * module._SECONDS_TO_ANSWER < 10


def test_a_damaged_cache_with_no_network_is_noticed(no_cache, monkeypatch):
    for name in ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"):
        (no_cache / name).write_bytes(b"damaged")

    def refuse(*args: object, **kwargs: object) -> None:
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(OfflineError, match="does not answer"):
        BPETokenizer.gpt2()


def test_answers_and_errors_come_through():
    assert answer_within(5, lambda: 42) == 42
    with pytest.raises(KeyError, match="missing"):
        answer_within(5, lambda: {}["missing"])
    waiting = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 seconds"):
        answer_within(0.05, lambda: waiting.wait(60))
    waiting.set()
