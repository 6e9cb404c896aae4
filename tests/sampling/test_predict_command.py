"""``gptladder predict``, as a user calls it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder import GPT2
from gptladder.sampling import model_options
from gptladder.sampling import predict_command as command
from gptladder.tokenizer import Tokenizer
from gptladder.weights import from_pretrained
from gptladder.weights.files.write import write_folder
from gptladder.weights.sources import config_to_ours


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., GPT2], byte_tokenizer: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny(d_vocab=257, n_ctx=128, dtype=torch.float32).save_pretrained(path)
    byte_tokenizer.save(path)
    return path


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines() if "%" in line]


def test_it_prints_the_most_probable_tokens_beside_transformers(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert command.predict(["Once", "--model", str(folder), "-k", "4"]) == 0
    printed = capsys.readouterr().out
    with torch.inference_mode():
        probs = from_pretrained(folder)(torch.tensor([list(b"Once")]))[0, -1].softmax(-1)
    best = probs.topk(4)
    assert len(rows(printed)) == 4
    for place, (row, token, prob) in enumerate(
        zip(rows(printed), best.indices.tolist(), best.values.tolist(), strict=True), start=1
    ):
        assert row[:4] == [str(place), str(token), f"{prob:.4%}", f"{prob:.4%}"]
    lengths = [row[-1].count("█") for row in rows(printed)]
    assert lengths[0] == 24
    assert lengths == sorted(lengths, reverse=True)
    assert "transformers agrees: the largest difference of a log-probability, over 257 tokens, is" in printed
    assert "1.0e-03 is allowed in float32" in printed


@pytest.mark.parametrize("columns", ["20", "40", "60", "80"])
def test_a_narrow_terminal_cuts_no_number(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    printed = []
    for width in ("200", columns):
        monkeypatch.setenv("COLUMNS", width)
        command.predict(["Once", "--model", str(folder), "-k", "30"])
        printed.append([row[:5] for row in rows(capsys.readouterr().out)])
    assert printed[0] == printed[1]
    monkeypatch.setenv("COLUMNS", "50")
    command.predict(["Once", "--model", str(folder), "-k", "30"])
    assert max(len(line) for line in capsys.readouterr().out.splitlines() if "%" in line) <= 50


def damaged(original: Callable[..., GPT2], change: float) -> Callable[..., GPT2]:
    def load(*args: Any, **kwargs: Any) -> GPT2:
        model: Any = original(*args, **kwargs)
        with torch.no_grad():
            model.ln_final.b[0] += change
        return model

    return load


def test_it_fails_if_transformers_differs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_options, "from_pretrained", damaged(from_pretrained, 0.01))
    assert command.predict(["Once", "--model", str(folder)]) == 1
    assert "transformers DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_compared_as_16_bits(
    tmp_path: Path,
    tiny: Callable[..., GPT2],
    byte_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    """Rounding is no difference; a model that is wrong by more than rounding is."""
    for seed in range(5):
        tiny(seed=seed, d_vocab=257, n_ctx=128, dtype=dtype).save_pretrained(tmp_path, overwrite=True)
        byte_tokenizer.save(tmp_path)
        assert command.predict(["Once upon a time", "--model", str(tmp_path)]) == 0
        assert f"is allowed in {str(dtype).removeprefix('torch.')}" in capsys.readouterr().out
    monkeypatch.setattr(model_options, "from_pretrained", damaged(from_pretrained, 3.0))
    assert command.predict(["Once upon a time", "--model", str(tmp_path)]) == 1


def test_without_transformers_there_is_no_comparison(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"{name} is not installed")

    monkeypatch.setattr(command, "import_extra", absent)
    assert command.predict(["Once", "--model", str(folder)]) == 0
    assert "there is no comparison: transformers is not installed (pip install" in capsys.readouterr().out


def test_a_model_that_transformers_cannot_hold_has_no_comparison(
    tmp_path: Path, tiny: Callable[..., GPT2], byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(d_vocab=257, n_ctx=128, dtype=torch.float32, norm="post")
    write_folder(tmp_path, config_to_ours(model.config), model.state_dict())
    byte_tokenizer.save(tmp_path)
    assert command.predict(["Once", "--model", str(tmp_path), "-k", "3"]) == 0
    printed = capsys.readouterr().out
    assert len(rows(printed)) == 3
    assert "there is no comparison: a post-norm model has no place" in printed


def test_all_bytes_of_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.predict(["[bold]", "--random-init", "-k", "1000"]) == 0
    printed = capsys.readouterr().out
    assert len(rows(printed)) == 257
    assert "'['" in printed
    assert r"b'\xff'" in printed
    assert "transformers agrees" in printed


def test_a_run_and_a_snapshot_are_models(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "run" / "final")
    (tmp_path / "run" / "config.json").write_text('{"format": "gptladder-run"}')
    shutil.copytree(folder, tmp_path / "run" / "tokenizer")
    outputs = []
    for name in (tmp_path / "run", folder):
        assert command.predict(["Once", "--model", str(name)]) == 0
        outputs.append(rows(capsys.readouterr().out))
    assert outputs[0] == outputs[1]


def test_no_token_to_print_is_refused() -> None:
    with pytest.raises(ValueError, match="-k is 0; give at least 1 token to print"):
        command.predict(["x", "--random-init", "-k", "0"])
