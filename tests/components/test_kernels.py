"""Products and attention: the same, whichever kernel computes them; and which one is chosen."""

import contextlib
import io
import math
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import Attention, HookPoint, kernels, run_with_hooks
from gptladder.components.kernels import linear


@given(
    rows=st.integers(0, 40),
    d_in=st.integers(1, 33),
    d_out=st.integers(1, 33),
    bias=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_it_is_the_product(
    dtype: torch.dtype, rows: int, d_in: int, d_out: int, bias: bool, transposed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, d_in, generator=generator, dtype=torch.float64)
    # An output projection that is tied is a transposed table.
    W = (
        torch.randn(d_out, d_in, generator=generator).T if transposed else torch.randn(d_in, d_out, generator=generator)
    ).double()
    b = torch.randn(d_out, generator=generator, dtype=torch.float64) if bias else None
    exact = x @ W + (0 if b is None else b)
    allowed = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.5}[dtype]
    for by_onednn in {False, kernels._has_onednn}:  # whichever this processor would take
        with torch.no_grad(), patch.object(kernels, "_few_rows_by_onednn", by_onednn):
            got = linear(x.to(dtype), W.to(dtype), None if b is None else b.to(dtype))
        assert got.dtype == dtype
        assert torch.allclose(got.double(), exact, atol=allowed, rtol=0)


@pytest.mark.parametrize(
    ("described", "named", "intel"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", "", True),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "GenuineIntel", False),
        (None, "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", True),
        (None, "arm", False),
    ],
)
def test_intel_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, described: str | None, named: str, intel: bool
) -> None:
    def opened(*args: object, **kwargs: object) -> io.StringIO:
        if described is None:
            raise FileNotFoundError
        return io.StringIO(described)

    monkeypatch.setattr(kernels, "open", opened, raising=False)
    monkeypatch.setattr("platform.processor", lambda: named)
    assert kernels._is_of_intel() == intel


@pytest.mark.skipif(not kernels._has_onednn, reason="this PyTorch has no oneDNN")
def test_only_few_rows_without_gradients_take_the_other_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, W = torch.randn(16, 8), torch.randn(8, 5)

    def plain(*args: object) -> None:
        raise AssertionError("F.linear")

    monkeypatch.setattr(kernels, "_few_rows_by_onednn", True)
    monkeypatch.setattr(torch.nn.functional, "linear", plain)
    with torch.no_grad():
        linear(x, W, None)
        linear(x[:1, :1], W[:1], None)
        linear(x.view(4, 4, 8), W, None)  # rows are counted over all leading axes
        for many, weight in ((torch.randn(17, 8), W), (x.double(), W.double())):
            with pytest.raises(AssertionError, match=r"F.linear"):
                linear(many, weight, None)
        with torch.autocast("cpu"), pytest.raises(AssertionError, match=r"F.linear"):
            linear(x, W, None)
    with pytest.raises(AssertionError, match=r"F.linear"):  # it has no gradient
        linear(x, W, None)


@pytest.fixture
def by_onednn() -> Iterator[None]:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs a build of PyTorch with oneDNN")
    before = kernels.set_onednn_products(True)
    yield
    kernels.set_onednn_products(before)


@pytest.mark.parametrize("needed", ["xWb", "xW", "xb", "Wb", "x", "W", "b"])
def test_products_of_training_have_the_gradients_that_are_needed(by_onednn: None, needed: str) -> None:
    generator = torch.Generator().manual_seed(0)
    given = {"x": torch.randn(3, 6, 8, generator=generator), "W": torch.randn(8, 5, generator=generator)}
    given["b"] = torch.randn(5, generator=generator)
    exact = {name: tensor.double().requires_grad_(name in needed) for name, tensor in given.items()}
    for name, tensor in given.items():
        tensor.requires_grad_(name in needed)
    found, expected = linear(**given), exact["x"] @ exact["W"] + exact["b"]
    torch.testing.assert_close(found.double(), expected, atol=0.1, rtol=0)  # bfloat16's, where the processor has it
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, tensor in given.items():
        gradient, wanted = tensor.grad, exact[name].grad
        assert (gradient is not None) == (name in needed)
        if gradient is not None and wanted is not None:
            torch.testing.assert_close(gradient.double(), wanted, atol=0.02 * wanted.abs().max().item(), rtol=0)


def test_products_of_training_need_no_bias(by_onednn: None) -> None:
    x, W = torch.randn(20, 8), torch.randn(8, 5, requires_grad=True)
    torch.testing.assert_close(linear(x, W, None), x @ W, atol=1e-4, rtol=0)


def test_by_default_products_have_second_derivatives() -> None:
    x, W, b = torch.randn(20, 8, requires_grad=True), torch.randn(8, 5), torch.randn(5)
    (first,) = torch.autograd.grad(linear(x, W, b).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, (2 * W @ W.sum(0)).expand(20, 8), atol=1e-4, rtol=0)


def test_many_models_at_once() -> None:
    weights, x = torch.randn(3, 8, 5), torch.randn(3, 2, 8)
    with torch.no_grad():
        got = torch.func.vmap(lambda W, x: linear(x, W, None))(weights, x)
    assert torch.allclose(got, x @ weights, atol=1e-5)


def draws(batch: int, query_pos: int, key_pos: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch * 100 + query_pos * 10 + key_pos)
    shapes = ((batch, query_pos, 3, 4), (batch, 3, key_pos, 4), (batch, 3, key_pos, 4))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


@given(batch=st.integers(1, 3), query_pos=st.integers(1, 8), past=st.integers(0, 5), padded=st.booleans())
def test_attention_by_products_is_the_fused_kernels(batch: int, query_pos: int, past: int, padded: bool) -> None:
    q, keys, values = draws(batch, query_pos, query_pos + past)
    mask = torch.rand(batch, query_pos + past, generator=torch.Generator().manual_seed(past)) > 0.5 if padded else None
    fused = kernels.attention(q, keys, values, scale=0.3, padding_mask=mask)
    with torch.autograd.forward_ad.dual_level():
        by_products = kernels.attention(q, keys, values, scale=0.3, padding_mask=mask)
    assert fused.isfinite().all()
    assert (fused - by_products).abs().max() < 1e-12


@pytest.mark.parametrize("by_products", [True, False])
def test_attention_drops_entries_of_the_pattern(by_products: bool) -> None:
    torch.manual_seed(0)
    q, keys, values = draws(1, 6, 6)
    with torch.autograd.forward_ad.dual_level() if by_products else contextlib.nullcontext():
        outputs = torch.stack([kernels.attention(q, keys, values, scale=0.3, dropout=0.5) for _ in range(2000)])
        expected = kernels.attention(q, keys, values, scale=0.3)
    assert outputs.std(0).max() > 0.1
    assert (outputs.mean(0) - expected).abs().max() < 0.15


def test_only_short_bfloat16_with_gradients_takes_the_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []

    def products(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **given: object) -> torch.Tensor:
        taken.append(q.shape[2])
        return values

    monkeypatch.setattr(kernels, "_attention_by_products", products)
    for length in (512, 513):
        kernels.attention(*draws(1, length, length, torch.bfloat16), scale=0.3)
    assert taken == [512]
    short = draws(1, 4, 4, torch.bfloat16)
    mask = torch.ones(1, 4, dtype=torch.bool)
    kernels.attention(*short, scale=0.3, padding_mask=mask)
    kernels.attention(*draws(1, 4, 5, torch.bfloat16), scale=0.3)
    kernels.attention(*draws(1, 4, 4, torch.float32), scale=0.3)
    with torch.no_grad():
        kernels.attention(*short, scale=0.3)
    assert taken == [512]


def test_an_undefined_query_shows_in_its_own_output() -> None:
    layer = Attention(d_model=6, n_heads=2, fused=False, dtype=torch.float64)  # PyTorch's fused kernel gives 0 there

    def spoil(q: torch.Tensor, hook: HookPoint) -> None:
        q[:, 2] = math.nan

    output = run_with_hooks(layer, torch.randn(1, 4, 6, dtype=torch.float64), fwd_hooks=[("hook_q", spoil)])
    assert output[0, [0, 1, 3]].isfinite().all()
    assert output[0, 2].isnan().all()
