"""Where a model can come from: run folders, snapshots, nanoGPT folders, names; and the tokenizer of each."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.files import FileError
from gptladder.tokenizer import CharTokenizer
from gptladder.weights import config_to_ours, from_pretrained, open_source, resolve, tokenizer_folder
from gptladder.weights.convert import convert

CONFIG = GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=11, n_ctx=6, act_fn="relu", attn_dropout=0.25, d_mlp=12)


def model(seed: int = 0, config: GPT2Config = CONFIG) -> GPT2:
    torch.manual_seed(seed)
    return GPT2(config).eval()


def same(one: GPT2, other: GPT2) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return one.config == other.config and all(torch.equal(mine[name], theirs[name]) for name in mine)


def write_snapshot(run: Path, step: int, model: GPT2, **more: Any) -> Path:
    path = run / "snapshots" / f"snapshot_step_{step}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {"model_state_dict": model.state_dict(), "model_config": config_to_ours(model.config), "step": step}
    torch.save({**contents, "loss": 1.5, "config": {"name": "x"}, **more}, path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"format": "gptladder-run", "version": 2, "train": {}}')
    return folder


def test_a_run_gives_its_final_model_else_its_newest_snapshot(run: Path) -> None:
    write_snapshot(run, 9, model(1))
    newest = write_snapshot(run, 100, model(2))
    assert resolve(run) == newest
    assert same(from_pretrained(run), model(2))
    model(3).save_pretrained(run / "final")
    assert resolve(run) == run / "final"
    assert torch.equal(from_pretrained(run).embed.W_E, model(3).embed.W_E)
    assert open_source(run).path == run / "final"


def test_a_damaged_or_diverged_snapshot_of_a_run_is_passed_over(run: Path) -> None:
    good = write_snapshot(run, 1, model(1))
    diverged = model(2)
    with torch.no_grad():
        diverged.ln_final.b[0] = torch.nan
    write_snapshot(run, 2, diverged)
    damaged = write_snapshot(run, 3, model(3))
    content = bytearray(damaged.read_bytes())
    content[content.index(model(3).embed.W_E.detach().numpy().tobytes())] ^= 1
    damaged.write_bytes(content)
    write_snapshot(run, 4, model(4)).write_bytes(b"")
    assert resolve(run) == good
    good.unlink()
    with pytest.raises(FileError, match=r"no snapshot of this run can be used: .*snapshot_step_4.pt: is empty"):
        resolve(run)


def test_a_run_without_a_model_is_refused_in_one_line(run: Path) -> None:
    with pytest.raises(FileError, match="this run has no model yet"):
        resolve(run)


def test_a_snapshot_brings_the_whole_configuration(run: Path) -> None:
    untied = GPT2Config(**{**vars(CONFIG), "tie_word_embeddings": False, "unembed_bias": True, "norm": "post"})
    assert same(from_pretrained(write_snapshot(run, 5, model(0, untied))), model(0, untied))


@pytest.mark.parametrize("recorded", [[], "text", {"d_model": "8"}, {"d_model": 8, "strange": 1}])
def test_a_wrong_configuration_in_a_snapshot_is_refused(run: Path, recorded: object) -> None:
    path = write_snapshot(run, 5, model(), model_config=recorded)
    with pytest.raises(ValueError, match=r"snapshot_step_5.pt"):
        open_source(path)


def test_a_folder_of_nanogpt_stands_for_its_checkpoint(tmp_path: Path) -> None:
    config = GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6, act_fn="gelu")
    model(0, config).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out" / "ckpt.pt", to="nanogpt")
    assert resolve(tmp_path / "out") == tmp_path / "out" / "ckpt.pt"
    assert same(from_pretrained(tmp_path / "out"), model(0, config))


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model().save_pretrained(tmp_path / "mine")
    assert resolve("~/mine") == tmp_path / "mine"
    assert open_source(Path("~/mine")).path == tmp_path / "mine"


def test_a_folder_named_like_a_hub_model_and_without_a_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(FileError, match=r"no config.json in it; .*'openai-community/gpt2'"):
        resolve("gpt2")


def test_each_source_has_its_tokenizer(run: Path, tmp_path: Path) -> None:
    snapshot = write_snapshot(run, 1, model())
    assert tokenizer_folder(run) is None
    assert tokenizer_folder(snapshot) is None
    tokenizer = CharTokenizer.from_text("abc")
    tokenizer.save(run / "final")  # as runs of 0.1.0 have it
    assert tokenizer_folder(run) == tokenizer_folder(snapshot) == run / "final"
    tokenizer.save(run / "tokenizer")
    assert tokenizer_folder(run) == tokenizer_folder(snapshot) == run / "tokenizer"
    assert tokenizer_folder(run / "final") == run / "final"
    checkpoint = tmp_path / "out" / "ckpt.pt"
    assert tokenizer_folder(checkpoint) is None
    tokenizer.save(checkpoint.parent)
    assert tokenizer_folder(checkpoint) == checkpoint.parent
