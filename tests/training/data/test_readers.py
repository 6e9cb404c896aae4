"""Reading one file: documents, blocks, encodings, gzip; and errors with the line and what to type."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptladder.tokenizer import END_OF_TEXT
from gptladder.training.data import readers as module
from gptladder.training.data.corpus import TextFiles

TEXT = "Füchse & Gänse, naïve café.\nZweite Zeile\n"


def read(path: Path, encoding: str | None = None) -> list[str]:
    return ["".join(document) for document in TextFiles(path, encoding=encoding).documents()]


def written(folder: Path, data: str | bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 5)


# Documents


def test_a_file_without_separators_is_one_document_unchanged(tmp_path: Path) -> None:
    text = "\n\n  Two blank lines, \ttabs, ünï 🙂.\n\n\nThe end. \n\n"
    assert read(written(tmp_path, text)) == [text]


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        (f"a{END_OF_TEXT}b", ["a", "b"]),
        (f"{END_OF_TEXT}\na\n\n{END_OF_TEXT}{END_OF_TEXT}\n\n{END_OF_TEXT}b\n", ["a", "b\n"]),
        (f"\n\na {END_OF_TEXT} b", ["\n\na ", " b"]),
        ("<|endoftext| >a<|endoftex", ["<|endoftext| >a<|endoftex"]),
        ("<|endoftext<|endoftext|>|>", ["<|endoftext", "|>"]),
    ],
)
def test_what_separates_documents(tmp_path: Path, text: str, documents: list[str]) -> None:
    assert read(written(tmp_path, text)) == documents


PIECES = ["\n", "\r\n", "\r", "a", "é", "🙂", "<", "<|end", "|>", END_OF_TEXT, "words and "]
TEXTS = st.lists(st.sampled_from(PIECES)).map("".join)


@example("\n" * 20 + "a")
@example("a\r\r\n" + END_OF_TEXT + "\r\n\r\nb")
@given(text=TEXTS)
def test_where_blocks_end_makes_no_difference(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    expected = text.replace("\r\n", "\n").replace("\r", "\n").split(END_OF_TEXT)
    expected = [
        (part.lstrip("\n") if i else part) if i == len(expected) - 1 else (part.strip("\n") if i else part.rstrip("\n"))
        for i, part in enumerate(expected)
    ]
    expected = [document for document in expected if document]
    path = written(tmp_path_factory.mktemp("text"), text or "\n")
    for block in (1, 2, 3, 7, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_BLOCK", block)
            if "".join(expected).strip():
                assert read(path) == expected
            else:
                with pytest.raises(ValueError, match=r"text\.txt is empty, or holds nothing but white space"):
                    read(path)


@pytest.mark.usefixtures("small_blocks")
def test_a_document_need_not_be_read_to_its_end(tmp_path: Path) -> None:
    text = END_OF_TEXT.join("abcdefghij" * n for n in (3, 5, 2))
    documents = TextFiles(written(tmp_path, text)).documents()
    assert next(next(documents)) == "abcde"
    assert "".join(next(documents)) == "abcdefghij" * 5
    next(documents)
    assert next(documents, None) is None


@pytest.mark.usefixtures("small_blocks")
def test_byte_order_mark_and_line_ends_are_normalised(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"\xef\xbb\xbfa\r\nb\rc\n\r\n")) == ["a\nb\nc\n\n"]


def test_one_line_or_only_newlines_fit_in_little_memory(tmp_path: Path) -> None:
    for data in (b"word " * 6_000_000, b"\n" * 30_000_000 + b"end"):
        path = written(tmp_path, data)
        tracemalloc.start()
        size = sum(len(piece) for piece in TextFiles(path).text())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size == len(data)
        assert peak < 25_000_000


# Encodings


@pytest.mark.parametrize("block", [1, 2, 5, 1 << 20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PNG\r\n\x1a\n\0\0\0\rIHDR", r"text\.txt, line 3 \(byte 7\) has a zero byte, so it is no text, or UTF-16"),
        (b"abc\ncaf\xe9 au lait", r"text\.txt, line 2 \(byte 7\) is not UTF-8: add --encoding cp1252 for Western"),
        (b"a\rb\rcaf\xe9 au lait", r"text\.txt, line 3 \(byte 7\) is not UTF-8"),
        (b"abcd\xf0\x9f\x99", r"text\.txt, line 1 \(byte 4\) is not UTF-8"),
        ("a🙂b".encode() + b"\xff", r"text\.txt, line 1 \(byte 6\) is not UTF-8"),
        (b"\xef\xbb\xbfabc\xff", r"text\.txt, line 1 \(byte 6\) is not UTF-8"),
        (b"\xed\xa0\x80", r"text\.txt, line 1 \(byte 0\) is not UTF-8"),
    ],
)
def test_what_is_not_utf8_is_named_by_line_and_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("UTF-16".encode("utf-16"), r"text\.txt is UTF-16 text: add --encoding utf-16, or save it as UTF-8"),
        (b"\xfe\xff" + "UTF-16".encode("utf-16-be"), r"text\.txt is UTF-16 text: add --encoding utf-16"),
        ("UTF-32".encode("utf-32"), r"text\.txt is UTF-32 text: add --encoding utf-32"),
        (gzip.compress(b"text", mtime=0), r"text\.txt is gzip data: let its name end in \.gz"),
        (b"PK\x03\x04\x14\0\0\0", r"text\.txt is a zip archive, as \.docx and \.epub are: save its text as \.txt"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", r"text\.txt is a PDF: save its text as \.txt"),
        (b"PAR1\x15\x04\x15\x10\0", r"text\.txt is a Parquet file: let its name end in \.parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", r"pointer of Git LFS.*run git lfs pull"),
    ],
)
def test_a_known_kind_of_other_data_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, data))


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp850"])
def test_an_encoding_that_is_given_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    assert read(written(tmp_path, TEXT.replace("\n", "\r\n").encode(encoding)), encoding) == [TEXT]


def test_big_endian_and_east_asian_text(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"\xfe\xff" + TEXT.encode("utf-16-be")), "utf-16") == [TEXT]
    chinese = "狐狸和鹅在睡觉。\n" * 20
    assert read(written(tmp_path, chinese.encode("gbk")), "gb18030") == [chinese]


def test_utf8_files_of_a_folder_stay_utf8_beside_others(tmp_path: Path) -> None:
    written(tmp_path, TEXT, "a.txt")
    written(tmp_path, TEXT.encode("cp1252"), "b.txt")
    assert read(tmp_path, "cp1252") == [TEXT, TEXT]


def test_an_encoding_that_does_not_fit_is_refused_by_line(tmp_path: Path) -> None:
    path = written(tmp_path, b"a\nb\n\x81\xe9")
    with pytest.raises(ValueError, match=r"text\.txt, line 3 \(byte 4\) is not cp1252 text: give another --encoding"):
        read(path, "cp1252")
    with pytest.raises(ValueError, match=r"text\.txt, line 1 \(byte 1\) is not cp1252 text"):
        read(written(tmp_path, "UTF-16".encode("utf-16-le")), "cp1252")


# Gzip


@pytest.mark.parametrize("name", ["a.txt.gz", "a.md.gz", "a.TXT.GZ"])
def test_packed_text_is_read(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, gzip.compress(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode() * 100), name)
    assert read(path) == read(tmp_path) == [TEXT * 100]
    parts = gzip.compress(b"first ") + gzip.compress(b"second")  # as `cat a.gz b.gz` makes it
    assert read(written(tmp_path, parts, name)) == ["first second"]


def test_packed_text_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(b"one\ntwo\ncaf\xe9"), "a.txt.gz")
    with pytest.raises(ValueError, match=r"a\.txt\.gz, line 3 \(byte 11\) is not UTF-8"):
        read(path)
    assert read(path, "cp1252") == ["one\ntwo\ncafé"]


@pytest.mark.parametrize("damage", ["cut", "checksum", "header", "not gzip"])
def test_damaged_gzip_is_refused(tmp_path: Path, damage: str) -> None:
    data = gzip.compress(bytes(range(32, 127)) * 1000)
    data = {"cut": data[:-20], "checksum": data[:-8] + b"\0" * 8, "header": data[:3], "not gzip": b"plain text"}[damage]
    path = written(tmp_path, data, "a.txt.gz")
    with pytest.raises(ValueError, match=r"a\.txt\.gz is damaged \(.+\): fetch it or pack it again"):
        read(path)


def test_a_gzip_bomb_is_refused_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HARMLESS", 1_000_000)
    path = written(tmp_path, gzip.compress(b"a" * 50_000_000), "a.txt.gz")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.txt\.gz unpacks to more than 200 times its size, as no text does"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25_000_000
