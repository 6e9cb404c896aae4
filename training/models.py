"""The model of a run: its configuration, settled from the run's options, and its weights."""

import dataclasses
from collections.abc import Collection

import torch

from ..assembly.config import GPT2Config
from ..assembly.init import limit_first_logits
from ..assembly.model import GPT2
from ..tokenizer import Tokenizer
from .presets import DROPOUTS, TrainConfig, field_names

# Options that lists for several starting models often carry. They have no effect, and a line says so; every other size
# that differs from that of the model to start from is refused.
_REPORTED = frozenset({"n_layers", "n_heads"})


def with_source(
    config: TrainConfig, source: GPT2Config, asked: Collection[str] | None = None
) -> tuple[TrainConfig, list[str]]:
    """Return a configuration whose model is the one to start from, with the run's dropout, and lines to report.

    Args:
        config: A configuration with ``init_from``.
        source: Configuration of the model to start from.
        asked: Names of fields that the user asked for (default: the model's that differ from ``GPT2Config()``).

    Raises:
        ValueError: The user asked for a size that the model to start from does not have, or for sequences that are
            longer than it has positions for.
    """
    name, wanted = config.init_from, config.model
    if asked is None:
        asked = {field for field, value in dataclasses.asdict(GPT2Config()).items() if getattr(wanted, field) != value}
        asked -= set(DROPOUTS) if config.dropout is not None else set()
    asked = set(asked) & field_names(wanted)
    differing = [field for field in sorted(asked) if getattr(wanted, field) != getattr(source, field)]
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


def fresh_model(config: TrainConfig, device: torch.device) -> GPT2:
    """Return a model with weights drawn by the run's seed; on the CPU, so that a seed means the same everywhere.

    Its first loss is that of guessing, ``ln(d_vocab)``, whatever ``init_range`` and width.
    """
    torch.manual_seed(config.optim.seed)
    model = GPT2(config.model)
    limit_first_logits(model.unembed.W_U, config.model.init_range)
    return model.to(device)


def with_dropout(model: GPT2, config: GPT2Config) -> GPT2:
    """Return a model with the same weights, by a configuration that differs in dropout alone."""
    if model.config == config:
        return model
    other = GPT2(config).to(next(model.parameters()).device)
    other.load_state_dict(model.state_dict())
    return other


def check_vocabulary(config: TrainConfig, model: GPT2Config, tokenizer: Tokenizer) -> None:
    """Make sure that a model to start from has a row for every token of the data.

    Raises:
        ValueError: It has fewer.
    """
    if tokenizer.n_vocab > model.d_vocab:
        raise ValueError(
            f"{config.init_from} has a vocabulary of {model.d_vocab} tokens and the data's tokenizer has "
            f"{tokenizer.n_vocab}: prepare the data with the model's own tokenizer"
        )
