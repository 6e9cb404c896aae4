"""The product, whichever kernel computes it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import kernels as module
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
def test_it_is_the_product(dtype, rows, d_in, d_out, bias, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, d_in, generator=generator, dtype=torch.float64)
    # An output projection that is tied is a transposed table.
    W = (
        torch.randn(d_out, d_in, generator=generator).T if transposed else torch.randn(d_in, d_out, generator=generator)
    ).double()
    b = torch.randn(d_out, generator=generator, dtype=torch.float64) if bias else None
    exact = x @ W + (0 if b is None else b)
    with torch.no_grad():
        got = linear(x.to(dtype), W.to(dtype), None if b is None else b.to(dtype))
    assert got.dtype == dtype
    allowed = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.5}[dtype]
    assert torch.allclose(got.double(), exact, atol=allowed, rtol=0)


@pytest.mark.skipif(not module._has_onednn, reason="this PyTorch has no oneDNN")
def test_few_rows_without_gradients_take_the_other_kernel_and_nothing_else_does(monkeypatch):
    x, W = torch.randn(16, 8), torch.randn(8, 5)

    def plain(*args):
        raise AssertionError("F.linear")

    monkeypatch.setattr(module.F, "linear", plain)
    with torch.no_grad():
        linear(x, W, None)
        for many, weight in ((torch.randn(17, 8), W), (x.double(), W.double())):
            with pytest.raises(AssertionError, match=r"F.linear"):
                linear(many, weight, None)
        with torch.autocast("cpu"), pytest.raises(AssertionError, match=r"F.linear"):
            linear(x, W, None)
    with pytest.raises(AssertionError, match=r"F.linear"):  # it has no gradient
        linear(x, W, None)


def test_many_models_at_once():
    weights, x = torch.randn(3, 8, 5), torch.randn(3, 2, 8)
    with torch.no_grad():
        got = torch.func.vmap(lambda W, x: linear(x, W, None))(weights, x)
    assert torch.allclose(got, x @ weights, atol=1e-5)
