"""Trials of what may happen to a run: kills, full disks, two starts at once, forks, branches, flipped bits.

Each trial trains a very small model in a process of its own, and compares what is left with a run that nothing
happened to. `python tests/training/trials.py 30` prints, for each kind, how many were tried and how many survived:
nothing was lost, and nothing of two runs was mixed. `test_trials.py` runs a few of each.
"""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gptladder.assembly import GPT2, GPT2Config
from gptladder.tokenizer import Tokenizer
from gptladder.training import runlog
from gptladder.training.data.config import DataConfig
from gptladder.training.folder import is_run
from gptladder.training.lock import RunFolderError
from gptladder.training.metrics import read_metrics
from gptladder.training.presets import OptimConfig, RunConfig, TrainConfig
from gptladder.training.run import train
from gptladder.training.snapshot_checks import SnapshotError
from gptladder.training.snapshots import list_snapshots, load_snapshot

TEXT = "The cat sat on the mat, and the dog sat on the cat. Nobody was glad of that.\n" * 30
STEPS = 40
COMPARED = ("metrics.jsonl", "metrics.csv", "samples.md", "final/model.safetensors", "last/model.safetensors")


def sample(model: GPT2, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    return f"{prompt} {float(model(torch.tensor([[1]])).sum().detach()):.6f}"


def config(folder: Path, **fields: Any) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(corpus=str(folder / "text.txt"), tokenizer="char", data_dir=str(folder / "data")),
        model=GPT2Config(d_model=8, n_layers=1, n_heads=2, n_ctx=8),
        dropout=0.1,
        optim=OptimConfig(batch=4, max_steps=STEPS, lr=1e-2, products="default"),
        run=RunConfig(
            name="x",
            runs_dir=str(folder / "runs"),
            log_every=1,
            eval_every=5,
            eval_batches=1,
            snapshot_every=3,
            prompt="The",
            final_samples=1,
            json=True,
        ),
    ).replace(**fields)


def run(folder: Path, **fields: Any) -> None:
    # The picture takes longer than the training.
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(runlog, "draw_losses"):
        train(config(folder, **fields), sample=sample)


def in_child(work: Callable[[], object]) -> int:
    """Start work in a forked process and return its number. Its exit status: 0, 3 if it was refused, 1 otherwise."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        status = 0
    except RunFolderError:
        status = 3
    except BaseException:
        status = 1
    finally:
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def results(run_folder: Path) -> dict[str, bytes]:
    return {name: (run_folder / name).read_bytes() for name in COMPARED}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Trials:
    """A folder with a text and a run that nothing happened to, and one trial of each kind, from a seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text.txt").write_text(TEXT)
        began = time.perf_counter()
        run(folder, name="undisturbed")
        self.seconds = time.perf_counter() - began
        self.expected = results(folder / "runs" / "undisturbed")

    def fresh(self) -> Path:
        for path in (self.folder / "runs").glob("*"):  # what a killed replacement has moved aside included
            if path.name != "undisturbed":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self.folder / "runs" / "x"

    def copied(self) -> Path:
        target = self.fresh()
        shutil.copytree(self.folder / "runs" / "undisturbed", target)
        return target

    def kill(self, chance: random.Random) -> bool:
        """Killed at random moments, the run continues to the same bytes."""
        folder = self.fresh()
        for _ in range(2):
            child = in_child(lambda: run(self.folder, resume="auto"))
            time.sleep(chance.uniform(0.05, 0.8) * self.seconds)
            os.kill(child, signal.SIGKILL)
            ended(child)
        run(self.folder, resume="auto")
        return results(folder) == self.expected

    def stop(self, chance: random.Random) -> bool:
        """Stopped by Ctrl-C or SIGTERM at random moments, the run continues to the same bytes."""
        folder = self.fresh()
        for number in (signal.SIGINT, signal.SIGTERM):
            child = in_child(lambda: run(self.folder, resume="auto"))
            time.sleep(chance.uniform(0.05, 0.8) * self.seconds)
            os.kill(child, number)
            ended(child)
            if folder.exists() and not is_run(folder):
                return False
        run(self.folder, resume="auto")
        return results(folder) == self.expected

    def overwrite_killed(self, chance: random.Random) -> bool:
        """Killed while it replaces a run, there is the old run or the new one, whole."""
        folder = self.copied()
        before = results(folder)
        child = in_child(lambda: run(self.folder, overwrite=True, seed=7))
        time.sleep(chance.uniform(0.0, 0.8) * self.seconds)
        os.kill(child, signal.SIGKILL)
        ended(child)
        # An unfinished replacement is refused once; a run that was not yet replaced has another seed.
        with contextlib.suppress(ValueError):
            run(self.folder, resume="auto", seed=7)
            return read_metrics(folder)[-1].step == STEPS and results(folder) != before
        return results(folder) == before

    def fork(self, chance: random.Random) -> bool:
        """A new run from a snapshot has that run's past and a future of its own; the other run stays as it is."""
        source = self.copied()
        before = everything(source)
        snapshot = chance.choice(list_snapshots(source / "snapshots"))
        run(self.folder, name="y", resume=str(snapshot), lr=5e-3)
        step = load_snapshot(snapshot)["step"]
        rows, own = read_metrics(source), read_metrics(self.folder / "runs" / "y")
        past = [row for row in own if row.step < step] == [row for row in rows if row.step < step]
        whole = [row.step for row in own] == list(range(STEPS + 1))
        return past and whole and everything(source) == before

    def branch(self, chance: random.Random) -> bool:
        """Going back to a snapshot loses no later one; both branches can be continued."""
        folder = self.copied()
        snapshots = list_snapshots(folder / "snapshots")
        chosen, later = snapshots[0], {path.name: path.read_bytes() for path in snapshots[1:]}
        step = load_snapshot(chosen)["step"]
        stop = min(STEPS, step + chance.randint(1, 4))
        run(self.folder, resume=str(chosen), lr=5e-3, max_steps=stop)
        kept = {path.name: path.read_bytes() for path in folder.glob("branches/*/snapshots/*.pt")}
        if kept != later or max(load_snapshot(path)["step"] for path in list_snapshots(folder / "snapshots")) != stop:
            return False
        run(self.folder, resume="auto", lr=5e-3, max_steps=stop + 1)
        if [row.step for row in read_metrics(folder)] != list(range(stop + 2)):
            return False
        old = chance.choice(sorted(folder.glob("branches/*/snapshots/*.pt")))
        run(self.folder, resume=str(old))
        return results(folder)["last/model.safetensors"] == self.expected["last/model.safetensors"]

    def full_disk(self, chance: random.Random) -> bool:
        """On a disk that fills up, the run ends; with room again it continues to the same bytes."""
        folder = self.fresh()
        largest = max(
            path.stat().st_size for path in list_snapshots(self.folder / "runs" / "undisturbed" / "snapshots")
        )

        def limited() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            size = int(largest * chance.uniform(0.02, 0.99))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            run(self.folder, resume="auto")

        status = ended(in_child(limited))
        run(self.folder, resume="auto")
        return status == 1 and results(folder) == self.expected

    def two_at_once(self, chance: random.Random) -> bool:
        """Of two starts of one run, one is refused, and the other one's results are those of a single run."""
        folder = self.fresh()
        first = in_child(lambda: run(self.folder, resume="auto"))
        time.sleep(chance.uniform(0, 0.6) * self.seconds)
        second = in_child(lambda: run(self.folder, resume="auto"))
        statuses = sorted([ended(first), ended(second)])
        return statuses in ([0, 3], [0, 0]) and results(folder) == self.expected

    def flipped_bit(self, chance: random.Random) -> bool:
        """A snapshot with one flipped bit is refused."""
        snapshot = list_snapshots(self.folder / "runs" / "undisturbed" / "snapshots")[-1]
        content = bytearray(snapshot.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        damaged = self.folder / snapshot.name
        damaged.write_bytes(content)
        try:
            load_snapshot(damaged)
        except SnapshotError as error:
            return "\n" not in str(error)
        return False


KINDS = ("kill", "stop", "overwrite_killed", "fork", "branch", "full_disk", "two_at_once", "flipped_bit")


def survived(trials: Trials, kind: str, count: int) -> int:
    return sum(getattr(trials, kind)(random.Random(f"{kind} {number}")) for number in range(count))


if __name__ == "__main__":
    torch.set_num_threads(1)
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as name:
        all_trials = Trials(Path(name))
        for one in sys.argv[2:] or KINDS:
            print(f"{one:<18} tried {number}, survived {survived(all_trials, one, number)}", flush=True)
