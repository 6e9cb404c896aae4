"""Initial values: what each function puts into parameters, and that it leaves the meta device alone."""

import pytest
import torch
from torch import nn

from gptladder.components import initial


def test_normal_draws_with_the_standard_deviation_and_mean_0() -> None:
    torch.manual_seed(0)
    first, second = nn.Parameter(torch.full((100, 100), 9.0)), nn.Parameter(torch.full((100, 100), 9.0))
    initial.normal_((first, second), std=0.5)
    for weight in (first, second):
        assert weight.std().item() == pytest.approx(0.5, rel=0.03)
        assert weight.mean().item() == pytest.approx(0, abs=0.02)
    assert not torch.equal(first, second)


def test_fill_sets_all_but_what_a_layer_does_not_have() -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    initial.fill_((first, None, second), 2.0)
    assert first.tolist() == [2.0] * 2
    assert second.tolist() == [2.0] * 3


def test_divide_divides_each_weight_once() -> None:
    first, second = nn.Parameter(torch.full((2,), 6.0)), nn.Parameter(torch.full((3,), 9.0))
    initial.divide_((first, second), 3)
    assert first.tolist() == [2.0] * 2
    assert second.tolist() == [3.0] * 3
    assert first.requires_grad


def test_parameters_on_meta_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(*arguments: object, **options: object) -> None:
        raise AssertionError("used on meta")

    weight = nn.Parameter(torch.empty(2, device="meta"))
    monkeypatch.setattr(nn.init, "normal_", used)
    for name in ("fill_", "div_"):
        monkeypatch.setattr(torch.Tensor, name, used)
    initial.normal_((weight,), std=1.0)
    initial.fill_((weight,), 1.0)
    initial.divide_((weight,), 2.0)
    assert weight.is_meta
