"""The folder of a run: what is replaced, and what is left when a start is killed or interrupted at any moment."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptladder.training.folder import RunFolder
from gptladder.training.lock import RunFolderError
from gptladder.weights.sources import RUN_FORMAT


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


@pytest.mark.parametrize("name", [".git/config", ".env", "snapshots/.notes"])
def test_hidden_files_of_the_user_are_not_replaced(tmp_path: Path, name: str) -> None:
    run = tmp_path / "x"
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("mine")
    with (
        RunFolder(run) as folder,
        pytest.raises(RunFolderError, match="is not the folder of a run, and is not touched"),
    ):
        folder.check(overwrite=False, resume=False)
    (run / "config.json").write_text(json.dumps({"format": RUN_FORMAT}))
    with RunFolder(run) as folder, pytest.raises(RunFolderError, match="holds more than a run, and is not replaced"):
        folder.check(overwrite=True, resume=False)


def test_files_that_systems_and_killed_processes_leave_do_not_count(tmp_path: Path) -> None:
    run = tmp_path / "x"
    (run / ".final.partial").mkdir(parents=True)
    for name in (".DS_Store", ".metrics.csv.4711", ".loss.png.part"):
        (run / name).touch()
    with RunFolder(run) as folder:
        folder.check(overwrite=False, resume=False)


def test_an_interrupted_deletion_of_the_earlier_run_keeps_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "x"
    run.mkdir()
    (run / "old").touch()
    real = shutil.rmtree

    def interrupted(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(shutil, "rmtree", real)
        raise KeyboardInterrupt

    def replace() -> None:
        with RunFolder(run) as folder:
            folder.begin(replace=True)
            (run / "new").touch()
            monkeypatch.setattr(shutil, "rmtree", interrupted)
            folder.keep()

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert (run / "new").exists()
    with RunFolder(run):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupted_replacement_leaves_the_run_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run = tmp_path / "x"
    run.mkdir()
    (run / "old").touch()
    real = os.rename

    def interrupted(*paths: Path) -> None:
        monkeypatch.setattr(os, "rename", real)
        if moment == "after":
            real(*paths)
        raise KeyboardInterrupt

    def replace() -> None:
        with RunFolder(run) as folder:
            monkeypatch.setattr(os, "rename", interrupted)
            folder.begin(replace=True)

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert (run / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_results_whose_snapshots_were_deleted_are_set_aside(tmp_path: Path) -> None:
    run = tmp_path / "x"
    (run / "final").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("rows")
    assert RunFolder(run).set_aside(3, "after-step-3") is None
    branch = RunFolder(run).set_aside(-1, "before-return")
    assert branch is not None
    assert branch == run / "branches" / "before-return"
    assert (branch / "metrics.jsonl").read_text() == "rows"
    assert (branch / "final").is_dir()


def test_a_start_that_finds_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    run, aside = moved_aside(tmp_path)
    (aside / "final").mkdir()
    (aside / "final" / "step.json").write_text('{"step": 1, "val_loss": 1.0}')
    (aside / "final" / "model.safetensors").touch()
    with pytest.raises(RunFolderError, match="the earlier run is back"):
        RunFolder(run).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
