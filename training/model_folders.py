"""The models that a run leaves: ``final/``, the best by validation loss, and ``last/``, the last one.

``final/`` is there from the first evaluation on, and each better model takes its place while others may be reading it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..assembly.model import GPT2
from ..files import FileError, read_json, sync_folder, write_whole
from ..tokenizer import Tokenizer
from ..weights.generation import write_generation_config
from .metrics import Metrics, perplexity

_WEIGHTS = "model.safetensors"
_STEP = "step.json"
_ONE_FILE = 2**62  # bytes; weights in one file can be exchanged in one step


@dataclass(frozen=True)
class Judged:
    """A model that has been written, by the step that it is of."""

    step: int
    val_loss: float


def write_model(
    folder: Path, model: GPT2, tokenizer: Tokenizer, row: Metrics, *, name: str, facts: Mapping[str, Any]
) -> Judged:
    """Write a model's folder, or exchange the model in it: whoever reads it at any moment gets one whole model.

    Args:
        folder: Where; it does not exist, or holds an earlier model of the same run.
        row: Metrics of the step, with its evaluation.
        name: Name of the run, for the model card.
        facts: What the model card lists.

    Raises:
        OSError: The disk is full; an earlier model is still there.
    """
    if row.val_loss is None:
        raise ValueError(f"step {row.step} has no evaluation")
    judged = Judged(row.step, row.val_loss)
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model.save_pretrained(staging, max_shard_size=_ONE_FILE)
        tokenizer.save(staging, max_length=model.config.n_ctx)
        write_generation_config(
            staging,
            eos_id=tokenizer.eot_id,
            bos_id=tokenizer.bos_id,
            pad_id=tokenizer.pad_id,
            max_length=model.config.n_ctx,
        )
        write_whole(staging / "README.md", model_card(name, row, facts))
        write_whole(staging / _STEP, json.dumps({"step": judged.step, "val_loss": judged.val_loss}) + "\n")
        if folder.exists():
            _exchange(staging, folder)
        else:
            os.replace(staging, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return judged


def _exchange(staging: Path, folder: Path) -> None:
    # Remove the step first: without it, the folder's step is unknown, and the next evaluation writes the folder again.
    # So even if this is interrupted, the step is never that of other weights.
    (folder / _STEP).unlink(missing_ok=True)
    names = sorted(path.name for path in staging.iterdir())
    for name in sorted(names, key=lambda name: (name == _STEP, name != _WEIGHTS)):
        os.replace(staging / name, folder / name)
    sync_folder(folder)


def written_model(folder: Path) -> Judged | None:
    """Return the step and validation loss of the model in a folder; None if there is none, or of an unknown step."""
    with contextlib.suppress(FileError):
        values = read_json(folder / _STEP, limit=1000)
        step, val_loss = values.get("step"), values.get("val_loss")
        if type(step) is int and type(val_loss) is float and (folder / _WEIGHTS).exists():
            return Judged(step, val_loss)
    return None


def model_card(name: str, row: Metrics, facts: Mapping[str, Any]) -> str:
    """Return a short README for a trained model: what it is, what it was trained on, how well it predicts."""
    loss = row.val_loss or 0.0
    lines = [
        f"# {name}",
        "",
        "A GPT-2 trained with gptladder. `GPT2.from_pretrained(folder)` of gptladder reads this folder, and so do",
        "`AutoModelForCausalLM` and `AutoTokenizer` of transformers.",
        "",
        f"- step {row.step:,}: {row.tokens:,} tokens, {row.epoch:.2f} epochs",
        f"- validation: loss {loss:.4f}, perplexity {perplexity(loss):.2f}, accuracy {row.val_accuracy or 0.0:.1%}",
        f"- loss of the last batch: {row.loss:.4f}" if row.loss is not None else "- not trained",
        *(f"- {fact.replace('_', ' ')}: {value}" for fact, value in facts.items()),
    ]
    return "\n".join(lines) + "\n"
