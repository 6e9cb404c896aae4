import errno
import json
import os
import re
import subprocess
import sys
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
    """Documents that are at hand, each in pieces of a few characters."""

    def __init__(self, *texts: str, sha256: str = "a" * 64, source: str = "texts"):
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


@given(
    texts=st.lists(st.text("abc d.\n", min_size=1, max_size=40), min_size=2, max_size=12),
    val_fraction=st.floats(0.01, 0.99),
    block=st.sampled_from([1, 7, 1 << 20]),
)
def test_the_split_is_contiguous_and_between_documents(tmp_path_factory, texts, val_fraction, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        train, val = prepare_shards(
            Texts(*texts), LETTERS, tmp_path_factory.mktemp("shards"), val_fraction=val_fraction
        )
    tokens = whole(LETTERS, texts)
    assert [*train.tokens.tolist(), *val.tokens.tolist()] == tokens
    assert train.tokens[-1] == val.tokens[-1] == LETTERS.eot_id
    assert (train.header.tokens, val.header.tokens) == (len(train.tokens), len(val.tokens))
    assert train.header.documents == train.tokens.tolist().count(LETTERS.eot_id)
    assert val.header.documents == val.tokens.tolist().count(LETTERS.eot_id)
    # It is the first end of a document at or after the wanted place, unless that is the end of everything.
    wanted = int(len(tokens) * (1 - val_fraction))
    ends = [i + 1 for i, token in enumerate(tokens) if token == LETTERS.eot_id]
    later = [end for end in ends if wanted <= end < len(tokens)]
    assert len(train.tokens) == (later[0] if later else ends[-2])


def test_one_document_is_split_at_nine_tenths(tmp_path):
    text = "abcdefghij" * 100 + "k"
    train, val = prepare_shards(Texts(text), PLAIN, tmp_path)
    assert [*train.tokens.tolist(), *val.tokens.tolist()] == PLAIN.encode(text)
    assert (len(train.tokens), len(val.tokens)) == (900, 101)
    assert (train.header.documents, val.header.documents) == (1, 1)


def test_the_split_of_a_known_text(tmp_path):
    path = Path(__file__).parents[3].parent / "shared" / "data" / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip(f"no {path}")
    corpus = TextFiles(path)
    train, val = prepare_shards(corpus, CharTokenizer.from_text(corpus.text()), tmp_path)
    # What the best-known preparation of this text by characters reports.
    assert (len(train.tokens), len(val.tokens)) == (1_003_854, 111_540)


@pytest.mark.parametrize(("n_vocab", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_dtype_follows_the_vocabulary(tmp_path, n_vocab, dtype):
    tokenizer = BPETokenizer({bytes([b]): b for b in range(256)}, {"<|endoftext|>": n_vocab - 1})
    assert tokenizer.n_vocab == n_vocab
    train, val = prepare_shards(Texts("ab", "cd"), tokenizer, tmp_path)
    assert (train.header.dtype, str(train.tokens.dtype)) == (dtype, dtype)
    assert train.tokens.tolist() == [97, 98, n_vocab - 1]
    assert val.tokens.tolist() == [99, 100, n_vocab - 1]
    itemsize = {"uint16": 2, "uint32": 4}[dtype]
    assert (tmp_path / "train.bin").stat().st_size == 4096 + 3 * itemsize


def test_the_file_describes_itself(tmp_path):
    prepare_shards(Texts("ab", "cd", source="ünï " * 400), LETTERS, tmp_path, val_fraction=0.25)
    data = (tmp_path / "train.bin").read_bytes()
    assert data[:8] == b"GPTSHARD"
    header = json.loads(data[8:4096])
    described = header.pop("described")
    assert described == ("ünï " * 400)[:250]
    assert header == {
        "version": 1,
        "split": "train",
        "val_fraction": 0.25,
        "dtype": "uint16",
        "tokens": 3,
        "documents": 1,
        "n_vocab": LETTERS.n_vocab,
        "eot_id": LETTERS.eot_id,
        "tokenizer": LETTERS.fingerprint,
        "source": "a" * 64,
    }
    assert np.frombuffer(data[4096:], "<u2").tolist() == [0, 1, LETTERS.eot_id]


def test_the_longest_description_leaves_room(tmp_path):
    train, _ = prepare_shards(Texts("ab", "cd", source="\U0001f642" * 1000), LETTERS, tmp_path)
    assert train.header.described == "\U0001f642" * 250
    assert (tmp_path / "train.bin").stat().st_size == 4096 + 6


def test_tokens_are_mapped_and_cannot_be_changed(tmp_path):
    train, _ = prepare_shards(Texts("ab", "cd"), LETTERS, tmp_path)
    assert isinstance(train.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        train.tokens[0] = 1


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 10)
    told: list[int] = []
    prepare_shards(Texts("abcdefgh" * 5, "ab"), LETTERS, tmp_path, progress=told.append)
    assert told == sorted(told)
    assert len(told) == 3
    assert all(10 <= b - a < 20 for a, b in zip([0, *told], told, strict=False))


# Used again, or not


def test_nothing_is_written_again_when_nothing_changed(tmp_path):
    corpus = Texts("abc", "def")
    prepare_shards(corpus, LETTERS, tmp_path)
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.iterdir()}
    train, val = prepare_shards(corpus, LETTERS, tmp_path)
    assert corpus.reads == 1
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.iterdir()} == before
    assert (train.tokens.tolist(), val.tokens.tolist()) == ([0, 1, 2, 29], [3, 4, 5, 29])


@pytest.mark.parametrize("change", ["text", "split", "half is missing"])
def test_it_is_written_again_when_something_changed(tmp_path, change):
    prepare_shards(Texts("abc", "def", "ghi", "jkl"), LETTERS, tmp_path)
    corpus = Texts("abc", "def", "ghi", "xyz", sha256="b" * 64 if change == "text" else "a" * 64)
    if change == "half is missing":
        (tmp_path / "val.bin").unlink()
    train, val = prepare_shards(corpus, LETTERS, tmp_path, val_fraction=0.5 if change == "split" else 0.1)
    assert corpus.reads == 1
    assert [*train.tokens.tolist(), *val.tokens.tolist()] == whole(LETTERS, corpus.texts)
    assert len(val.tokens) == (8 if change == "split" else 4)


def test_files_of_another_tokenizer_are_refused(tmp_path):
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = CharTokenizer("abcdef", end_of_text=True)
    said = (
        rf"train\.bin was written with another tokenizer \(30 tokens, {LETTERS.fingerprint[:8]}\) than this one "
        rf"\(7 tokens, {other.fingerprint[:8]}\); use another folder, or delete the file"
    )
    for use in (lambda: prepare_shards(Texts("abc", "def"), other, tmp_path), lambda: open_shards(tmp_path, other)):
        with pytest.raises(ValueError, match=said) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def damage(path: Path, change: str) -> None:
    data = path.read_bytes()
    header = json.loads(data[8:4096])
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
    elif change == "unknown field":
        data = data[:8] + json.dumps({**header, "more": 1}).encode().ljust(4088) + data[4096:]
    elif change == "unknown dtype":
        data = data[:8] + json.dumps({**header, "dtype": "real"}).encode().ljust(4088) + data[4096:]
    elif change == "version":
        data = data[:8] + json.dumps({"version": 2}).encode().ljust(4088) + data[4096:]
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("truncated", r"val\.bin has 4,103 bytes instead of 4,104; delete it and prepare the text again"),
        ("longer", r"val\.bin has 4,106 bytes instead of 4,104"),
        ("empty", r"val\.bin is no token file of this program; move it away, or use another folder"),
        ("foreign", r"val\.bin is no token file of this program"),
        ("cut in the header", r"the header of .*val\.bin is damaged; delete the file and prepare the text again"),
        ("unknown field", r"the header of .*val\.bin is damaged"),
        ("unknown dtype", r"the header of .*val\.bin is damaged"),
        ("version", r"val\.bin is of format 2, not 1; delete it and prepare the text again"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, said):
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path)
    damage(tmp_path / "val.bin", change)
    damaged = (tmp_path / "val.bin").read_bytes()
    for use in (lambda: prepare_shards(Texts("abc", "def"), LETTERS, tmp_path), lambda: open_shards(tmp_path, LETTERS)):
        with pytest.raises(ValueError, match=said):
            use()
    assert (tmp_path / "val.bin").read_bytes() == damaged


def test_halves_that_do_not_belong_together_are_refused_and_mended(tmp_path):
    prepare_shards(Texts("abc", "def"), LETTERS, tmp_path)
    old = (tmp_path / "val.bin").read_bytes()
    corpus = Texts("abc", "xyz", sha256="b" * 64)
    prepare_shards(corpus, LETTERS, tmp_path)
    (tmp_path / "val.bin").write_bytes(old)
    with pytest.raises(ValueError, match=r"train\.bin and val\.bin in .* are not of the same text and split"):
        open_shards(tmp_path, LETTERS)
    assert prepare_shards(corpus, LETTERS, tmp_path)[1].tokens.tolist() == whole(LETTERS, ["xyz"])


def test_what_was_never_prepared_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*train\.bin; prepare the text first"):
        open_shards(tmp_path, LETTERS)


# What cannot be written


def test_documents_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match="several documents, and this tokenizer has no end-of-text token"):
        prepare_shards(Texts("abc", "def"), PLAIN, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("texts", [("a",), ()])
def test_a_text_too_short_to_split_is_refused(tmp_path, texts):
    with pytest.raises(ValueError, match=rf"the text has {len(texts)} tokens, too few to hold 0\.1 of them back"):
        prepare_shards(Texts(*texts), PLAIN, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_share_that_comes_to_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the text has 6 tokens, too few to hold 1e-20 of them back"):
        prepare_shards(Texts("abcdef"), PLAIN, tmp_path, val_fraction=1e-20)


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, 2])
def test_a_split_outside_its_range_is_refused(tmp_path, val_fraction):
    with pytest.raises(ValueError, match=rf"val_fraction is {val_fraction}; it has to lie between 0 and 1"):
        prepare_shards(Texts("abc", "def"), LETTERS, tmp_path, val_fraction=val_fraction)


def test_an_unknown_character_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match=r"character 'X' \(U\+0058\) at position 4 is not among the 29 characters"):
        prepare_shards(Texts("abc", "defgX"), LETTERS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_binary_file_leaves_nothing_behind(tmp_path):
    (tmp_path / "image.txt").write_bytes(b"some text first\n" + bytes(range(256)))
    with pytest.raises(ValueError, match=r"image\.txt is no UTF-8 text"):
        prepare_shards(TextFiles(tmp_path / "image.txt"), LETTERS, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_files_whole(tmp_path, monkeypatch, failing):
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
def test_memory_does_not_grow_with_the_text(tmp_path, separator):
    paths = []
    for lines in (20_000, 120_000):
        paths.append(tmp_path / f"{lines}.txt")
        paths[-1].write_text(("a story of no great worth told for its length. " * 4 + "\n" + separator) * lines)
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (few, before), (many, after) = (map(float, line.split()) for line in said)
    assert few > 3.5e6
    assert many > 21e6  # 22 MB of text, 44 MB of tokens in the file, 176 MB as a list
    assert after - before < 6  # MB


def test_real_stories_survive(tmp_path):
    corpus = StoryCorpus(seed=4, size=60_000)
    tokenizer = BPETokenizer.train(corpus.text(), 400)
    train, val = prepare_shards(corpus, tokenizer, tmp_path)
    text = tokenizer.decode([*train.tokens.tolist(), *val.tokens.tolist()])
    assert text == "".join("".join(document) + "<|endoftext|>" for document in corpus.documents())
    assert re.match(r"[A-Z\"]", tokenizer.decode(val.tokens[:20].tolist()))
