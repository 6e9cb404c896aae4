"""Every shell line of README and docs runs as it is written, with small stand-ins for models and texts.

Lines that train are cut short after two steps; a slow test runs them as they are until Ctrl-C. Lines of make are
checked by ``make -n``. Other tests push (tests/weights/test_push.py), convert OpenAI's checkpoint
(tests/weights/formats/test_tensorflow.py), and run the
session and the adapters of docs/your-layer.md (tests/test_your_layer_doc.py).
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder import GPT2, GPT2Config, cli
from gptladder.tokenizer import BPETokenizer
from gptladder.training import command as training
from gptladder.training import runlog
from gptladder.training.presets import PRESETS, TrainConfig
from gptladder.training.record import VERSION
from gptladder.training.run import Outcome, train
from gptladder.weights.sources import RUN_FORMAT

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
PROGRAMS = ("gptladder", "make", "torchrun", "python", "pip")
ELSEWHERE = {"models/117M", "me/stories", "my_attention.py:Attention", "nano.py:attention", "conv1d.py:attention"}


def shell_lines(text: str) -> Iterator[str]:
    """Yield the commands of a page: indented lines, ``$ `` lines of fenced blocks, and ``make …`` in backticks."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced and line.startswith("$ "):
            yield line[2:]
        elif not fenced and line.startswith("    "):
            yield line[4:]
        elif not fenced:
            yield from re.findall(r"(?<!`)`(make [^`]+)`(?!`)", line)


def commands(page: Path) -> list[list[str]]:
    found = []
    for line in shell_lines(page.read_text(encoding="utf-8")):
        if line.split(" ")[0] in PROGRAMS and "…" not in line and "=" not in line.split(" ")[1:2]:
            words = shlex.split(line, comments=True)
            found.append(words)
    return found


LINES = [(page.name, words) for page in PAGES for words in commands(page)]


def lines(program: str, *, training_too: bool = False) -> list[list[str]]:
    unique = {tuple(words) for _, words in LINES if words[0] == program}
    return [list(words) for words in sorted(unique) if training_too or "train" not in words[:2]]


LAYERS = """
import torch
from torch import nn


class {attention}(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_heads, width = cfg.n_heads, cfg.n_heads * cfg.d_head
        self.qkv, self.proj = nn.Linear(cfg.d_model, 3 * width), nn.Linear(width, cfg.d_model)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        z = scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ v
        return self.proj(z.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(cfg.d_model, cfg.d_mlp), nn.GELU(approximate="tanh"), nn.Linear(cfg.d_mlp, cfg.d_model)
        )

    def forward(self, x):
        return self.net(x)
"""


def write_layers() -> None:
    """Write the files with layers that the lines of ``gptladder climb`` name."""
    Path("package").mkdir()
    for name in ("my_file.py", "my_gpt.py", "package/module.py", "package/__init__.py"):
        Path(name).write_text(LAYERS.format(attention="MyAttention"))
    for name in ("a.py", "b.py"):
        Path(name).write_text(LAYERS.format(attention="Attention"))
    cell = {"cell_type": "code", "source": LAYERS.format(attention="MyAttention"), "outputs": [], "metadata": {}}
    Path("notebook.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def write_model(folder: Path) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(d_model=32, n_layers=2, n_heads=2, d_vocab=260, n_ctx=64)).eval()
    model.save_pretrained(folder)
    BPETokenizer.train("Once upon a time there was a fox. It slept.\n" * 9, 260).save(folder)
    return model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write everything that the lines name."""
    root = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_model(root / "gpt2")
        for name in ("tinystories", "mine"):
            shutil.copytree("gpt2", f"runs/{name}/final")
            Path("runs", name, "config.json").write_text('{"format": "gptladder-run"}')
        assert cli.main(["convert", "gpt2", "out/ckpt.pt", "--to", "nanogpt", "--act-fn", "gelu_new"]) == 0
        text = "Once upon a time there was a fox. It slept.\n" * 400
        Path("my-texts").mkdir()
        for name in ("my-texts/a.txt", "my-texts/b.txt", "input.txt"):
            Path(name).write_text(text)
        Path("prompt.txt").write_text("Once upon\n")
        write_layers()
        for name in ("submissions/ann", "submission"):
            Path(name).mkdir(parents=True)
            Path(name, "layers.py").write_text("WIDTH = 8\n")
    return root


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy everything that the lines name."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_settings(words: list[str]) -> None:
    """Remove the run ``mine`` for the line that trains it; write its settings for the lines that begin from them."""
    path = Path("runs/mine/config.json")
    if "mine" in words:
        shutil.rmtree(path.parent)
    if str(path) in words:
        settings = PRESETS["shakespeare-char"].replace(corpus="input.txt", name="mine").recorded()
        path.write_text(json.dumps({"format": RUN_FORMAT, "version": VERSION, **settings, "facts": {}}))


def snapshot(folder: Path) -> None:
    """Write a snapshot as a run does: by a run of one step."""
    text = "--preset shakespeare-char --corpus input.txt --name x --max-steps 1"
    sizes = "--d-model 8 --n-layers 1 --n-heads 2 --n-ctx 16 --batch 2"
    rest = "--eval-every 1 --eval-batches 1 --snapshot-every 1 --final-samples 0"
    assert cli.main(["train", *text.split(), *sizes.split(), *rest.split()]) == 0
    made = next((folder / "runs/x/snapshots").glob("*.pt"))
    made.rename(made.with_name("snapshot_step_500.pt"))


def test_the_pages_have_lines_to_run() -> None:
    assert len(lines("gptladder")) >= 8
    assert len(lines("make")) >= 4
    assert any("evaluate" in words for words in lines("gptladder"))


@pytest.mark.parametrize("words", lines("gptladder"), ids=" ".join)
def test_a_line_of_gptladder_runs(words: list[str], folder: Path) -> None:
    if ELSEWHERE & set(words):
        pytest.skip("run by another test")
    if any("snapshot_step" in word for word in words):
        snapshot(folder)
    if "my-gpt2" in words[2:3]:
        write_model(Path("my-gpt2"))
    if ">" in words:
        words = words[: words.index(">")]
    if "--help" in words:
        with pytest.raises(SystemExit) as done:
            cli.main(words[1:])
        assert done.value.code == 0
    else:
        assert cli.main(words[1:]) == 0


TRAINING = [
    words for program in ("gptladder", "torchrun") for words in lines(program, training_too=True) if "train" in words
]


@pytest.mark.parametrize("words", TRAINING, ids=" ".join)
def test_a_line_that_trains_has_valid_options(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings(words)
    read = []
    monkeypatch.setattr(training, "run_training", lambda config, **_: read.append(config) or sys.exit(0))
    with pytest.raises(SystemExit) as done:
        training.train(words[words.index("train") + 1 :])
    assert done.value.code == 0


ALONE = [words for words in TRAINING if words[0] == "gptladder" and "--help" not in words]


@pytest.mark.parametrize("words", ALONE, ids=" ".join)
def test_a_line_that_trains_trains(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line as it is typed; only the number of steps is cut after its options were read."""
    write_settings(words)
    there = set(Path("runs").iterdir())
    run = train

    def short(config: TrainConfig, **rest: Any) -> Outcome:
        return run(config.replace(max_steps=2, warmup_steps=1, sample_tokens=5), **rest)

    monkeypatch.setattr(training, "run_training", short)
    monkeypatch.setattr(runlog, "draw_losses", lambda *_, **__: None)  # it takes longer than two steps
    assert cli.main(words[1:]) == 0
    (made,) = set(Path("runs").iterdir()) - there
    assert [path.name for path in made.glob("snapshots/*")] == ["snapshot_step_2.pt"]
    assert cli.main(["generate", "O", "--model", str(made), "--max-new-tokens", "2"]) == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("words", ALONE, ids=" ".join)
def test_a_line_that_trains_can_be_stopped(words: list[str], folder: Path) -> None:
    write_settings(words)
    with subprocess.Popen([sys.executable, "-m", *words], cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(2400):
                if process.poll() is not None or any(map(_has_made_a_step, folder.glob("runs/*/metrics.jsonl"))):
                    break
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode in (0, 130), errors
    assert "Traceback" not in errors
    assert list(folder.glob("runs/*/snapshots/*.pt"))


def _has_made_a_step(metrics: Path) -> bool:
    return any(
        json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")
    )


@pytest.mark.parametrize("words", lines("make"), ids=" ".join)
def test_a_line_of_make_names_a_target(words: list[str], tmp_path: Path) -> None:
    targets = " ".join(words[1:]).replace("make ", "").replace(",", "").split() if "," in " ".join(words) else words[1:]
    done = subprocess.run(["make", "-n", "-C", str(ROOT), f"VENV={tmp_path}", *targets], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["generate", "look"])
@pytest.mark.parametrize("prompt", ['He wrote "hello".', "It's 5 `now`", "back\\slash \\n", "a  b", "x=$5", "# 50%"])
def test_make_passes_the_prompt_as_typed(target: str, prompt: str, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "gptladder"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '%s' \"$2\"\n")
    program.chmod(0o755)
    (tmp_path / ".ready").touch()
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT), f"VENV={tmp_path}", target, f"PROMPT={prompt}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == prompt, done.stderr


def test_make_look_reads_what_make_train_tinystories_writes(tmp_path: Path) -> None:
    (tmp_path / ".ready").touch()
    done = subprocess.run(["make", "-n", "-C", str(ROOT), f"VENV={tmp_path}", "look"], capture_output=True, text=True)
    assert "gptladder look 'Once upon a time there was' --model 'runs/tinystories/final'" in done.stdout


def test_make_train_shakespeare_asks_for_its_text(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-n", "-C", str(ROOT), f"VENV={tmp_path}", "train-shakespeare"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "which text? make train-shakespeare TEXT=input.txt" in done.stderr


@pytest.mark.parametrize("target", ["train-shakespeare", "train-tinystories"])
def test_make_overwrites_no_run_by_itself(target: str, tmp_path: Path) -> None:
    (tmp_path / ".ready").touch()
    command = ["make", "-n", "-C", str(ROOT), f"VENV={tmp_path}", target, "TEXT=x.txt"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--resume auto" in plain
    assert "--overwrite" not in plain
    again = subprocess.run([*command, "ARGS=--overwrite"], capture_output=True, text=True, check=True).stdout
    assert "--resume" not in again


@pytest.mark.parametrize("words", [words for words in lines("python") if words[1].startswith("demos/")], ids=" ".join)
def test_a_line_of_python_names_a_demo(words: list[str]) -> None:
    assert (ROOT / words[1]).exists()


@pytest.mark.parametrize("words", lines("pip"), ids=" ".join)
def test_a_line_of_pip_names_an_extra_that_exists(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extra.split(","))


def test_every_command_has_a_line() -> None:
    typed = {words[1] for words in lines("gptladder", training_too=True)}
    assert typed >= cli.COMMANDS.keys() - {"prepare", "ladder", "parity"}
