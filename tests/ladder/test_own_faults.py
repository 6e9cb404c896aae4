"""A fault of gptladder's own takes away no verdict that is known, and no layer is blamed for it."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from gptladder.ladder import climb, try_layer
from gptladder.ladder.candidate import layer as in_candidate
from gptladder.ladder.diagnosis import faults
from gptladder.ladder.sandbox import worker

REPORT = "This is a fault of gptladder, not of the layer: please report it"


class MLP(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.fc, self.proj = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(nn.functional.gelu(self.fc(x), approximate="tanh"))


class ReLU(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.fc(x).relu())


def broken(*_: Any, **__: Any) -> Any:
    return {}["no such key"]


def test_a_diagnosis_that_fails_leaves_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "diagnose", broken)
    tried = climb(mlp=ReLU, cases=2).rungs[0]
    assert tried.status == "failed"
    assert tried.verdict is not None
    assert tried.verdict.float64 > 1e-3
    assert "the output is off by" in tried.text()
    assert "The verdict stands, but what is wrong was not found out: KeyError: 'no such key'" in tried.note
    assert REPORT in tried.note
    assert f"(gptladder/tests/ladder/{Path(__file__).name}, line " in tried.note, "the line that raised it"


def test_debugging_raises_the_fault_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "diagnose", broken)
    monkeypatch.setenv("GPTLADDER_DEBUG", "1")
    with pytest.raises(KeyError, match="no such key"):
        climb(mlp=ReLU, cases=2)


def test_a_layer_that_is_right_so_far_has_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(try_layer, "hidden_faults", broken)
    tried = climb(mlp=MLP, cases=2).rungs[0]
    assert tried.status == "refused"
    assert "right on the 2 cases, but not tried further: KeyError" in tried.text()
    assert REPORT in tried.text()


def test_a_fault_in_the_process_of_the_layer_is_not_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_candidate, "pull_back", {}.__getitem__)  # which takes one argument, not three
    tried = climb(mlp=MLP, cases=2).rungs[0]
    assert tried.status == "refused"
    assert tried.text().startswith("TypeError: dict.__getitem__() takes exactly one argument")
    assert "(gptladder/ladder/candidate/layer.py, line " in tried.text()
    assert REPORT in tried.text()


class Hidden(MLP):
    def named_modules(self, *_: Any, **__: Any) -> Any:
        raise ValueError("look elsewhere.")


def test_what_the_users_code_raises_while_it_is_read_is_its_own() -> None:
    tried = climb(mlp=Hidden, cases=2).rungs[0]
    assert tried.fault is not None
    assert tried.fault.kind == "raises"
    assert tried.text().startswith("reading the layer raises ValueError: look elsewhere.\n"), "one full stop"
    assert tried.at is not None
    assert Path(__file__).name in tried.at


def test_a_fault_while_a_file_is_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "load", broken)
    layers, reply = worker.read_sources(worker.Start({"": __file__}, {}, None, "", 1.0, 1.0))
    assert layers == {}
    assert reply.fault is not None
    assert reply.fault.kind == "internal"
    assert REPORT in reply.fault.message
