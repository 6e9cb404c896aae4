"""Damaged and hostile tokenizer files are refused in one sentence, or read as transformers reads them."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from gptladder.files import FileError
from gptladder.tokenizer import CharTokenizer, load_tokenizer
from gptladder.tokenizer.base import MAX_ID
from gptladder.tokenizer.folder import MAX_TOKENIZER_BYTES, refusing

pytest.importorskip("transformers")

from transformers import AutoTokenizer

from .drawn import texts
from .folders import FOLDERS, model_config, write_json
from .mutations import damaged

# Which folders have the file, and hold its most different forms.
FILES = {
    "tokenizer.json": ["bpe_ours", "template", "unigram_metaspace", "llama_like", "characters_unknown", "bpe_strips"],
    "vocab.json": ["bpe_mixed_older", "v4_slow"],
    "merges.txt": ["bpe_mixed_older"],
    "tokenizer_config.json": ["v4_slow", "v4_fast", "template"],
    "added_tokens.json": ["v4_slow"],
    "special_tokens_map.json": ["v4_slow"],
}
TEXTS = [*texts(12, 7), "abcdefghijklmnopqrstuvwxyz ABC", "<|endoftext|><pad>PersonA<s>"]


def made(name: str, folder: Path) -> Path:
    folder.mkdir()
    FOLDERS[name](folder)
    if not (folder / "config.json").exists():
        model_config(folder)
    return folder


def complaint(folder: Path) -> str | None:
    """Return what is wrong with how a folder is read, or None."""
    try:
        ours = load_tokenizer(folder)
    except FileError as error:
        message = str(error)
        clear = str(folder) in message and "\n" not in message and len(message) < 500
        return None if clear else f"unclear: {message}"
    try:
        theirs = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        return f"accepted, and transformers refuses: {error!r}"
    for text in TEXTS:
        try:
            tokens: Any = ours.encode(text, allow_special=True)
        except ValueError:
            tokens = None
        try:
            expected = theirs(text, split_special_tokens=False)["input_ids"]
        except Exception:
            expected = None
        if tokens != expected:
            return f"other ids of {text!r}: {tokens}, {expected}"
        if tokens is not None and ours.decode(tokens) != theirs.decode(tokens, clean_up_tokenization_spaces=False):
            return f"other text of {tokens}"
    return None


@pytest.mark.filterwarnings("ignore")  # transformers warns of what it finds
@pytest.mark.parametrize("file", FILES)
def test_damaged_files_are_refused_or_read_as_transformers_reads_them(file: str, tmp_path: Path) -> None:
    folders = [made(name, tmp_path / name) for name in FILES[file]]
    whole = [(folder / file).read_bytes() for folder in folders]
    draw = random.Random(3)
    complaints = {}
    for i in range(300):
        folder, content = folders[i % len(folders)], whole[i % len(folders)]
        (folder / file).write_bytes(damaged(content, draw))
        if fault := complaint(folder):
            complaints[i] = fault
    assert not complaints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made("v4_fast", tmp_path / "model")


ALL_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


@pytest.mark.parametrize("file", ALL_FILES)
def test_a_pipe_or_device_is_not_waited_for(folder: Path, file: str) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(FileError, match="pipe or device"):
        load_tokenizer(folder)
    (folder / file).unlink()
    (folder / file).mkdir()
    with pytest.raises(FileError, match="is a folder"):
        load_tokenizer(folder)


@pytest.mark.parametrize("file", ALL_FILES)
def test_a_link_out_of_the_folder_is_not_followed(folder: Path, file: str, tmp_path: Path) -> None:
    shutil.move(folder / file, tmp_path / "elsewhere.json")
    (folder / file).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(FileError, match="outside the folder"):
        load_tokenizer(folder)


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_the_older_files_have_the_same_guards(file: str, tmp_path: Path) -> None:
    folder = made("bpe_mixed_older", tmp_path / "model")
    shutil.move(folder / file, tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="outside the folder"):
        load_tokenizer(folder)
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(FileError, match="pipe or device"):
        load_tokenizer(folder)


def test_a_file_that_is_far_too_large_is_not_read(folder: Path) -> None:
    with open(folder / "tokenizer.json", "r+b") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(FileError, match="64,000,001 bytes"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"model": 3}', b'{"model": {"type": "BPE"}}', b"\xff", b'{"a":' * 9000, b'{"a": 1, "a": 2}'],
)
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_an_id_that_would_be_counted_up_to_is_refused(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["vocab"]["new"] = MAX_ID + 1
    write_json(folder / "tokenizer.json", data)
    with pytest.raises(FileError, match="ids must be at most 4,194,304"):
        load_tokenizer(folder)


def test_a_panic_of_the_package_is_refused_like_any_error() -> None:
    class PanicException(BaseException):
        """What Rust code raises when it gives up."""

    with pytest.raises(FileError, match=r"x\.json cannot be used \(index out of bounds\)"), refusing("x.json"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), refusing("x.json"):
        raise KeyboardInterrupt


def test_merges_that_are_dropped_at_random_are_refused(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["dropout"] = 0.1
    write_json(folder / "tokenizer.json", data)
    with pytest.raises(FileError, match="drops merges at random"):
        load_tokenizer(folder)


def test_a_gap_before_an_added_token_is_refused(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"].append({**data["added_tokens"][0], "id": 999, "content": "<far>"})
    write_json(folder / "tokenizer.json", data)
    with pytest.raises(FileError, match="its files give '<far>' the id 999, and transformers gives it"):
        load_tokenizer(folder)


def test_one_id_for_two_tokens_is_refused(tmp_path: Path) -> None:
    CharTokenizer("abc").save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["vocab"]["b"] = 0
    write_json(tmp_path / "tokenizer.json", data)
    with pytest.raises(FileError, match=r"'[ab]', '[ab]' the same id"):
        load_tokenizer(tmp_path)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    write_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}})
    with pytest.raises(FileError, match=r"code of its own \(auto_map\)"):
        load_tokenizer(folder)


def test_a_class_whose_files_cannot_be_read_is_named_with_the_fix(tmp_path: Path) -> None:
    folder = made("bpe_mixed_older", tmp_path / "model")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    with pytest.raises(FileError, match=r"files of a RobertaTokenizer but no tokenizer\.json; write it with AutoTok"):
        load_tokenizer(folder)
    made("characters_unknown", tmp_path / "characters")
    write_json(tmp_path / "characters" / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(FileError, match="holds a WordLevel model, but its folder asks for GPT2Tokenizer"):
        load_tokenizer(tmp_path / "characters")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileError, match=r"neither tokenizer\.json nor both of vocab\.json and merges\.txt"):
            load_tokenizer(place)


def test_something_that_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="int is no tokenizer: give a folder"):
        load_tokenizer(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="has no token at all"):
        load_tokenizer(Backend(models.BPE()))
