"""A model folder records where texts end, and transformers' pipeline works on it with no further argument."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.files import FileError
from gptladder.tokenizer import BPETokenizer, load_tokenizer
from gptladder.weights.generation import read_generation_config, write_generation_config

STORY = "Once upon a time there was a fox. The end."


def saved(folder: Path, *, n_ctx: int, updates: int) -> BPETokenizer:
    """Write a folder as training does: a small model that has learnt one story, or nothing."""
    tokenizer = BPETokenizer.train(STORY * 3, 280)
    torch.manual_seed(0)
    model = GPT2(GPT2Config(d_vocab=tokenizer.n_vocab, d_model=32, n_layers=1, n_heads=2, n_ctx=n_ctx))
    assert tokenizer.eot_id is not None
    # What follows the story's end is another story: a model that does not stop there goes on for ever.
    story = [*tokenizer.encode(STORY), tokenizer.eot_id]
    tokens = torch.tensor([(story * n_ctx)[:n_ctx]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(updates):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save(folder, max_length=n_ctx)
    ids = {"eos_id": tokenizer.eot_id, "bos_id": tokenizer.bos_id, "pad_id": tokenizer.pad_id}
    write_generation_config(folder, **ids, max_length=n_ctx)
    return tokenizer


def pipeline(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers.pipeline("text-generation", model=str(folder), device="cpu")


@pytest.mark.filterwarnings("ignore")  # transformers' own, about each other
@pytest.mark.parametrize("n_ctx", [20, 48])
def test_a_pipeline_with_no_further_argument_never_leaves_the_positions(n_ctx: int, tmp_path: Path) -> None:
    tokenizer = saved(tmp_path, n_ctx=n_ctx, updates=0)
    generate = pipeline(tmp_path)
    for length in (1, 5, n_ctx - 2, n_ctx - 1):
        found = generate("x" * length, return_tensors=True)[0]["generated_token_ids"]
        assert length < len(found) <= n_ctx
    assert len(generate("", return_tensors=True)[0]["generated_token_ids"]) <= n_ctx
    with pytest.raises(ValueError, match="max_length"):  # transformers names what is too long; no IndexError
        generate("x" * n_ctx)
    assert generate.tokenizer.model_max_length == n_ctx
    assert load_tokenizer(tmp_path).model_max_length == n_ctx
    assert tokenizer.eot_id == generate.model.config.eos_token_id == generate.model.generation_config.eos_token_id


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_ends_where_the_story_ends(tmp_path: Path) -> None:
    saved(tmp_path, n_ctx=96, updates=150)
    torch.manual_seed(0)
    generate = pipeline(tmp_path)
    for _ in range(4):
        assert generate("Once upon a time")[0]["generated_text"] == STORY


def test_the_ids_go_into_the_model_s_config_too(tmp_path: Path) -> None:
    GPT2(GPT2Config(d_vocab=9, d_model=8, n_layers=1, n_heads=1, n_ctx=4)).save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    write_generation_config(tmp_path, eos_id=7, bos_id=None, pad_id=8, max_length=4)
    after = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert after == {**before, "eos_token_id": 7, "bos_token_id": None, "pad_token_id": 8}
    assert read_generation_config(tmp_path) == {"eos_token_id": 7, "pad_token_id": 8, "max_length": 4}
    assert GPT2.from_pretrained(tmp_path).config.d_vocab == 9


def test_without_an_end_only_the_length_is_written(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    write_generation_config(tmp_path, eos_id=None, bos_id=None, pad_id=None, max_length=4)
    assert read_generation_config(tmp_path) == {"max_length": 4}
    with pytest.raises(ValueError, match="max_length is 0"):
        write_generation_config(tmp_path, eos_id=None, bos_id=None, pad_id=None, max_length=0)


@pytest.mark.parametrize("content", ['{"eos_token_id": "x"}', '{"pad_token_id": [1]}', '{"bos_token_id": -1}', "[]"])
def test_a_damaged_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(FileError, match=r"generation_config\.json"):
        read_generation_config(tmp_path)


def test_several_end_tokens_are_read(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}', encoding="utf-8")
    assert read_generation_config(tmp_path)["eos_token_id"] == [1, 2]
