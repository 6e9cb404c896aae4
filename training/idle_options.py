"""Options of the user that have no effect beside the other options: a run reports each of them in a line."""

import os
from collections.abc import Collection, Iterable

from .data.config import DataConfig
from .presets import OptimConfig

__all__ = ["idle_data_options", "idle_options"]

# The names of fields, whether they have an effect, and why they have none.
_Rows = Iterable[tuple[Collection[str], bool, str]]


def idle_data_options(data: DataConfig, asked: Collection[str]) -> list[str]:
    """Return a line for each option about the text that has no effect.

    >>> idle_data_options(DataConfig(corpus="stories", tokenizer="char"), {"vocab_size", "tokenizer"})
    ['--vocab-size has no effect: it is for --tokenizer bpe']

    Args:
        data: The configuration.
        asked: Names of the fields that the user set.
    """
    names = (data.corpus,) if isinstance(data.corpus, str) else data.corpus
    generated, from_the_hub = names == ("stories",), names == ("tinystories",)
    return _lines(
        [
            (["vocab_size"], data.tokenizer == "bpe", "it is for --tokenizer bpe"),
            (["stories_mb"], generated or from_the_hub, "it is for generated stories"),
            (["fraction"], not generated, "--stories-mb is the size of generated stories"),
            (["encoding"], not (generated or from_the_hub), "it is for text files of your own"),
        ],
        asked,
    )


def idle_options(optim: OptimConfig, settled: OptimConfig, asked: Collection[str]) -> list[str]:
    """Return a line for each option about the optimizer and the computation that has no effect.

    >>> constant = OptimConfig(max_steps=1)
    >>> idle_options(constant, constant, {"decay"})
    ['--decay has no effect: without --min-lr, the learning rate stays constant after warm-up']

    Args:
        optim: The configuration.
        settled: The same, after each ``auto`` was replaced by a choice.
        asked: Names of the fields that the user set.
    """
    onednn = optim.products != "onednn" or settled.products == "onednn"
    constant = "without --min-lr, the learning rate stays constant after warm-up"
    return _lines(
        [
            (["muon_lr", "muon_momentum"], optim.optimizer == "muon", "it is for --optimizer muon"),
            (["decay", "decay_steps"], optim.min_lr is not None, constant),
            (["products"], onednn, "oneDNN is for float32 on a CPU, without --compile"),
            (["parallel"], "WORLD_SIZE" in os.environ, "there is one process, which torchrun did not start"),
        ],
        asked,
    )


def _lines(rows: _Rows, asked: Collection[str]) -> list[str]:
    return [
        f"--{name.replace('_', '-')} has no effect: {why}"
        for names, effective, why in rows
        for name in names
        if name in asked and not effective
    ]
