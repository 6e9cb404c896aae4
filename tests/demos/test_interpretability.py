"""The researcher's demos run, show their prompt and its tokens, draw pictures, and take any model."""

import importlib
from pathlib import Path

import pytest
from matplotlib.image import imread

from gptladder import GPT2, GPT2Config
from gptladder.tokenizer import BPETokenizer

DEMO = "story"  # what the others share
NAMES = ("logit_lens", "direct_logit_attribution", "activation_patching", "mean_ablation", "induction_heads")

pytestmark = [pytest.mark.usefixtures("demo"), pytest.mark.parametrize("name", NAMES)]


def test_each_demo_takes_a_model_and_shows_what_it_reads(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = BPETokenizer({bytes([byte]): byte for byte in range(256)}, {"<|endoftext|>": 256})
    GPT2(GPT2Config(d_model=12, n_layers=1, n_heads=3, d_vocab=257, n_ctx=128)).save_pretrained(tmp_path / "mine")
    tokenizer.save(tmp_path / "mine")
    importlib.import_module(name).main(["--model", str(tmp_path / "mine"), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"weights: {tmp_path / 'mine'}" in printed
    assert "prompt: " in printed
    assert "M|i|a" in printed  # the tokens, which are bytes here
    assert imread(tmp_path / f"{name}.png").std() > 0.05


def test_without_the_story_model_each_names_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="make train-tinystories"):
        importlib.import_module(name).main([])
