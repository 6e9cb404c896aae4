"""Snapshots: written whole or not at all, read without harm, pruned."""

import errno
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder.assembly import GPT2, GPT2Config
from gptladder.training.metrics import Metrics
from gptladder.training.snapshot_checks import SnapshotError
from gptladder.training.snapshots import (
    list_snapshots,
    load_snapshot,
    newest_snapshot,
    prune_snapshots,
    save_snapshot,
)

CONFIG = GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=5)


def contents(step: int, **changes: Any) -> dict[str, Any]:
    torch.manual_seed(step)
    return {
        "model_state_dict": GPT2(CONFIG).state_dict(),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "step": step,
        "loss": 1.5,
        "metrics": asdict(Metrics(step=step, epoch=0.5, tokens=step * 10, loss=1.5)),
        "rng": [{"cpu": torch.get_rng_state()}],
        "data": {"position": step, "seed": 1, "order": "random", "seq": 5, "tokens": 100},
        "config": {"lr": 0.1, "name": None, "size": (1, 2)},
        "tokenizer": "abc",
        "files": {"metrics.jsonl": 10, "metrics.csv": 10, "samples.md": 0},
        **changes,
    }


def test_what_is_saved_comes_back_and_torch_load_reads_it(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path / "snapshots", contents(7))
    assert path == tmp_path / "snapshots" / "snapshot_step_7.pt"
    for loaded in (load_snapshot(path), torch.load(path)):
        assert loaded["step"] == 7
        assert loaded["loss"] == 1.5
        assert loaded["config"] == contents(7)["config"]
        for name, tensor in contents(7)["model_state_dict"].items():
            assert torch.equal(loaded["model_state_dict"][name], tensor)


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    one, other = (save_snapshot(tmp_path / name, contents(7)).read_bytes() for name in ("a", "b"))
    assert one == other


def test_the_newest_by_number_is_found_and_others_are_ignored(tmp_path: Path) -> None:
    assert newest_snapshot(tmp_path, pytest.fail) is None
    for step in (9, 10, 2):
        save_snapshot(tmp_path, contents(step))
    (tmp_path / "snapshot_step_99.pt.txt").touch()
    (tmp_path / "snapshot_step_x.pt").touch()
    found = newest_snapshot(tmp_path, pytest.fail)
    assert found is not None
    path, loaded = found
    assert path.name == "snapshot_step_10.pt"
    assert loaded["step"] == 10
    assert [path.name for path in list_snapshots(tmp_path)] == [f"snapshot_step_{step}.pt" for step in (2, 9, 10)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_one_is_refused_and_passed_over(tmp_path: Path, share: float) -> None:
    save_snapshot(tmp_path, contents(1))
    newest = save_snapshot(tmp_path, contents(2))
    os.truncate(newest, int(share * newest.stat().st_size))
    with pytest.raises(SnapshotError, match=r"^.*snapshot_step_2\.pt: [^\n]+$"):
        load_snapshot(newest)
    said: list[str] = []
    found = newest_snapshot(tmp_path, said.append)
    assert found is not None
    assert found[0].name == "snapshot_step_1.pt"
    assert len(said) == 1
    assert said[0].startswith(f"passed over: {newest}: ")


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile-was-here",)


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "snapshot_step_1.pt"
    torch.save(contents(1, config=_Hostile()), path)
    with pytest.raises(SnapshotError, match=r"^.*holds Python objects other than tensors[^\n]*$"):
        load_snapshot(path)
    assert not (tmp_path / "hostile-was-here").exists()


def test_what_is_no_snapshot_says_so(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="there is no snapshot"):
        load_snapshot(tmp_path / "snapshot_step_1.pt")
    torch.save({"step": 1}, tmp_path / "snapshot_step_1.pt")
    with pytest.raises(SnapshotError, match="not a snapshot of a run: it lacks config, data,"):
        load_snapshot(tmp_path / "snapshot_step_1.pt")
    torch.save([1], tmp_path / "snapshot_step_1.pt")
    with pytest.raises(SnapshotError, match="not a snapshot of a run"):
        load_snapshot(tmp_path / "snapshot_step_1.pt")
    with pytest.raises(SnapshotError, match="not a file"):
        load_snapshot(tmp_path)


@pytest.mark.parametrize("fails_after", [0, 2000])
def test_a_full_disk_leaves_the_previous_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_after: int
) -> None:
    good = save_snapshot(tmp_path, contents(1))
    before = good.read_bytes()

    class FullDisk:
        """A file that takes so many bytes and no more."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, fails_after

        def write(self, data: Any) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    real_save: Callable[..., None] = torch.save
    monkeypatch.setattr(torch, "save", lambda value, file: real_save(value, FullDisk(file)))
    message = (
        rf"the snapshot of step 2 could not be written to {re.escape(str(tmp_path))}: No space left on device; "
        rf"{re.escape(str(good))} is whole, and a run can resume from it"
    )
    with pytest.raises(SnapshotError, match=f"^{message}$"):
        save_snapshot(tmp_path, contents(2))
    assert [path.name for path in tmp_path.iterdir()] == [good.name]
    assert good.read_bytes() == before


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is renamed first and synced later can be empty after a power cut."""
    events: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (events.append(name), real(*a))[1])
    save_snapshot(tmp_path, contents(1))
    assert events == ["fsync", "replace", "fsync"]


def test_pruning_keeps_the_newest_and_clears_what_was_left_half_written(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_snapshot(tmp_path, contents(step))
    (tmp_path / ".snapshot_step_11.pt.part").write_bytes(b"half")
    prune_snapshots(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot_step_10.pt", "snapshot_step_2.pt"]
    prune_snapshots(tmp_path, 5)
    assert len(list_snapshots(tmp_path)) == 2
