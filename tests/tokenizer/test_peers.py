"""Ids, texts and special tokens equal those of ``transformers.AutoTokenizer`` for every kind of folder."""

import json
import random
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

from gptladder.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    OfflineError,
    PipelineTokenizer,
    Tokenizer,
    load_tokenizer,
)

pytest.importorskip("transformers")

import transformers
from transformers import AutoTokenizer

from .drawn import texts
from .folders import FOLDERS, byte_level, model_config

# transformers 5 overlooks an `additional_special_tokens` of `special_tokens_map.json` when it takes special tokens as
# text, and would make it a token for anyone who writes it; transformers 4 and we do not.
OVERLOOKED = {"v4_slow": ("<|user|>",)}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param) / request.param
    made.mkdir()
    try:
        FOLDERS[request.param](made)
    except OfflineError:
        pytest.skip("GPT-2's vocabulary is not here: neither TIKTOKEN_CACHE_DIR nor a shared folder")
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def saved_again(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    again = tmp_path_factory.mktemp("again")
    ours.save(again, max_length=77)
    model_config(again)
    return again


@pytest.fixture(scope="module")
def theirs_again(saved_again: Path) -> Any:
    return AutoTokenizer.from_pretrained(saved_again)


@pytest.fixture(scope="module")
def overlooked(folder: Path) -> tuple[str, ...]:
    return OVERLOOKED.get(folder.name, ())


def ids_of(encode: Callable[[str], list[int]], text: str) -> list[int] | str:
    """Return the ids, or "refused" if the vocabulary has a character for which there is none."""
    try:
        return encode(text)
    except Exception:
        return "refused"


def differences(ours: Tokenizer, theirs: Any, drawn: list[str], overlooked: tuple[str, ...]) -> list[str]:
    """Return the texts whose ids are not transformers', special tokens in them read as tokens or as text."""
    different = []
    for text in drawn:
        tokens = ids_of(lambda text: ours.encode(text, allow_special=True), text)
        as_text = ids_of(ours.encode, text)
        if tokens != ids_of(lambda text: theirs(text, split_special_tokens=False)["input_ids"], text) or (
            as_text != ids_of(lambda text: theirs(text, split_special_tokens=True)["input_ids"], text)
            and not any(token in text for token in overlooked)
        ):
            different.append(text)
    return different


def test_ids_equal_those_of_transformers(ours: Tokenizer, theirs: Any, overlooked: tuple[str, ...]) -> None:
    drawn = texts(120, 0)
    assert differences(ours, theirs, drawn, overlooked) == []
    assert len({tuple(ids_of(ours.encode, text)) for text in drawn}) > 60  # the texts tell vocabularies apart


@pytest.mark.slow
def test_ids_equal_on_10_000_texts(ours: Tokenizer, theirs: Any, overlooked: tuple[str, ...]) -> None:
    assert differences(ours, theirs, texts(10_000, 1), overlooked) == []


LONG = ["a" * 3000, " " * 2000 + "x", "\n" * 999, "🙂" * 500, "é\u0301" * 400, "<|" * 500]


def test_long_runs_equal_those_of_transformers(ours: Tokenizer, theirs: Any) -> None:
    assert differences(ours, theirs, LONG, ()) == []


def test_a_saved_copy_has_the_same_ids(
    ours: Tokenizer, theirs: Any, theirs_again: Any, overlooked: tuple[str, ...]
) -> None:
    assert differences(ours, theirs_again, texts(60, 0), overlooked) == []
    for text in texts(60, 0):  # with the defaults for special tokens, too
        if not any(token in text for token in overlooked):
            assert ids_of(lambda text: theirs_again(text)["input_ids"], text) == ids_of(
                lambda text: theirs(text)["input_ids"], text
            )


def test_special_tokens_survive_the_round_trip(
    ours: Tokenizer, theirs: Any, saved_again: Path, theirs_again: Any
) -> None:
    if theirs.eos_token_id is not None:  # else ours may be an <|endoftext|> that the folder gives no role
        assert ours.eot_id == theirs.eos_token_id
    assert (ours.bos_id, ours.pad_id) == (theirs.bos_token_id, theirs.pad_token_id)
    assert ours.n_vocab == max(theirs.get_vocab().values()) + 1
    for copy in (load_tokenizer(saved_again), load_tokenizer(theirs_again)):
        assert (type(copy), copy.fingerprint) == (type(ours), ours.fingerprint)
        assert (copy.eot_id, copy.bos_id, copy.pad_id) == (ours.eot_id, ours.bos_id, ours.pad_id)
        assert (copy.n_vocab, copy.model_max_length) == (ours.n_vocab, 77)
    assert (theirs_again.eos_token_id, theirs_again.bos_token_id) == (ours.eot_id, ours.bos_id)
    assert (theirs_again.pad_token_id, theirs_again.model_max_length) == (ours.pad_id, 77)


def test_a_saved_copy_suits_transformers_4_too(saved_again: Path) -> None:
    # Version 4 takes a list of tokens under another name, and `add_prefix_space` from this file.
    config = json.loads((saved_again / "tokenizer_config.json").read_text(encoding="utf-8"))
    words = json.loads((saved_again / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"] or {}
    assert not isinstance(config.get("extra_special_tokens"), list)
    if words.get("type") == "ByteLevel":
        assert config["add_prefix_space"] == words["add_prefix_space"]


def test_text_equals_that_of_transformers(ours: Tokenizer, theirs: Any) -> None:
    draw = random.Random(0)
    for text in texts(60, 2):
        ids = ids_of(lambda text: ours.encode(text, allow_special=True), text)
        for some in (ids, [draw.randrange(ours.n_vocab) for _ in range(9)]):
            if not isinstance(some, str):
                assert ours.decode(some) == theirs.decode(some, clean_up_tokenization_spaces=False)


def test_streaming_equals_encoding_whole(ours: Tokenizer) -> None:
    draw = random.Random(0)
    for text in texts(150, 3):
        cuts = sorted(draw.randint(0, len(text)) for _ in range(draw.randint(0, 8)))
        pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]

        def streamed(text: str, pieces: list[str] = pieces) -> list[int]:
            return list(chain.from_iterable(ours.encode_stream(pieces)))

        assert ids_of(streamed, text) == ids_of(ours.encode, text)


def test_a_document_ends_once(ours: Tokenizer) -> None:
    body = ours.encode("the cat", allow_special=False) if not isinstance(ids_of(ours.encode, "the cat"), str) else []
    document = list(chain.from_iterable(ours.encode_document(["the", " cat"])))
    if ours.eot_id is None:
        assert document == body
    else:
        assert document == [*(i for i in body if i != ours.eot_id), ours.eot_id]


def test_text_decoded_as_it_comes_equals_that_of_the_whole(ours: Tokenizer) -> None:
    draw = random.Random(0)
    for text in texts(60, 4):
        for some in (ids_of(ours.encode, text), [draw.randrange(ours.n_vocab) for _ in range(20)]):
            if not isinstance(some, str):
                decoder = ours.text_decoder()
                pieces = [decoder.push(token) for token in some]
                assert "".join(pieces) + decoder.finish() == ours.decode(some)


def test_a_tokenizer_of_transformers_is_taken_as_it_is(theirs: Any) -> None:
    assert differences(load_tokenizer(theirs), theirs, texts(40, 5), ("<|user|>",)) == []


def test_a_tokenizer_of_the_tokenizers_package_is_taken(theirs: Any) -> None:
    ours = load_tokenizer(theirs.backend_tokenizer)
    for text in texts(40, 6):
        assert ids_of(lambda text: ours.encode(text, allow_special=True), text) == ids_of(
            lambda text: theirs(text, split_special_tokens=False)["input_ids"], text
        )


CLASSES = {
    "bytes": ["GPT2", "GPTNeoX", "Roberta", "CodeGen", "Llama", "Gemma", "Qwen2", "OpenAIGPT", "Whisper", "CLIP"],
    "pieces": ["XGLM", "T5"],
    "words": ["Bert"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CLASSES.items() for name in names])
def test_folders_of_other_classes_have_the_ids_of_transformers(kind: str, name: str, tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    if kind == "bytes":
        special = ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>")
        model = json.loads(byte_level(special=special).to_str())["model"]
        vocabulary = {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}
    elif kind == "pieces":
        names = ["<s>", "<pad>", "</s>", "<unk>", "▁"]
        vocabulary = {"vocab": [*((piece, 0.0) for piece in names), *((letter, -3.0) for letter in letters)]}
    else:
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        vocabulary = {"vocab": {piece: i for i, piece in enumerate(names)}}
    getattr(transformers, f"{name}Tokenizer")(**vocabulary).save_pretrained(tmp_path)
    model_config(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert differences(ours, theirs, texts(100, 8), ()) == []


# The vocabularies that tiktoken runs, ten times as fast.
BY_TIKTOKEN = {
    *("gpt2_ours", "gpt2_published", "published_whole", "fast_added"),
    *("bpe_ours", "bpe_chinese", "bpe_mixed_older", "v4_slow", "v4_fast", "v5_again"),
}


def test_tiktoken_runs_what_it_can_and_nothing_else(ours: Tokenizer, folder: Path) -> None:
    by_characters = folder.name in ("characters", "characters_again")
    by_tiktoken = folder.name in BY_TIKTOKEN
    expected = CharTokenizer if by_characters else BPETokenizer if by_tiktoken else PipelineTokenizer
    assert type(ours) is expected
