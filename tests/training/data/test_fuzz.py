"""Each reader, tried with 300 seeded mutations of a good file: it is read right, or refused in one line.

A traceback, a hang and a silent acceptance are failures. For a format with checksums nothing that is read may change;
for text and JSON lines, Python's own readers say what is in the mutated file.
"""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from time_limit import seconds

from gptladder.files import FileError
from gptladder.tokenizer import CharTokenizer
from gptladder.training.data.config import DataConfig
from gptladder.training.data.corpus import TextFiles
from gptladder.training.data.prepare import load_data, prepare_data
from gptladder.training.data.shards import open_shards, prepare_shards

MUTATIONS = 300
CHECKED = ("text_sha256", "vocabulary", "train_tokens", "val_tokens")
WORDS = ["The cat sat on the mat.", "Füchse & Gänse 狐狸 🙂.", "A line.\nAnother line.", "<|endoftext|>", "end"]


def mutated(data: bytes, seed: int) -> bytes:
    """The data with one to four bits flipped, bytes overwritten, removed, doubled, or the end cut off."""
    rng = random.Random(seed)
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(result)) if result else 0
        span = rng.randint(1, 16)
        way = rng.randrange(6)
        if way == 0 and result:
            result[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            result[at : at + span] = rng.randbytes(span)
        elif way == 2:
            del result[at : at + span]
        elif way == 3:
            result[at:at] = result[at : at + span]
        elif way == 4:
            del result[rng.randrange(len(result) + 1) :]
        elif way == 5:
            result[at : at + 1] = rng.choice([b"\0", b"\xff", b'"', b"9" * 20, b"[" * 50, b"-", b"\n"])
    return bytes(result)


def outcome(read: Callable[[], object]) -> tuple[object, str]:
    """What is read and no message, or nothing and the message of a refusal."""
    try:
        with seconds(20):
            return read(), ""
    except FileError as error:
        return None, str(error)


def try_all(path: Path, read: Callable[[], object], expected: Callable[[bytes], object | None]) -> None:
    """Mutate a file again and again: ``read`` returns what is expected of the bytes, or refuses them in one line.

    Args:
        expected: what is in the bytes; None if they must be refused.
    """
    good = path.read_bytes()
    assert read() == expected(good) is not None
    refused = 0
    for seed in range(MUTATIONS):
        data = mutated(good, seed)
        path.write_bytes(data)
        result, message = outcome(read)
        if message:
            refused += 1
            assert "\n" not in message, seed
            assert path.name in message, seed
            assert len(message) < 500, seed
        else:
            assert result == expected(data) is not None, seed
    assert refused > MUTATIONS // 10


def texts(path: Path) -> list[str]:
    return ["".join(document) for document in TextFiles(path).documents()]


def split(text: str) -> list[str]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    first, *rest = text.split("<|endoftext|>")
    parts = [first.rstrip("\n") if rest else first] + [part.strip("\n") for part in rest[:-1]]
    parts += [rest[-1].lstrip("\n")] if rest else []
    return [part for part in parts if part]


def plain(data: bytes) -> list[str] | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return split(text) if "\0" not in text and text.strip() else None


def records(data: bytes) -> list[str] | None:
    result: list[str] = []
    try:
        for line in data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            if line.strip():
                text = json.loads(line)["text"] or ""
                result += split(text + "") if isinstance(text, str) else json.loads("")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return result


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(WORDS * 5))
    try_all(path, lambda: texts(path), plain)


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": word}) + "\n" for i, word in enumerate(WORDS * 3)))
    try_all(path, lambda: texts(path), records)


def test_packed_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\n".join(WORDS * 5).encode()))

    def expected(data: bytes) -> list[str] | None:
        try:
            return plain(gzip.decompress(data))
        except (OSError, EOFError, ValueError, zlib.error):
            return None

    try_all(path, lambda: texts(path), expected)


def test_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": WORDS * 3}), path, write_page_checksum=True)
    right = [document for word in WORDS * 3 for document in split(word)]
    try_all(path, lambda: texts(path), lambda data: right)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_token_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 20)
    tokenizer = CharTokenizer("abcdefghij")
    prepare_shards(TextFiles(tmp_path / "a.txt"), tokenizer, tmp_path)
    good = (tmp_path / name).read_bytes()
    header, blanks, tokens = good[: good.index(b"}") + 1], good[good.index(b"}") + 1 : 4096], good[4096:]

    def read() -> list[list[int]]:
        return [shard.tokens.tolist() for shard in open_shards(tmp_path, tokenizer)]

    right, refused = read(), 0
    for seed in range(MUTATIONS):  # the header and the tokens in turn: most of a small file is blanks
        parts = (mutated(header, seed), blanks, tokens) if seed % 2 else (header, blanks, mutated(tokens, seed))
        (tmp_path / name).write_bytes(b"".join(parts))
        result, message = outcome(read)
        if message:
            refused += 1
            assert "\n" not in message, seed
        else:
            assert result == right, seed
            assert b"".join(parts)[4096:] == tokens, seed
    assert refused > MUTATIONS // 2


def test_facts_of_prepared_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 20)
    config = DataConfig(corpus=str(tmp_path / "a.txt"), tokenizer="char", data_dir=str(tmp_path / "data"))
    folder = prepare_data(config, say=lambda line: None)
    path = folder / "prepared.json"
    good = path.read_bytes()
    right = load_data(folder).facts
    refused = 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(good, seed))
        result, message = outcome(lambda: load_data(folder).facts)
        if message:
            refused += 1
            assert "\n" not in message, seed
        else:
            assert isinstance(result, dict), seed
            assert {name: result[name] for name in CHECKED} == {name: right[name] for name in CHECKED}, seed
    assert refused > MUTATIONS // 2
    path.write_bytes(mutated(good, 1))
    prepare_data(config, say=lambda line: None)
    assert load_data(folder).facts == right
