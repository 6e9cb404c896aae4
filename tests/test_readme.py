"""The README's examples run as they stand, with a folder in place of the name that a network would be needed for."""

import re
from pathlib import Path

import pytest
import torch

from gptladder import GPT2, GPT2Config

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_one_layer_in_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[0], {})
    assert capsys.readouterr().out == "torch.Size([8, 4, 10, 10])\n"


def test_moving_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformer_lens")
    monkeypatch.chdir(tmp_path)
    GPT2(GPT2Config(d_model=12, n_layers=2, n_heads=3, n_ctx=16)).save_pretrained("gpt2")
    names: dict = {}
    exec(EXAMPLES[1], names)
    first, last = names["model"].state_dict(), GPT2.from_pretrained("my-model").state_dict()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert torch.equal(names["hf"].transformer.wte.weight, first["embed.W_E"])
    assert names["cache"]["pattern", 0].shape == (1, 3, 5, 5)


def test_every_file_that_it_names_is_there() -> None:
    names = re.findall(r"\]\(https://github.com/gptladder/gptladder/blob/main/([\w./-]+)\)", README)
    names += re.findall(r"\]\(https://raw.githubusercontent.com/gptladder/gptladder/main/([\w./-]+)\)", README)
    assert len(names) >= 12
    for name in names:
        assert (Path(__file__).parents[1] / name).exists(), name


def test_pypi_shows_its_links_and_pictures() -> None:
    # PyPI has no files beside the README: each link is an address.
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        assert target.startswith("https://"), target


def test_there_are_no_other_examples() -> None:
    assert len(EXAMPLES) == 2
