"""Records: the field `text` of JSON lines and the column `text` of Parquet, and errors with the line or row."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gptladder.tokenizer import END_OF_TEXT
from gptladder.training.data import readers, records
from gptladder.training.data.corpus import TextFiles


def read(path: Path) -> list[str]:
    return ["".join(document) for document in TextFiles(path).documents()]


def lines(folder: Path, *values: object, name: str = "a.jsonl") -> Path:
    text = "".join(value if isinstance(value, str) else json.dumps(value) + "\n" for value in values)
    data = text.encode("utf-8", "surrogatepass")
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


# JSON lines


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_each_line_is_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(readers, "_BLOCK", block)
    path = lines(
        tmp_path,
        "\ufeff",  # a byte-order mark
        {"text": "One.\nTwo.", "id": 1, "score": float("nan")},
        "\n  \r\n",
        {"meta": {"text": 3}, "text": "ünï 🙂 \u2028 separator"},
        {"text": ""},
        {"text": None},
        {"text": "line\r\nends\rare\nnewlines"},
        {"text": f"a\n{END_OF_TEXT}\nb"},
        '{"text": "the last line has no newline"}',
        name=name,
    )
    assert read(path) == [
        "One.\nTwo.",
        "ünï 🙂 \u2028 separator",
        "line\nends\nare\nnewlines",
        "a",
        "b",
        "the last line has no newline",
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"text": "cut', r"line 3 is not one whole JSON value \(Unterminated string"),
        ('{"text": "a"} {"text": "b"}', r"line 3 is not one whole JSON value \(Extra data"),
        ('{"text": "a"},', r"line 3 is not one whole JSON value"),
        ("plain words", r"line 3 is not one whole JSON value"),
        ("[" * 100_000, r"line 3 is not one whole JSON value"),
        ('{"n": ' + "9" * 5000 + ', "text": "a"}', r"line 3 is not one whole JSON value"),
        ('[{"text": "a"}]', r"line 3 is a JSON list: give an object like"),
        ('"text"', r"line 3 is a JSON str: give an object like"),
        ('{"content": "a", "id": 1}', r"line 3 has no field 'text' but 'content', 'id': rename the one to read"),
        ("{}", r"line 3 has no field 'text' but no fields"),
        ('{"text": 7}', r"line 3 has a field 'text' that is a int, not a string"),
        ('{"text": ["a", "b"]}', r"line 3 has a field 'text' that is a list, not a string"),
        ('{"text": "a", "text": "b"}', r"line 3 has the field 'text' more than once"),
        (r'{"text": "half \ud83d of a character"}', r"line 3 has a lone surrogate \(U\+D83D\)"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl, " + message) as caught:
        read(lines(tmp_path, {"text": "good"}, "\n", bad + "\n", {"text": "good"}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LONGEST", 1000)
    monkeypatch.setattr(readers, "_BLOCK", 100)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is longer than 1,000 characters"):
        read(lines(tmp_path, {"text": "a"}, '{"text": "' + "b" * 5000 + '"}\n'))


def test_records_without_any_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl is empty, or holds nothing but white space"):
        read(lines(tmp_path, {"text": ""}, {"text": None}, {"text": " \n"}))


# Parquet


def table(path: Path, **columns: Any) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)
    return path


def test_each_row_is_a_document(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", text=["One.", None, "", "ünï\r\n", f"a{END_OF_TEXT}b"], id=[1, 2, 3, 4, 5])
    assert read(path) == read(tmp_path) == ["One.", "ünï\n", "a", "b"]


def test_large_and_encoded_strings_are_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    words = ["a", "b", "a"] * 500
    assert read(table(tmp_path / "a.parquet", text=arrow.array(words, arrow.large_string()))) == words
    assert read(table(tmp_path / "b.parquet", text=arrow.array(words).dictionary_encode())) == words


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"content": ["a"], "id": [1]}, r"has no column 'text' but 'content', 'id': rename the one to read"),
        ({"text": [1, 2]}, r"has a column 'text' of type int64, not of strings"),
        ({"text": [b"a"]}, r"has a column 'text' of type binary, not of strings"),
    ],
)
def test_a_table_without_text_is_refused(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(table(tmp_path / "a.parquet", **columns))


@pytest.mark.parametrize("keep", [3, 100, -1])
def test_a_table_that_was_cut_off_is_refused(tmp_path: Path, keep: int) -> None:
    path = table(tmp_path / "a.parquet", text=["words"] * 100)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet \(.+\): fetch it or save it again"):
        read(path)


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a\.parquet is a Parquet file, which needs pyarrow: pip install pyarrow"):
        read(tmp_path / "a.parquet")
