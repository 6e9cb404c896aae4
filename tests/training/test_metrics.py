"""The rows of metrics are written as JSON and CSV, and read back; a damaged file is refused."""

import csv
import json
import math
from pathlib import Path

import pytest

from gptladder.training.metrics import Metrics, RunFiles, perplexity, read_metrics

ROWS = [
    Metrics(step=0, epoch=0.0, tokens=0, val_loss=4.0, val_accuracy=0.01, val_perplexity=math.exp(4.0)),
    Metrics(step=10, epoch=0.1, tokens=5120, lr=1e-3, loss=3.3333333333333335, accuracy=0.25, grad_norm=1.0),
]


def test_both_files_hold_every_number_exactly(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    for row in ROWS:
        files.append_metrics(row)
    assert read_metrics(tmp_path) == ROWS
    with open(tmp_path / "metrics.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["val_perplexity"] == repr(math.exp(4.0))
    assert first["loss"] == ""
    assert float(second["loss"]) == ROWS[1].loss
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] is None


def test_cutting_back_undoes_what_came_after(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.append_metrics(ROWS[0])
    files.append("samples.md", "before ✓\n")
    sizes = files.sizes()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sizes == {name: len(data) for name, data in before.items()}
    files.append_metrics(ROWS[1])
    files.append("samples.md", "after\n")
    again = RunFiles(tmp_path)
    again.cut_back(sizes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again.append_metrics(ROWS[1])
    assert read_metrics(tmp_path) == ROWS


def test_a_file_that_came_after_the_snapshot_is_emptied(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    sizes = files.sizes()
    for known in (sizes, {}):
        files.append("samples.md", "after\n")
        files.cut_back(known)
        assert (tmp_path / "samples.md").read_bytes() == b""


def test_a_file_that_has_been_shortened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("abc")
    with pytest.raises(ValueError, match=r"metrics\.csv has 3 bytes and had 10 at the snapshot"):
        RunFiles(tmp_path).cut_back({"metrics.csv": 10})
    with pytest.raises(ValueError, match=r"samples\.md has 0 bytes and had 1"):
        RunFiles(tmp_path).cut_back({"samples.md": 1})


def test_no_rows_and_large_losses(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    assert perplexity(1.0) == math.e
    assert perplexity(1e4) == math.inf


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device without space")
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.csv'"):
        RunFiles(tmp_path).append("metrics.csv", "1,2\n")
