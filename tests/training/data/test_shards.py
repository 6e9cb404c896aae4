"""Token files: what is written, where the text is split, and what is refused when they are opened."""

import errno
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptladder.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from gptladder.training.data import shards as module
from gptladder.training.data.corpus import Corpus, CorpusRecord, StoryCorpus, TextFiles
from gptladder.training.data.shards import open_shards, prepare_shards

LETTERS = CharTokenizer("abcdefghijklmnopqrstuvwxyz \n.", end_of_text=True)
PLAIN = CharTokenizer("abcdefghijklmnopqrstuvwxyz \n.")


class Texts(Corpus):
    """Documents in memory, each in pieces of a few characters."""

    def __init__(self, *texts: str, sha256: str = "a" * 64, source: str = "texts") -> None:
        self.texts, self.sha256, self.source, self.reads = texts, sha256, source, 0

    def documents(self) -> Iterator[Iterator[str]]:
        self.reads += 1
        for text in self.texts:
            yield (text[i : i + 3] for i in range(0, len(text), 3))

    def record(self) -> CorpusRecord:
        return CorpusRecord(self.source, self.sha256)


def whole(tokenizer: Tokenizer, texts: tuple[str, ...] | list[str]) -> list[int]:
    """What the two shards hold together."""
    end = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    return list(chain.from_iterable([*tokenizer.encode(text), *end] for text in texts))


# What is written


def documents_of(lengths: list[int]) -> list[str]:
    return [("abcdefghij" * (length // 10 + 1))[:length] for length in lengths]


@given(
    lengths=st.lists(st.integers(1, 60) | st.sampled_from([500, 3000]), min_size=1, max_size=40),
    val_fraction=st.floats(0.01, 0.99),
    block=st.sampled_from([1, 7, 1 << 20]),
)
def test_the_split_holds_to_its_share(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], val_fraction: float, block: int
) -> None:
    texts = documents_of(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        train, val = prepare_shards(
            Texts(*texts), LETTERS, tmp_path_factory.mktemp("shards"), val_fraction=val_fraction
        )
    tokens = whole(LETTERS, texts)
    assert [*train.tokens.tolist(), *val.tokens.tolist()] == tokens
    assert (train.header.tokens, val.header.tokens) == (len(train.tokens), len(val.tokens))
    # To within a hundredth of the text, or one token of a text that is shorter than that.
    assert len(train.tokens) > 0
    assert len(val.tokens) > 0
    assert abs(len(val.tokens) - len(tokens) * val_fraction) <= max(len(tokens) / 100, 1) + 1
    # With a document, if any begins that near.
    wanted = min(max(int(len(tokens) * (1 - val_fraction)), 1), len(tokens) - 1)
    begins = [i + 1 for i, token in enumerate(tokens[:-1]) if token == LETTERS.eot_id]
    near = [begin for begin in begins if abs(begin - wanted) <= len(tokens) // 100]
    assert train.header.divided == val.header.divided == (not near)
    if near:
        assert len(train.tokens) == next((begin for begin in near if begin >= wanted), near[-1])
    else:
        assert len(train.tokens) == wanted
    assert train.header.documents + val.header.documents == len(texts) + train.header.divided
    assert val.header.documents == val.tokens.tolist().count(LETTERS.eot_id)


def test_files_of_very_different_length_are_split_inside_the_long_one(tmp_path: Path) -> None:
    texts = documents_of([20_000, 1_100_000])
    train, val = prepare_shards(Texts(*texts), LETTERS, tmp_path)
    assert len(val.tokens) == pytest.approx(112_000, abs=1)
    assert val.header.divided
    train, val = prepare_shards(Texts(*texts[::-1]), LETTERS, tmp_path)
    assert len(val.tokens) == pytest.approx(112_000, abs=1)
    assert (train.header.documents, val.header.documents) == (1, 2)


def test_one_document_is_split_at_nine_tenths(tmp_path: Path) -> None:
    text = "abcdefghij" * 100 + "k"
    train, val = prepare_shards(Texts(text), PLAIN, tmp_path)
    assert [*train.tokens.tolist(), *val.tokens.tolist()] == PLAIN.encode(text)
    assert (len(train.tokens), len(val.tokens)) == (900, 101)
    assert (train.header.documents, val.header.documents) == (1, 1)


def test_the_split_of_a_known_text(tmp_path: Path) -> None:
    path = Path(__file__).parents[3].parent / "shared" / "data" / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip(f"no {path}")
    corpus = TextFiles(path)
    train, val = prepare_shards(corpus, CharTokenizer.from_text(corpus.text()), tmp_path)
    # What the best-known preparation of this text by characters reports.
    assert (len(train.tokens), len(val.tokens)) == (1_003_854, 111_540)


@pytest.mark.parametrize(("n_vocab", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_dtype_follows_the_vocabulary(tmp_path: Path, n_vocab: int, dtype: str) -> None:
    tokenizer = BPETokenizer({bytes([b]): b for b in range(256)}, {"<|endoftext|>": n_vocab - 1})
    assert tokenizer.n_vocab == n_vocab
    train, val = prepare_shards(Texts("ab", "cd"), tokenizer, tmp_path, val_fraction=0.5)
    assert (train.header.dtype, str(train.tokens.dtype)) == (dtype, dtype)
    assert train.tokens.tolist() == [97, 98, n_vocab - 1]
    assert val.tokens.tolist() == [99, 100, n_vocab - 1]
    itemsize = {"uint16": 2, "uint32": 4}[dtype]
    assert (tmp_path / "train.bin").stat().st_size == 4096 + 3 * itemsize


def test_the_file_describes_itself(tmp_path: Path) -> None:
    prepare_shards(Texts("ab", "cd", source="ünï " * 400), LETTERS, tmp_path, val_fraction=0.5)
    data = (tmp_path / "train.bin").read_bytes()
    assert data[:8] == b"GPTSHARD"
    header = json.loads(data[8:4096])
    described = header.pop("described")
    assert described == ("ünï " * 400)[:250]
    assert header == {
        "version": 2,
        "split": "train",
        "val_fraction": 0.5,
        "dtype": "uint16",
        "tokens": 3,
        "documents": 1,
        "n_vocab": LETTERS.n_vocab,
        "eot_id": LETTERS.eot_id,
        "tokenizer": LETTERS.fingerprint,
        "source": "a" * 64,
        "divided": False,
        "crc32": zlib.crc32(data[4096:]),
    }
    assert np.frombuffer(data[4096:], "<u2").tolist() == [0, 1, LETTERS.eot_id]


def test_the_longest_description_leaves_room(tmp_path: Path) -> None:
    train, _ = prepare_shards(Texts("ab", "cd", source="\U0001f642" * 1000), LETTERS, tmp_path, val_fraction=0.5)
    assert train.header.described == "\U0001f642" * 250
    assert (tmp_path / "train.bin").stat().st_size == 4096 + 6


def test_tokens_are_mapped_and_cannot_be_changed(tmp_path: Path) -> None:
    train, _ = prepare_shards(Texts("ab", "cd"), LETTERS, tmp_path)
    assert isinstance(train.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        train.tokens[0] = 1


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 10)
    told: list[int] = []
    prepare_shards(Texts("abcdefgh" * 5, "ab"), LETTERS, tmp_path, progress=told.append)
    assert told == sorted(told)
    assert len(told) == 3
    assert all(10 <= b - a < 20 for a, b in zip([0, *told], told, strict=False))


# Opened again, or refused


def test_files_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path)
    other = CharTokenizer("abcdef", end_of_text=True)
    message = (
        rf"train\.bin was written with another tokenizer \(30 tokens, {LETTERS.fingerprint[:8]}\) than this one "
        rf"\(7 tokens, {other.fingerprint[:8]}\): prepare the text again"
    )
    with pytest.raises(ValueError, match=message) as caught:
        open_shards(tmp_path, other)
    assert "\n" not in str(caught.value)


def rewritten(path: Path, **changes: object) -> None:
    """Change fields of a header, and nothing else."""
    data = path.read_bytes()
    header = json.loads(data[8:4096]) | changes
    header = {name: value for name, value in header.items() if value is not ...}
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(4088) + data[4096:])


def damage(path: Path, change: str) -> None:
    data = path.read_bytes()
    if change == "truncated":
        data = data[:-1]
    elif change == "longer":
        data += b"\0\0"
    elif change == "empty":
        data = b""
    elif change == "foreign":
        data = np.arange(3000, dtype=np.uint16).tobytes()
    elif change == "cut in the header":
        data = data[:100]
    elif change == "one bit":
        data = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truncated", r"val\.bin has 4,103 bytes instead of 4,104: prepare the text again"),
        ("longer", r"val\.bin has 4,106 bytes instead of 4,104"),
        ("empty", r"val\.bin: is empty"),
        ("foreign", r"val\.bin is no token file of this program: prepare the text in another folder"),
        ("cut in the header", r"the header of .*val\.bin is damaged: prepare the text again"),
        ("one bit", r"val\.bin is damaged, its checksum does not match: prepare the text again"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: str, message: str) -> None:
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path, val_fraction=0.5)
    damage(tmp_path / "val.bin", change)
    with pytest.raises(ValueError, match=message):
        open_shards(tmp_path, LETTERS)


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"documents": ...},
        {"dtype": "O"},
        {"dtype": "real"},
        {"dtype": "float16"},
        {"dtype": "<u2"},
        {"dtype": ["uint16"]},
        {"dtype": None},
        {"version": 0},
        {"version": True},
        {"version": "2"},
        {"version": 1},
        {"version": 2.0},
        {"split": "test"},
        {"tokens": -4},
        {"tokens": 4.0},
        {"tokens": True},
        {"tokens": 0},
        {"documents": 0},
        {"documents": 5},
        {"n_vocab": 0},
        {"n_vocab": 65_537},
        {"n_vocab": "30"},
        {"eot_id": 30},
        {"eot_id": -1},
        {"eot_id": 29.0},
        {"val_fraction": 0},
        {"val_fraction": 1.5},
        {"val_fraction": "0.5"},
        {"tokenizer": "x"},
        {"tokenizer": None},
        {"source": 3},
        {"described": None},
        {"divided": 0},
        {"crc32": "0"},
        {"crc32": None},
    ],
    ids=str,
)
def test_every_field_of_a_header_is_checked(tmp_path: Path, changes: dict[str, object]) -> None:
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path, val_fraction=0.5)
    rewritten(tmp_path / "val.bin", **changes)
    with pytest.raises(ValueError, match=r"the header of .*val\.bin is damaged: prepare the text again"):
        open_shards(tmp_path, LETTERS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, r"val\.bin is of format 3, and this program reads 2: prepare the text again"),
        ({"split": "train"}, r"val\.bin holds the train tokens"),
        ({"tokens": 10**30}, r"val\.bin has 4,104 bytes instead of 2,0"),
        ({"dtype": "uint32"}, r"val\.bin has 4,104 bytes instead of 4,112"),
        ({"crc32": 7}, r"val\.bin is damaged, its checksum does not match"),
        ({"n_vocab": 31}, r"val\.bin was written with another tokenizer"),
        ({"eot_id": None}, r"val\.bin was written with another tokenizer"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path, val_fraction=0.5)
    rewritten(tmp_path / "val.bin", **changes)
    with pytest.raises(ValueError, match=message):
        open_shards(tmp_path, LETTERS)


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path, val_fraction=0.5)
    data = (tmp_path / "val.bin").read_bytes()[:-2] + b"\x1e\0"
    (tmp_path / "val.bin").write_bytes(data)
    rewritten(tmp_path / "val.bin", crc32=zlib.crc32(data[4096:]))
    with pytest.raises(ValueError, match=r"val\.bin holds token 30, beyond its vocabulary of 30"):
        open_shards(tmp_path, LETTERS)


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    train, val = prepare_shards(Texts("abc", "def"), LETTERS, tmp_path, val_fraction=0.5)
    for name in ("train.bin", "val.bin"):
        rewritten(tmp_path / name, version=1, divided=..., crc32=...)
    old_train, old_val = open_shards(tmp_path, LETTERS)
    assert (old_train.tokens.tolist(), old_val.tokens.tolist()) == (train.tokens.tolist(), val.tokens.tolist())


def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path)
    (tmp_path / "val.bin").unlink()
    os.mkfifo(tmp_path / "val.bin")
    with pytest.raises(ValueError, match=r"val\.bin: is a folder, pipe or device, not a file"):
        open_shards(tmp_path, LETTERS)


def test_halves_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path)
    old = (tmp_path / "val.bin").read_bytes()
    prepare_shards(Texts("abc", "xyz", sha256="b" * 64), LETTERS, tmp_path)
    (tmp_path / "val.bin").write_bytes(old)
    with pytest.raises(ValueError, match=r"train\.bin and val\.bin in .* are not of the same text and split"):
        open_shards(tmp_path, LETTERS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.bin: cannot be read \(No such file or directory\)"):
        open_shards(tmp_path, LETTERS)


# What cannot be written


def test_documents_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="several documents, and this tokenizer has no end-of-text token"):
        prepare_shards(Texts("abc", "def"), PLAIN, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("texts", [("a",), ()])
def test_a_text_too_short_to_split_is_refused(tmp_path: Path, texts: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"the text has {len(texts)} tokens, too few to hold some back for validation"
    ):
        prepare_shards(Texts(*texts), PLAIN, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("val_fraction", "held_back"), [(1e-20, 1), (1 - 1e-10, 5)])
def test_no_part_is_empty(tmp_path: Path, val_fraction: float, held_back: int) -> None:
    train, val = prepare_shards(Texts("abcdef"), PLAIN, tmp_path, val_fraction=val_fraction)
    assert (len(train.tokens), len(val.tokens)) == (6 - held_back, held_back)


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, 2])
def test_a_split_outside_its_range_is_refused(tmp_path: Path, val_fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"val_fraction is {val_fraction}; it must be between 0 and 1"):
        prepare_shards(Texts("abc", "def"), LETTERS, tmp_path, val_fraction=val_fraction)


def test_an_unknown_character_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"character 'X' \(U\+0058\) at position 4 is not among the 29 characters"):
        prepare_shards(Texts("abc", "defgX"), LETTERS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_binary_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_bytes(b"some text first\n" * 100_000 + bytes(range(256)))
    with pytest.raises(ValueError, match=r"image\.txt, line 100001 \(byte 1,600,000\) has a zero byte"):
        prepare_shards(TextFiles(tmp_path / "image.txt"), LETTERS, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        prepare_shards(Texts("xyz", "uvw", sha256="b" * 64), LETTERS, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Memory

MEASURE = """
import re, sys
from pathlib import Path
from gptladder.tokenizer import CharTokenizer
from gptladder.training.data.corpus import TextFiles
from gptladder.training.data.shards import prepare_shards

tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxyz \\n.", end_of_text=True)
for text in sys.argv[1:]:
    train, val = prepare_shards(TextFiles(text), tokenizer, text.removesuffix(".txt"))
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    print(len(train.tokens) + len(val.tokens), int(peak) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("separator", ["", "<|endoftext|>\n"], ids=["one document", "many documents"])
def test_memory_does_not_grow_with_the_text(tmp_path: Path, separator: str) -> None:
    paths = []
    for lines in (10_000, 60_000):
        paths.append(tmp_path / f"{lines}.txt")
        paths[-1].write_text(("a story of no great worth told for its length. " * 4 + "\n" + separator) * lines)
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (few, before), (many, after) = (map(float, line.split()) for line in said)
    assert few > 1.75e6
    assert many > 10.5e6  # 11 MB of text, 22 MB of tokens in the file, 88 MB as a list
    assert after - before < 6  # MB


def test_real_stories_survive(tmp_path: Path) -> None:
    corpus = StoryCorpus(seed=4, size=60_000)
    tokenizer = BPETokenizer.train(corpus.text(), 400)
    train, val = prepare_shards(corpus, tokenizer, tmp_path)
    text = tokenizer.decode([*train.tokens.tolist(), *val.tokens.tolist()])
    assert text == "".join("".join(document) + "<|endoftext|>" for document in corpus.documents())
    assert re.match(r"[A-Z\"]", tokenizer.decode(val.tokens[:20].tolist()))
