"""Files written whole or not at all."""

import os

import pytest

from gptladder.files import write_whole


@pytest.mark.parametrize("content", ["one\ntwo\r\nñ", b"\x00\xff"], ids=["text", "bytes"])
def test_what_is_written_is_what_is_read(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
