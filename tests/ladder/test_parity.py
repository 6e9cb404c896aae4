"""Parity at a small shape: it looks at everything, and fails when something is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder import GPT2, GPT2Config, weights
from gptladder.cli import main
from gptladder.ladder import parity as parity_module
from gptladder.ladder.parity import Parity, run
from gptladder.ladder.report import picture, tables

SHAPE = GPT2Config(d_model=12, n_layers=2, n_heads=3, d_vocab=101, n_ctx=16)


@pytest.fixture(scope="module")
def found() -> Parity:
    return run(shape=SHAPE, number=2)


def test_it_holds_and_has_looked_at_everything(found: Parity) -> None:
    assert found.passed
    assert len(found.layers) == 16
    assert [(each.reference, each.dtype) for each in found.whole] == [
        (reference, dtype) for dtype in ("float32", "float64") for reference in ("transformers", "TransformerLens")
    ]
    assert all(len(each.by_layer) == 3 for each in found.whole)
    assert [trip.path for trip in found.round_trips if trip.tolerance == 0] == [
        "Hugging Face → ours → Hugging Face",
        "ours → HookedTransformer → ours",
        "ours → TransformerBridge (bridged) → ours",
        "ours → TransformerBridge (native) → ours",
        "ours → folder → ours",
        "ours → folder → transformers",
        "ours → sharded folder → ours",
        "transformers → pytorch_model.bin → ours",
    ]


def test_nothing_tried_is_no_parity(found: Parity) -> None:
    assert not parity_module.Parity("none", SHAPE).passed


def test_a_weight_that_comes_in_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = weights.from_hf

    def wrong(model: Any, *args: Any, **kwargs: Any) -> GPT2:
        ours = real(model, *args, **kwargs)
        with torch.no_grad():
            ours.blocks[1].mlp.b_out[3] += 1e-6
        return ours

    monkeypatch.setattr(weights, "from_hf", wrong)
    found = run(shape=SHAPE, number=1)
    assert not found.passed
    assert all(each.passed for each in found.layers)
    assert not any(each.passed for each in found.whole if each.dtype == "float64")
    # Nothing before the wrong block is off, everything after it is.
    for each in found.whole:
        if each.dtype == "float64":
            assert max(each.by_layer[:2]) < 1e-12 < each.by_layer[2]
    assert not found.round_trips[0].passed


def test_the_reports_hold_what_was_found(found: Parity, tmp_path: Path) -> None:
    tables.write_json(found, tmp_path / "deep" / "parity.json")
    written = json.loads((tmp_path / "deep" / "parity.json").read_text())
    assert written["passed"] is True
    assert written["layers"][0] == {
        "rung": "embed",
        "reference": "TransformerLens",
        "cases": 2,
        "float64": 0.0,
        "float32": 0.0,
        "gradient": 0.0,
        "tolerance64": 1e-12,
        "tolerance32": 1e-06,
        "worst": written["layers"][0]["worst"],
        "lenient": False,
        "passed": True,
    }
    picture.draw(found, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in tmp_path.rglob("*.p*")) == ["parity.png"]


def test_the_command_takes_a_folder_and_writes_the_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    GPT2(SHAPE).save_pretrained(tmp_path / "model")
    assert main(["parity", "--model", str(tmp_path / "model"), "--cases", "1", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Parity holds." in printed
    assert "layer attention against TransformerLens" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["parity.json", "parity.png"]


def test_the_command_fails_when_parity_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptladder.ladder.rungs.FLOAT64_TOLERANCE", 0.0)
    torch.manual_seed(0)
    GPT2(SHAPE).save_pretrained(tmp_path / "model")
    assert main(["parity", "--model", str(tmp_path / "model"), "--cases", "1", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "Parity does not hold." in printed
    assert "DIFFERS" in printed


def test_the_ladder_command_stops_where_it_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["ladder", "--cases", "1"]) == 0
    assert "All 8 rungs hold." in capsys.readouterr().out
    monkeypatch.setattr("gptladder.components.layer_norm.F.layer_norm", lambda x, *args: x)
    assert main(["ladder", "--cases", "1"]) == 1
    assert "Stopped at layer-norm. Its own tests say more: make test-layer-norm" in capsys.readouterr().out
