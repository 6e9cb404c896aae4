"""``gptladder train``: its options, its messages, and how it ends."""

import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder import cli
from gptladder.assembly import GPT2
from gptladder.tokenizer import CharTokenizer, Tokenizer, load_tokenizer
from gptladder.training.command import look_command, prepare, train
from gptladder.training.display import Display, JSONDisplay, TensorBoardDisplay, TerminalDisplay, WandbDisplay
from gptladder.training.metrics import Metrics, read_metrics
from gptladder.training.presets import PRESETS
from gptladder.training.snapshots import list_snapshots

TEXT = "The cat sat on the mat, and the dog sat on the cat. Nobody was glad of that.\n" * 30


def sample(model: GPT2, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    ids = tokenizer.encode(prompt)
    for _ in range(max_new_tokens):
        ids.append(int(model(torch.tensor([ids[-model.config.n_ctx :]]))[0, -1].argmax()))
    return tokenizer.decode(ids)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Train a very small model on a very small text, in an empty folder; options are those of the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)

    def start(*options: str, drawn: Any = sample) -> int:
        small = "--preset shakespeare-char --corpus text.txt --d-model 8 --n-layers 1 --n-heads 2 --n-ctx 8 --batch 4"
        often = "--max-steps 6 --warmup-steps 2 --eval-every 3 --snapshot-every 2 --sample-tokens 5 --log-every 1"
        return train([*small.split(), *often.split(), "--prompt", "The", *options], sample=drawn)

    return start


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_everything_in_its_folder(
    start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert start("--name", "cats") == 0
    folder = tmp_path / "runs" / "cats"
    written = "config.json metrics.jsonl metrics.csv speed.jsonl samples.md loss.png snapshots final last tokenizer"
    assert {path.name for path in folder.iterdir()} == set(written.split())
    assert [path.name for path in list_snapshots(folder / "snapshots")] == [f"snapshot_step_{s}.pt" for s in (2, 4, 6)]
    config = json.loads((folder / "config.json").read_text())
    assert config["optim"]["lr"] == PRESETS["shakespeare-char"].optim.lr
    assert config["facts"]["text"] == "text.txt"
    card = (folder / "final" / "README.md").read_text()
    last = read_metrics(folder)[-1]
    assert f"validation: loss {last.val_loss:.4f}" in card
    assert "step 6: 192 tokens" in card
    said = capsys.readouterr().out
    for part in (r"preparing text\.txt", r"step 6 .*validation loss", r"Step 0:\n +The", r"After training.*3 of 3"):
        assert re.search(part, said), part
    model = GPT2.from_pretrained(folder / "final")
    tokenizer = load_tokenizer(folder / "final")
    snapshot = torch.load(folder / "snapshots" / "snapshot_step_6.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, snapshot["model_state_dict"][name])
    assert tokenizer.decode(tokenizer.encode("The cat")) == "The cat"


def test_a_run_ends_by_naming_the_command_that_shows_the_model(
    start: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("--name", "the cats") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "look into it: gptladder look \"The\" --model 'runs/the cats/final'"
    words = shlex.split(line.partition(": gptladder ")[2])
    assert cli.main([*words, "--out", "page.html"]) == 0
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("prompt", ["\n", 'He said "hello"', "$HOME", "`ls`"])
def test_a_prompt_that_a_shell_would_change_is_not_in_the_command(prompt: str) -> None:
    assert look_command(Path("final"), prompt) == 'look into it: gptladder look "your text" --model final'


def test_transformers_reads_the_final_folder(start: Callable[..., int], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    start()
    final = tmp_path / "runs" / "shakespeare-char" / "final"
    ids = load_tokenizer(final).encode("The cat")
    assert transformers.AutoTokenizer.from_pretrained(final)("The cat")["input_ids"] == ids
    theirs = transformers.AutoModelForCausalLM.from_pretrained(final)(torch.tensor([ids])).logits
    torch.testing.assert_close(theirs, GPT2.from_pretrained(final)(torch.tensor([ids])), atol=1e-5, rtol=0)


def test_data_is_prepared_once(start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(["--preset", "shakespeare-char", "--corpus", "text.txt"] if start else []) == 0
    assert "preparing text.txt" in capsys.readouterr().out
    start()
    assert "prepared already: data" in capsys.readouterr().out
    (tmp_path / "text.txt").write_text(TEXT + "Another line.\n")
    start("--overwrite")
    assert "preparing text.txt" in capsys.readouterr().out
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_json_lines_and_nothing_else(start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    start("--json")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["step"] for event in events if event["event"] == "metrics"] == list(range(7))
    assert {"message", "facts", "metrics", "sample"} == {event["event"] for event in events}


@pytest.mark.usefixtures("pictures")
def test_without_a_sampler_and_without_matplotlib_it_trains_and_says_so(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert start(drawn=None) == 0
    said = capsys.readouterr().out
    assert "no samples: train() was called without sample=" in said
    assert "no picture of the losses: the loss curve needs matplotlib, which is not installed" in said
    assert not (tmp_path / "runs" / "shakespeare-char" / "loss.png").exists()
    assert (tmp_path / "runs" / "shakespeare-char" / "final" / "model.safetensors").exists()


def test_resume_goes_on_and_a_run_is_not_overwritten_by_chance(
    start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("--resume", "auto")
    assert "nothing to resume in runs/shakespeare-char: the run begins" in capsys.readouterr().out
    folder = tmp_path / "runs" / "shakespeare-char"
    whole = (folder / "metrics.csv").read_bytes()
    with pytest.raises(ValueError, match=r"runs/shakespeare-char holds a run already: continue it with --resume auto"):
        start()
    start("--resume", "auto", "--lr", "0.5", "--max-steps", "8")
    said = capsys.readouterr().out
    assert "resumed from runs/shakespeare-char/snapshots/snapshot_step_6.pt, at step 6" in said
    assert "changed: lr: 0.5 (was 0.002)" in said
    assert re.search(r"the learning rate of step 7 is 0\.\d+; that of step 6 was", said)
    assert read_metrics(folder)[-1].step == 8
    start("--resume", str(folder / "snapshots" / "snapshot_step_4.pt"), "--lr", "0.002")
    assert (folder / "metrics.csv").read_bytes() == whole
    assert "what came after it is in" in capsys.readouterr().out
    assert [path.name for path in list_snapshots(folder / "branches" / "after-step-4" / "snapshots")] == [
        "snapshot_step_6.pt",
        "snapshot_step_8.pt",
    ]
    start("--overwrite")
    assert (folder / "metrics.csv").read_bytes() == whole
    assert not (folder / "branches").exists()


def test_from_a_trained_model(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    start("--name", "second", "--init-from", "runs/shakespeare-char/final", "--lr", "1e-9", "--max-steps", "1")
    first, second = (read_metrics(tmp_path / "runs" / name) for name in ("shakespeare-char", "second"))
    assert second[0].val_loss == pytest.approx(first[-1].val_loss, abs=1e-6)
    with pytest.raises(ValueError, match=r"--seq 9 is more than runs/shakespeare-char/final has positions for, 8"):
        start("--name", "third", "--init-from", "runs/shakespeare-char/final", "--n-ctx", "9")


def test_dropout_and_other_choices_reach_the_model(start: Callable[..., int], tmp_path: Path) -> None:
    start("--dropout", "0.25", "--act-fn", "relu", "--d-mlp", "24", "--no-tie-word-embeddings", "--seq", "5")
    model = torch.load(tmp_path / "runs" / "shakespeare-char" / "snapshots" / "snapshot_step_6.pt")
    assert model["model_state_dict"]["blocks.0.mlp.W_in"].shape == (8, 24)
    assert "unembed.W_U" in model["model_state_dict"]
    assert model["model_config"]["attn_dropout"] == 0.25
    assert read_metrics(tmp_path / "runs" / "shakespeare-char")[-1].tokens == 6 * 4 * 5


WRONG = {
    "an empty file": (lambda: Path("text.txt").write_text(""), [], "text.txt is empty"),
    "a binary file": (lambda: Path("text.txt").write_bytes(b"\x7fELF\0\0"), [], "text.txt, line 1 .+ has a zero byte"),
    "no UTF-8": (lambda: Path("text.txt").write_bytes(b"caf\xe9 au lait " * 9), [], "text.txt, line 1 .+ is not UTF-8"),
    "no file": (lambda: Path("text.txt").unlink(), [], "no file or folder text.txt: give --corpus PATH"),
    "too short a file": (lambda: Path("text.txt").write_text("The cat"), [], "tokens, fewer than the 9 of one window"),
    "too short to split": (lambda: Path("text.txt").write_text("a"), [], "the text has 1 tokens, too few"),
    "no such tokenizer": (None, ["--tokenizer", "words"], "--tokenizer words: there is no such folder"),
    "heads that do not divide": (None, ["--n-heads", "3"], "--n-heads 3 does not divide --d-model 8"),
    "no such snapshot": (None, ["--resume", "snapshot_step_3.pt"], "there is no snapshot snapshot_step_3.pt"),
    "more than the memory": (None, ["--n-layers", "1000000000"], "parameters needs .+ GB to train, and this ma"),
    "no such device": (None, ["--device", "cuda:77"], "there is no device 'cuda:77'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_in_one_line(start: Callable[..., int], tmp_path: Path, case: str) -> None:
    spoil, options, message = WRONG[case]
    if spoil:
        spoil()
    with pytest.raises(ValueError, match=message) as caught:
        start(*options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "shakespeare-char" / "final").exists()


@pytest.mark.parametrize("option", ["--batch", "--d-model", "--max-steps", "--n-ctx", "--snapshot-every", "--keep"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_negative_and_zero_sizes_are_refused(
    start: Callable[..., int], capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        start(option, value)
    assert caught.value.code == 2
    assert f"{option} is {value}; it must be" in capsys.readouterr().err


def test_sequences_beyond_the_model_are_refused(start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start("--seq", "9")
    assert "--seq 9 is more than the model has positions for" in capsys.readouterr().err


def test_an_unknown_preset_is_refused(start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start("--preset", "gpt5")
    assert "gpt5" in capsys.readouterr().err


def test_a_failed_start_leaves_the_old_run_and_no_folder(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    folder = tmp_path / "runs" / "shakespeare-char"
    before = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    final = "runs/shakespeare-char/final"
    for options, message in (
        (["--corpus", "missing.txt"], "missing.txt"),
        (["--init-from", final], "--overwrite would replace runs/shakespeare-char, and --init-from"),
        (["--init-from", "runs/shakespeare-char"], "--overwrite would replace"),
        (["--prompt", "Ω"], "--prompt 'Ω' cannot be encoded: character 'Ω'"),
        (["--n-heads", "3"], "--n-heads 3 does not divide --d-model 8"),
        (["--min-lr", "1e-5", "--target-loss", "1", "--max-steps", "None"], "this run has no end"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            start("--overwrite", *options)
        if "replace" not in message:
            with pytest.raises(ValueError, match=re.escape(message)):
                start("--name", "other", *options)
        assert {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["shakespeare-char"]


def test_an_overwrite_that_diverges_gives_the_old_run_back(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    before = (tmp_path / "runs" / "shakespeare-char" / "metrics.csv").read_bytes()
    with pytest.raises(ValueError, match="there is no snapshot from before it"):
        start("--overwrite", "--lr", "1e38", "--grad-clip", "None", "--warmup-steps", "0", "--snapshot-every", "9")
    assert (tmp_path / "runs" / "shakespeare-char" / "metrics.csv").read_bytes() == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["shakespeare-char"]


def test_overwrite_keeps_what_no_run_has_written(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    for name in ("notes.md", "snapshots/best.pt", "final/thoughts.txt"):
        mine = tmp_path / "runs" / "shakespeare-char" / name
        mine.write_text("months of work")
        with pytest.raises(ValueError, match=f"holds more than a run, and is not replaced: '{name}'"):
            start("--overwrite")
        mine.unlink()
    start("--overwrite")


def test_a_snapshot_of_another_run_begins_a_new_run(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    first, second = (tmp_path / "runs" / name for name in ("shakespeare-char", "second"))
    before = {str(path): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    snapshot = str(first / "snapshots" / "snapshot_step_4.pt")
    start("--name", "second", "--resume", snapshot, "--max-steps", "8")
    assert {str(path): path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert [row.step for row in read_metrics(second)] == list(range(9))
    assert read_metrics(second)[:4] == read_metrics(first)[:4]
    with pytest.raises(ValueError, match="runs/second holds a run already"):
        start("--name", "second", "--resume", snapshot)


def test_resuming_keeps_the_options_that_are_not_given_again(start: Callable[..., int], tmp_path: Path) -> None:
    start("--dropout", "0.2", "--lr", "0.004")
    assert train(["--name", "shakespeare-char", "--resume", "auto", "--max-steps", "7"]) == 0
    config = json.loads((tmp_path / "runs" / "shakespeare-char" / "config.json").read_text())
    assert (config["optim"]["lr"], config["model"]["attn_dropout"], config["optim"]["max_steps"]) == (0.004, 0.2, 7)
    for options, message in (
        (["--d-model", "12"], "is of another model"),
        (["--seed", "3"], "seed"),
        (["--order", "shuffled"], "order"),
        (["--init-range", "0.1"], "--init-range 0.1 cannot be changed when a run resumes, it was 0.02"),
        (["--optimizer", "muon"], "optimizer"),
        (["--init-from", "runs/shakespeare-char"], "--init-from"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            start("--resume", "auto", *options)


def test_a_run_whose_snapshots_are_all_damaged_is_not_begun_again(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    folder = tmp_path / "runs" / "shakespeare-char"
    for path in list_snapshots(folder / "snapshots"):
        path.write_bytes(b"nothing")
    before = (folder / "metrics.csv").read_bytes()
    with pytest.raises(ValueError, match=r"none of the 3 snapshots in .* can be read"):
        start("--resume", "auto")
    for path in list_snapshots(folder / "snapshots"):
        path.unlink()
    with pytest.raises(ValueError, match="has a trained model and no snapshot to continue from"):
        start("--resume", "auto")
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_snapshot_whose_metrics_are_gone_changes_nothing(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    folder = tmp_path / "runs" / "shakespeare-char"
    (folder / "metrics.csv").write_text("")
    before = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"metrics\.csv has 0 bytes and had \d+ at the snapshot"):
        start("--resume", str(folder / "snapshots" / "snapshot_step_2.pt"))
    assert {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_resumed_from_another_folder_names_the_option_for_its_text(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume = ["--runs-dir", "../runs", "--name", "shakespeare-char", "--resume", "auto", "--max-steps", "7"]
    with pytest.raises(ValueError, match=r"there is no file or folder text\.txt: give --corpus PATH"):
        train(resume)
    assert train([*resume, "--corpus", "../text.txt"]) == 0


def test_options_without_effect_are_reported(start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    start("--muon-lr", "0.5", "--vocab-size", "300", "--min-lr", "None", "--decay", "linear", "--max-steps", "1")
    said = capsys.readouterr().out
    for option in ("--muon-lr", "--vocab-size", "--decay"):
        assert f"{option} has no effect: " in said
    assert said.count("has no effect") == 3
    assert prepare(["--corpus", "text.txt", "--tokenizer", "char", "--vocab-size", "300"]) == 0
    assert "--vocab-size has no effect: it is for --tokenizer bpe" in capsys.readouterr().out


def test_a_changed_text_is_noticed_at_equal_length(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    (tmp_path / "text.txt").write_text(TEXT.replace("cat sat", "sat cat"))
    with pytest.raises(ValueError, match="the text has changed since"):
        start("--resume", "auto")


def test_sizes_beside_a_model_to_start_from(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    options = ["--name", "b", "--init-from", "runs/shakespeare-char", "--max-steps", "1"]
    with pytest.raises(ValueError, match="--d-model 12 does not fit --init-from runs/shakespeare-char, which has 8"):
        start(*options, "--d-model", "12")
    start(*options, "--dropout", "0.5")
    record = json.loads((tmp_path / "runs" / "b" / "config.json").read_text())
    assert record["model"]["resid_dropout"] == 0.5
    assert json.loads((tmp_path / "runs" / "b" / "final" / "config.json").read_text())["resid_pdrop"] == 0.5


def test_an_unknown_character_or_another_vocabulary(start: Callable[..., int], tmp_path: Path) -> None:
    start()
    (tmp_path / "text.txt").write_text(TEXT + "Ω")
    with pytest.raises(ValueError, match=r"character 'Ω' \(U\+03A9\) at position \d+ is not among the 22 characters"):
        start("--name", "b", "--init-from", "runs/shakespeare-char/final")
    with pytest.raises(ValueError, match="the text has changed since"):
        start("--name", "c", "--resume", "runs/shakespeare-char/snapshots/snapshot_step_6.pt")
    (tmp_path / "text.txt").write_text(TEXT)
    CharTokenizer(sorted(set(TEXT), reverse=True)).save(tmp_path / "other")
    with pytest.raises(ValueError, match="is of a model of another vocabulary, though as large"):
        start("--name", "d", "--resume", "runs/shakespeare-char/snapshots/snapshot_step_6.pt", "--tokenizer", "other")


@pytest.mark.parametrize("damage", ["truncated", "pickled"])
def test_damaged_snapshots_are_refused(start: Callable[..., int], tmp_path: Path, damage: str) -> None:
    start()
    newest = tmp_path / "runs" / "shakespeare-char" / "snapshots" / "snapshot_step_6.pt"
    if damage == "truncated":
        os.truncate(newest, 3000)
    else:
        torch.save({"model_state_dict": Path("x")}, newest)
    with pytest.raises(ValueError, match=r"snapshot_step_6\.pt"):
        start("--resume", str(newest))


def test_a_run_folder_that_cannot_be_written_is_refused_at_once(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"the run's folder file/shakespeare-char cannot be written to \(Not a directory\)"
    ):
        start("--runs-dir", "file")

    def read_only(**_: Any) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(ValueError, match=r"cannot be written to \(Read-only file system\): choose another --runs-dir"):
        start()
    assert not (tmp_path / "data").exists()


def test_overwrite_does_not_delete_what_is_no_run(start: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="runs/mine is not the folder of a run, and is not touched"):
        start("--name", "mine", "--overwrite")
    assert (tmp_path / "runs" / "mine" / "thesis.txt").exists()


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (train, prepare):
        with pytest.raises(SystemExit) as caught:
            command(["--preset", "tinystories-char", "--help"])
        assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "Learning rate of AdamW after warm-up" in said
    assert "Size of the generated stories in megabytes" in said


def test_ctrl_c_ends_with_a_snapshot_and_130(start: Callable[..., int], tmp_path: Path) -> None:
    """In a process of its own, as from a terminal."""
    assert start is not None
    program = "import sys; from gptladder.training.command import train; sys.exit(train(sys.argv[1:]))"
    small = "--preset shakespeare-char --corpus text.txt --d-model 8 --n-layers 1 --n-heads 2 --n-ctx 8"
    long = "--max-steps 1000000 --eval-every 1000000 --log-every 1 --json"
    command = [sys.executable, "-c", program, *small.split(), *long.split()]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while '"step": 5,' not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 130, complained
    stopped = re.search(r"stopped at step (\d+); continue with --resume auto", said)
    assert stopped is not None
    assert [path.name for path in list_snapshots(tmp_path / "runs" / "shakespeare-char" / "snapshots")][-1] == (
        f"snapshot_step_{stopped[1]}.pt"
    )


ROW = Metrics(step=3, epoch=0.5, tokens=9, loss=2.0, val_loss=1.5, val_accuracy=0.5, val_perplexity=4.5)


def test_the_terminal_shows_step_loss_speed_and_time_left() -> None:
    out = io.StringIO()
    with TerminalDisplay(out) as display:
        display.console.width = 120
        display.progress(3, 10, 2.0, 12345.6)
        display.metrics(ROW)
        display.say("[not] markup, and :x: no emoji")
        time.sleep(0.2)
    said = out.getvalue()
    assert re.search(r"step 3 .*30% loss 2\.0000 +12,346 tokens/s .*left", said)
    assert "step 3  epoch 0.50  train loss 2.0000  validation loss 1.5000  accuracy 50.0%  perplexity 4.50" in said
    assert "[not] markup, and :x: no emoji" in said


def test_tensorboard_gets_every_number_or_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(ModuleNotFoundError, match=r'pip install "gptladder\[tensorboard\]"'):
            TensorBoardDisplay(JSONDisplay(io.StringIO()), tmp_path)
    pytest.importorskip("tensorboard")
    out = io.StringIO()
    with TensorBoardDisplay(JSONDisplay(out), tmp_path) as display:
        display.facts(model="small")
        display.metrics(ROW)
        display.sample("Step 3", "Once")
        display.say("hello")
        display.progress(3, 10, 2.0, 1.0)
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == [
        "facts",
        "metrics",
        "sample",
        "message",
    ]
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("val_loss")[0].value == 1.5
    assert events.Scalars("val_loss")[0].step == 3
    assert "lr" not in events.Tags()["scalars"]


def test_wandb_gets_every_number_offline_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path), "CONFIG_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    out = io.StringIO()
    ids = []
    for step in (3, 6):
        with WandbDisplay(JSONDisplay(out), tmp_path, "cats", {"optim": {"lr": 0.1}}) as display:
            ids.append(display._run.id)
            display.facts(model="small")
            display.progress(step, 10, 2.0, 123.0)
            display.metrics(dataclasses.replace(ROW, step=step))
            display.sample("Step 3", "Once <b>upon")
            display.say("hello")
            summary = dict(display._run.summary)
            assert summary["val_loss"] == 1.5
            assert summary["tokens_per_second"] == 123.0
            assert summary["step"] == step
            assert dict(display._run.config)["optim"] == {"lr": 0.1}
            assert dict(display._run.config)["facts"] == {"model": "small"}
    assert ids[0] == ids[1]
    events = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert events == ["facts", "metrics", "sample", "message"] * 2
    (page, *_) = tmp_path.rglob("*.html")
    assert "<pre>Once &lt;b&gt;upon</pre>" in page.read_text()


def test_wandb_that_is_not_installed_or_cannot_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        with pytest.raises(ImportError, match=r"pip install 'gptladder\[wandb\]'"):
            WandbDisplay(Display(), tmp_path, "cats", {})
    wandb = pytest.importorskip("wandb")

    def refuse(**_: object) -> None:
        raise wandb.Error("No API key configured. Use `wandb login`\nto log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"--wandb cannot start .No API key.*WANDB_MODE=offline") as caught:
        WandbDisplay(Display(), tmp_path, "cats", {})
    assert "\n" not in str(caught.value)
