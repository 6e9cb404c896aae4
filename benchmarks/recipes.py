"""Short trainings from which the values of presets and of the recipe for one's own text were chosen.

    python benchmarks/recipes.py --texts ../shared/data
    python benchmarks/recipes.py --texts ../shared/data --studies tokenizer small --json recipes.json

A study changes a few values of a base, one training for each change, always with the same data, seed and number of
steps if the change does not name another. For each it stores the loss on the whole validation tenth (the last tenth of
the text) at several steps, in nats per token and in bits per byte, so that tokenizers can be compared, and the
processor seconds of the training steps, which depend less on other work on the machine than wall time does. The
tokenizers are trained on the other nine tenths. ``--json`` adds to the studies that are in the file already.

The studies, and what was chosen from them:

    characters   optimizer and schedule of `shakespeare-char-fast`
    tokenizer    characters or byte pairs, and how many, for 1 MB of one's own text
    width        width and byte pairs for 1 MB, longer trainings
    small        tokenizer, width and dropout for 20 kB
    stories      optimizer, learning rates, batch and order of `tinystories`, with generated stories; the probability
                 of the right name (see names.py) and the loss of a story from its beginning stand beside the losses
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, print_table, write_result
from names import story_names
from steps import train_steps, whole_loss

from gptladder.assembly import GPT2
from gptladder.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from gptladder.training.data.batches import Batches
from gptladder.training.data.stories import stories
from gptladder.training.loss import NextTokenLoss
from gptladder.training.optim import make_optimizer
from gptladder.training.precision import keep_freed_memory, settle
from gptladder.training.presets import PRESETS, TrainConfig

SHAKESPEARE, VERDICT, STORIES = "tinyshakespeare.txt", "the-verdict.txt", "generated stories"


@dataclass(frozen=True)
class Study:
    """Trainings that differ in a few values."""

    text: str
    base: TrainConfig
    changes: list[dict[str, Any]]


_CHARACTERS = PRESETS["shakespeare-char-fast"].replace(max_steps=300)
_OWN = _CHARACTERS.replace(tokenizer="bpe", vocab_size=1024, n_ctx=128, batch=16, dropout=0.1)
_SMALL = _OWN.replace(d_model=64, n_layers=2, n_ctx=64, vocab_size=512, dropout=0.2, max_steps=200, warmup_steps=10)
_STORIES = PRESETS["tinystories"].replace(max_steps=2500)

STUDIES = {
    "characters": Study(
        SHAKESPEARE,
        _CHARACTERS,
        [
            {},
            {"decay": "cosine", "min_lr": 2.5e-4},
            {"muon_lr": 0.02},
            {"muon_lr": 0.05},
            {"lr": 1e-2},
            {"batch": 12, "max_steps": 600, "warmup_steps": 30},
            {"optimizer": "adamw", "lr": 4e-3},
        ],
    ),
    "tokenizer": Study(
        SHAKESPEARE,
        _CHARACTERS.replace(decay="cosine", min_lr=2.5e-4),
        [{}, *({"tokenizer": "bpe", "vocab_size": size} for size in (512, 1024, 2048, 4096))],
    ),
    "width": Study(
        SHAKESPEARE,
        _OWN.replace(max_steps=1200, warmup_steps=60, decay="cosine", min_lr=2.5e-4),
        [
            {},
            {"d_model": 192, "n_heads": 6, "max_steps": 800, "warmup_steps": 40},
            {"vocab_size": 2048, "decay": "linear", "min_lr": 0.0},
        ],
    ),
    "small": Study(
        VERDICT,
        _SMALL,
        [
            {},
            {"tokenizer": "char", "dropout": 0.1, "max_steps": 300, "warmup_steps": 15},
            {"vocab_size": 384},
            {"vocab_size": 384, "n_ctx": 32, "d_model": 128, "dropout": 0.3},
            {"vocab_size": 1024},
            {"vocab_size": 1024, "d_model": 128, "batch": 8, "dropout": 0.3},
        ],
    ),
    "stories": Study(
        STORIES,
        _STORIES,
        [
            {},
            {"max_steps": 2000},
            {"optimizer": "adamw", "lr": 6e-3},
            {"optimizer": "adamw", "lr": 4e-3, "batch": 4, "max_steps": 5000},
            {"optimizer": "adamw", "lr": 4e-3, "batch": 4, "max_steps": 5000, "order": "shuffled"},
            {"muon_lr": 0.03, "lr": 5e-3, "init_range": 0.05},
            {"muon_lr": 0.05, "lr": 1e-2, "init_range": 0.05},
        ],
    ),
}


@dataclass(frozen=True)
class Tokens:
    """A text as tokens of one tokenizer."""

    train: np.ndarray
    val: np.ndarray
    val_bytes: int
    tokenizer: Tokenizer
    of_stories: bool = False


@cache
def read(folder: Path, name: str, kind: str, vocab_size: int) -> Tokens:
    """Return a text in tokens; stories each end with an end-of-text token."""
    if name == STORIES:
        size = int(PRESETS["tinystories"].data.stories_mb * 1e6)
        found = list(islice(stories(seed=1337), size // 869))  # the mean length of a story
        cut = int(len(found) * 0.9)
        tokenizer = BPETokenizer.train(found[:cut], vocab_size)
        train, val = (
            np.array([token for story in part for token in [*tokenizer.encode(story), tokenizer.eot_id]])
            for part in (found[:cut], found[cut:])
        )
        return Tokens(train, val, sum(map(len, found[cut:])), tokenizer, of_stories=True)
    text = (folder / name).read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    tokenizer = CharTokenizer.from_text([text]) if kind == "char" else BPETokenizer.train([text[:cut]], vocab_size)
    train, val = (np.array(tokenizer.encode(part)) for part in (text[:cut], text[cut:]))
    return Tokens(train, val, len(text[cut:].encode()), tokenizer)


def train(config: TrainConfig, data: Tokens, evaluations: int) -> dict[str, Any]:
    """Train, and return the losses and the processor seconds at several steps."""
    config = settle(config.replace(precision="auto", d_vocab=data.tokenizer.n_vocab), torch.device("cpu"), None)
    optim = config.optim
    torch.manual_seed(optim.seed)
    model = GPT2(config.model)
    loss = NextTokenLoss(model).train()
    optimizer = make_optimizer(loss, optim)
    eot_id = data.tokenizer.eot_id
    batches = Batches(
        data.train, seq=config.seq, batch_size=optim.batch, order=optim.order, eot_id=eot_id, seed=optim.seed
    )

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss(tokens, targets).loss / targets.numel()

    steps, seconds, curve = optim.max_steps or 0, 0.0, []
    marks = [round(steps * i / evaluations) for i in range(evaluations + 1)]
    for first, last in pairwise(marks):
        began = time.process_time()
        train_steps(loss_of, optimizer, list(loss.parameters()), batches, optim, range(first, last))
        seconds += time.process_time() - began
        loss.eval()
        bf16 = optim.precision == "bf16"
        # Stories are always read from their beginning, so that trainings with different windows can be compared.
        val = whole_loss(loss_of, data.val, config.seq, bf16=bf16, eot_id=eot_id if data.of_stories else None)
        loss.train()
        bits = val * len(data.val) / data.val_bytes / math.log(2)
        curve.append({"step": last, "processor_seconds": seconds, "val_loss": val, "bits_per_byte": bits})
    best = min(curve, key=lambda point: point["val_loss"])
    found = {"parameters": model.num_parameters(), "precision": optim.precision, "best": best, "curve": curve}
    return found if not data.of_stories else {**found, "names": story_names(model.eval(), data.tokenizer, stories=100)}


def main() -> None:
    """Train, print, and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help=f"folder with {SHAKESPEARE} and {VERDICT}")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--evaluations", type=int, default=5)
    parser.add_argument("--steps", type=int, help="shorten every training to this many steps, for a trial")
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    arguments = parser.parse_args()
    keep_freed_memory()
    result: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        result = json.loads(arguments.json.read_text(encoding="utf-8"))
    for name in arguments.studies:
        study = STUDIES[name]
        trained = []
        for change in study.changes:
            config = study.base.replace(**change)
            if arguments.steps:
                config = config.replace(max_steps=arguments.steps, warmup_steps=1)
            data = read(arguments.texts, study.text, config.data.tokenizer, config.data.vocab_size)
            trained.append({"changes": change, **train(config, data, arguments.evaluations)})
        base = {part: values for part, values in study.base.recorded().items() if part in ("data", "model", "optim")}
        result[name] = {"machine": machine(), "text": study.text, "base": base, "trainings": trained}
        print_table(
            f"{name}: {study.text}",
            ["changes", "parameters", "steps", "processor s", "validation", "bits per byte", "best", "right names"],
            [
                [
                    ", ".join(f"{field}={value}" for field, value in own["changes"].items()) or "base",
                    f"{own['parameters']:,}",
                    f"{own['curve'][-1]['step']:,}",
                    f"{own['curve'][-1]['processor_seconds']:.0f}",
                    f"{own['curve'][-1]['val_loss']:.4f}",
                    f"{own['curve'][-1]['bits_per_byte']:.4f}",
                    f"{own['best']['bits_per_byte']:.4f} at {own['best']['step']:,}",
                    ", ".join(f"{kind} {names['share']:.3f}" for kind, names in own.get("names", {}).items()),
                ]
                for own in trained
            ],
            foreign=0.0,
        )
        if arguments.json:
            write_result(arguments.json, result)


if __name__ == "__main__":
    main()
