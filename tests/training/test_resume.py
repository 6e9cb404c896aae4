"""A run that stops, however it stops, and goes on is the run that never stopped, to the last bit."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptladder.assembly import GPT2
from gptladder.tokenizer import CharTokenizer
from gptladder.training.data.batches import Batch, Batches, evaluation_batches
from gptladder.training.display import Display
from gptladder.training.loop import TrainingRun
from gptladder.training.presets import PRESETS, TrainConfig
from gptladder.training.snapshot_checks import SnapshotError
from gptladder.training.snapshots import list_snapshots, load_snapshot, newest_snapshot
from gptladder.training.trainer import Trainer

VOCAB = 13
TOKENIZER = CharTokenizer("abcdefghijklm")
KEPT = ("metrics.jsonl", "metrics.csv", "samples.md", "snapshots/snapshot_step_9.pt")


def random_tokens(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(VOCAB, size=count)


def shrunken(preset: str, **fields: Any) -> TrainConfig:
    """A preset with its choices, dropout, schedule and optimizer as they are, and small in every size."""
    small = {"d_model": 8, "n_layers": 2, "n_heads": 2, "n_ctx": 6, "seq": 5, "micro_batch": 2, "max_epochs": None}
    often = {"max_steps": 9, "warmup_steps": 3, "log_every": 1, "eval_every": 2, "snapshot_every": 3, "keep": 9}
    return PRESETS[preset].replace(**{**small, **often, "eval_batches": 2, "sample_every": 2, **fields})


def trainer(folder: Path, config: TrainConfig, display: Display | None = None) -> TrainingRun:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.optim.seed)
    core = Trainer(
        config,
        GPT2(dataclasses.replace(config.model, d_vocab=VOCAB)),
        Batches(random_tokens(200), seq=config.seq, batch_size=config.optim.batch, order=config.optim.order),
        lambda: evaluation_batches(random_tokens(40), seq=config.seq, batch_size=3),
        device=torch.device("cpu"),
    )
    run = TrainingRun(
        core,
        TOKENIZER,
        folder=folder,
        sample=lambda model, tokenizer, prompt, *, max_new_tokens, seed: (
            f"{prompt}{model(torch.tensor([[1]])).sum():.9f}"
        ),
        display=display,
    )
    run.log.draws = False  # it takes longer than the training
    return run


def resume(run: TrainingRun, path: Path, contents: Mapping[str, Any]) -> TrainingRun:
    run.trainer.check(path, contents, run.tokenizer.fingerprint)
    run.resume(contents, contents["files"])
    return run


def resumed(folder: Path, config: TrainConfig, display: Display | None = None) -> TrainingRun:
    run = trainer(folder, config, display)
    found = newest_snapshot(folder / "snapshots", print)
    if found is None:
        run.log.cut_back({})
        return run
    return resume(run, *found)


def assert_same_run(one: Path, other: Path) -> None:
    for name in KEPT:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resumes_bit_for_bit(tmp_path: Path, preset: str, dropout: float) -> None:
    config = shrunken(preset, dropout=dropout)
    undisturbed = trainer(tmp_path / "undisturbed", config)
    undisturbed.run()
    run = trainer(tmp_path / "resumed", config)
    # As after a kill between step 8 and step 9: two more rows and a sample stand there than at the snapshot of step 6.
    while run.step < 8:
        assert run._boundary() is None
        run.trainer.update()
    again = resumed(tmp_path / "resumed", config)
    assert again.step == 6
    assert again.run() == "max_steps"
    assert_same_run(tmp_path / "undisturbed", tmp_path / "resumed")
    for name, tensor in undisturbed.trainer.loss.state_dict().items():
        assert torch.equal(tensor, again.trainer.loss.state_dict()[name]), name


def test_two_runs_are_byte_identical_and_another_seed_is_another_run(tmp_path: Path) -> None:
    for name, seed in (("one", 1337), ("two", 1337), ("three", 1338)):
        trainer(tmp_path / name, shrunken("verdict-124m", seed=seed)).run()
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / KEPT[0]).read_bytes() != (tmp_path / "three" / KEPT[0]).read_bytes()


def test_dropout_and_optimizer_state_matter_to_the_comparison(tmp_path: Path) -> None:
    """The tests above could not fail if the run did not depend on what they say is restored."""
    config = shrunken("verdict-124m")
    trainer(tmp_path / "a", config).run()
    snapshot = load_snapshot(tmp_path / "a" / "snapshots" / "snapshot_step_3.pt")
    for part, other in (
        ("rng", [{"cpu": torch.Generator().manual_seed(5).get_state()}]),
        ("optimizer_state_dict", {**snapshot["optimizer_state_dict"], "state": {}}),
        ("data", {**snapshot["data"], "position": 0}),
    ):
        folder = tmp_path / part
        shutil.copytree(tmp_path / "a", folder)
        run = trainer(folder, config)
        run.resume({**snapshot, part: other}, snapshot["files"])
        run.run()
        assert (folder / KEPT[0]).read_bytes() != (tmp_path / "a" / KEPT[0]).read_bytes()


def test_an_interrupted_run_resumes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shrunken("verdict-124m")
    trainer(tmp_path / "undisturbed", config).run()
    run = trainer(tmp_path / "resumed", config)
    take = Batches.__next__

    def interrupting(batches: Batches) -> Batch:
        if batches.state_dict()["position"] == 3 * config.optim.batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(batches)

    monkeypatch.setattr(Batches, "__next__", interrupting)
    assert run.run() == "interrupted"
    assert [path.name for path in list_snapshots(run.folder / "snapshots")] == [
        "snapshot_step_2.pt",
        "snapshot_step_3.pt",
        "snapshot_step_4.pt",
    ]
    assert resumed(tmp_path / "resumed", config).run() == "max_steps"
    assert_same_run(tmp_path / "undisturbed", tmp_path / "resumed")


def test_a_truncated_newest_snapshot_is_passed_over(tmp_path: Path) -> None:
    config = shrunken("shakespeare-char")
    trainer(tmp_path / "undisturbed", config).run()
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "damaged")
    newest = list_snapshots(tmp_path / "damaged" / "snapshots")[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    again = resumed(tmp_path / "damaged", config)
    assert again.step == 6
    again.run()
    assert_same_run(tmp_path / "undisturbed", tmp_path / "damaged")


def test_a_finished_run_ends_as_it_was_and_can_be_made_longer(tmp_path: Path) -> None:
    config = shrunken("shakespeare-char")
    trainer(tmp_path / "a", config).run()
    before = {name: (tmp_path / "a" / name).read_bytes() for name in KEPT}
    resumed(tmp_path / "a", config).run()
    assert {name: (tmp_path / "a" / name).read_bytes() for name in KEPT} == before
    longer = resumed(tmp_path / "a", config.replace(max_steps=12))
    longer.run()
    assert longer.step == 12
    assert "step 9" not in (tmp_path / "a" / "samples.md").read_text()


def test_another_model_or_vocabulary_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    config = shrunken("shakespeare-char")
    trainer(tmp_path, config).run()
    path = tmp_path / "snapshots" / "snapshot_step_9.pt"
    before = {name: (tmp_path / name).read_bytes() for name in KEPT}
    with pytest.raises(SnapshotError, match="is of another model"):
        resume(trainer(tmp_path, shrunken("shakespeare-char", d_model=12)), path, load_snapshot(path))
    other = trainer(tmp_path, config)
    other.tokenizer = CharTokenizer("ABCDEFGHIJKLM")
    with pytest.raises(SnapshotError, match="another vocabulary"):
        resume(other, path, load_snapshot(path))
    assert {name: (tmp_path / name).read_bytes() for name in KEPT} == before


def test_snapshots_of_other_numbers_of_processes_say_what_is_lost(tmp_path: Path) -> None:
    said: list[str] = []

    class Watch(Display):
        def say(self, text: str) -> None:
            said.append(text)

    for dropout, lines in ((0.0, 0), (0.1, 1)):
        config = shrunken("shakespeare-char", dropout=dropout)
        trainer(tmp_path / str(dropout), config).run()
        path = tmp_path / str(dropout) / "snapshots" / "snapshot_step_9.pt"
        snapshot = load_snapshot(path)
        snapshot["rng"] = snapshot["rng"] * 2
        resume(trainer(tmp_path / str(dropout), config, Watch()), path, snapshot)
        assert len(said) == lines
    assert said == [
        "the snapshot of step 9: it has the random states of 2 processes, and this run has 1: dropout continues with "
        "other random numbers"
    ]


def every_step(steps: int) -> TrainConfig:
    options = {"snapshot_every": 1, "keep": 3, "dropout": 0.1, "eval_every": 7, "sample_every": 7}
    return shrunken("shakespeare-char", max_steps=steps, **options)


def program(folder: Path, steps: int) -> list[str]:
    return [sys.executable, __file__, str(folder), str(steps)]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path, kills: int) -> None:
    """There is a snapshot at every step, so that many of the moments are in the middle of writing one."""
    steps, chance = 20 * kills, random.Random(kills)
    one, other = tmp_path / "undisturbed", tmp_path / "killed"
    resumed(one, every_step(steps)).run()
    for _ in range(kills):
        with subprocess.Popen(program(other, steps), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()  # the first update: importing torch takes longer than all the training
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    resumed(other, every_step(steps)).run()
    names = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    assert names == {str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()}
    assert f"snapshots/snapshot_step_{steps}.pt" in names
    for name in names - {"speed.jsonl"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class _ShowSteps(Display):
    def progress(self, step: int, last_step: int | None, loss: float, tokens_per_second: float) -> None:
        print(step, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    resumed(Path(sys.argv[1]), every_step(int(sys.argv[2])), _ShowSteps()).run()
