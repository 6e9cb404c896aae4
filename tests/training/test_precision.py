"""The precision and the backend of a run are chosen once and recorded, and change results only by rounding."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.components.kernels import linear, set_onednn_products
from gptladder.training import precision
from gptladder.training.loss import NextTokenLoss
from gptladder.training.precision import Trial, computing_by, settle, try_onednn
from gptladder.training.presets import PRESETS

CPU = torch.device("cpu")
PLAIN = PRESETS["shakespeare-char"]


@pytest.fixture
def by_onednn() -> Iterator[None]:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs a build of PyTorch with oneDNN")
    before = set_onednn_products(True)
    yield
    set_onednn_products(before)


def gradients(model: GPT2, tokens: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = NextTokenLoss(model)(tokens, targets).loss
    loss.backward()
    named = model.named_parameters()
    return loss.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_onednn_changes_a_models_loss_and_gradients_only_by_rounding() -> None:
    trial = try_onednn()
    if not trial.accurate:
        pytest.skip("oneDNN rounds to less than float32 on this processor, and is never chosen")
    torch.manual_seed(0)
    model = GPT2(GPT2Config(d_model=48, n_layers=2, n_heads=3, d_vocab=97, n_ctx=20))
    tokens, targets = torch.randint(97, (2, 3, 20))
    loss, expected = gradients(model, tokens, targets)
    before = set_onednn_products(True)
    try:
        loss_by_onednn, found = gradients(model, tokens, targets)
    finally:
        set_onednn_products(before)
    assert abs(loss_by_onednn - loss) / loss < 1e-6
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max() + 1e-6, name


def test_the_choice_holds_only_for_the_products_of_our_layers(by_onednn: None) -> None:
    products: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009
    before = products.fp32_precision
    try:
        products.fp32_precision = "ieee"
        x, W, b = torch.randn(2, 3, 8), torch.randn(8, 5, requires_grad=True), torch.randn(5)
        out = linear(x, W, b)
        assert products.fp32_precision == "ieee"
        out.sum().backward()
        assert products.fp32_precision == "ieee"
    finally:
        products.fp32_precision = before
    torch.testing.assert_close(out, x @ W + b)
    assert W.grad is not None
    torch.testing.assert_close(W.grad, x.sum((0, 1))[:, None].expand(8, 5))


def test_second_derivatives_are_refused_not_wrong(by_onednn: None) -> None:
    W = torch.randn(8, 5, requires_grad=True)
    (first,) = torch.autograd.grad(linear(torch.randn(3, 8), W, torch.zeros(5)).pow(2).sum(), W, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("trial", "recorded", "expected"),
    [
        (Trial(accurate=True, speedup=1.2), None, "onednn"),
        (Trial(accurate=True, speedup=0.5), None, "default"),
        (Trial(accurate=False, speedup=3.0), None, "default"),
        (Trial(accurate=True, speedup=0.5), {"products": "onednn", "precision": "float32"}, "onednn"),
        (Trial(accurate=True, speedup=1.2), {"products": "default", "precision": "float32"}, "default"),
        (Trial(accurate=False, speedup=1.2), {"products": "onednn", "precision": "float32"}, "default"),
    ],
)
def test_auto_takes_onednn_if_it_is_accurate_and_not_slower_or_recorded(
    monkeypatch: pytest.MonkeyPatch, trial: Trial, recorded: dict[str, str] | None, expected: str
) -> None:
    monkeypatch.setattr(precision, "try_onednn", lambda: trial)
    assert settle(PLAIN, CPU, recorded).optim.products == expected


@pytest.mark.parametrize(
    ("speedup", "recorded", "expected"),
    [(2.0, None, "bf16"), (1.2, None, "float32"), (2.0, {"precision": "float32", "products": "default"}, "float32")],
)
def test_auto_takes_bfloat16_if_it_is_much_faster_or_recorded(
    monkeypatch: pytest.MonkeyPatch, speedup: float, recorded: dict[str, str] | None, expected: str
) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda device: speedup)
    settled = settle(PLAIN.replace(precision="auto"), CPU, recorded)
    assert settled.optim.precision == expected
    if expected == "bf16":
        assert settled.optim.products == "default"


def test_an_explicit_choice_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "try_onednn", lambda: Trial(accurate=True, speedup=9.0))
    assert settle(PLAIN.replace(products="default"), CPU, None).optim.products == "default"
    assert settle(PLAIN.replace(compile=True), CPU, None).optim.products == "default"
    monkeypatch.setattr(precision, "try_onednn", lambda: Trial(accurate=False, speedup=9.0))
    with pytest.raises(ValueError, match="products=onednn is less accurate than float32 on this processor"):
        settle(PLAIN.replace(products="onednn"), CPU, None)


def test_the_choice_ends_with_the_run() -> None:
    assert set_onednn_products(False) is False
    with computing_by(PLAIN.replace(products="onednn")):
        assert set_onednn_products(True) is True
    assert set_onednn_products(False) is False
