"""`load_tokenizer` finds a tokenizer by whatever the user calls it."""

import pickle
from pathlib import Path

import huggingface_hub.constants
import pytest
from tokenizers import ByteLevelBPETokenizer

from gptladder.tokenizer import BPETokenizer, CharTokenizer, OfflineError, load_tokenizer


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one model, whose files are links as the hub's package makes them, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--someone--small"
    snapshot = model / "snapshots" / ("a" * 40)
    CharTokenizer("abc").save(model / "blobs")
    snapshot.mkdir(parents=True)
    for file in (model / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    return tmp_path


@pytest.mark.usefixtures("hub_cache")
def test_a_name_on_the_hub_is_found_in_the_cache() -> None:
    assert load_tokenizer("someone/small").fingerprint == CharTokenizer("abc").fingerprint


@pytest.mark.usefixtures("hub_cache")
def test_a_name_that_is_not_in_the_cache_is_reported_in_one_line() -> None:
    with pytest.raises(OfflineError, match="the tokenizer of someone/else is neither in the hub's cache nor") as caught:
        load_tokenizer("someone/else")
    assert "\n" not in str(caught.value)


def test_a_run_s_folder_has_its_tokenizer_beside_the_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "gptladder-run"}')
    CharTokenizer("abc").save(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path).n_vocab == 3
    assert load_tokenizer(tmp_path / "tokenizer" / "tokenizer.json").n_vocab == 3


def test_gpt2_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        gpt2 = BPETokenizer.gpt2()
    except OfflineError:
        pytest.skip("GPT-2's vocabulary is not here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()  # an empty folder of that name is no tokenizer
    for name in ("gpt2", "openai-community/gpt2", "distilgpt2"):
        assert load_tokenizer(name).fingerprint == gpt2.fingerprint
    CharTokenizer("abc").save(tmp_path / "gpt2")
    assert load_tokenizer("gpt2").n_vocab == 3


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    CharTokenizer("abc").save(tmp_path / "mine")
    assert load_tokenizer("~/mine").n_vocab == 3


def test_ours_is_returned_as_it_is() -> None:
    tokenizer = CharTokenizer("abc")
    assert load_tokenizer(tokenizer) is tokenizer


def test_the_package_s_ready_made_tokenizers_are_taken() -> None:
    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator(["the cat sat on the mat"] * 9, vocab_size=270, show_progress=False)
    text = "the cat's mat\n 狐"
    assert load_tokenizer(theirs).encode(text) == theirs.encode(text).ids


def test_files_of_an_older_tokenizer_do_not_mix_with_a_new_one(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, content in (("added_tokens.json", '{"abc": 3}'), ("special_tokens_map.json", '{"eos_token": "abc"}')):
        (tmp_path / name).write_text(content)
    CharTokenizer("abc").save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("abc")["input_ids"] == [0, 1, 2]


def test_the_characters_of_nanogpt_are_read(tmp_path: Path) -> None:
    characters = sorted(set("Zwei Füchse\n"))
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": {}}
    meta["stoi"] = {character: i for i, character in enumerate(characters)}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
        for source in (tmp_path, tmp_path / "meta.pkl", str(tmp_path / "meta.pkl")):
            assert load_tokenizer(source).fingerprint == CharTokenizer(characters).fingerprint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"stoi": {"a": 0, "b": 1}})[:-8],
        pickle.dumps([1]),
        pickle.dumps({"itos": {0: "a"}}),
        pickle.dumps({"stoi": {"a": 0, "b": 2}}),
        pickle.dumps({"stoi": {"ab": 0}}),
        pickle.dumps({"stoi": {}}),
        pickle.dumps({"stoi": {"a": 0, "\ud800": 1}}),
        pickle.dumps({"stoi": {"a": 0}, "path": Path("x")}),
        b"cos\nsystem\n(S'touch owned'\ntR.",
        b"\x80\x02}r\xff\xff\xff\x7f.",
    ],
)
def test_what_is_no_file_of_characters_is_refused(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"meta\.pkl: "):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_file_is_not_reported_as_missing(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a")
    with pytest.raises(ValueError, match=r"words\.txt: it is a file, so it has neither"):
        load_tokenizer(tmp_path / "words.txt")
