"""The card of a trained model: what it learned from, how, how well it predicts, and what it writes."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import user_path
from ..tokenizer import Tokenizer
from ..weights.card import card
from .metrics import Metrics, perplexity
from .presets import TrainConfig

__all__ = ["bytes_per_token", "model_card", "with_samples"]

_SAMPLES = "\n## Samples\n"
_MOST_TOKENS = 200_000
_TINYSTORIES = "roneneldan/TinyStories"


def model_card(row: Metrics, config: TrainConfig, facts: Mapping[str, Any]) -> str:
    """Return the ``README.md`` of a trained model.

    Args:
        row: metrics of the step, with its evaluation.
        config: what the run was started with.
        facts: what the run is about, as it prints them.
    """
    loss = row.val_loss or 0.0
    base = config.init_from
    on_the_hub = base is not None and not user_path(base).exists()
    from_the_hub = config.data.corpus == "tinystories" and "generated" not in str(facts.get("text"))
    lines = [
        f"# {config.name}",
        "",
        f"A GPT-2 {'fine-tuned' if base else 'trained'} with gptladder. `GPT2.from_pretrained(folder)` of gptladder "
        "reads this folder, and so do `AutoModelForCausalLM` and `AutoTokenizer` of transformers.",
        "",
        "## Results",
        "",
        f"- step {row.step:,}: {row.tokens:,} tokens, {row.epoch:.2f} epochs",
        f"- validation: loss {loss:.4f}, perplexity {perplexity(loss):.2f}, accuracy {row.val_accuracy or 0.0:.1%}",
        *_bits_per_byte(loss, facts.get("bytes_per_token")),
        f"- loss of the last batch: {row.loss:.4f}" if row.loss is not None else "- not trained",
        "",
        "## Training",
        "",
        *([f"- base model: {_shown(base)}"] if base else []),
        f"- recipe: {_recipe(config)}",
        f"- seed: {config.optim.seed}",
        *(f"- {fact.replace('_', ' ')}: {_shown(value)}" for fact, value in facts.items()),
        f"- versions: {_versions()}",
        "- license: " + (config.run.license or "none was chosen; `--license mit`, for example, names one"),
    ]
    return card(
        "\n".join(lines),
        license=config.run.license,
        base_model=base if on_the_hub else None,
        datasets=[_TINYSTORIES] if from_the_hub else None,
    )


def with_samples(text: str, samples: Sequence[str]) -> str:
    """Return a model card that ends with texts which the model wrote; earlier ones are replaced.

    >>> print(with_samples("# mine\\n", ["Once upon a time"]))
    # mine
    <BLANKLINE>
    ## Samples
    <BLANKLINE>
        Once upon a time
    <BLANKLINE>
    """
    quoted = ["\n".join(f"    {line}".rstrip() for line in sample.splitlines()) for sample in samples]
    return text.partition(_SAMPLES)[0] + _SAMPLES + "".join(f"\n{sample}\n" for sample in quoted)


def bytes_per_token(tokens: np.ndarray, tokenizer: Tokenizer) -> float:
    """Return how many bytes of text a token stands for on average, over at most the first 200,000.

    Args:
        tokens: [n_tokens], at least one. Those that end a text count as tokens without bytes.
        tokenizer: what they were made with.

    >>> from gptladder.tokenizer import CharTokenizer
    >>> bytes_per_token(np.array([0, 1, 1]), CharTokenizer("aé"))
    1.6666666666666667
    """
    some = tokens[:_MOST_TOKENS]
    text = some if tokenizer.eot_id is None else some[some != tokenizer.eot_id]
    return len(tokenizer.decode_bytes(text.tolist())) / len(some)


def _bits_per_byte(loss: float, bytes_of_a_token: Any) -> list[str]:
    if not isinstance(bytes_of_a_token, int | float) or not bytes_of_a_token:
        return []
    return [f"- validation: {loss / math.log(2) / bytes_of_a_token:.4f} bits per byte of text"]


def _shown(value: Any) -> str:
    """Return a value for the card. Of an absolute path only the end is shown: the card may be published."""
    path = Path(str(value))
    text = "/".join(path.parts[-2:]) if path.is_absolute() else str(value)
    return text.encode("utf-8", "replace").decode()  # a path may have bytes that are not UTF-8


def _recipe(config: TrainConfig) -> str:
    """Return the optimizer's settings that differ from its defaults, and the batch."""
    optim = config.optim
    changed = {
        field.name: value
        for field in dataclasses.fields(optim)
        if (value := getattr(optim, field.name)) != field.default
        and field.name not in ("seed", "device")
        and (optim.optimizer == "muon" or not field.name.startswith("muon"))
    }
    named = {"optimizer": optim.optimizer, "lr": optim.lr, "batch": optim.batch, "seq": config.seq, **changed}
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _versions() -> str:
    import torch

    from .. import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    return f"gptladder {__version__}, torch {torch.__version__}, Python {python}"
