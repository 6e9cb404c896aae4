"""Every preset is a valid configuration, and every field of a configuration is explained and can be set."""

import ast
import dataclasses
import inspect
import itertools
import math
import re
import textwrap
from typing import Any

import pytest

from gptladder.assembly import GPT2Config
from gptladder.training.data.config import DataConfig
from gptladder.training.presets import PRESETS, OptimConfig, RunConfig, TrainConfig

KNOWN = {
    "tinystories-2l64d": {"n_layers": 2, "d_model": 64, "tokenizer": "gpt2", "max_epochs": 5},
    "tinystories-char": {
        "n_layers": 4, "n_heads": 4, "d_model": 64, "n_ctx": 32, "batch": 16, "lr": 1e-3, "max_steps": 10_000,
        "dropout": None, "act_fn": "relu", "tokenizer": "char", "prompt": " ",
    },
    "verdict-124m": {"n_layers": 12, "d_model": 768, "tokenizer": "gpt2", "grad_clip": 1.0},
    "target-loss-124m": {
        "n_layers": 12, "d_model": 768, "n_ctx": 1024, "batch": 4, "seq": 32, "lr": 3e-4, "snapshot_every": 10,
        "target_loss": 0.099999, "final_samples": 5, "sample_tokens": 30, "max_steps": None, "max_epochs": None,
    },
    "shakespeare-char": {"n_layers": 4, "n_heads": 4, "d_model": 128, "n_ctx": 64, "batch": 12, "max_steps": 2000},
    "shakespeare-char-fast": {
        "n_layers": 4, "n_heads": 4, "d_model": 128, "n_ctx": 64, "batch": 24, "optimizer": "muon", "tokenizer": "char",
    },
    "tinystories": {"corpus": "tinystories", "tokenizer": "bpe"},
}  # fmt: skip


def fields(config: TrainConfig) -> dict[str, Any]:
    parts = (getattr(config, part) for part in ("data", "model", "optim", "run"))
    values = {field: value for part in parts for field, value in dataclasses.asdict(part).items()}
    return {**values, "init_from": config.init_from, "dropout": config.dropout}


@pytest.mark.parametrize("name", KNOWN)
def test_presets_are_the_known_runs(name: str) -> None:
    values = fields(PRESETS[name])
    assert {field: values[field] for field in KNOWN[name]} == KNOWN[name]
    assert values["seed"] == 1337
    assert PRESETS[name].preset == PRESETS[name].name == name


def test_there_are_no_others() -> None:
    assert PRESETS.keys() == KNOWN.keys()


@pytest.mark.parametrize("name", ["verdict-124m", "target-loss-124m"])
def test_124m_is_gpt2_small(name: str) -> None:
    model = PRESETS[name].model
    small = GPT2Config()
    assert (model.d_model, model.n_layers, model.n_heads) == (small.d_model, small.n_layers, small.n_heads)


def explained(config: type) -> set[str]:
    """Return the fields that a docstring follows, which the command line shows as their help."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id
        for field, after in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and len(str(after.value.value)) > 10
    }


def test_every_field_is_explained_and_none_has_two_homes() -> None:
    seen: set[str] = set()
    for part in (DataConfig, OptimConfig, RunConfig):
        names = {field.name for field in dataclasses.fields(part)}
        assert names == explained(part)
        assert not seen & names
        seen |= names


def test_replace_finds_the_part() -> None:
    config = PRESETS["shakespeare-char"].replace(lr=0.5, d_model=64, corpus="x", json=True)
    assert (config.optim.lr, config.model.d_model, config.data.corpus, config.run.json) == (0.5, 64, "x", True)
    assert config.optim.max_steps == 2000
    with pytest.raises(ValueError, match="there is no field 'learning_rate'"):
        config.replace(learning_rate=1)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        *(
            (GPT2Config, {n: -1}, f"{n} is -1; it must be")
            for n in ("n_layers", "n_heads", "d_mlp", "n_ctx", "init_range")
        ),
        (GPT2Config, {"n_layers": 0}, "n_layers is 0; it must be a whole number from 1 on"),
        (GPT2Config, {"attn_dropout": 1.0}, r"attn_dropout is 1.0; it must be in \[0, 1\)"),
        *(
            (OptimConfig, {"max_steps": 1, n: 0}, f"{n} is 0; it must be above 0")
            for n in (
                "batch",
                "micro_batch",
                "seq",
                "max_steps",
                "max_epochs",
                "target_loss",
                "lr",
                "muon_lr",
                "decay_steps",
                "grad_clip",
            )
        ),
        (OptimConfig, {"max_steps": 1, "batch": -4}, "batch is -4; it must be above 0"),
        (OptimConfig, {"max_steps": 1, "lr": float("nan")}, "lr is nan; it must be above 0"),
        *(
            (OptimConfig, {"max_steps": 1, n: value}, f"{n} is {value}; it must be a finite number")
            for n, value in (
                ("grad_clip", math.inf),
                ("lr", math.inf),
                ("muon_lr", math.inf),
                ("min_lr", math.nan),
                ("weight_decay", math.nan),
            )
        ),
        *(
            (RunConfig, {"name": name}, "name is .*; it must be the name of a folder")
            for name in ("", ".", "..", "a/..", "a\0b", "x" * 201, "caf\udce9")
        ),
        (RunConfig, {"runs_dir": ""}, "runs_dir is ''"),
        (DataConfig, {"tokenizer": ""}, "--tokenizer has no value"),
        (DataConfig, {"data_dir": ""}, "--data-dir has no value"),
        *(
            (OptimConfig, {"max_steps": 1, n: -1}, f"{n} is -1; it must not be negative")
            for n in ("min_lr", "warmup_steps", "weight_decay")
        ),
        (OptimConfig, {"max_steps": 1, "beta2": 1.0}, r"beta2 is 1.0; it must be in \[0, 1\)"),
        (OptimConfig, {"max_steps": 1, "muon_momentum": 1.0}, r"muon_momentum is 1.0; it must be in \[0, 1\)"),
        (OptimConfig, {"max_steps": 1, "optimizer": "sgd"}, "optimizer is 'sgd'; it can be adamw, muon"),
        (OptimConfig, {"max_steps": 1, "decay": "step"}, "decay is 'step'; it can be cosine, linear"),
        (OptimConfig, {}, "nothing ends this run: give max_steps, max_epochs or target_loss"),
        *(
            (RunConfig, {n: 0}, f"{n} is 0; it must be above 0")
            for n in (
                "log_every",
                "eval_every",
                "eval_batches",
                "snapshot_every",
                "keep",
                "sample_every",
                "sample_tokens",
            )
        ),
        *(
            (OptimConfig, {"max_steps": 1, n: value}, f"{n} is {re.escape(str(value))}; it must be at most 1,0{{3}},")
            for n, value in (
                ("max_epochs", 1e308),
                ("max_epochs", math.inf),
                ("batch", 10**20),
                ("decay_steps", 10**13),
            )
        ),
        (RunConfig, {"sample_tokens": 10**13}, "sample_tokens is 10000000000000; it must be at most"),
        *((OptimConfig, {"max_steps": 1, "seed": seed}, f"seed is {seed}; it must be") for seed in (-1, 2**62, 2**70)),
        *(
            (RunConfig, {"license": text}, "license is .*; it must be the name of one")
            for text in ("", "a\nb", "\udce9")
        ),
        (DataConfig, {"vocab_size": 10**12}, "--vocab-size is 1000000000000; it must be at most 4,194,304"),
        (DataConfig, {"stories_mb": 1e7}, "--stories-mb is 10000000.0; it must be above 0 and below a million"),
        (RunConfig, {"final_samples": -1}, "final_samples is -1; it must not be negative"),
        (RunConfig, {"overwrite": True, "resume": "auto"}, "overwrite deletes what resume would continue"),
    ],
)
def test_wrong_values_are_refused(part: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        part(**change)


def test_sequences_longer_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="seq=65 is more than the model has positions for, n_ctx=64"):
        PRESETS["shakespeare-char"].replace(seq=65)
    assert PRESETS["shakespeare-char"].seq == 64
    assert PRESETS["target-loss-124m"].seq == 32


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["tinystories"].optim.lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]
