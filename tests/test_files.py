"""Reading files that may be damaged or hostile, and writing files whole or not at all."""

import errno
import json
import os
import re
from pathlib import Path
from typing import BinaryIO

import pytest

from gptladder import files
from gptladder.files import (
    FileError,
    file_in,
    file_size,
    first_sentence,
    listed,
    read_bytes,
    read_json,
    user_path,
    write_whole,
)


@pytest.mark.parametrize("content", ["one\ntwo\r\nñ", b"\x00\xff"], ids=["text", "bytes"])
def test_what_is_written_is_what_is_read(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_whole(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def refused(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1, "a": 2}', "'a' more than once"),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', "'c' more than once"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "too large a number"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON"),
        ("[1]", "is a JSON list where an object belongs"),
        ('{"a": 1', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "not valid JSON"),
        ('{"\x1b[31m\\n": 1, "\x1b[31m\\n": 1}', "not valid JSON"),
        ("", "is empty"),
    ],
)
def test_json_that_breaks_a_rule_is_refused_in_one_line(tmp_path: Path, text: str | bytes, fault: str) -> None:
    assert fault in refused(tmp_path / "x.json", text)


def test_many_doubled_keys_are_found_in_linear_time(tmp_path: Path) -> None:
    """A quadratic search would take hours."""
    count = 300_000
    keys = [f'"{n}":0' for n in range(count)]
    message = refused(tmp_path / "x.json", "{" + ",".join(keys * 2) + "}")
    assert f"and {count - 3} more" in message


def test_json_within_the_rules_is_read(tmp_path: Path) -> None:
    fields = {"a": [1, 2.5, None, True, {"b": "ñ"}], "c": {}}
    (tmp_path / "x.json").write_text(json.dumps(fields))
    assert read_json(tmp_path / "x.json") == fields


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "missing", "empty", "link to a pipe", "zero byte"])
def test_what_is_no_file_with_content_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "empty":
        path.touch()
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif kind == "zero byte":
        path = tmp_path / "x\0y"
    for read in (file_size, read_json, lambda path: read_bytes(path, limit=10)):
        with pytest.raises(FileError):
            read(path)


def test_a_file_larger_than_its_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", limit=5) == b"12345"
    with pytest.raises(FileError, match="has 5 bytes, where at most 4 are expected"):
        read_bytes(tmp_path / "x", limit=4)
    (tmp_path / "x").write_text('{"a": 1}')
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 7)
    with pytest.raises(FileError, match="at most 7"):
        read_json(tmp_path / "x")


@pytest.mark.parametrize("name", ["out", "../outside", "loop", "missing"])
def test_links_and_names_that_lead_out_of_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to("loop")
    (folder / "inside").write_text("x")
    (folder / "link").symlink_to("inside")
    with pytest.raises(FileError, match=r"outside the folder|no such file|leads nowhere"):
        file_in(folder, name)
    assert file_in(folder, "link").read_text() == "x"


def test_text_of_others_becomes_one_plain_line() -> None:
    assert first_sentence(ValueError("a\n\x1b[31mb. And more")) == "a [31mb"
    assert first_sentence(KeyError()) == "KeyError"
    assert len(first_sentence(ValueError("x" * 1000))) == 120
    assert listed(["a\n", "b" * 200, 3, 4, 5]) == f"'a\\n', '{'b' * 80}', '3' and 2 more"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "folder").mkdir()
    for path, content in ((tmp_path / "a.html", full), (tmp_path / "folder", b"x"), (tmp_path / "none" / "a", b"x")):
        with pytest.raises(OSError, match=re.escape(str(path))) as caught:
            write_whole(path, content)
        assert caught.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~/a", "/home/me/a"),
        ("~.txt", "~.txt"),
        ("~no-such-user/a", "~no-such-user/a"),
        ("~\0/a", "~\0/a"),
        ("a/~", "a/~"),
    ],
)
def test_only_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, given: str, path: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path(given) == Path(path)
