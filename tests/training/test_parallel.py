"""Several processes train as one would. This file is also the program that ``torchrun`` starts in these tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gptladder.assembly import GPT2, GPT2Config
from gptladder.tokenizer import CharTokenizer
from gptladder.training.data.batches import Batches, evaluation_batches
from gptladder.training.loop import TrainingRun
from gptladder.training.metrics import Metrics, read_metrics
from gptladder.training.parallel import Parallel, joined
from gptladder.training.presets import OptimConfig, OptimizerName, RunConfig, TrainConfig
from gptladder.training.snapshots import load_snapshot, newest_snapshot
from gptladder.training.trainer import Trainer

VOCAB = 17


def work(parallel: Parallel, folder: Path, steps: int, micro_batch: int, optimizer: OptimizerName) -> None:
    device = torch.device("cpu")
    config = TrainConfig(
        optim=OptimConfig(
            max_steps=steps,
            batch=7,
            micro_batch=micro_batch,
            gradient_checkpointing=micro_batch == 4,  # it changes no loss either
            optimizer=optimizer,
            lr=1e-2,
            parallel=parallel,
            weight_decay=0.1,
        ),
        run=RunConfig(log_every=1, eval_every=3, snapshot_every=4),
    )
    tokens = np.random.default_rng(0).integers(VOCAB, size=200)
    torch.manual_seed(0)
    model = GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=VOCAB, n_ctx=6))
    with joined(parallel, device) as processes:
        core = Trainer(
            config,
            model,
            # Batches whose sequences two processes cannot share evenly.
            Batches(tokens, seq=6, batch_size=7),
            lambda: evaluation_batches(tokens[:50], seq=6, batch_size=3),
            device=device,
            processes=processes,
        )
        tokenizer = CharTokenizer("abcdefghijklmnopq")
        run = TrainingRun(
            core,
            tokenizer,
            folder=folder,
            sample=lambda model, tokenizer, prompt, *, max_new_tokens, seed: (
                f"{float(model(torch.tensor([[1]])).sum()):.4f}"
            ),
        )
        found = newest_snapshot(folder / "snapshots", print)
        if found is not None:
            core.check(*found, tokenizer.fingerprint)
            run.resume(found[1], found[1]["files"])
        assert run.run() == "max_steps"


def train(
    folder: Path,
    *,
    processes: int,
    parallel: str = "ddp",
    steps: int = 8,
    micro_batch: int = 2,
    optimizer: OptimizerName = "adamw",
) -> list[Metrics]:
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, __file__, parallel, str(folder), str(steps), str(micro_batch), optimizer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return read_metrics(folder)


@pytest.fixture(scope="module", params=["adamw", "muon"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OptimizerName]:
    folder = tmp_path_factory.mktemp("alone")
    train(folder, processes=1, steps=12, optimizer=request.param)
    return folder, request.param


def assert_same_losses(ours: list[Metrics], theirs: list[Metrics]) -> None:
    assert len(ours) == len(theirs) == 13
    for one, other in zip(ours, theirs, strict=True):
        for name in ("loss", "accuracy", "grad_norm", "val_loss", "val_accuracy"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)
        assert (one.step, one.tokens, one.lr) == (other.step, other.tokens, other.lr)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one_and_either_resumes_the_other(
    alone: tuple[Path, OptimizerName], tmp_path: Path, parallel: str
) -> None:
    lone, optimizer = alone
    expected = read_metrics(lone)
    train(tmp_path, processes=2, parallel=parallel, steps=8, optimizer=optimizer)
    # What two processes left is one file like any other, which one process goes on from.
    one, two = (load_snapshot(folder / "snapshots" / "snapshot_step_8.pt") for folder in (lone, tmp_path))
    assert len(one["rng"]) == 1
    assert len(two["rng"]) == 2
    for part in ("model_state_dict", "optimizer_state_dict"):
        assert json.dumps(shapes(one[part])) == json.dumps(shapes(two[part]))
    assert_same_losses(train(tmp_path, processes=1, steps=12, optimizer=optimizer), expected)
    assert (tmp_path / "samples.md").read_text() == (lone / "samples.md").read_text()
    # And the other way round.
    (tmp_path / "snapshots" / "snapshot_step_12.pt").unlink()
    again = train(tmp_path, processes=2, parallel=parallel, steps=12, micro_batch=4, optimizer=optimizer)
    assert_same_losses(again, expected)


def shapes(state: object) -> object:
    if isinstance(state, dict):
        return {str(key): shapes(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [shapes(value) for value in state]
    return list(state.shape) if isinstance(state, Tensor) else state


if __name__ == "__main__":
    arguments: list[Any] = sys.argv
    work(arguments[1], Path(arguments[2]), int(arguments[3]), int(arguments[4]), arguments[5])
