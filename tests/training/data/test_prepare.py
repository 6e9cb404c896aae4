"""Preparing a text: found again by content, written whole, prepared again if damaged, safe beside another process."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptladder.tokenizer import CharTokenizer, Tokenizer
from gptladder.training.data import prepare as module
from gptladder.training.data.config import DataConfig
from gptladder.training.data.prepare import load_data, prepare_data

TEXT = "The cat sat on the mat, and the dog sat on the cat.\n" * 40


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, list[str]]]:
    """Prepare ``text.txt`` of an empty folder; returns the folder and the lines of the report."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)

    def prepare(**fields: object) -> tuple[Path, list[str]]:
        lines: list[str] = []
        folder = prepare_data(DataConfig(**{"corpus": "text.txt", "tokenizer": "char", **fields}), say=lines.append)
        return folder, lines

    return prepare


Prepare = Callable[..., tuple[Path, list[str]]]


def test_a_prepared_text_is_found_again(prepare: Prepare) -> None:
    folder, first = prepare()
    assert first[0] == f"preparing text.txt in {folder}"
    assert first[-1] == "1,872 tokens to train on, 208 to validate, of 16 kinds"
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare() == (folder, [f"prepared already: {folder}"])
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert [path.name for path in Path("data").iterdir()] == [folder.name]
    data = load_data(folder)
    assert data.tokenizer.decode([*data.train.tokens.tolist(), *data.val.tokens.tolist()]) == TEXT
    assert data.facts == {
        "text": "text.txt",
        "text_sha256": data.train.header.source,
        "tokenizer": "char",
        "vocabulary": 16,
        "train_tokens": 1872,
        "val_tokens": 208,
    }


def test_a_text_is_recognised_by_its_content_alone(prepare: Prepare) -> None:
    folder, _ = prepare()
    stamp = os.stat("text.txt")
    Path("text.txt").write_text(TEXT.replace("dog", "fox"))  # of equal length
    os.utime("text.txt", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert prepare()[0] != folder
    Path("text.txt").write_text(TEXT)
    os.utime("text.txt", (0, 0))
    assert prepare()[0] == folder


def test_a_tokenizer_is_recognised_by_its_content_alone(prepare: Prepare) -> None:
    CharTokenizer.from_text(TEXT).save("a")
    folder, _ = prepare(tokenizer="a")
    shutil.copytree("a", "elsewhere/a")
    assert prepare(tokenizer="elsewhere/a")[0] == folder
    CharTokenizer.from_text(TEXT + "x").save("a")
    assert prepare(tokenizer="a")[0] != folder


def test_a_tokenizer_with_another_chat_template_is_another(prepare: Prepare) -> None:
    for place in ("one", "two"):
        CharTokenizer.from_text(TEXT).save(f"{place}/tokenizer")
    path = Path("two/tokenizer/tokenizer_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages }}"}))
    one, two = (prepare(tokenizer=f"{place}/tokenizer")[0] for place in ("one", "two"))
    assert one != two
    assert load_data(two).tokenizer.settings["chat_template"] == "{{ messages }}"


def test_a_folder_with_the_name_of_a_choice_is_not_passed_over_silently(prepare: Prepare) -> None:
    for name in ("stories", "char"):
        Path(name).mkdir()
    lines = prepare(corpus="stories", stories_mb=0.01)[1]
    assert lines[:2] == [
        f"{option} {name} does not mean the file or folder {name} here: to use that, give {option} ./{name}"
        for option, name in (("--corpus", "stories"), ("--tokenizer", "char"))
    ]


def test_a_long_name_of_a_tokenizer_is_shortened(prepare: Prepare) -> None:
    CharTokenizer.from_text(TEXT).save("t" * 230)
    assert load_data(prepare(tokenizer="t" * 230)[0]).facts["train_tokens"] == 1872


def test_each_choice_has_a_folder_of_its_own(prepare: Prepare) -> None:
    choices = [
        {},
        {"val_fraction": 0.2},
        {"tokenizer": "bpe", "vocab_size": 260},
        {"tokenizer": "bpe", "vocab_size": 261},
    ]
    folders = {prepare(**choice)[0] for choice in [*choices, {"fraction": 0.5}]}
    assert len(folders) == 5
    assert prepare(vocab_size=300)[0] in folders  # which a tokenizer of characters does not have


def test_byte_pairs_are_learnt_from_the_training_part(prepare: Prepare) -> None:
    Path("text.txt").write_text("cat dog " * 900 + "zebra xylophone " * 50)
    whole, _ = prepare(tokenizer="bpe", vocab_size=300, val_fraction=0.01)
    training_part, _ = prepare(tokenizer="bpe", vocab_size=300)
    pieces = [load_data(folder).tokenizer.encode(" zebra xylophone") for folder in (whole, training_part)]
    assert len(pieces[0]) < len(pieces[1]) == len(" zebra xylophone")


def test_files_left_out_are_reported_and_recorded(prepare: Prepare) -> None:
    Path("texts").mkdir()
    shutil.copy("text.txt", "texts/a.txt")
    Path("texts/empty.txt").touch()
    folder, lines = prepare(corpus="texts")
    assert lines[0] == load_data(folder).facts["left_out"] == "left out: 1 empty"


def test_a_split_inside_a_document_is_reported(prepare: Prepare) -> None:
    Path("texts").mkdir()
    Path("texts/a.txt").write_text(TEXT[:200])
    Path("texts/b.txt").write_text(TEXT * 10)
    folder, lines = prepare(corpus="texts")
    assert "the validation part begins inside a document" in lines[-2]
    data = load_data(folder)
    assert len(data.val.tokens) / (len(data.val.tokens) + len(data.train.tokens)) == pytest.approx(0.1, abs=0.001)
    assert not any("inside a document" in line for line in prepare()[1])  # one document: it cannot be elsewhere


# Damage


@pytest.mark.parametrize("name", ["prepared.json", "tokenizer.json", "train.bin", "val.bin"])
@pytest.mark.parametrize("damage", ["half", "empty", "missing", "garbage", "a folder"])
def test_what_is_damaged_is_prepared_again(prepare: Prepare, name: str, damage: str) -> None:
    folder, _ = prepare()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "garbage": bytes(range(256)) * 20}[damage])
    again, lines = prepare()
    assert again == folder
    assert lines[0].startswith("preparing again what is damaged: ")
    assert "\n" not in lines[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert [path.name for path in Path("data").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "change",
    [{"train_tokens": 1}, {"train_tokens": "1872"}, {"vocabulary": 17}, {"text_sha256": "0" * 64}, {"version": 9},
     {"format": "x"}, {"text": 5}, {"tokenizer": None}, {"val_fraction": "x"}, {"vocab_size": None}],
    ids=str,
)  # fmt: skip
def test_facts_that_do_not_fit_are_damage(prepare: Prepare, change: dict[str, object]) -> None:
    folder, _ = prepare()
    facts = json.loads((folder / "prepared.json").read_text())
    (folder / "prepared.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(ValueError, match="prepare the text again"):
        load_data(folder)
    assert prepare()[1][0].startswith("preparing again what is damaged")
    assert load_data(folder).facts["train_tokens"] == 1872


@pytest.mark.parametrize("failing", ["fsync", "rename", "replace"])
def test_a_failure_leaves_nothing_behind(prepare: Prepare, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="No space left"):
            prepare()
    assert list(Path("data").iterdir()) == []
    assert load_data(prepare()[0]).facts["train_tokens"] == 1872


def test_a_text_that_changes_meanwhile_is_not_prepared(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module.make_tokenizer

    def meanwhile(*args: Any, **kwargs: Any) -> Tokenizer:
        tokenizer = made(*args, **kwargs)
        Path("text.txt").write_text(TEXT.replace("The", "She").replace("S", "T"))
        Path("text.txt").write_text(TEXT[::-1])
        return tokenizer

    monkeypatch.setattr(module, "make_tokenizer", meanwhile)
    with pytest.raises(ValueError, match=r"text\.txt changed while it was prepared: run it again"):
        prepare()
    assert list(Path("data").iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_a_day(prepare: Prepare) -> None:
    folder, _ = prepare()
    shutil.rmtree(folder)
    for name, age in (("old", 90_000), ("new", 60)):
        left = Path("data", f".{folder.name}-{name}")
        left.mkdir()
        then = time.time() - age
        os.utime(left, (then, then))
    prepare()
    assert sorted(path.name for path in Path("data").iterdir()) == [f".{folder.name}-new", folder.name]


def test_a_data_folder_that_cannot_be_written_is_named(prepare: Prepare) -> None:
    Path("file").touch()
    with pytest.raises(ValueError, match=r"--data-dir file cannot be written to \(File exists\): give another folder"):
        prepare(data_dir="file")


def test_processes_at_the_same_time_do_not_disturb_each_other(prepare: Prepare, tmp_path: Path) -> None:
    program = (
        "import sys; from gptladder.training.data.prepare import *; from gptladder.training.data.config import *\n"
        "input(); folder = prepare_data(DataConfig(corpus='text.txt', tokenizer='char'), say=print)\n"
        "print(len(load_data(folder).train.tokens))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdin=-1, stdout=-1, stderr=-1, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert (process.returncode, out.splitlines()[-1:]) == (0, ["1872"]), errors
    assert len(list(Path("data").iterdir())) == 1
    assert prepare()[1][0].startswith("prepared already")


def test_a_folder_that_another_process_finished_first_stays(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = prepare()
    shutil.move(folder, "finished")
    fill = module._fill

    def slowly(*args: Any) -> None:
        fill(*args)
        shutil.move("finished", folder)

    monkeypatch.setattr(module, "_fill", slowly)
    made = Path("finished").stat().st_ino
    assert prepare()[0] == folder
    assert folder.stat().st_ino == made
    assert len(list(Path("data").iterdir())) == 1


# Prepared data in place of the text


def test_prepared_data_is_used_without_the_text(prepare: Prepare) -> None:
    folder, _ = prepare()
    Path("text.txt").unlink()
    assert prepare(corpus=str(folder)) == (folder, [f"prepared already: {folder}"])
    with pytest.raises(ValueError, match=rf"no file or folder text\.txt; it was prepared in {folder}: give --corpus"):
        prepare()


def test_prepared_data_of_another_tokenizer_is_refused(prepare: Prepare) -> None:
    folder, _ = prepare()
    with pytest.raises(ValueError, match="was prepared with --tokenizer char, not bpe: leave --tokenizer out, or give"):
        prepare(corpus=str(folder), tokenizer="bpe")
    CharTokenizer.from_text(TEXT).save("same")
    assert prepare(corpus=str(folder), tokenizer="same")[0] == folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"val_fraction": 0.3}, "was prepared with --val-fraction 0.1, not 0.3: leave --val-fraction out"),
        ({"vocab_size": 400}, "was prepared with --vocab-size 300, not 400: leave --vocab-size out"),
        ({"fraction": 0.5}, "--fraction is for text, and .* holds prepared data: leave --fraction out"),
        ({"encoding": "cp1252"}, "--encoding is for text, and .* holds prepared data: leave --encoding out"),
    ],
)
def test_options_that_prepared_data_cannot_follow_are_refused(
    prepare: Prepare, fields: dict[str, Any], message: str
) -> None:
    given = {"tokenizer": "bpe", "vocab_size": 300}
    folder, _ = prepare(**given)
    with pytest.raises(ValueError, match=message):
        prepare(**{**given, "corpus": str(folder), **fields})


def test_damaged_data_is_refused_if_there_is_no_text(prepare: Prepare) -> None:
    folder, _ = prepare()
    (folder / "val.bin").unlink()
    with pytest.raises(ValueError, match=r"val\.bin: cannot be read"):
        prepare(corpus=str(folder))


def test_prepared_data_of_version_0_1_0_is_read(prepare: Prepare) -> None:
    folder, _ = prepare()
    for name in ("train.bin", "val.bin"):
        data = (folder / name).read_bytes()
        header = json.loads(data[8:4096]) | {"version": 1}
        del header["divided"], header["crc32"]
        (folder / name).write_bytes(data[:8] + json.dumps(header).encode().ljust(4088) + data[4096:])
    facts = json.loads((folder / "prepared.json").read_text())
    for name in ("format", "version", "vocab_size", "val_fraction"):
        del facts[name]
    (folder / "prepared.json").write_text(json.dumps(facts))
    assert load_data(prepare(corpus=str(folder))[0]).facts == facts


# Choices that cannot be


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": "texts.txt"}, r"^there is no file or folder texts\.txt: give --corpus"),
        ({"tokenizer": "gtp2"}, r"--tokenizer gtp2: there is no such folder; give gpt2, bpe, char or the folder of a"),
    ],
)
def test_what_does_not_exist_is_named(prepare: Prepare, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(**fields)
    assert not Path("data").exists() or list(Path("data").iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "--vocab-size is 0; 256 bytes and the end of text take 257 already"),
        ({"stories_mb": -1.0}, "--stories-mb is -1.0; it must be above 0"),
        ({"stories_mb": float("nan")}, "--stories-mb is nan; it must be above 0"),
        ({"fraction": 0.0}, "--fraction is 0.0; it must be above 0 and at most 1"),
        ({"fraction": 1.5}, "--fraction is 1.5; it must be above 0 and at most 1"),
        ({"val_fraction": 1.0}, "--val-fraction is 1.0; it must be between 0 and 1"),
        ({"corpus": ()}, "--corpus has no value: give a text file or a folder"),
        ({"encoding": "utf-99"}, "--encoding is 'utf-99', which Python does not know: try cp1252 or utf-16"),
        ({"encoding": "base64"}, "--encoding is 'base64', which Python does not know"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


@pytest.mark.parametrize(
    ("corpus", "name"),
    [
        ("a/my text.txt", "my-text"),
        ("texts/", "texts"),
        (("b.txt", "c.txt"), "b"),
        ("stories", "stories"),
        ("x.tar.gz", "x"),
        ("/", "text"),
        ("…", "text"),
    ],
)
def test_folders_are_named_after_the_text(corpus: str | tuple[str, ...], name: str) -> None:
    assert DataConfig(corpus=corpus).name == name
