import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptladder.tokenizer import END_OF_TEXT, OfflineError
from gptladder.training.data import corpus as module
from gptladder.training.data.corpus import Corpus, StoryCorpus, TextFiles, open_corpus, tinystories
from gptladder.training.data.stories import story

SHARED = Path(__file__).parents[3].parent / "shared"
TWO_STORIES = f"One day.\n\nA cat sat.\n{END_OF_TEXT}\n\nTwo dogs ran.\n{END_OF_TEXT}\n"


def read(corpus: Corpus) -> list[str]:
    return ["".join(document) for document in corpus.documents()]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 5)


def written(folder: Path, text: str | bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Files


def test_a_file_without_separators_is_one_document_unchanged(tmp_path):
    text = "\n\n  Two blank lines, \ttabs, ünï 🙂.\n\n\nThe end. \n\n"
    assert read(TextFiles(written(tmp_path, text))) == [text]


@pytest.mark.parametrize("name", ["the-verdict.txt", "tinyshakespeare.txt", "tinystories_excerpt.txt"])
def test_real_text_is_read_as_python_reads_it(name):
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    assert read(TextFiles(path)) == [path.read_text(encoding="utf-8")]


def test_tinystories_are_separated(tmp_path):
    assert read(TextFiles(written(tmp_path, TWO_STORIES))) == ["One day.\n\nA cat sat.", "Two dogs ran."]


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
def test_what_separates(tmp_path, text, documents):
    assert read(TextFiles(written(tmp_path, text))) == documents


PIECES = ["\n", "\r\n", "\r", "a", "é", "🙂", "<", "<|end", "|>", END_OF_TEXT, "words and "]
TEXTS = st.lists(st.sampled_from(PIECES)).map("".join)


@example("\n" * 20 + "a")
@example("a\r\r\n" + END_OF_TEXT + "\r\n\r\nb")
@given(text=TEXTS)
def test_where_blocks_end_makes_no_difference(tmp_path_factory, text):
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
            if expected:
                assert read(TextFiles(path)) == expected
            elif text:
                with pytest.raises(ValueError, match=r"text\.txt holds no text"):
                    read(TextFiles(path))


def test_a_document_need_not_be_read_to_its_end(tmp_path, small_blocks):
    text = END_OF_TEXT.join("abcdefghij" * n for n in (3, 5, 2))
    documents = TextFiles(written(tmp_path, text)).documents()
    assert next(next(documents)) == "abcde"
    assert "".join(next(documents)) == "abcdefghij" * 5
    next(documents)
    assert next(documents, None) is None


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", "ignored.md"):
        written(tmp_path, f"{name} {END_OF_TEXT} again", name)
    documents = read(TextFiles(tmp_path))
    assert documents == ["a.txt ", " again", "b.txt ", " again", "sub/c.txt ", " again"]
    assert list(TextFiles(tmp_path).text()) == documents


def test_byte_order_mark_and_line_ends_are_normalised(tmp_path, small_blocks):
    assert read(TextFiles(written(tmp_path, b"\xef\xbb\xbfa\r\nb\rc\n\r\n"))) == ["a\nb\nc\n\n"]


def test_memory_does_not_grow_with_the_file(tmp_path):
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


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"text\.txt is empty"),
        (b"\n\n" + END_OF_TEXT.encode() + b"\n", r"text\.txt holds no text"),
        (b"PNG\r\n\x1a\n\0\0\0\rIHDR", r"text\.txt is no UTF-8 text: byte 7 is zero"),
        (b"caf\xe9 au lait", r"text\.txt is no UTF-8 text: invalid continuation byte at byte 3; save it as UTF-8"),
        (b"abcd\xf0\x9f\x99", r"text\.txt is no UTF-8 text: unexpected end of data at byte 4"),
        ("UTF-16".encode("utf-16"), r"text\.txt is no UTF-8 text: (invalid start byte at byte 0|byte 3 is zero); save"),
        ("a🙂b".encode() + b"\xff", r"text\.txt is no UTF-8 text: invalid start byte at byte 6"),
        (b"\xef\xbb\xbfabc\xff", r"text\.txt is no UTF-8 text: invalid start byte at byte 6"),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 5, 1 << 20])
def test_what_is_no_text_is_refused_by_name_and_place(tmp_path, monkeypatch, data, said, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    with pytest.raises(ValueError, match=said):
        read(TextFiles(written(tmp_path, data)))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file or folder .*nothing\.txt"):
        TextFiles(tmp_path / "nothing.txt")
    written(tmp_path, "text", "notes.md")
    with pytest.raises(ValueError, match=r"is a folder without any \.txt file"):
        TextFiles(tmp_path)
    written(tmp_path, "", "empty.txt")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        TextFiles(tmp_path)


# A fraction


def test_a_fraction_ends_with_a_document(tmp_path):
    stories = [story(0, i) for i in range(200)]
    path = written(tmp_path, f"\n{END_OF_TEXT}\n".join(stories))
    for fraction in (1e-9, 0.1, 0.5, 0.75, 0.99):
        some = read(TextFiles(path, fraction=fraction))
        assert some == stories[: len(some)]
        share = sum(map(len, some)) / sum(map(len, stories))
        assert fraction - 0.01 < share < fraction + 0.01
    assert read(TextFiles(path)) == stories


def test_a_fraction_of_one_document_ends_with_a_line_or_else_a_word(tmp_path):
    assert read(TextFiles(written(tmp_path, "ünï\n" * 10), fraction=0.52)) == ["ünï\n" * 6]
    assert read(TextFiles(written(tmp_path, "ünï " * 10), fraction=0.52)) == ["ünï " * 6]
    assert read(TextFiles(written(tmp_path, "ünï" * 10), fraction=0.52)) == ["ünï" * 10]


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_a_fraction_outside_its_range_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match="the fraction of the text to read is"):
        TextFiles(written(tmp_path, "text"), fraction=fraction)


# Records


def test_the_record_knows_the_same_text_again(tmp_path):
    text = "\n".join(f"line {i}" for i in range(1000))
    record = TextFiles(written(tmp_path, text)).record()
    assert TextFiles(written(tmp_path, text, "copy.txt")).record().sha256 == record.sha256
    os.utime(tmp_path / "copy.txt", (0, 0))
    assert TextFiles(tmp_path / "copy.txt").record().sha256 == record.sha256
    assert TextFiles(written(tmp_path, text + ".")).record().sha256 != record.sha256
    assert TextFiles(tmp_path / "copy.txt", fraction=0.5).record().sha256 != record.sha256
    assert (record.source, record.note) == (str(tmp_path / "text.txt"), "")
    assert TextFiles(tmp_path / "copy.txt", fraction=0.5).record().source.endswith("copy.txt, the first 0.5 of it")


def test_the_record_tells_where_files_end(tmp_path):
    for name, texts in (("one", ["ab", "c"]), ("two", ["a", "bc"])):
        (tmp_path / name).mkdir()
        for i, text in enumerate(texts):
            written(tmp_path / name, text, f"{i}.txt")
    assert TextFiles(tmp_path / "one").record().sha256 != TextFiles(tmp_path / "two").record().sha256


def test_the_record_of_stories_tells_seed_and_size():
    hashes = {StoryCorpus(seed=seed, size=size).record().sha256 for seed in (0, 1) for size in (1000, 2000)}
    assert len(hashes) == 4
    record = StoryCorpus(seed=5, size=2_000_000).record()
    assert record.source == "generated stories, seed 5, 2,000,000 bytes"
    assert record == StoryCorpus(seed=5, size=2_000_000).record()


def test_a_change_to_the_grammar_shows(monkeypatch):
    before = StoryCorpus(size=1000).record().sha256
    monkeypatch.setattr(module, "stories", lambda seed: iter([f"another story {i}" for i in range(200)]))
    assert StoryCorpus(size=1000).record().sha256 != before


# Stories


def test_stories_make_up_the_size():
    documents = read(StoryCorpus(seed=3, size=50_000))
    assert documents == [story(3, i) for i in range(len(documents))]
    size = sum(len(text.encode()) for text in documents)
    assert size - len(documents[-1]) < 50_000 <= size


def test_no_stories_are_refused():
    with pytest.raises(ValueError, match="0 bytes of stories were asked for; it has to be at least 1"):
        StoryCorpus(size=0)


# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    body = TWO_STORIES.encode()
    asked: list[str]

    def do_HEAD(self) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c0ffee" + "0" * 34)
        self.send_header("ETag", '"1234"')
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_tinystories_are_fetched_once(hub, tmp_path):
    corpus = tinystories(cache_dir=tmp_path, endpoint=hub)
    assert read(corpus) == ["One day.\n\nA cat sat.", "Two dogs ran."]
    assert f"GET /datasets/roneneldan/TinyStories/resolve/main/TinyStories-train.txt" in Hub.asked  # noqa: F541
    source = "roneneldan/TinyStories, TinyStories-train.txt, revision c0ffee" + "0" * 34
    assert corpus.record().source == source
    Hub.asked.clear()
    again = tinystories(cache_dir=tmp_path, endpoint=hub, fraction=0.2)
    assert (Hub.asked, read(again)) == ([], ["One day.\n\nA cat sat."])
    assert again.record().source == source + ", the first 0.2 of it"


def test_a_hub_that_refuses_is_offline(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        OfflineError, match=rf"not in the hub's cache and http://127\.0\.0\.1:{port}/\S+ does not answer"
    ):
        tinystories(cache_dir=tmp_path, endpoint=f"http://127.0.0.1:{port}")


def test_a_hub_that_never_answers_is_offline(silent_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_TO_ANSWER", 0.3)
    began = time.monotonic()
    with pytest.raises(OfflineError, match="does not answer"):
        tinystories(cache_dir=tmp_path, endpoint=silent_hub)
    assert time.monotonic() - began < 5


def test_a_download_that_breaks_off_is_no_reason_to_make_stories_up(hub, tmp_path, monkeypatch):
    import huggingface_hub

    fetch = huggingface_hub.hf_hub_download

    def breaks_off(*args: object, local_files_only: bool = False, **kwargs: object) -> str:
        if local_files_only:
            return fetch(*args, local_files_only=True, **kwargs)
        raise OSError("peer closed the connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", breaks_off)
    with pytest.raises(ConnectionError, match=r"broke off \(peer closed the connection\); run it again") as caught:
        tinystories(cache_dir=tmp_path, endpoint=hub)
    assert not isinstance(caught.value, OfflineError)


def test_without_a_hub_stories_are_generated_and_the_record_says_so(monkeypatch):
    def offline(**kwargs: object) -> TextFiles:
        raise OfflineError("nobody answers")

    monkeypatch.setattr(module, "tinystories", offline)
    corpus = open_corpus("tinystories", seed=9, size=5000)
    assert read(corpus) == read(StoryCorpus(seed=9, size=5000))
    record = corpus.record()
    assert record.note == "nobody answers; stories are generated on this machine instead"
    assert record.sha256 == StoryCorpus(seed=9, size=5000).record().sha256


def test_two_hosts_are_given_up_within_ten_seconds():
    assert 2 * module._SECONDS_TO_ANSWER < 10


def test_a_corpus_goes_by_its_name(tmp_path, monkeypatch):
    assert read(open_corpus("stories", seed=2, size=3000)) == read(StoryCorpus(seed=2, size=3000))
    path = written(tmp_path, TWO_STORIES)
    assert read(open_corpus(str(path))) == ["One day.\n\nA cat sat.", "Two dogs ran."]
    assert read(open_corpus(str(path), fraction=0.1)) == ["One day.\n\nA cat sat."]
    asked = []
    monkeypatch.setattr(module, "tinystories", lambda **kwargs: asked.append(kwargs))
    open_corpus("tinystories", fraction=0.75)
    assert asked == [{"fraction": 0.75}]
    with pytest.raises(ValueError, match="there is no file or folder shakespeare"):
        open_corpus("shakespeare")
