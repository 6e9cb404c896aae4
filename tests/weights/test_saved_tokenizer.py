"""`save_pretrained` writes the model's tokenizer: every reader of the folder gets the same ids from the same text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from gptladder import GPT2, GPT2Config
from gptladder.sampling import SamplingParams, generate
from gptladder.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, load_tokenizer
from gptladder.training.metrics import Metrics
from gptladder.training.model_folders import write_model
from gptladder.training.presets import PRESETS
from gptladder.weights import WeightsError, from_pretrained
from gptladder.weights.convert import convert

TEXT = "a cat, a bad cab"
WEIGHTS_ALONE = {"config.json", "model.safetensors"}


def made(tokenizer: Any = None, d_vocab: int = 300) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(d_model=16, n_layers=1, n_heads=2, d_vocab=d_vocab, n_ctx=24, init_range=0.3)).eval()
    model.tokenizer = tokenizer
    return model


def words() -> Backend:
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(("?", "a", "cat", "bad", "cab", ","))}, "?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>"])
    return backend


KINDS: dict[str, Callable[[], Any]] = {
    "byte pairs": lambda: BPETokenizer.train([TEXT * 3], 270),
    "characters": lambda: CharTokenizer("abcdt ,"),
    "characters with an end": lambda: CharTokenizer("abcdt ,", end_of_text=True),
    "words": words,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_of_the_folder_gets_the_same_ids(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = made(KINDS[kind]())
    model.save_pretrained(tmp_path / "model")
    ids = model.to_tokens(TEXT, prepend_bos=False).tolist()
    again = from_pretrained(tmp_path / "model")
    assert again.to_tokens(TEXT, prepend_bos=False).tolist() == ids
    assert torch.equal(again(TEXT), model(TEXT))
    assert again.to_tokens(TEXT).tolist() == model.to_tokens(TEXT).tolist()  # with the token that begins a text
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs(TEXT)["input_ids"] == ids[0]
    assert theirs.model_max_length == 24
    hf: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.tokenizer is not None
    assert hf.config.eos_token_id == hf.generation_config.eos_token_id == model.tokenizer.eot_id
    text = generate(again, TEXT, SamplingParams(temperature=0), max_new_tokens=5)[0].text
    assert text == generate(model, TEXT, SamplingParams(temperature=0), max_new_tokens=5)[0].text
    again.save_pretrained(tmp_path / "again")
    assert parsed(tmp_path / "again") == parsed(tmp_path / "model")


def parsed(folder: Path) -> dict[str, Any]:
    """The files of a folder; the order of JSON's fields does not count."""
    files = contents(folder)
    return {name: json.loads(content) if name.endswith(".json") else content for name, content in files.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_a_tokenizer_the_weights_alone_are_written(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path / "model")
    assert contents(tmp_path / "model").keys() == WEIGHTS_ALONE
    model = made(CharTokenizer("abc"))
    model.tokenizer = None
    model.save_pretrained(tmp_path / "alone")
    assert contents(tmp_path / "alone") == contents(tmp_path / "model")


def test_files_of_another_tokenizer_go_and_other_files_stay(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json", "notes.txt"):
        (tmp_path / name).write_text("{}")
    made(CharTokenizer("abc")).save_pretrained(tmp_path)
    assert contents(tmp_path).keys() == {
        *WEIGHTS_ALONE, "generation_config.json", "notes.txt", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert load_tokenizer(tmp_path).encode("cab") == [2, 0, 1]
    made(CharTokenizer("bac")).save_pretrained(tmp_path, overwrite=True)
    assert from_pretrained(tmp_path).to_tokens("cab").tolist() == [[2, 1, 0]]
    made().save_pretrained(tmp_path, overwrite=True)  # it has no tokenizer to put in the place of the one that is there
    assert load_tokenizer(tmp_path).encode("cab") == [2, 1, 0]


def test_a_tokenizer_that_has_gone_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    made(CharTokenizer("abc")).save_pretrained(tmp_path / "model")
    model = from_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(WeightsError, match=r"tokenizer cannot be read \(.*\); set model\.tokenizer to another one, or"):
        model.save_pretrained(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []
    model.tokenizer = None
    model.save_pretrained(tmp_path / "other")
    assert contents(tmp_path / "other").keys() == WEIGHTS_ALONE


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model = made(BPETokenizer.train([TEXT], 270), d_vocab=200)
    with pytest.raises(WeightsError, match="tokens for text, and the model has 200 rows for them; set model"):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    # A special token beyond the embedding is no obstacle: such folders are published, and no text turns into it.
    model = made(CharTokenizer("abc", end_of_text=True), d_vocab=3)
    model.save_pretrained(tmp_path / "model")
    assert from_pretrained(tmp_path / "model").to_tokens("cab").tolist() == [[2, 0, 1]]


def test_a_trained_model_is_written_with_the_tokenizer_of_its_run(tmp_path: Path) -> None:
    model = made(CharTokenizer("abc"))
    tokenizer = BPETokenizer.train([TEXT * 3], 270)
    facts = {"bytes_per_token": 1.0}
    write_model(
        tmp_path / "final", model, tokenizer, Metrics(step=1, epoch=1.0, tokens=9, val_loss=1.0),
        config=PRESETS["tinystories"], facts=facts,
    )  # fmt: skip
    read = from_pretrained(tmp_path / "final")
    assert read.tokenizer is not None
    assert read.tokenizer.fingerprint == tokenizer.fingerprint
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert config["eos_token_id"] == config["bos_token_id"] == tokenizer.token_id(END_OF_TEXT)


def test_a_saved_folder_is_converted_with_its_tokenizer(tmp_path: Path) -> None:
    made(CharTokenizer("abcdt ,", end_of_text=True)).save_pretrained(tmp_path / "model")
    result = convert(tmp_path / "model", tmp_path / "hooked", to="hooked")
    assert result.tokenizer == "its tokenizer"
    files = contents(tmp_path / "hooked")
    for name, content in contents(tmp_path / "model").items():
        assert name in WEIGHTS_ALONE or files[name] == content, name
