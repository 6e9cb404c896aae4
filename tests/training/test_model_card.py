"""The card of a trained model: what the hub reads of it, and what a person reads."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from gptladder.assembly import GPT2Config
from gptladder.cli import main
from gptladder.sampling import evaluate
from gptladder.tokenizer import BPETokenizer, load_tokenizer
from gptladder.training.data.config import DataConfig
from gptladder.training.metrics import Metrics, read_metrics
from gptladder.training.model_card import bytes_per_token, model_card, with_samples
from gptladder.training.presets import OptimConfig, TrainConfig
from gptladder.weights import from_pretrained

ROW = Metrics(step=40, epoch=1.5, tokens=960, lr=1e-3, loss=2.0, val_loss=1.5, val_accuracy=0.5, val_perplexity=4.48)
CONFIG = TrainConfig(
    preset="mine",
    data=DataConfig(corpus="tinystories"),
    model=GPT2Config(d_model=8, n_heads=2, n_ctx=256),
    optim=OptimConfig(lr=4e-3, batch=4, max_steps=8, seed=5),
)
FACTS = {"text": "input.txt", "bytes_per_token": 3.0}


def read(config: TrainConfig, facts: dict[str, Any] = FACTS) -> ModelCard:
    return ModelCard(model_card(ROW, config, facts))


def fields(config: TrainConfig, facts: dict[str, Any] = FACTS) -> dict[str, Any]:
    return read(config, facts).data.to_dict()


def test_the_hub_finds_licence_base_model_and_data() -> None:
    plain = fields(CONFIG)
    assert not {"license", "base_model"} & set(plain)
    assert plain["pipeline_tag"] == "text-generation"
    tuned = replace(CONFIG, init_from="openai-community/gpt2", run=replace(CONFIG.run, license="mit"))
    assert (fields(tuned)["license"], fields(tuned)["base_model"]) == ("mit", "openai-community/gpt2")
    assert fields(CONFIG, {"text": "TinyStories"})["datasets"] == ["roneneldan/TinyStories"]
    assert "datasets" not in fields(CONFIG, {"text": "generated stories"})


def test_a_local_model_to_start_from_is_named_but_is_no_name_on_the_hub(tmp_path: Path) -> None:
    config = replace(CONFIG, init_from=str(tmp_path))
    assert f"- base model: {tmp_path.parent.name}/{tmp_path.name}\n" in read(config).text
    assert str(tmp_path) not in read(config, {"tokenizer": str(tmp_path)}).text
    assert "fine-tuned" in read(config).text
    assert "base_model" not in fields(config)


def test_a_person_finds_loss_recipe_seed_and_versions() -> None:
    text = read(CONFIG).text
    assert "validation: loss 1.5000, perplexity 4.48, accuracy 50.0%" in text
    assert "validation: 0.7213 bits per byte" in text  # 1.5 / ln 2 / 3
    assert "- recipe: optimizer adamw, lr 0.004, batch 4, seq 256, max_steps 8\n" in text
    assert "- seed: 5\n" in text
    assert "versions: gptladder 0.1.0, torch " in text
    assert "- license: none was chosen" in text
    assert "bits per byte" not in read(CONFIG, {}).text


def test_new_samples_take_the_place_of_old_ones() -> None:
    text = with_samples(with_samples("# mine\n", ["old\n\nlines"]), ["new", "two\nlines"])
    assert text == "# mine\n\n## Samples\n\n    new\n\n    two\n    lines\n"


def test_bytes_are_those_of_the_text_and_its_end_has_none() -> None:
    tokenizer = BPETokenizer.train("the cat sat. " * 9, 280)
    text = "the cat sät."
    ids = [*tokenizer.encode(text), tokenizer.eot_id]
    assert bytes_per_token(np.array(ids), tokenizer) == pytest.approx(len(text.encode()) / len(ids))


def test_the_card_of_a_run_has_the_samples_and_bits_of_its_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat on the mat. A dog ran to the cat. " * 60)
    small = "--corpus text.txt --d-model 8 --n-layers 1 --n-heads 2 --n-ctx 8 --batch 4 --device cpu --tokenizer char"
    steps = "--max-steps 6 --eval-every 2 --sample-tokens 12 --seed 3 --name cats --license apache-2.0"
    assert main(["train", *small.split(), *steps.split(), "--prompt", "The"]) == 0
    run = Path("runs/cats")
    _, best = min((row.val_loss, row.step) for row in read_metrics(run) if row.step and row.val_loss)
    card = ModelCard.load(run / "final" / "README.md")
    assert card.data.to_dict()["license"] == "apache-2.0"
    # In samples.md the samples stand under their step.
    heading = f"Step {best}\n\n" if best < 6 else "sample 1 of 3\n\n"
    at = (run / "samples.md").read_text().partition(heading)[2]
    assert at.split("\n\n##")[0].strip() in card.text
    assert card.text.count("## Samples") == 1
    last = ModelCard.load(run / "last" / "README.md")
    assert last.text.count("    The") == 3

    # The number is the one that `evaluate` gives, over the same text.
    text = Path("text.txt").read_text()
    held_back = text[len(text) * 9 // 10 :]
    model, tokenizer = from_pretrained(run / "final"), load_tokenizer(run / "final")
    found = evaluate(model, [[held_back]], tokenizer=tokenizer)
    printed = next(line for line in card.text.splitlines() if "bits per byte" in line)
    assert float(printed.split()[2]) == pytest.approx(found.bits_per_byte, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_a_path_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    path.mkdir()
    text = model_card(ROW, replace(CONFIG, init_from=str(path)), FACTS)
    assert "/caf?\n" in text
    text.encode()
