"""The researcher's demos run, draw pictures, and take any model."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib.image import imread

from gptladder import GPT2, GPT2Config
from gptladder.lens import head_scores
from gptladder.tokenizer import BPETokenizer

DEMO = "repeated_tokens"  # what the others share
REPEATED = ("induction_heads", "activation_patching", "mean_ablation")
STORY = ("logit_lens", "direct_logit_attribution")


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_repeated_tokens_are_different_ones_twice(demo: ModuleType) -> None:
    tokens = demo.repeated(5, 4, 9, torch.Generator().manual_seed(0))
    assert tokens.shape == (5, 8)
    assert torch.equal(tokens[:, :4], tokens[:, 4:])
    assert all(len(set(row)) == 4 for row in tokens.tolist())


def test_the_loss_is_of_the_second_round_but_its_first_token(demo: ModuleType) -> None:
    logits = torch.zeros(1, 6, 9)
    tokens = torch.tensor([[4, 5, 6, 4, 5, 6]])
    logits[0, 3, 5] = logits[0, 4, 6] = 50.0
    assert demo.loss_when_repeated(logits, tokens, 3) < 1e-6
    logits[0, 4] = 0
    assert demo.loss_when_repeated(logits, tokens, 3).item() == pytest.approx(torch.tensor(9.0).log().item() / 2)


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("name", REPEATED)
def test_each_demo_trains_a_model_once_and_draws_a_picture(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--out", str(tmp_path), "--steps", "2"]
    for trained in (True, False):
        script(name).main(argv)
        printed = capsys.readouterr().out
        assert ("trained a model of two layers for 2 steps" in printed) == trained
        assert f"weights: {tmp_path / 'model'}" in printed
    picture = imread(tmp_path / f"{name}.png")
    assert picture.shape[0] > 200
    assert picture.std() > 0.05


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("name", REPEATED + STORY)
def test_each_demo_takes_a_model_that_it_is_given(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = BPETokenizer({bytes([byte]): byte for byte in range(256)}, {"<|endoftext|>": 256})
    GPT2(GPT2Config(d_model=12, n_layers=1, n_heads=3, d_vocab=257, n_ctx=128)).save_pretrained(tmp_path / "mine")
    tokenizer.save(tmp_path / "mine")
    script(name).main(["--model", str(tmp_path / "mine"), "--out", str(tmp_path)])
    assert f"weights: {tmp_path / 'mine'}" in capsys.readouterr().out
    assert imread(tmp_path / f"{name}.png").std() > 0.05
    assert not (tmp_path / "model").exists()


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("name", STORY)
def test_without_the_story_model_its_demos_name_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="make train-tinystories"):
        script(name).main([])


@pytest.mark.slow
def test_the_small_model_has_an_induction_circuit(demo: ModuleType) -> None:
    model = demo.train()
    tokens = demo.repeated(64, demo.PERIOD, model.d_vocab, torch.Generator().manual_seed(0))
    assert head_scores(model, tokens, "induction").values[1].max() > 0.8
    assert head_scores(model, tokens, "previous token").values[0].max() > 0.3
