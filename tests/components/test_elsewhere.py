"""What others do with a layer: each of the seven goes through torch's tools unharmed, without a model of ours."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.components import (
    MLP,
    Attention,
    Block,
    Embed,
    HookPoint,
    LayerNorm,
    PosEmbed,
    TypeCheckError,
    Unembed,
    add_hook,
    named_taps,
)
from gptladder.ladder.answers import randomize

Layer = MLP | Attention | Block | Embed | LayerNorm | PosEmbed | Unembed
LAYERS: dict[str, Callable[..., Layer]] = {
    "embed": lambda **made: Embed(d_vocab=17, d_model=10, **made),
    "pos_embed": lambda **made: PosEmbed(n_ctx=9, d_model=10, **made),
    "layer_norm": lambda **made: LayerNorm(d_model=10, **made),
    "attention": lambda **made: Attention(d_model=10, n_heads=3, d_head=4, **made),
    "mlp": lambda **made: MLP(d_model=10, d_mlp=14, **made),
    "block": lambda **made: Block(d_model=10, n_heads=3, d_head=4, d_mlp=14, **made),
    "unembed": lambda **made: Unembed(d_model=10, d_vocab=17, **made),
}
EACH = pytest.mark.parametrize("name", LAYERS)
WITH_TWO_PATHS = ("layer_norm", "attention", "block")
EACH_PATH = pytest.mark.parametrize(
    ("name", "choices"), [*((name, {}) for name in LAYERS), *((name, {"fused": False}) for name in WITH_TWO_PATHS)]
)
SIXTEEN = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def made(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **choices: Any) -> Layer:
    layer = LAYERS[name](dtype=dtype, **choices)
    randomize(layer, torch.Generator().manual_seed(seed))
    return layer


def given(name: str, *, batch: int = 2, seq: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name in ("embed", "pos_embed"):
        return torch.randint(17, (batch, seq), generator=generator)
    return torch.randn(batch, seq, 10, dtype=torch.float64, generator=generator).to(dtype)


def through_a_file(layer: nn.Module) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return torch.load(file)


def through_a_state_dict(layer: nn.Module, name: str) -> nn.Module:
    other = made(name, seed=5)
    other.load_state_dict(through_a_file(layer))
    return other


COPIES = {
    "deepcopy": lambda layer, name: copy.deepcopy(layer),
    "pickle": lambda layer, name: pickle.loads(pickle.dumps(layer)),
    "state dict": through_a_state_dict,
}


@EACH
def test_an_input_without_a_batch_axis_is_refused(name: str) -> None:
    with pytest.raises(TypeCheckError, match=r"batch (seq|query_pos)"):
        made(name)(given(name)[0])


@EACH
def test_weights_are_drawn_with_a_standard_deviation_of_0_02_by_default(name: str) -> None:
    choices: dict[str, Any] = {} if name == "layer_norm" else {"init_range": 0.02}
    torch.manual_seed(0)
    by_default = LAYERS[name]()
    torch.manual_seed(0)
    for (key, found), expected in zip(by_default.named_parameters(), LAYERS[name](**choices).parameters(), strict=True):
        assert torch.equal(found, expected), key


@EACH
def test_biases_start_at_0_and_gains_at_1_also_when_reset(name: str) -> None:
    fresh, reset = LAYERS[name](), made(name)
    reset.reset_parameters()
    for layer in (fresh, reset):
        for key, parameter in layer.named_parameters():
            last = key.rpartition(".")[2]
            if last.startswith(("b", "w")):
                assert (parameter == (1 if last == "w" else 0)).all(), key
            else:
                assert 0.01 < parameter.std() < 0.03, key


@EACH
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_computes_the_same_in_memory_of_its_own(name: str, how: str) -> None:
    layer, x = made(name), given(name)
    expected = layer(x).detach().clone()  # the layer has been used before it is copied
    taken = COPIES[how](layer, name)
    assert list(taken.state_dict()) == list(layer.state_dict())
    assert torch.equal(taken(x), expected)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(taken(x), expected)


@pytest.mark.parametrize("name", ["layer_norm", "attention", "mlp", "block"])  # the others have no activations
def test_a_copy_has_hooks_of_its_own(name: str) -> None:
    layer, x = made(name), given(name)
    expected, taken = layer(x), copy.deepcopy(layer)

    def bend(activation: Tensor, hook: HookPoint) -> Tensor:
        # A layer norm would undo a factor for the whole vector.
        return activation * torch.linspace(0.5, 1.5, activation.shape[-1], dtype=activation.dtype)

    for tap in named_taps(layer):
        remove = add_hook(taken, tap, bend)
        assert (taken(x) - expected).abs().max() > 1e-3, tap
        assert (layer(x) - expected).abs().max() < 1e-12, tap
        remove()
    assert torch.equal(taken(x), expected)


@EACH
def test_a_state_dict_is_strict(name: str) -> None:
    layer = made(name)
    state = layer.state_dict()
    first = next(iter(state))
    with pytest.raises(RuntimeError, match=f"Missing.*{first}"):
        layer.load_state_dict({key: value for key, value in state.items() if key != first})
    with pytest.raises(RuntimeError, match=r"Unexpected.*surplus"):
        layer.load_state_dict({**state, "surplus": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=f"size mismatch for {first}"):
        layer.load_state_dict({**state, first: torch.zeros(3, 3)})


@EACH
def test_it_exports_for_any_batch_and_length(name: str) -> None:
    layer, x = made(name), given(name)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("seq", min=2, max=9)},)
    exported = torch.export.export(layer, (x,), dynamic_shapes=shapes).module()
    for batch, seq in ((2, 7), (3, 5), (5, 9)):
        other = given(name, batch=batch, seq=seq)
        assert (exported(other) - layer(other)).abs().max() < 1e-12


@EACH
def test_an_export_survives_a_file(name: str) -> None:
    layer, x = made(name), given(name)
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,)), file)
    file.seek(0)
    assert (torch.export.load(file).module()(x) - layer(x)).abs().max() < 1e-12


@EACH
def test_functional_call_uses_the_parameters_it_is_given_alone(name: str) -> None:
    layer, other, x = made(name), made(name, seed=5), given(name)
    before = layer(x)
    assert torch.equal(torch.func.functional_call(layer, dict(other.named_parameters()), (x,)), other(x))
    assert torch.equal(layer(x), before)


@EACH
@torch.no_grad()
def test_used_for_decoding_first_it_still_sees_its_parameters_change(name: str) -> None:
    # Few float32 rows without gradients take a kernel of their own, whose preparations must not outlive the weights.
    layer, other, x = made(name, dtype=torch.float32), made(name, seed=5, dtype=torch.float32), given(name, batch=1)
    x = x.float() if x.is_floating_point() else x
    before = layer(x).clone()  # embeddings of positions are views of the table
    assert torch.equal(torch.func.functional_call(layer, dict(other.named_parameters()), (x,)), other(x))
    taken = copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.mul_(1.5)
    assert not torch.equal(layer(x), before)
    assert torch.equal(taken(x), before)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    layer.double()
    assert (layer(x.double() if x.is_floating_point() else x) - other(x)).abs().max() < 2e-5


# PyTorch's attention kernel for CPUs is mapped by a loop, and has no second derivative; the formula has both.
MAPPED_BY_A_LOOP = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@MAPPED_BY_A_LOOP
@EACH_PATH
def test_many_layers_at_once(name: str, choices: dict[str, Any]) -> None:
    layers = [made(name, seed=seed, **choices) for seed in range(3)]
    x = given(name)
    parameters, _ = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")

    def call(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(base, parameters, (x,))

    together = torch.vmap(call, in_dims=(0, None))(parameters, x)
    for layer, output in zip(layers, together, strict=True):
        assert (layer(x) - output).abs().max() < 1e-12


@MAPPED_BY_A_LOOP
@EACH
def test_gradients_for_each_example_by_vmap(name: str) -> None:
    layer, x = made(name), given(name, batch=4)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (example[None],)).sigmoid().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, example in enumerate(x):
        layer.zero_grad()
        layer(example[None]).sigmoid().sum().backward()
        for key, parameter in layer.named_parameters():
            assert (found[key][index] - parameter.grad).abs().max() < 1e-12, key


@pytest.mark.parametrize("name", WITH_TWO_PATHS)
def test_second_derivatives_are_right(name: str) -> None:
    layer, x = made(name, fused=False), given(name, batch=1, seq=3)
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,))


# The spacing of the numbers just above 1 is 2^-7 in bfloat16, 2^-10 in float16. A layer rounds its weights, its input
# and each intermediate result: some such steps, relative to the largest entry.
STEPS = 4
SPACING = {torch.bfloat16: 2**-7, torch.float16: 2**-10}


@EACH_PATH
@SIXTEEN
def test_in_sixteen_bits_it_stays_within_rounding_of_float32(
    name: str, choices: dict[str, Any], dtype: torch.dtype
) -> None:
    layer, x = made(name, dtype=torch.float32, **choices), given(name, dtype=torch.float32)
    expected = layer(x)
    allowed = STEPS * SPACING[dtype] * expected.abs().max()
    half = copy.deepcopy(layer).bfloat16() if dtype == torch.bfloat16 else copy.deepcopy(layer).half()
    output = half(x.to(dtype) if x.is_floating_point() else x)
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < allowed
    output.float().square().mean().backward()
    expected.square().mean().backward()
    for (key, ours), exact in zip(half.named_parameters(), layer.parameters(), strict=True):
        assert ours.grad is not None
        assert exact.grad is not None
        assert ours.grad.dtype == dtype
        assert (ours.grad.float() - exact.grad).abs().max() < 2 * STEPS * SPACING[dtype] * exact.grad.abs().max(), key


@EACH
@SIXTEEN
def test_under_autocast_too_and_the_parameters_stay_float32(name: str, dtype: torch.dtype) -> None:
    layer, x = made(name, dtype=torch.float32), given(name, dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        output = layer(x)
    if name in ("attention", "mlp", "unembed"):  # those that end in a matrix product
        assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < STEPS * SPACING[dtype] * expected.abs().max()
    output.float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert (layer(x).float() - expected).abs().max() < STEPS * SPACING[dtype] * expected.abs().max()


@EACH
def test_it_is_made_without_memory_and_given_some_later(name: str) -> None:
    expected = made(name)
    with torch.device("meta"):
        layer = LAYERS[name](dtype=torch.float64)
    assert all(parameter.is_meta for parameter in layer.parameters())
    layer.load_state_dict(expected.state_dict(), assign=True)
    assert torch.equal(layer(given(name)), expected(given(name)))
