"""Corpora: the documents of files and of generated stories, parts of them, and the records that recognise a text."""

import os
import tracemalloc
from pathlib import Path

import pytest

from gptladder.tokenizer import END_OF_TEXT, OfflineError
from gptladder.training.data import corpus as module
from gptladder.training.data.corpus import Corpus, StoryCorpus, TextFiles, open_corpus
from gptladder.training.data.stories import story

SHARED = Path(__file__).parents[3].parent / "shared"
TWO_STORIES = f"One day.\n\nA cat sat.\n{END_OF_TEXT}\n\nTwo dogs ran.\n{END_OF_TEXT}\n"


def read(corpus: Corpus) -> list[str]:
    return ["".join(document) for document in corpus.documents()]


def written(folder: Path, text: str | bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Files


@pytest.mark.parametrize("name", ["the-verdict.txt", "tinyshakespeare.txt", "tinystories_excerpt.txt"])
def test_real_text_is_read_as_python_reads_it(name: str) -> None:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    assert read(TextFiles(path)) == [path.read_text(encoding="utf-8")]


def test_tinystories_are_separated(tmp_path: Path) -> None:
    assert read(TextFiles(written(tmp_path, TWO_STORIES))) == ["One day.\n\nA cat sat.", "Two dogs ran."]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.md", "ignored.py"):
        written(tmp_path, f"{name} {END_OF_TEXT} again", name)
    documents = read(TextFiles(tmp_path))
    assert documents == ["a.txt ", " again", "b.txt ", " again", "sub/c.md ", " again"]
    assert list(TextFiles(tmp_path).text()) == documents


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_beginning_is_a_share_of_the_characters(tmp_path: Path, share: float) -> None:
    for name, length in (("a.txt", 7), ("b.txt", 31), ("c.txt", 2)):
        written(tmp_path, "é" * length, name)
    corpus = TextFiles(tmp_path)
    assert corpus.length() == 40
    assert "".join(corpus.beginning(share)) == "".join(corpus.text())[: round(40 * share)]


def test_the_beginning_of_stories_is_a_share_of_the_size() -> None:
    corpus = StoryCorpus(size=50_000)
    assert "".join(corpus.beginning(0.9)) == "".join(corpus.text())[:45_000]


def test_several_paths_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        written(tmp_path, name, name)
    corpus = open_corpus((str(tmp_path / "b.txt"), str(tmp_path / "sub"), str(tmp_path / "a.txt")))
    assert read(corpus) == ["b.txt", "sub/c.txt", "a.txt"]
    assert corpus.record().source == f"{tmp_path}/b.txt, {tmp_path}/sub, {tmp_path}/a.txt"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        path = written(tmp_path, b"It was a short line of a very long document.\n" * (megabytes * 22_000))
        tracemalloc.start()
        count = sum(len(piece) for piece in TextFiles(path).text())
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == megabytes * 22_000 * 45
        return used

    small, large = peak(4), peak(20)
    assert large < small + 500_000
    assert large < 12_000_000


# A fraction


def test_a_fraction_ends_with_a_document(tmp_path: Path) -> None:
    stories = [story(0, i) for i in range(200)]
    path = written(tmp_path, f"\n{END_OF_TEXT}\n".join(stories))
    for fraction in (1e-9, 0.1, 0.5, 0.75, 0.99):
        some = read(TextFiles(path, fraction=fraction))
        assert some == stories[: len(some)]
        share = sum(map(len, some)) / sum(map(len, stories))
        assert fraction - 0.01 < share < fraction + 0.01
    assert read(TextFiles(path)) == stories


def test_a_fraction_of_one_document_ends_with_a_line_or_else_a_word(tmp_path: Path) -> None:
    assert read(TextFiles(written(tmp_path, "ünï\n" * 10), fraction=0.52)) == ["ünï\n" * 6]
    assert read(TextFiles(written(tmp_path, "ünï " * 10), fraction=0.52)) == ["ünï " * 6]
    assert read(TextFiles(written(tmp_path, "ünï" * 10), fraction=0.52)) == ["ünï" * 10]


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_a_fraction_outside_its_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match="the fraction of the text to read is"):
        TextFiles(written(tmp_path, "text"), fraction=fraction)


def test_a_fraction_of_records_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, '{"text": "a"}', "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl: --fraction takes a part of plain text files only"):
        TextFiles(path, fraction=0.5)


# Records


def test_the_record_recognises_the_same_text(tmp_path: Path) -> None:
    text = "\n".join(f"line {i}" for i in range(1000))
    record = TextFiles(written(tmp_path, text)).record()
    assert TextFiles(written(tmp_path, text, "copy.txt")).record().sha256 == record.sha256
    os.utime(tmp_path / "copy.txt", (0, 0))
    assert TextFiles(tmp_path / "copy.txt").record().sha256 == record.sha256
    assert TextFiles(written(tmp_path, text + ".")).record().sha256 != record.sha256
    assert TextFiles(tmp_path / "copy.txt", fraction=0.5).record().sha256 != record.sha256
    assert (record.source, record.note) == (str(tmp_path / "text.txt"), "")
    assert TextFiles(tmp_path / "copy.txt", fraction=0.5).record().source.endswith("copy.txt, the first 0.5 of it")


def test_the_record_depends_on_where_files_end(tmp_path: Path) -> None:
    for name, texts in (("one", ["ab", "c"]), ("two", ["a", "bc"])):
        for i, text in enumerate(texts):
            written(tmp_path / name, text, f"{i}.txt")
    assert TextFiles(tmp_path / "one").record().sha256 != TextFiles(tmp_path / "two").record().sha256


def test_the_record_depends_on_how_a_file_is_read(tmp_path: Path) -> None:
    line = '{"text": "a"}\n'
    paths = [written(tmp_path, line, name) for name in ("a.txt", "a.jsonl")]
    hashes = {TextFiles(path).record().sha256 for path in paths} | {
        TextFiles(paths[0], encoding="cp1252").record().sha256
    }
    assert len(hashes) == 3


def test_the_record_of_stories_depends_on_seed_and_size() -> None:
    hashes = {StoryCorpus(seed=seed, size=size).record().sha256 for seed in (0, 1) for size in (1000, 2000)}
    assert len(hashes) == 4
    record = StoryCorpus(seed=5, size=2_000_000).record()
    assert record.source == "generated stories, seed 5, 2,000,000 bytes"
    assert record == StoryCorpus(seed=5, size=2_000_000).record()


def test_a_change_to_the_grammar_changes_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    before = StoryCorpus(size=1000).record().sha256
    monkeypatch.setattr(module, "stories", lambda seed: iter([f"another story {i}" for i in range(200)]))
    assert StoryCorpus(size=1000).record().sha256 != before


# Stories


def test_stories_make_up_the_size() -> None:
    documents = read(StoryCorpus(seed=3, size=50_000))
    assert documents == [story(3, i) for i in range(len(documents))]
    size = sum(len(text.encode()) for text in documents)
    assert size - len(documents[-1]) < 50_000 <= size


def test_no_stories_are_refused() -> None:
    with pytest.raises(ValueError, match="0 bytes of stories were asked for; it must be at least 1"):
        StoryCorpus(size=0)


def test_without_a_hub_stories_are_generated_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**kwargs: object) -> TextFiles:
        raise OfflineError("no answer")

    monkeypatch.setattr(module, "tinystories", offline)
    corpus = open_corpus("tinystories", seed=9, size=5000)
    assert read(corpus) == read(StoryCorpus(seed=9, size=5000))
    record = corpus.record()
    assert record.note == "no answer; stories are generated on this machine instead"
    assert record.sha256 == StoryCorpus(seed=9, size=5000).record().sha256


def test_a_corpus_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(open_corpus("stories", seed=2, size=3000)) == read(StoryCorpus(seed=2, size=3000))
    path = written(tmp_path, TWO_STORIES)
    assert read(open_corpus(str(path))) == ["One day.\n\nA cat sat.", "Two dogs ran."]
    assert read(open_corpus(str(path), fraction=0.1)) == ["One day.\n\nA cat sat."]
    asked: list[object] = []
    monkeypatch.setattr(module, "tinystories", lambda **kwargs: asked.append(kwargs))
    open_corpus("tinystories", fraction=0.75)
    assert asked == [{"fraction": 0.75}]
    with pytest.raises(ValueError, match="there is no file or folder shakespeare"):
        open_corpus("shakespeare")
