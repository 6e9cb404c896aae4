"""Several processes train as one would. This file is also the program that ``torchrun`` starts in these tests."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from gptladder.assembly import GPT2, GPT2Config
from gptladder.tokenizer import CharTokenizer
from gptladder.training.data.batches import Batches, evaluation_batches
from gptladder.training.loop import TrainingRun
from gptladder.training.metrics import Metrics, read_metrics
from gptladder.training.parallel import Parallel, Processes, joined
from gptladder.training.presets import OptimConfig, OptimizerName, RunConfig, TrainConfig
from gptladder.training.snapshots import load_snapshot, newest_snapshot
from gptladder.training.trainer import Trainer

VOCAB = 17


def work(processes: Processes, folder: Path, steps: int, micro_batch: int, optimizer: OptimizerName) -> None:
    config = TrainConfig(
        optim=OptimConfig(
            max_steps=steps,
            batch=7,
            micro_batch=micro_batch,
            gradient_checkpointing=micro_batch == 4,  # it changes no loss either
            optimizer=optimizer,
            lr=1e-2,
            parallel=processes.parallel,
            weight_decay=0.1,
        ),
        run=RunConfig(log_every=1, eval_every=3, snapshot_every=4),
    )
    tokens = np.random.default_rng(0).integers(VOCAB, size=200)
    torch.manual_seed(0)
    core = Trainer(
        config,
        GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=VOCAB, n_ctx=6)),
        # Batches whose sequences two processes cannot share evenly.
        Batches(tokens, seq=6, batch_size=7),
        lambda: evaluation_batches(tokens[:50], seq=6, batch_size=3),
        device=torch.device("cpu"),
        processes=processes,
    )
    tokenizer = CharTokenizer("abcdefghijklmnopq")
    run = TrainingRun(
        core,
        tokenizer,
        folder=folder,
        sample=lambda model, tokenizer, prompt, *, max_new_tokens, seed: (
            f"{float(model(torch.tensor([[1]])).detach().sum()):.4f}"
        ),
    )
    found = newest_snapshot(folder / "snapshots", print)
    if found is not None:
        core.check(*found, tokenizer.fingerprint)
        run.resume(found[1], found[1]["files"])
    run.log.draws = False  # it takes longer than the training
    assert run.run() == "max_steps"


# The way to divide the work, the folder, the number of steps, the micro-batch, and the optimizer.
Job = tuple[Parallel, str, int, int, OptimizerName]


class Runs(NamedTuple):
    """The folders of one optimizer and way to divide the work, of runs of 12 steps.

    Args:
        alone: one process took all steps.
        begun: two processes took the first 8; the run can be resumed.
        resumed: two processes went on from the snapshot that one process wrote after 8 steps.
    """

    alone: Path
    begun: Path
    resumed: Path


def train_in_two(jobs: list[Job]) -> None:
    """Do jobs, one after another, in two processes: to start them and to import everything takes most of the time."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, json.dumps(jobs)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "muon")
WAYS: tuple[Parallel, ...] = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[OptimizerName, Parallel], Runs]:
    root = tmp_path_factory.mktemp("runs")
    made = {}
    jobs: list[Job] = []
    for optimizer in OPTIMIZERS:
        alone = root / optimizer
        alone.mkdir()
        work(Processes(), alone, 12, 2, optimizer)
        for parallel in WAYS:
            begun, resumed = (root / f"{optimizer}-{parallel}-{name}" for name in ("begun", "resumed"))
            begun.mkdir()
            shutil.copytree(alone, resumed)
            (resumed / "snapshots" / "snapshot_step_12.pt").unlink()
            jobs.append((parallel, str(begun), 8, 2, optimizer))
            jobs.append((parallel, str(resumed), 12, 4, optimizer))
            made[optimizer, parallel] = Runs(alone, begun, resumed)
    train_in_two(jobs)
    return made


def assert_same_losses(ours: list[Metrics], theirs: list[Metrics]) -> None:
    assert len(ours) == len(theirs) == 13
    for one, other in zip(ours, theirs, strict=True):
        for name in ("loss", "accuracy", "grad_norm", "val_loss", "val_accuracy"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)
        assert (one.step, one.tokens, one.lr) == (other.step, other.tokens, other.lr)


@pytest.mark.parametrize("parallel", WAYS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_processes_give_the_losses_of_one_and_either_resumes_the_other(
    runs: dict[tuple[OptimizerName, Parallel], Runs], optimizer: OptimizerName, parallel: Parallel
) -> None:
    alone, begun, resumed = runs[optimizer, parallel]
    expected = read_metrics(alone)
    # What two processes left is one file like any other, which one process goes on from.
    one, two = (load_snapshot(folder / "snapshots" / "snapshot_step_8.pt") for folder in (alone, begun))
    assert len(one["rng"]) == 1
    assert len(two["rng"]) == 2
    for part in ("model_state_dict", "optimizer_state_dict"):
        assert json.dumps(shapes(one[part])) == json.dumps(shapes(two[part]))
    work(Processes(), begun, 12, 2, optimizer)
    assert_same_losses(read_metrics(begun), expected)
    assert (begun / "samples.md").read_text() == (alone / "samples.md").read_text()
    # And the other way round.
    assert len(load_snapshot(resumed / "snapshots" / "snapshot_step_12.pt")["rng"]) == 2
    assert_same_losses(read_metrics(resumed), expected)


def shapes(state: object) -> object:
    if isinstance(state, dict):
        return {str(key): shapes(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [shapes(value) for value in state]
    return list(state.shape) if isinstance(state, Tensor) else state


if __name__ == "__main__":
    with joined("ddp", torch.device("cpu")) as processes:
        for parallel, folder, steps, micro_batch, optimizer in json.loads(sys.argv[1]):
            work(dataclasses.replace(processes, parallel=parallel), Path(folder), steps, micro_batch, optimizer)
