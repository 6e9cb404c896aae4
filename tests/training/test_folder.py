"""The folder of a run, after a start was killed while it replaced an earlier run."""

from pathlib import Path

import pytest

from gptladder.training.folder import RunFolder
from gptladder.training.lock import RunFolderError


def moved_aside(folder: Path) -> tuple[Path, Path]:
    """Return a run's folder with nothing in it, and the earlier run, which has a configuration."""
    run, aside = folder / "x", folder / ".x.replaced"
    run.mkdir()
    aside.mkdir()
    (aside / "config.json").write_text("{}")
    return run, aside


def test_an_earlier_start_without_a_snapshot_is_no_reason_to_refuse(tmp_path: Path) -> None:
    run, aside = moved_aside(tmp_path)
    with RunFolder(run):
        pass
    assert not aside.exists()
    assert (run / "config.json").read_text() == "{}"


def test_an_earlier_run_with_a_snapshot_is_given_back_and_named(tmp_path: Path) -> None:
    run, aside = moved_aside(tmp_path)
    (aside / "snapshots").mkdir()
    (aside / "snapshots/snapshot_step_5.pt").write_bytes(b"kept")
    with pytest.raises(RunFolderError, match="the earlier run is back; repeat the command with --overwrite"):
        RunFolder(run).__enter__()
    assert not aside.exists()
    assert (run / "snapshots/snapshot_step_5.pt").read_bytes() == b"kept"
