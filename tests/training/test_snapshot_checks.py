"""Snapshots that are damaged or hostile: each is refused in one line, before native code or the run's files see it."""

import copy
import random
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder.assembly import GPT2, GPT2Config
from gptladder.training.changes import recorded_config
from gptladder.training.metrics import Metrics
from gptladder.training.optim import make_optimizer
from gptladder.training.presets import OptimConfig, TrainConfig
from gptladder.training.snapshot_checks import SnapshotError, check_contents, check_fits, health
from gptladder.training.snapshots import load_snapshot, save_snapshot
from gptladder.weights.sources import config_to_ours

CONFIG = GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=5)
SOURCE = Path("s.pt")


def trained() -> tuple[GPT2, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = GPT2(CONFIG)
    optimizer = make_optimizer(model, OptimConfig(max_steps=1))
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    return model, optimizer


MODEL, OPTIMIZER = trained()


def contents() -> dict[str, Any]:
    config = TrainConfig(optim=OptimConfig(max_steps=9), model=CONFIG)
    return copy.deepcopy(
        {
            "model_state_dict": MODEL.state_dict(),
            "optimizer_state_dict": OPTIMIZER.state_dict(),
            "step": 1,
            "loss": 1.5,
            "metrics": asdict(Metrics(step=1, epoch=0.5, tokens=10, lr=0.1, loss=1.5, accuracy=0.5, grad_norm=1.0)),
            "rng": [{"cpu": torch.get_rng_state()}],
            "data": {"position": 4, "seed": 1, "order": "random", "seq": 5, "tokens": 100},
            "config": config.recorded(),
            "model_config": config_to_ours(CONFIG),
            "tokenizer": "abc",
            "text": "0" * 64,
            "files": {"metrics.jsonl": 10, "metrics.csv": 10, "samples.md": 0},
        }
    )


def use(snapshot: object) -> None:
    """Do everything that a run does with a snapshot before it trains."""
    checked = check_contents(snapshot, SOURCE)
    recorded_config(checked, SOURCE)
    check_fits(checked, MODEL, OPTIMIZER, "abc", SOURCE)
    model, optimizer = trained()
    model.load_state_dict(checked["model_state_dict"])
    optimizer.load_state_dict(checked["optimizer_state_dict"])
    torch.set_rng_state(checked["rng"][0]["cpu"])
    optimizer.step()


def test_what_a_run_writes_passes() -> None:
    use(contents())
    assert health(contents()) is None


def replace(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(snapshot: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        place: Any = snapshot
        for part in parents:
            place = place[part]
        place[last] = value

    return change


def exchange_parameters(snapshot: dict[str, Any]) -> None:
    """Exchange two parameters of the same shape."""
    state = snapshot["optimizer_state_dict"]
    numbers = state["param_groups"][1]["params"]
    first, second = (numbers.index(n) for n in numbers if state["state"][n]["exp_avg"].shape == (8,) and n < numbers[2])
    numbers[first], numbers[second] = numbers[second], numbers[first]


STATE = "optimizer_state_dict/state/0"
WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a smaller average": (replace(f"{STATE}/exp_avg", torch.zeros(1)), r"torch.float32 .1. as exp_avg, which must be"),
    "one memory for all": (replace(f"{STATE}/exp_avg_sq", torch.zeros(1).expand(11, 8)), "exp_avg_sq of .* plain"),
    "averages in half": (replace(f"{STATE}/exp_avg", torch.zeros(11, 8).half()), "exp_avg of .* plain float32"),
    "a text for an average": (replace(f"{STATE}/exp_avg", "zeros"), "has a str as exp_avg"),
    "a step that is a table": (replace(f"{STATE}/step", torch.ones(11, 8)), "as step"),
    "a negative step": (replace(f"{STATE}/step", torch.tensor(-1.0)), "step of"),
    "a step without number": (replace(f"{STATE}/step", torch.tensor(torch.nan)), "step of"),
    "a state of nothing": (replace("optimizer_state_dict/state/0", {}), "state of parameter 0"),
    "an extra parameter": (replace("optimizer_state_dict/state/99", {}), "entries that belong to no parameter"),
    "other parameters": (replace("optimizer_state_dict/param_groups/0/params", [0]), "another model"),
    "parameters exchanged": (exchange_parameters, "other parameters"),
    "no groups": (replace("optimizer_state_dict/param_groups", []), "another model"),
    "a group of text": (replace("optimizer_state_dict/param_groups/0", "x"), "a group without a list of parameters"),
    "the other optimizer": (replace("optimizer_state_dict/param_groups/0/layout", "a b -> 1 a b"), "--optimizer muon"),
    "negative squares": (replace(f"{STATE}/exp_avg_sq", -torch.ones(11, 8)), "negative"),
    "short random state": (replace("rng/0/cpu", torch.zeros(10, dtype=torch.uint8)), "rng is 10 bytes"),
    "zeros as random state": (replace("rng/0/cpu", torch.zeros(5056, dtype=torch.uint8)), "rng"),
    "random state of floats": (replace("rng/0/cpu", torch.zeros(5056)), "rng"),
    "no process": (replace("rng", []), "rng"),
    "a far position": (replace("data/position", 2**63), "data.position"),
    "a position of text": (replace("data/position", "4"), "data.position"),
    "another file": (replace("files", {"../x": 3}), "files"),
    "a negative length": (replace("files/metrics.csv", -1), "files"),
    "another step": (replace("step", 2), "step is 2"),
    "a loss of text": (replace("loss", "1.5"), "loss is a str"),
    "another loss": (replace("metrics/loss", 2.5), "loss"),
    "no number as loss": (replace("metrics/loss", float("nan")), "metrics"),
    "a truth value as step": (replace("step", True), "step"),
    "wider weights": (replace("model_state_dict/embed.W_E", torch.zeros(11, 9)), "another model: embed.W_E"),
    "double weights": (replace("model_state_dict/embed.W_E", torch.zeros(11, 8).double()), "another model: embed.W_E"),
    "sparse weights": (replace("model_state_dict/embed.W_E", torch.zeros(11, 8).to_sparse()), "embed.W_E"),
    "expanded weights": (replace("model_state_dict/embed.W_E", torch.zeros(1).expand(11, 8)), "embed.W_E"),
    "an unknown field": (replace("extra", 1), "extra"),
    "tensors in settings": (replace("config/optim", torch.zeros(3)), "config"),
    "an unknown setting": (replace("config/optim/lr", "fast"), "lr is 'fast'"),
    "wrong model settings": (replace("model_config/n_layers", -1), "model_config"),
    "another vocabulary": (replace("tokenizer", "xyz"), "another vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_refused_by_name(case: str) -> None:
    change, message = WRONG[case]
    snapshot = contents()
    change(snapshot)
    with pytest.raises(SnapshotError, match=message) as caught:
        use(snapshot)
    assert "\n" not in str(caught.value)


VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**70, 1.5, -1.0, float("nan"), float("inf"), "", "a\nb", b"x", [], {}, (), [[]], {"a": 1},
    torch.zeros(0), torch.zeros(1), torch.zeros(5056, dtype=torch.uint8), torch.zeros(11, 8, dtype=torch.int64),
    torch.full((11, 8), float("nan")), torch.zeros(3).expand(4, 3), torch.zeros(11, 8, dtype=torch.complex64),
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def mutated(chance: random.Random) -> dict[str, Any]:
    """Return a snapshot with one place removed, doubled under another name, exchanged, or given another value."""
    snapshot = contents()
    *parents, last = chance.choice(places(snapshot))
    place: Any = snapshot
    for part in parents:
        place = place[part]
    kind = chance.choice(["remove", "value", "value", "value", "exchange"])
    if kind == "remove":
        del place[last]
    elif kind == "value":
        place[last] = copy.deepcopy(chance.choice(VALUES))
    else:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        other = chance.choice(keys)
        place[last], place[other] = place[other], place[last]
    return snapshot


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.tolist() if value.layout == torch.strided else None)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def shapes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shapes(item) for key, item in value.items() if key != "param_groups"}
    return value[:2]


# Places where another value is another valid run: plain settings, and numbers that only show how far the run was.
FREE = ("config", "data", "files", "metrics", "text", "param_groups", "model_config")


def test_300_mutations_of_a_snapshot() -> None:
    """Each is refused, or is what a run can have written: no traceback, nothing accepted by mistake."""
    accepted = 0
    for seed in range(300):
        snapshot = mutated(random.Random(seed))
        before = plain(snapshot)
        try:
            use(snapshot)
        except SnapshotError:
            continue
        accepted += 1
        expected = plain(contents())
        for name in before.keys() | expected.keys():
            if name in ("optimizer_state_dict", "model_state_dict"):  # equal shapes may have been exchanged
                assert shapes(before[name]) == shapes(expected[name]), seed
            elif name not in FREE:
                assert before.get(name) == expected.get(name), (seed, name)
    assert accepted < 100


def test_every_flipped_bit_of_a_file_is_refused(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, contents())
    whole = path.read_bytes()
    chance = random.Random(0)
    for place in [chance.randrange(len(whole)) for _ in range(40)]:
        content = bytearray(whole)
        content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        with pytest.raises(SnapshotError) as caught:
            load_snapshot(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert load_snapshot(path)["step"] == 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_state_dict/embed.W_E", torch.full((11, 8), torch.inf), "embed.W_E holds values that are not finite"),
        ("model_state_dict/embed.W_E", torch.full((11, 8), -1e6), r"embed.W_E has exploded, to 1\.0e\+06"),
        (f"{STATE}/exp_avg", torch.full((11, 8), torch.nan), "exp_avg of parameter 0 holds values that are not finite"),
        (f"{STATE}/exp_avg_sq", torch.full((11, 8), 1e12), "exp_avg_sq of parameter 0 has exploded"),
    ],
)
def test_health_names_what_has_diverged(path: str, value: torch.Tensor, message: str) -> None:
    snapshot = contents()
    replace(path, value)(snapshot)
    found = health(snapshot)
    assert found is not None
    assert re.search(message, found)
