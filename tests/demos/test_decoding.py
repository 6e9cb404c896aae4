"""The demo of decoding, on a model that is given and on one trained for a moment."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.tokenizer import END_OF_TEXT, BPETokenizer

WAYS = [
    "greedy",
    "temperature 0.5",
    "temperature 1.0",
    "temperature 1.5",
    "top-k 10",
    "top-p 0.9",
    "4 beams",
    "guesses",
]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("COLUMNS", "160")
    path = Path(__file__).parents[2] / "demos" / "decoding.py"
    spec = importlib.util.spec_from_file_location("demo_decoding", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_with_a_model_folder(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    GPT2(GPT2Config(d_model=16, n_layers=1, n_heads=2, d_vocab=257, n_ctx=64)).save_pretrained(tmp_path)
    BPETokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256}).save(tmp_path)
    demo.main(["Once [bold] upon", "--model", str(tmp_path), "--new", "6"])
    printed = capsys.readouterr().out
    assert all(way in printed for way in (*WAYS, "random weights", "trained weights", "guesses accepted"))
    assert "Once [bold] upon …" in printed


def test_a_model_is_trained_where_none_is_given(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(["--seconds", "0.2", "--new", "4"])
    printed = capsys.readouterr().out
    assert "trained for" in printed
    assert "Once upon a time …" in printed
    assert all(way in printed for way in WAYS)
