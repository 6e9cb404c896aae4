"""Training on a text of the user's own: a recipe for it, a preset for another text, and what the options change."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptladder.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from gptladder.training import command
from gptladder.training.command import prepare, train
from gptladder.training.data.batches import window_count
from gptladder.training.data.config import DataConfig
from gptladder.training.data.prepare import load_data, prepare_data
from gptladder.training.own_text import check_prompt, start_from_preset, start_from_recipe
from gptladder.training.presets import PRESETS, TrainConfig

ENGLISH = "The cat sat on the mat, and the dog sat on the cat. Nobody was glad of that.\n"
SMALL = ["--d-model", "8", "--n-layers", "1", "--n-heads", "2", "--batch", "2", "--sample-tokens", "3"]
SCRIPTS = {
    "English": ENGLISH,
    "one line": ENGLISH.replace("\n", " "),
    "DNA": "ACGTTGCAAC",
    "Chinese": "狐狸和鹅在睡觉，那只猫坐在垫子上。\n",
    "many characters": "".join(map(chr, range(0x4E00, 0x4E00 + 800))),
    "symbols": "".join(map(chr, range(33, 127))) + "🙂" * 9,
}


def sample(model: Any, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    return prompt + f" ({len(tokenizer.encode(prompt))} tokens)"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """The configuration that ``gptladder train`` makes of its options; nothing is trained."""

    def configured(*options: str) -> TrainConfig:
        seen: list[TrainConfig] = []

        def stop(config: TrainConfig, **_: Any) -> None:
            seen.append(config)
            raise KeyboardInterrupt

        monkeypatch.setattr(command, "run_training", stop)
        with pytest.raises(KeyboardInterrupt):
            train(list(options))
        return seen[0]

    return configured


# A recipe


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("length", [200, 700, 5000, 60_000])
def test_any_text_of_200_characters_or_more_has_windows(here: Path, script: str, length: int) -> None:
    text = (SCRIPTS[script] * length)[:length]
    Path("a.txt").write_text(text)
    start = start_from_recipe(DataConfig(corpus="a.txt"))
    data = load_data(prepare_data(start.config.data, say=lambda line: None))
    for part in (data.train, data.val):
        assert window_count(part.tokens, start.config.seq) >= 1
    assert data.train.header.tokens + data.val.header.tokens >= len(text) / 5
    check_prompt(start.config.run.prompt, data.tokenizer)
    assert start.config.run.prompt


def test_a_tokenizer_of_longer_tokens_still_has_windows(here: Path) -> None:
    Path("a.txt").write_text(ENGLISH * 10)
    start = start_from_recipe(DataConfig(corpus="a.txt"), tokenizer="gpt2")
    tokenizer = BPETokenizer.train(ENGLISH * 1000, 400)  # which has whole words
    assert len(tokenizer.encode(ENGLISH * 10)) * 0.1 > start.config.seq
    assert start.config.seq < start_from_recipe(DataConfig(corpus="a.txt")).config.seq


def test_a_text_that_is_too_short_is_refused_with_what_is_needed(here: Path) -> None:
    Path("a.txt").write_text("Too short.")
    with pytest.raises(ValueError, match="the text has 10 characters, too few to train on: give at least 200"):
        train(["--corpus", "a.txt"])
    assert not Path("data").exists()
    assert not Path("runs").exists()


def test_the_recipe_is_printed_before_anything_begins(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my text.txt").write_text(ENGLISH * 30)
    options = [*SMALL, "--max-steps", "2"]
    assert train(["--corpus", "my text.txt", *options], sample=sample) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"recipe for my-text \({len(ENGLISH) * 30:,} characters, {len(set(ENGLISH))} different ones\): "
        r"tokenizer char; model: 1 layers, d_model 8, "
        r"2 heads, n_ctx \d+; 2 steps of 2 x \d+ tokens, learning rate \S+ \(Muon: 0.03\), about \S+ passes over the "
        r"text; samples begin with 'The cat sat on the mat,'",
        first,
    )
    assert second.startswith("preparing my text.txt in data/my-text-char-")
    config = json.loads(Path("runs/my-text/config.json").read_text())
    assert config["facts"]["train_tokens"] + config["facts"]["val_tokens"] == len(ENGLISH) * 30
    assert (config["preset"], config["optim"]["max_steps"]) == ("", 2)


def test_as_json_the_recipe_is_a_message(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_text(ENGLISH * 30)
    options = [*SMALL, "--max-steps", "1"]
    assert train(["--corpus", "a.txt", *options, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["event"] == "message"
    assert lines[0]["message"].startswith("recipe for a (")


def test_every_option_overrides_the_recipe(here: Path, configured: Callable[..., TrainConfig]) -> None:
    Path("a.txt").write_text(ENGLISH * 100)
    options: dict[str, object] = {"lr": 0.5, "batch": 3, "n_ctx": 7, "prompt": "Nobody"}
    options |= {"val_fraction": 0.3, "tokenizer": "char", "name": "n"}
    config = configured(
        "--corpus", "a.txt", *(word for name, value in options.items() for word in (f"--{name}", str(value)))
    )
    assert (config.optim.lr, config.optim.batch, config.model.n_ctx, config.run.prompt) == (0.5, 3, 7, "Nobody")
    assert (config.data.val_fraction, config.data.tokenizer, config.run.name) == (0.3, "char", "n")
    plain = configured("--corpus=a.txt")
    assert (plain.data.tokenizer, plain.run.name, plain.data.fraction) == ("bpe", "a", 1.0)


def test_several_paths_and_an_encoding_are_one_text(here: Path, configured: Callable[..., TrainConfig]) -> None:
    Path("a.txt").write_text(ENGLISH * 9)
    Path("b.txt").write_bytes("naïve café ".encode("cp1252") * 9)
    config = configured("--corpus", "a.txt", "b.txt", "--encoding", "cp1252", "--lr", "1e-3")
    assert (config.data.corpus, config.data.encoding, config.name) == (("a.txt", "b.txt"), "cp1252", "a")


def test_a_trained_model_is_tuned_at_a_lower_rate(here: Path, configured: Callable[..., TrainConfig]) -> None:
    Path("a.txt").write_text(ENGLISH * 100)
    assert configured("--corpus", "a.txt", "--init-from", "gpt2").optim.lr == 3e-4
    assert configured("--corpus", "a.txt", "--init-from", "gpt2", "--lr", "1e-5").optim.lr == 1e-5


# A preset for another text


def test_a_preset_gives_model_and_optimizer_but_no_part_of_its_text(
    here: Path, configured: Callable[..., TrainConfig]
) -> None:
    Path("a.txt").write_text(ENGLISH * 100)
    preset = PRESETS["tinystories"]
    assert preset.data.fraction < 1
    config = configured("--preset", "tinystories", "--corpus", "a.txt")
    assert (config.model, config.optim) == (preset.model, preset.optim)
    assert config.data == DataConfig(corpus="a.txt", tokenizer="bpe", vocab_size=preset.data.vocab_size)
    assert configured("--preset", "tinystories", "--corpus", "a.txt", "--fraction", "0.5").data.fraction == 0.5
    assert configured("--preset", "tinystories").data == preset.data
    assert configured("--corpus", "stories").data.stories_mb == preset.data.stories_mb


def test_a_prompt_of_a_preset_stays_if_the_text_has_its_characters(
    here: Path, configured: Callable[..., TrainConfig]
) -> None:
    Path("dna.txt").write_text("".join(random.Random(0).choices("ACGT", k=5000)))
    Path("a.txt").write_text(ENGLISH * 100)
    for preset in ("shakespeare-char", "tinystories-char"):
        assert configured("--preset", preset, "--corpus", "a.txt").run.prompt == PRESETS[preset].run.prompt
        assert set(configured("--preset", preset, "--corpus", "dna.txt").run.prompt) <= set("ACGT")
    assert configured("--preset", "tinystories", "--corpus", "dna.txt").run.prompt == "Once upon a time"
    assert configured("--preset", "tinystories", "--corpus", "dna.txt", "--tokenizer", "char").run.prompt[0] in "ACGT"


def test_a_prompt_that_cannot_be_encoded_is_refused_before_training(here: Path) -> None:
    Path("a.txt").write_text(ENGLISH * 30)
    options = ["--corpus", "a.txt", *SMALL, "--max-steps", "1", "--prompt"]
    with pytest.raises(ValueError, match=r"--prompt '\?' cannot be encoded: character '\?'"):
        train([*options, "?"], sample=sample)
    with pytest.raises(ValueError, match="--prompt is empty, and the text has no end-of-text token to begin with"):
        train([*options, ""], sample=sample)
    check_prompt("", CharTokenizer("ab", end_of_text=True))


# Prepared data


def test_prepared_data_is_a_text_too(here: Path, configured: Callable[..., TrainConfig]) -> None:
    Path("a.txt").write_text(ENGLISH * 100)
    assert prepare(["--corpus", "a.txt", "--tokenizer", "bpe", "--vocab-size", "300", "--val-fraction", "0.2"]) == 0
    (folder,) = Path("data").iterdir()
    Path("a.txt").unlink()
    config = configured("--corpus", str(folder))
    assert (config.data.tokenizer, config.data.vocab_size, config.data.val_fraction) == ("bpe", 300, 0.2)
    assert config.run.prompt == "The cat sat on the mat,"
    config = configured("--preset", "shakespeare-char", "--corpus", str(folder))
    assert (config.data.tokenizer, config.model.d_model) == ("bpe", PRESETS["shakespeare-char"].model.d_model)
    assert prepare_data(config.data, say=lambda line: None) == folder


def test_the_recipe_of_prepared_data_is_that_of_its_text(here: Path) -> None:
    Path("a.txt").write_text(ENGLISH * 50)
    from_text = start_from_recipe(DataConfig(corpus="a.txt"))
    folder = prepare_data(from_text.config.data, say=lambda line: None)
    from_data = start_from_recipe(DataConfig(corpus=str(folder)))
    assert from_data.survey.length == from_text.survey.length
    assert from_data.config.model == from_text.config.model
    assert from_data.config.optim == from_text.config.optim
    assert from_data.config.run.prompt == from_text.config.run.prompt


# Refused before anything is prepared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-heads", "3"], "--n-heads 3 does not divide --d-model"),
        (["--corpus", "b.txt"], "there is no file or folder b.txt"),
        (["--encoding", "utf-99"], "--encoding is 'utf-99'"),
    ],
)
def test_what_cannot_work_is_refused_before_data_is_prepared(here: Path, options: list[str], message: str) -> None:
    Path("a.txt").write_text(ENGLISH * 30)
    with pytest.raises(ValueError, match=message):
        train(["--corpus", "a.txt", *options])
    assert not Path("data").exists()
    assert not Path("runs").exists()


def test_a_name_that_begins_with_a_tilde_is_a_file(here: Path) -> None:
    Path("~.txt").write_text(ENGLISH * 30)
    assert prepare(["--corpus", "~.txt", "--tokenizer", "char"]) == 0
    with pytest.raises(ValueError, match=r"there is no file or folder ~no-such-user/a\.txt"):
        prepare(["--corpus", "~no-such-user/a.txt"])


def test_help_is_shown_whatever_the_corpus_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train(["--corpus", "nothing.txt", "--help"])
    assert caught.value.code == 0
    assert "--encoding" in capsys.readouterr().out


def test_a_preset_of_another_text_reads_it(here: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file or folder nothing\.txt"):
        start_from_preset(PRESETS["tinystories"], DataConfig(corpus="nothing.txt"))
