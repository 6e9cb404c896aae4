"""A run's config.json given back: ``train --config``; and 300 mutations of it through every door that reads it."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from time_limit import seconds

from gptladder.cli import main
from gptladder.files import FileError
from gptladder.training.changes import recorded_config
from gptladder.training.folder import RunFolder
from gptladder.training.lock import RunFolderError
from gptladder.training.record import read_record
from gptladder.training.resume import find_snapshot
from gptladder.weights import HubError, WeightsError, open_source, resolve, tokenizer_folder

MUTATIONS = 300
TEXT = "The cat sat on the mat. A dog ran to the cat. " * 30
SMALL = "--preset shakespeare-char --corpus text.txt --d-model 8 --n-layers 1 --n-heads 2 --n-ctx 8 --batch 4"
OFTEN = "--max-steps 4 --warmup-steps 2 --eval-every 2 --snapshot-every 2 --sample-tokens 5 --log-every 1 --seed 7"
OPTIONS = [*SMALL.split(), *OFTEN.split(), "--prompt", "The", "--dropout", "0.1", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, its prepared data, and a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        Path("text.txt").write_text(TEXT)
        assert main(["train", *OPTIONS, "--name", "first"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, in the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/first")


def settings(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "config.json").read_text())
    del record["facts"]["run"], record["run"]["name"]
    return record


# Given back


def test_a_run_by_the_settings_of_another_writes_the_same_bytes(run: Path) -> None:
    assert main(["train", "--config", str(run / "config.json"), "--name", "second"]) == 0
    second = Path("runs/second")
    assert settings(second) == settings(run)
    for name in ("metrics.jsonl", "samples.md", "final/model.safetensors", "last/model.safetensors"):
        assert (second / name).read_bytes() == (run / name).read_bytes(), name


def test_explicit_options_win_and_sizes_follow_them(run: Path) -> None:
    assert (
        main(["train", f"--config={run}", *["--name", "wide", "--d-model", "12", "--lr", "0.5", "--max-steps", "1"]])
        == 0
    )
    found = json.loads(Path("runs/wide/config.json").read_text())
    assert (found["model"]["d_model"], found["model"]["d_mlp"], found["model"]["d_head"]) == (12, 48, 6)
    assert (found["optim"]["lr"], found["optim"]["max_steps"], found["optim"]["seed"]) == (0.5, 1, 7)
    assert found["model"]["attn_dropout"] == 0.1
    assert main(["train", "--config", str(run), "--name", "dry", "--dropout", "0", "--max-steps", "1"]) == 0
    assert json.loads(Path("runs/dry/config.json").read_text())["model"]["attn_dropout"] == 0


def test_a_fine_tuning_is_given_back_with_its_start_and_its_dropout(run: Path) -> None:
    options = f"--corpus text.txt --init-from {run} --max-steps 2 --name tuned --device cpu".split()
    assert main(["train", *options, "--attn-dropout", "0.3", "--batch", "2"]) == 0
    assert main(["train", "--config", "runs/tuned/config.json", "--name", "again"]) == 0
    assert settings(Path("runs/again")) == settings(Path("runs/tuned"))
    for name in ("metrics.jsonl", "final/model.safetensors"):
        assert Path("runs/again", name).read_bytes() == Path("runs/tuned", name).read_bytes()


def changed(record: dict[str, Any], **parts: dict[str, Any]) -> bytes:
    return json.dumps({**record, **{part: {**record[part], **values} for part, values in parts.items()}}).encode()


def test_what_cannot_be_given_back_is_refused_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (run / "config.json").read_bytes()
    record = json.loads(good)
    cases: list[tuple[bytes, str]] = [
        (good[:-30], "is not valid JSON"),
        (b"\x00\xff\x00", "is not valid JSON"),
        (b"[]", "is a JSON list"),
        (b'{"model_type": "gpt2"}', "is not the config.json of a run"),
        (json.dumps({**record, "version": 1}).encode(), "is not the config.json of a run of this version"),
        (changed(record, optim={"lr": "fast"}), "lr is 'fast'"),
        (changed(record, optim={"lr": True}), "lr is 'True'"),
        (changed(record, optim={"lr": float("nan")}), "NaN is not a JSON number"),
        (changed(record, optim={"lr": 1e300}), "lr is 1e"),
        (changed(record, model={"d_model": 10**40}), "d_model is 1000"),
        (changed(record, model={"colour": "red"}), "'colour' is no setting"),
        (changed(record, model={"dropout": 0.2}), "dropout is '0.2', which does not fit"),
        (good.replace(b'"seed": 7', b'"seed": 7, "seed": 8'), "more than once"),
        (json.dumps({name: value for name, value in record.items() if name != "optim"}).encode(), "optim is missing"),
        (json.dumps({**record, "optim": {"max_steps": 4}}).encode(), "is missing"),
    ]
    capsys.readouterr()
    for content, message in cases:
        Path("c.json").write_bytes(content)
        assert main(["train", "--config", "c.json", "--name", "other"]) == 1
        printed = capsys.readouterr().err
        assert message in printed, (message, printed)
        assert "c.json" in printed
        assert printed.count("\n") == 1
    assert not Path("runs/other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "tinystories"], "--config and --preset do not go together"),
        (["--resume", "auto"], "--config and --resume do not go together"),
        ([], "runs/first holds a run already"),
    ],
)
def test_options_that_contradict_it_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    capsys.readouterr()
    assert main(["train", "--config", str(run), *options]) == 1
    assert message in capsys.readouterr().err


# 300 mutations

ODD: list[Any] = [None, True, "", "x" * 300, "8", [], {}, [[]], -1, 0, 1, 0.5, 2**31, 2**63, 10**30, 1e300, "\x1b[31m"]


def mutated(content: bytes, seed: int) -> bytes:
    """The file with bytes changed or one field changed, renamed, removed, doubled or swapped."""
    rng = random.Random(seed)
    if seed % 3 == 0:
        result, at, span = bytearray(content), rng.randrange(len(content)), rng.randint(1, 16)
        way = rng.randrange(5)
        if way == 0:
            result[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            result[at : at + span] = rng.randbytes(span)
        elif way == 2:
            del result[at:]
        elif way == 3:
            del result[at : at + span]
        else:
            result[at : at + 1] = rng.choice([b"\0", b"\xff", b'"', b"9" * 20, b"[" * 50_000, b"-", b"NaN"])
        return bytes(result)
    table = json.loads(content)
    inner = table
    while isinstance(deeper := rng.choice([None, *inner.values()]), dict) and deeper:
        inner = deeper
    name, other = rng.choice(list(inner)), rng.choice(list(inner))
    way = rng.randrange(7)
    if way <= 1:
        inner[name] = rng.choice(ODD)
    elif way == 2:
        del inner[name]
    elif way == 3:
        inner[f"{name}{rng.choice(['s', '_', '2'])}"] = inner.pop(name)
    elif way == 4:
        inner[name], inner[other] = inner[other], inner[name]
    elif way == 5:
        return content.rstrip()[:-1] + f",{json.dumps(name)}:{json.dumps(rng.choice(ODD))}}}".encode()
    else:
        return content.replace(b"1", rng.choice([b"NaN", b"Infinity", b"1e999", b"01", b"1" * 5000]), 1)
    return json.dumps(table).encode()


Read = TypeVar("Read")
REFUSALS = (FileError, WeightsError, HubError, RunFolderError)


def outcome(read: Callable[[], Read]) -> tuple[Read | None, str]:
    """What is read and no message, or nothing and the message of a refusal. Any other exception is a traceback."""
    try:
        with seconds(20):
            return read(), ""
    except REFUSALS as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 700
        return None, text


def strictly(content: bytes) -> dict[str, Any] | None:
    """The settings that a JSON text holds, by Python's own reader; None if it is not JSON or names a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        table = json.loads(content.decode(), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return {name: value for name, value in table.items() if name not in ("format", "version", "facts")}


def test_given_back_a_mutated_record_is_refused_or_taken_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, path = (run / "config.json").read_bytes(), Path("c.json")
    refused = printed = 0
    for seed in range(MUTATIONS):
        content = mutated(good, seed)
        path.write_bytes(content)
        result, message = outcome(lambda: read_record(path)[0].recorded())
        if not message:
            # Exactly what the file holds, to the text of each number: nothing was guessed, dropped or converted.
            held = strictly(content)
            assert held is not None, seed
            assert result is not None, seed
            for part, new in (("run", "wandb"), ("run", "license"), ("optim", "gradient_checkpointing")):
                held[part].setdefault(new, result[part][new])  # the fields that a record may lack
            assert json.dumps(result, sort_keys=True) == json.dumps(held, sort_keys=True), seed
            assert "1e300" not in json.dumps(held), seed
            continue
        refused += 1
        assert "c.json" in message, seed
        if refused % 10 == 0:  # and so does the command
            capsys.readouterr()
            assert main(["train", "--config", "c.json", "--name", "other"]) == 1
            assert capsys.readouterr().err.count("\n") == 1
            printed += 1
    assert refused > MUTATIONS // 2
    assert printed > 10
    assert not Path("runs/other").exists()


def test_beside_snapshots_a_mutated_record_changes_nothing_that_is_resumed(run: Path) -> None:
    good = (run / "config.json").read_bytes()

    def resumed() -> dict[str, Any]:
        with RunFolder(run) as home:
            home.check(overwrite=False, resume=True)
            found = find_snapshot("auto", run, lambda line: None)
        assert found is not None
        return recorded_config(found.contents, found.path).recorded()

    expected, refused = resumed(), 0
    for seed in range(MUTATIONS):
        (run / "config.json").write_bytes(mutated(good, seed))
        result, message = outcome(resumed)
        refused += bool(message)
        assert message or result == expected, seed
    assert refused > MUTATIONS // 10


def test_a_run_with_a_mutated_record_is_no_other_model(run: Path) -> None:
    good = (run / "config.json").read_bytes()
    expected, refused = open_source(run / "final"), 0
    for seed in range(MUTATIONS):
        (run / "config.json").write_bytes(mutated(good, seed))
        result, message = outcome(lambda: (open_source(resolve(run)), tokenizer_folder(run)))
        refused += bool(message)
        if not message:
            assert result is not None, seed
            source, words = result
            assert source.config == expected.config, seed
            assert all(torch.equal(tensor, expected.state[name]) for name, tensor in source.state.items()), seed
            assert words == run / "tokenizer", seed
    assert refused > MUTATIONS // 10


def test_a_run_whose_record_is_gone_is_not_touched(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.json").write_bytes(b"{")
    before = sorted(path.name for path in run.iterdir())
    capsys.readouterr()
    assert main(["train", *OPTIONS, "--name", "first", "--resume", "auto"]) == 1
    printed = capsys.readouterr().err
    assert "is not the folder of a run, and is not touched" in printed
    assert sorted(path.name for path in run.iterdir()) == before
    shutil.rmtree(run)
