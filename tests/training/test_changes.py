"""Options that differ when a run resumes: one table answers for every field of the configuration."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gptladder.assembly import GPT2Config
from gptladder.training.changes import _UNREPORTED, CHANGES, changed_options, flat, flat_record, recorded_config
from gptladder.training.presets import PRESETS, OptimConfig, RunConfig, TrainConfig
from gptladder.training.snapshot_checks import SnapshotError
from gptladder.weights.sources import config_to_ours

BASE = TrainConfig(
    optim=OptimConfig(max_steps=9), model=GPT2Config(d_model=8, n_layers=2, n_heads=2), run=RunConfig(name="x")
)


def contents(config: TrainConfig = BASE) -> dict[str, Any]:
    return {
        "config": config.recorded(),
        "model_config": config_to_ours(config.model),
        "data": {"seq": config.seq},
    }


def other(value: Any) -> Any:
    """Return a value of the same kind that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "other"


def test_the_table_has_every_field_and_no_other() -> None:
    assert CHANGES.keys() == flat(BASE).keys()


def test_equal_options_are_no_change() -> None:
    assert changed_options(flat_record(contents()), flat(BASE)) == []


@pytest.mark.parametrize("name", sorted(flat(BASE)))
def test_each_field_takes_effect_or_is_refused(name: str) -> None:
    before, now = flat_record(contents()), flat(BASE)
    before[name], now[name] = now[name], other(now[name])
    answer, why = CHANGES[name]
    if answer == "refused":
        assert why
        with pytest.raises(SnapshotError, match=f"--{name.replace('_', '-')} .* cannot be changed when a run resumes"):
            changed_options(before, now)
    else:
        reported = answer == "takes effect" and name not in _UNREPORTED
        assert changed_options(before, now) == ([f"{name}: {now[name]} (was {before[name]})"] if reported else [])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recorded_configuration_is_read_back(preset: str) -> None:
    config = PRESETS[preset]
    again = recorded_config(contents(config), "s.pt")
    assert flat(again) == {**flat(config), "dropout": None}


def test_records_of_version_0_1_are_read() -> None:
    record = {part: dataclasses.asdict(getattr(BASE, part)) for part in ("data", "optim", "run")}
    record["model"] = {
        "init_from": None, "d_model": 8, "n_layers": 2, "n_heads": 2, "d_mlp": None, "n_ctx": 16,
        "act_fn": "relu", "dropout": 0.2, "tie_word_embeddings": False, "init_range": 0.05,
    }  # fmt: skip
    old = {"config": {"preset": "", **record}, "data": {"seq": 16}}
    config = recorded_config(old, "s.pt")
    assert (config.model.d_mlp, config.model.attn_dropout, config.model.act_fn) == (32, 0.2, "relu")
    with pytest.raises(SnapshotError, match="--act-fn gelu cannot be changed"):
        changed_options(flat_record(old), flat(config.replace(act_fn="gelu")))


@pytest.mark.parametrize(
    ("name", "value"), [("lr", "fast"), ("batch", 1.5), ("batch", True), ("precision", "int4"), ("max_steps", -1)]
)
def test_settings_that_cannot_be_are_refused(name: str, value: Any) -> None:
    damaged = contents()
    damaged["config"]["optim"][name] = value
    with pytest.raises(SnapshotError, match=r"^s\.pt records settings that cannot be"):
        recorded_config(damaged, Path("s.pt"))
