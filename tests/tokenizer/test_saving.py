"""What is saved is loaded again, and read by transformers as we read it."""

import hashlib
import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from gptladder.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
)
from gptladder.tokenizer import network as module

from .support import CHAR_TEXTS, TEXTS

# What is saved, and what others make of it


def test_what_is_saved_is_loaded(any_tokenizer: Tokenizer, saved: Path) -> None:
    loaded = load_tokenizer(saved)
    assert type(loaded) is type(any_tokenizer)
    assert loaded.fingerprint == any_tokenizer.fingerprint
    assert (loaded.n_vocab, loaded.eot_id) == (any_tokenizer.n_vocab, any_tokenizer.eot_id)
    assert sorted(path.name for path in saved.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    text = "the cat's  <|endoftext|>"
    assert loaded.encode(text) == any_tokenizer.encode(text)


@pytest.fixture(scope="module")
def theirs(saved: Path) -> Any:
    """The same tokenizer, as transformers reads it."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(saved)


@pytest.fixture(scope="module")
def gpt2_folder(gpt2: BPETokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2.save(folder)
    return folder


@settings(max_examples=150)
@given(text=CHAR_TEXTS)
def test_transformers_gives_the_same_ids(any_tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    ids = any_tokenizer.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.encode(text) == ids
    assert theirs.decode(ids) == text


@pytest.fixture(scope="module")
def gpt2_theirs(gpt2_folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(gpt2_folder)


@settings(max_examples=150)
@given(text=TEXTS)
def test_transformers_gives_the_same_ids_for_any_text(gpt2: BPETokenizer, gpt2_theirs: Any, text: str) -> None:
    assert gpt2_theirs(text)["input_ids"] == gpt2.encode(text)


def test_transformers_gives_the_same_ids_beside_a_model(any_tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    # With a model's config in the folder, transformers could take the tokenizer that is usual for such a model instead.
    transformers = pytest.importorskip("transformers")
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    transformers.GPT2Config(vocab_size=any_tokenizer.n_vocab).save_pretrained(tmp_path)
    text = f"  the cat's\n\n ball {END_OF_TEXT} 2024  "
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == any_tokenizer.encode(text)


def test_every_letter_number_and_blank_splits_alike(gpt2: BPETokenizer, gpt2_theirs: Any) -> None:
    # The two libraries bring their own tables of Unicode.
    characters = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] in "LNZMC"]
    characters = [c for c in characters if unicodedata.category(c) not in ("Cs", "Co", "Cn")]
    # Of the ideographs and of Hangul, each of one kind, every 50th will do.
    characters = [c for i, c in enumerate(characters) if unicodedata.category(c) != "Lo" or i % 50 == 0]
    assert len(characters) > 7000
    for first in range(0, len(characters), 500):
        text = "".join(f"a{c}1{c}!{c} {c}{c}\n{c}" for c in characters[first : first + 500])
        assert gpt2_theirs.encode(text) == gpt2.encode(text)


def test_transformers_knows_the_end_of_text(any_tokenizer: Tokenizer, theirs: Any) -> None:
    assert theirs.eos_token_id == any_tokenizer.eot_id
    assert len(theirs) == any_tokenizer.n_vocab
    if any_tokenizer.eot_id is not None:
        text = f"a{END_OF_TEXT}b"
        ids = any_tokenizer.encode(text, allow_special=True)
        assert theirs(text, split_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == "ab"


def test_an_unknown_character_fails_in_transformers_too(tmp_path: Path) -> None:
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
def older_bpe(bpe: BPETokenizer, tmp_path: Path) -> Path:
    bpe.save(tmp_path / "saved")
    return older_folder(tmp_path / "saved", tmp_path)


def test_vocab_json_and_merges_txt_are_read(bpe: BPETokenizer, older_bpe: Path) -> None:
    loaded = load_tokenizer(older_bpe)
    assert loaded.fingerprint == bpe.fingerprint
    text = "it's a <|endoftext|> test"
    assert loaded.encode(text, allow_special=True) == bpe.encode(text, allow_special=True)


def test_gpt2s_own_vocab_json_and_merges_txt_are_read(gpt2: BPETokenizer, gpt2_folder: Path, tmp_path: Path) -> None:
    assert load_tokenizer(older_folder(gpt2_folder, tmp_path)).fingerprint == gpt2.fingerprint


@pytest.mark.usefixtures("gpt2")
def test_the_published_merges_are_found_again(gpt2_folder: Path) -> None:
    cache = module.tiktoken_cache()
    published = cache and cache / hashlib.sha1(f"{module._GPT2_FILES}/vocab.bpe".encode()).hexdigest()
    if not published or not published.exists():
        pytest.skip("the published merges are not in tiktoken's cache")
    model = json.loads((gpt2_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert [" ".join(pair) for pair in model["merges"]] == published.read_text(encoding="utf-8").split("\n")[1:-1]


def test_tokenizer_json_as_published_is_read(bpe: BPETokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["model"]["type"]
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    del data["pre_tokenizer"]["use_regex"]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert load_tokenizer(tmp_path).fingerprint == bpe.fingerprint


def test_a_token_that_no_merge_makes_is_not_exported(tmp_path: Path) -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"abc": 256}
    with pytest.raises(ValueError, match=r"token 256 \(b'abc'\) cannot be made by merging"):
        BPETokenizer(ranks, {}).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("special", [{END_OF_TEXT: 5}, {END_OF_TEXT: -1}])
def test_an_id_given_twice_or_negative_is_refused(special: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="two tokens have the same id, or an id is negative"):
        BPETokenizer({bytes([b]): b for b in range(256)}, special)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 3}', '{"model": {"type": "BPE"}}', "\udcff"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"damaged|tokenizer\.json is neither"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"neither tokenizer\.json nor both of vocab\.json and merges\.txt"):
            load_tokenizer(folder)


def test_a_failing_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CharTokenizer("ab").save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        CharTokenizer("abcdef").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fingerprints_tell_vocabularies_apart(
    gpt2: BPETokenizer, bpe: BPETokenizer, char: CharTokenizer, char_eot: CharTokenizer
) -> None:
    others = [CharTokenizer("ab"), CharTokenizer("ba"), CharTokenizer("ab", end_of_text=True)]
    prints = {t.fingerprint for t in (gpt2, bpe, char, char_eot, *others)}
    assert len(prints) == 7
    assert CharTokenizer("ab").fingerprint == CharTokenizer.from_text("baab").fingerprint
    assert gpt2.fingerprint == "b8442be8f448890de445ffa62abb4f0e6909465f83acda8af2cd95f59d2a3061"  # on every machine


@pytest.mark.parametrize("apart", [True, False], ids=["in a file", "in the configuration"])
def test_a_chat_template_is_saved_again(bpe: BPETokenizer, tmp_path: Path, apart: bool) -> None:
    transformers = pytest.importorskip("transformers")
    template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    bpe.save(tmp_path / "a")
    if apart:
        (tmp_path / "a" / "chat_template.jinja").write_text(template)
    else:
        path = tmp_path / "a" / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "chat_template.jinja").write_text("that of an older tokenizer")
    load_tokenizer(tmp_path / "a").save(tmp_path / "b")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "b").chat_template == template
