"""Build the model of a run: its configuration from the run's options, and its weights."""

import dataclasses
import os
from collections.abc import Collection

import torch

from ..assembly.config import GPT2Config
from ..assembly.init import limit_first_logits
from ..assembly.model import GPT2
from ..tokenizer import Tokenizer
from .presets import DROPOUTS, TrainConfig, field_names

# Sizes that command lines for several starting models often contain. If they differ from the model to start from, they
# have no effect, and a line reports it; every other size that differs is refused.
_REPORTED = frozenset({"n_layers", "n_heads"})
_BYTES_OF_A_PARAMETER = 12  # float32: its value, its gradient, and at least one number of the optimizer


def with_source(
    config: TrainConfig, source: GPT2Config, asked: Collection[str] | None = None
) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with the sizes of the model to start from and the run's dropout, and lines to report.

    Args:
        config: A configuration with ``init_from``.
        source: Configuration of the model to start from.
        asked: Names of the fields that the user set (default: those of the model that differ from ``GPT2Config()``).

    Raises:
        ValueError: The user set a size that differs from the model to start from, or sequences longer than its
            ``n_ctx``.
    """
    # Which fields did the user set, and which of them differ from the model's?
    name, wanted = config.init_from, config.model
    if asked is None:
        asked = {field for field, value in dataclasses.asdict(GPT2Config()).items() if getattr(wanted, field) != value}
        asked -= set(DROPOUTS) if config.dropout is not None else set()
    asked = set(asked) & field_names(wanted)
    differing = [field for field in sorted(asked) if getattr(wanted, field) != getattr(source, field)]

    # Sizes cannot differ; sequences can be shorter than the model allows; other fields have no effect.
    refused = [field for field in differing if field not in {*_REPORTED, *DROPOUTS, "n_ctx"}]
    if refused:
        field = refused[0]
        raise ValueError(
            f"--{field.replace('_', '-')} {getattr(wanted, field)} does not fit --init-from {name}, which has "
            f"{getattr(source, field)}: its sizes, vocabulary and tokenizer are used as they are; leave the option out"
        )
    if ("n_ctx" in differing and wanted.n_ctx > source.n_ctx) or (config.optim.seq or 0) > source.n_ctx:
        raise ValueError(
            f"--seq {config.optim.seq or wanted.n_ctx} is more than {name} has positions for, {source.n_ctx}: "
            f"give --seq {source.n_ctx} or less"
        )
    lines = [
        f"--{field.replace('_', '-')} {getattr(wanted, field)} has no effect: {name} has {getattr(source, field)}"
        for field in differing
        if field in _REPORTED
    ]

    # The model's own configuration, with the run's dropout.
    dropout = {field: getattr(wanted, field) for field in DROPOUTS if field in asked or config.dropout is not None}
    seq = config.optim.seq or min(wanted.n_ctx, source.n_ctx)
    return (
        dataclasses.replace(
            config,
            model=dataclasses.replace(source, **dropout),
            optim=dataclasses.replace(config.optim, seq=seq),
        ),
        lines,
    )


def check_memory(config: GPT2Config, device: torch.device) -> None:
    """Check that a machine's memory can hold the weights, their gradients, and the optimizer's state.

    Without this check, the system would end the process without a message. The embedding of the tokens is not counted,
    because the size of the vocabulary is not known before the data is prepared.

    Raises:
        ValueError: They need more than the machine has.
    """
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return
    width = config.d_head * config.n_heads
    of_a_block = 4 * config.d_model * width + 2 * config.d_model * config.d_mlp
    parameters = config.n_layers * of_a_block + config.n_ctx * config.d_model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if parameters * _BYTES_OF_A_PARAMETER > memory:
        raise ValueError(
            f"a model of {parameters:,} parameters needs {parameters * _BYTES_OF_A_PARAMETER // 10**9:,} GB to train, "
            f"and this machine has {memory // 10**9}: give a smaller --d-model, --d-mlp, --n-layers or --n-ctx"
        )


def fresh_model(config: TrainConfig, device: torch.device) -> GPT2:
    """Return a model with new weights, drawn by the run's seed.

    They are drawn on the CPU, so that a seed gives the same weights on every device. The first loss is about
    ``ln(d_vocab)``, that of equal probabilities, for any ``init_range`` and width.
    """
    torch.manual_seed(config.optim.seed)
    model = GPT2(config.model)
    limit_first_logits(model.unembed.W_U, config.model.init_range)
    return model.to(device)


def with_dropout(model: GPT2, config: GPT2Config) -> GPT2:
    """Return a model with the same weights and a configuration that differs only in dropout."""
    if model.config == config:
        return model
    other = GPT2(config).to(next(model.parameters()).device)
    other.load_state_dict(model.state_dict())
    return other


def check_vocabulary(config: TrainConfig, model: GPT2Config, tokenizer: Tokenizer) -> None:
    """Check that a model to start from has an embedding for every token of the data.

    Raises:
        ValueError: The data's vocabulary is larger than the model's.
    """
    if tokenizer.n_vocab > model.d_vocab:
        raise ValueError(
            f"{config.init_from} has a vocabulary of {model.d_vocab} tokens and the data's tokenizer has "
            f"{tokenizer.n_vocab}: prepare the data with the model's own tokenizer"
        )
