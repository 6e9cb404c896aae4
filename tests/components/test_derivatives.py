"""Derivatives of every kind: right, or refused with an error, but never silently zero.

Forward mode is compared with the explicit formula in float64, for one row and for many, with and without ``no_grad``:
kernels for few rows and for inference have no derivatives of their own.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gptladder import GPT2, GPT2Config
from gptladder.components import MLP, Attention, Block, Embed, LayerCache, LayerNorm, PosEmbed, Unembed
from gptladder.components.kernels import linear, set_onednn_products
from gptladder.ladder.answers import randomize
from gptladder.sampling import pack

# PyTorch compiles its own rules for forward mode with what it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "layer_norm": lambda **choices: LayerNorm(d_model=10, **choices),
    "attention": lambda **choices: Attention(d_model=10, n_heads=3, d_head=4, **choices),
    "mlp": lambda fused=True, **choices: MLP(d_model=10, d_mlp=14, **choices),
    "block": lambda **choices: Block(d_model=10, n_heads=3, d_head=4, d_mlp=14, **choices),
    "unembed": lambda fused=True, **choices: Unembed(d_model=10, d_vocab=17, **choices),
}
EACH = pytest.mark.parametrize("name", LAYERS)
ROWS = pytest.mark.parametrize("rows", [1, 2, 7, 16, 17, 64])
MODES = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}


def layer_and_twin(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Return a layer with fused kernels, and its twin in float64 that computes the formula."""
    layer = LAYERS[name](dtype=torch.float64)
    randomize(layer, torch.Generator().manual_seed(0))
    twin = LAYERS[name](dtype=torch.float64, fused=False)
    twin.load_state_dict(layer.state_dict())
    return layer.to(dtype), twin


def drawn(rows: int, seed: int) -> Tensor:
    return torch.randn(1, rows, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_differences(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor, step: float = 1e-6) -> Tensor:
    """Return the derivative along ``tangent`` by central differences, which rest on no rule of differentiation."""
    with torch.no_grad():
        return (function(x + step * tangent) - function(x - step * tangent)) / (2 * step)


@EACH
@ROWS
@MODES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forward_mode_equals_the_formulas(name: str, rows: int, grad: bool, dtype: torch.dtype) -> None:
    layer, twin = layer_and_twin(name, dtype)
    x, tangent = drawn(rows, 1), drawn(rows, 2)
    expected = torch.func.jvp(twin, (x,), (tangent,))[1]
    assert (expected - by_differences(twin, x, tangent)).abs().max() < 1e-6
    with torch.set_grad_enabled(grad):
        by_func = torch.func.jvp(layer, (x.to(dtype),), (tangent.to(dtype),))[1]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.to(dtype), tangent.to(dtype))
            by_dual = forward_ad.unpack_dual(layer(dual)).tangent
    assert by_dual is not None
    for found in (by_func, by_dual):
        assert (found.double() - expected).abs().max() < TOLERANCE[dtype]


@EACH
@MODES
def test_forward_mode_reaches_every_parameter(name: str, grad: bool) -> None:
    layer, twin = layer_and_twin(name, torch.float32)
    x = drawn(3, 1)
    for key, parameter in layer.named_parameters():
        tangent = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))

        def call(module: nn.Module, x: Tensor, value: Tensor, key: str = key) -> Tensor:
            return torch.func.functional_call(module, {key: value}, (x,))

        value = parameter.detach()
        with torch.set_grad_enabled(grad):
            found = torch.func.jvp(lambda value: call(layer, x.float(), value), (value,), (tangent,))[1]
        expected = by_differences(lambda value: call(twin, x, value), value.double(), tangent.double())
        assert (found.double() - expected).abs().max() < 1e-4, key


@MODES
@pytest.mark.parametrize("table", ["embed", "pos_embed"])
def test_forward_mode_reaches_the_tables(grad: bool, table: str) -> None:
    layer = Embed(d_vocab=5, d_model=3) if table == "embed" else PosEmbed(n_ctx=4, d_model=3)
    (key, weight), tokens = next(layer.named_parameters()), torch.tensor([[0, 3, 3]])
    tangent = torch.randn_like(weight)
    with torch.set_grad_enabled(grad):
        call = lambda value: torch.func.functional_call(layer, {key: value}, (tokens,))  # noqa: E731
        found = torch.func.jvp(call, (weight.detach(),), (tangent,))[1]
    assert torch.equal(found, tangent[tokens if table == "embed" else torch.arange(3)[None]])


@MODES
@pytest.mark.parametrize("masked", [True, False])
def test_forward_mode_with_padding_and_whole_rows_of_it(grad: bool, masked: bool) -> None:
    layer, twin = layer_and_twin("attention", torch.float32)
    x, tangent = torch.cat([drawn(5, 1)] * 2), torch.cat([drawn(5, 2)] * 2)
    mask = torch.tensor([[False, False, True, True, True], [not masked] * 5])
    expected = torch.func.jvp(lambda x: twin(x, padding_mask=mask), (x,), (tangent,))[1]
    with torch.set_grad_enabled(grad):
        found = torch.func.jvp(lambda x: layer(x, padding_mask=mask), (x.float(),), (tangent.float(),))[1]
    assert found.isfinite().all()
    assert (found.double() - expected).abs().max() < 1e-4


@MODES
@pytest.mark.parametrize("capacity", [4, 6])
def test_a_cache_refuses_forward_mode_and_transforms(grad: bool, capacity: int) -> None:
    layer, _ = layer_and_twin("attention", torch.float32)
    x = drawn(4, 1).float()
    cache = LayerCache(batch=1, n_heads=3, d_head=4, capacity=capacity)
    with torch.set_grad_enabled(grad):
        with pytest.raises(RuntimeError, match="call without a cache"):
            torch.func.jvp(lambda x: layer(x, cache=cache), (x,), (x,))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="call without a cache"):
            layer(forward_ad.make_dual(x, x), cache=cache)
        with pytest.raises(RuntimeError, match="call without a cache"):
            torch.func.grad(lambda x: layer(x, cache=cache).sum())(x)
    assert cache.length == 0


def test_gradients_reach_the_keys_and_values_that_a_call_adds_to_a_cache() -> None:
    layer, _ = layer_and_twin("attention", torch.float64)
    x = drawn(6, 1)
    layer(x).square().sum().backward()
    expected: dict[str, Any] = {key: parameter.grad for key, parameter in layer.named_parameters()}
    layer.zero_grad()
    layer(x, cache=LayerCache(batch=1, n_heads=3, d_head=4, capacity=9, dtype=torch.float64)).square().sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad - expected[key]).abs().max() < 1e-12, key


def test_a_whole_model_in_forward_mode_without_gradients() -> None:
    config = GPT2Config(d_model=10, n_layers=2, n_heads=3, d_head=4, d_vocab=17, n_ctx=9)
    model = GPT2(config, dtype=torch.float64).eval()
    randomize(model, torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 5, 3]])
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    tangents = {key: torch.randn_like(value) for key, value in parameters.items()}

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (tokens,))

    with torch.no_grad():
        found = torch.func.jvp(logits, (parameters,), (tangents,))[1]
        up, down = (
            logits({key: value + sign * 1e-6 * tangents[key] for key, value in parameters.items()}) for sign in (1, -1)
        )
    assert (found - (up - down) / 2e-6).abs().max() / found.abs().max() < 1e-5


@EACH
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_the_hessian_of_torch_func_is_the_formulas(name: str, rows: int) -> None:
    layer, twin = layer_and_twin(name, torch.float64)
    x, tangent = drawn(rows, 1), drawn(rows, 2)

    def product(module: nn.Module) -> Tensor:
        gradient = torch.func.grad(lambda x: module(x).sigmoid().sum())
        return torch.func.jvp(gradient, (x,), (tangent,))[1]

    assert (product(layer) - product(twin)).abs().max() < 1e-11


@pytest.mark.parametrize("name", ["attention", "block"])
def test_second_derivatives_of_the_fused_kernel_are_refused(name: str) -> None:
    layer, _ = layer_and_twin(name, torch.float64)
    x = drawn(3, 1).requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        first.sum().backward()


@pytest.fixture
def by_onednn() -> Any:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs a build of PyTorch with oneDNN")
    before = set_onednn_products(True)
    yield
    set_onednn_products(before)


@pytest.mark.parametrize("grad", [True, False])
def test_products_of_training_have_every_derivative_under_transforms(by_onednn: None, grad: bool) -> None:
    x, W, b = torch.randn(40, 8), torch.randn(8, 5), torch.randn(5)
    tangent = torch.randn(40, 8)
    with torch.set_grad_enabled(grad):
        found = torch.func.jvp(lambda x: linear(x, W, b), (x,), (tangent,))[1]
        torch.testing.assert_close(found, tangent @ W, atol=1e-4, rtol=0)
        found = torch.func.grad(lambda W: linear(x, W, b).sum())(W)
        torch.testing.assert_close(found, x.sum(0)[:, None].expand(8, 5), atol=1e-4, rtol=0)
        found = torch.vmap(lambda x: linear(x, W, b))(x[:, None])
        torch.testing.assert_close(found[:, 0], x @ W + b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("seq", [1, 3])
def test_packed_models_refuse_every_derivative(weights: Any, seq: int) -> None:
    model = GPT2(GPT2Config(d_model=12, n_layers=1, n_heads=3, d_vocab=17, n_ctx=9)).eval()
    packed = pack(model, weights)
    dtype = packed.embed.W_E.dtype
    residual, tokens = torch.randn(1, seq, 12, dtype=dtype), torch.randint(17, (1, seq))
    for layer in (packed.blocks[0], packed.unembed):
        with torch.no_grad(), pytest.raises(RuntimeError, match="packed model has no derivatives"):
            torch.func.jvp(layer, (residual,), (residual,))
        with pytest.raises(RuntimeError, match="packed model has no derivatives"):
            layer(residual.clone().requires_grad_())
    cache = packed.new_cache(1)
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(RuntimeError, match="packed model has no derivatives"):
        packed.blocks[0](forward_ad.make_dual(residual, residual), cache=cache.layers[0])

    def needs_gradient(x: Tensor, hook: Any) -> Tensor:
        return x.requires_grad_()

    with pytest.raises(RuntimeError, match="packed model has no derivatives"):
        packed.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_pre", needs_gradient)])
