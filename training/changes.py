"""Whether an option can change when a run resumes: a changed option takes effect or is refused, and is never ignored.

The table `CHANGES` holds the answer for every field of `TrainConfig`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ..assembly.config import GPT2Config
from ..weights.sources import config_from_ours
from .data.config import DataConfig
from .presets import DROPOUTS, PARTS, OptimConfig, RunConfig, TrainConfig, field_names
from .record import fields_of
from .snapshot_checks import SnapshotError

Answer = Literal["takes effect", "refused", "by content"]

_WEIGHTS = "the weights of the snapshot have it"
_ORDER = "it decides which part of the text the snapshot's position means"

# Field -> (answer, reason of a refusal). "by content": a changed value is refused only if it changes the text or the
# vocabulary, which `resume.check_text` compares.
CHANGES: dict[str, tuple[Answer, str]] = {
    "preset": ("takes effect", ""),
    "init_from": ("refused", "the weights come from the snapshot"),
    "dropout": ("takes effect", ""),
    # data
    **dict.fromkeys(
        ("corpus", "encoding", "fraction", "stories_mb", "tokenizer", "vocab_size", "val_fraction"), ("by content", "")
    ),
    "data_dir": ("takes effect", ""),
    # model
    **dict.fromkeys((field.name for field in dataclasses.fields(GPT2Config)), ("refused", _WEIGHTS)),
    **dict.fromkeys(DROPOUTS, ("takes effect", "")),
    "init_range": ("refused", "the weights have been drawn already"),
    # optim
    **dict.fromkeys(("seq", "order", "seed"), ("refused", _ORDER)),
    "optimizer": ("refused", "the snapshot holds the state of the other one"),
    **dict.fromkeys(
        (
            "batch", "micro_batch", "gradient_checkpointing", "max_steps", "max_epochs", "target_loss", "patience",
            "lr", "min_lr", "muon_lr", "muon_momentum", "warmup_steps", "decay_steps", "decay", "beta1", "beta2",
            "weight_decay", "grad_clip", "device", "precision", "products", "compile", "parallel",
        ),
        ("takes effect", ""),
    ),
    # run
    **dict.fromkeys(
        (
            "name", "runs_dir", "log_every", "eval_every", "eval_batches", "snapshot_every", "keep", "sample_every",
            "prompt", "sample_tokens", "final_samples", "resume", "config", "overwrite", "json", "tensorboard",
            "wandb", "license",
        ),
        ("takes effect", ""),
    ),
}  # fmt: skip

# Changes of these fields are not reported: they concern one start, or where files are.
_UNREPORTED = frozenset(
    {"preset", "name", "runs_dir", "data_dir", "resume", "overwrite", "json", "tensorboard", "wandb"}
)


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each option that differs and takes effect, such as ``lr: 0.001 (was 0.003)``.

    Args:
        before: The options that the snapshot records, as `flat` gives them.
        now: Those of this start.

    Raises:
        SnapshotError: An option differs that cannot take effect; the message names it and the reason.
    """
    lines = []
    for name, value in now.items():
        if name not in before or before[name] == value or (name == "init_from" and value is None):
            continue
        answer, why = CHANGES[name]
        was = f"{str(before[name])[:80]}"
        if answer == "refused":
            raise SnapshotError(
                f"--{name.replace('_', '-')} {value} cannot be changed when a run resumes, it was {was}: {why}; leave "
                "it as it was, or begin another run"
            )
        if answer == "takes effect" and name not in _UNREPORTED:
            lines.append(f"{name}: {value} (was {was})")
    return lines


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return every field of a configuration by its name; the model's are those of `GPT2Config`."""
    values = {name: getattr(config, name) for name in field_names(config)}
    for part in PARTS:
        values |= dataclasses.asdict(getattr(config, part))
    return {**values, "seq": config.seq}


def recorded_config(contents: Mapping[str, Any], source: object) -> TrainConfig:
    """Return the configuration that a snapshot records, for a run that continues with it.

    A field that did not exist in the version that wrote the snapshot gets its default.

    Raises:
        SnapshotError: A field is unknown, or its value has the wrong type or is out of range.
    """
    values = flat_record(contents)
    parts: dict[str, Any] = {"data": DataConfig, "model": GPT2Config, "optim": OptimConfig, "run": RunConfig}
    made: dict[str, Any] = {}
    try:
        for part, kind in parts.items():
            made[part] = kind(**fields_of(kind, values))
        return TrainConfig(**made, **fields_of(TrainConfig, values))
    except (ValueError, TypeError) as error:
        raise SnapshotError(f"{source} records settings that cannot be: {error}") from None


def flat_record(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a snapshot records, by field. Snapshots of version 0.1.0 lack some of them."""
    config = contents["config"]
    values: dict[str, Any] = {str(name): value for name, value in config.items() if name not in PARTS}
    for part in PARTS:
        fields = config.get(part)
        if not isinstance(fields, Mapping):
            raise SnapshotError(f"the snapshot is damaged: it records no settings of {part}; resume from another one")
        values |= {str(name): value for name, value in fields.items()}
    values["seq"] = contents["data"]["seq"]
    if "model_config" in contents:
        values.pop("dropout", None)  # the model's three fields contain it
        return values | dataclasses.asdict(config_from_ours(contents["model_config"]))
    if values.get("d_mlp") is None:  # 0.1.0: four times d_model
        values.pop("d_mlp", None)
    if values.get("init_from") is not None:  # 0.1.0 recorded the preset's sizes beside it
        for name in field_names(GPT2Config):
            values.pop(name, None)
    elif "dropout" in values:
        values |= dict.fromkeys(DROPOUTS, values["dropout"])
    values.pop("dropout", None)
    return values
