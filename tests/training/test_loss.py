"""The chunked loss: its value, derivatives and accuracy are those of the plain formulation."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptladder.assembly import GPT2, GPT2Config
from gptladder.training import loss as loss_module
from gptladder.training.loss import IGNORE_INDEX, NextTokenLoss, Reduction, linear_cross_entropy

is_accelerated = loss_module._is_accelerated  # without what `_several_chunks` sets


@pytest.fixture(autouse=True, params=["cpu", "accelerator"])
def _several_chunks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Small chunks: small inputs need several, and the last one is shorter. Both ways to compute a chunk are tried."""
    monkeypatch.setattr(loss_module, "_LOGITS_ON_CPU", 150)
    monkeypatch.setattr(loss_module, "_LOGITS_ELSEWHERE", 150)
    if request.param == "accelerator":
        monkeypatch.setattr(loss_module, "_is_accelerated", lambda tensor: True)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, reduction: str) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, -2), targets.flatten(), reduction=reduction)


def inputs(
    batch: int, seq: int, d_model: int, d_vocab: int, *, bias: bool, ignored: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()

    targets = torch.randint(d_vocab, (batch, seq), generator=random)
    targets.view(-1)[:ignored] = IGNORE_INDEX
    return draw(batch, seq, d_model), draw(d_vocab, d_model), targets, draw(d_vocab) if bias else None


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 4),
    seq=st.integers(1, 9),
    d_model=st.integers(1, 7),
    d_vocab=st.integers(2, 200),
    bias=st.booleans(),
    ignored=st.integers(0, 3),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_equals_the_plain_formulation(
    batch: int, seq: int, d_model: int, d_vocab: int, bias: bool, ignored: int, reduction: Reduction
) -> None:
    hidden, weight, targets, b = inputs(batch, seq, d_model, d_vocab, bias=bias, ignored=min(ignored, batch * seq - 1))
    result = linear_cross_entropy(hidden, weight, targets, bias=b, reduction=reduction)
    expected = plain(hidden, weight, targets, b, reduction)
    differentiable = [tensor for tensor in (hidden, weight, b) if tensor is not None]
    torch.testing.assert_close(result.loss, expected, atol=1e-12, rtol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(3 * result.loss, differentiable),
        torch.autograd.grad(3 * expected, differentiable),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    predicted = F.linear(hidden, weight, b).argmax(-1)
    assert int(result.correct) == int((predicted == targets).sum())
    assert int(result.tokens) == int((targets != IGNORE_INDEX).sum())


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    hidden, weight, targets, _ = inputs(2, 3, 4, 50, bias=False, ignored=0)
    with torch.no_grad():
        hidden *= 1e4
    result = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(result.loss, plain(hidden, weight, targets, None, "mean"), atol=0, rtol=1e-12)
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(result.loss, (hidden, weight)))


def test_another_index_can_be_ignored_and_ignoring_all_gives_nan() -> None:
    hidden, weight, targets, _ = inputs(2, 3, 4, 50, bias=False, ignored=0)
    targets[0, 0] = 7
    ours = linear_cross_entropy(hidden, weight, targets, ignore_index=7).loss
    theirs = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=7)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    nothing = torch.full_like(targets, IGNORE_INDEX)
    assert linear_cross_entropy(hidden, weight, nothing).loss.isnan()
    total = linear_cross_entropy(hidden, weight, nothing, reduction="sum")
    assert total.loss == 0
    assert not torch.autograd.grad(total.loss, hidden)[0].any()
    assert linear_cross_entropy(hidden, weight[:1], nothing, reduction="sum").loss == 0  # a vocabulary of one token


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, targets, bias = inputs(2, 3, 4, 50, bias=True, ignored=0)
    assert bias is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets, bias=bias).loss.requires_grad
    result = linear_cross_entropy(hidden, weight.detach(), targets, bias=bias.detach())
    result.loss.backward()
    assert hidden.grad is not None


def test_gradients_are_computed_only_if_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, _ = inputs(2, 3, 4, 50, bias=False, ignored=0)
    operator, seen = loss_module._operator, []
    monkeypatch.setattr(loss_module, "_operator", lambda *given: seen.append(given[-1]) or operator(*given))
    linear_cross_entropy(hidden, weight, targets)
    linear_cross_entropy(hidden.detach(), weight.detach(), targets)
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets)
    assert seen == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("differentiate", [True, False])
def test_shapes_without_data_are_those_of_the_results(differentiate: bool, bias: bool, dtype: torch.dtype) -> None:
    *drawn, targets, b = inputs(2, 3, 4, 50, bias=bias, ignored=1)
    hidden, weight = (tensor.detach().to(dtype) for tensor in drawn)
    hidden, targets, b = hidden.flatten(0, 1), targets.flatten(), None if b is None else b.detach().to(dtype)

    def shapes(device: str) -> list[tuple[torch.Size, torch.dtype]]:
        tensors = [None if each is None else each.to(device) for each in (hidden, weight, b, targets)]
        return [
            (each.shape, each.dtype) for each in loss_module._operator(*tensors, IGNORE_INDEX, dtype, differentiate)
        ]

    found = shapes("cpu")
    assert shapes("meta") == found
    gradients = [hidden, weight, *([] if b is None else [b])] if differentiate else []
    wanted = [each.shape for each in gradients] + [torch.Size([0])] * (3 - len(gradients))
    assert [shape for shape, _ in found[2:]] == wanted


def test_second_derivatives_are_refused_and_not_wrong() -> None:
    hidden, weight, targets, _ = inputs(2, 3, 4, 50, bias=False, ignored=0)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets).loss, hidden, create_graph=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_transforms_of_torch_func_are_right(grad: bool, reduction: Reduction) -> None:
    hidden, weight, targets, bias = inputs(2, 3, 4, 50, bias=True, ignored=1)
    assert bias is not None
    given = (hidden.detach(), weight.detach(), bias.detach())
    tangents = tuple(torch.randn_like(tensor) for tensor in given)

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, bias=bias, reduction=reduction).loss

    def theirs(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain(hidden, weight, targets, bias, reduction)

    def derivatives(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        gradient = torch.func.grad(function)
        return [
            torch.func.jvp(function, given, tangents)[1],
            gradient(*given),
            torch.func.jvp(lambda hidden: gradient(hidden, *given[1:]), given[:1], tangents[:1])[1],
            torch.vmap(function, in_dims=(None, None, 0))(*given[:2], torch.stack([given[2], tangents[2]])),
        ]

    with torch.set_grad_enabled(grad):
        for found, expected in zip(derivatives(ours), derivatives(theirs), strict=True):
            assert expected.any()
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(given[0], tangents[0])
            found = forward_ad.unpack_dual(ours(dual, *given[1:])).tangent
            right = F.linear(*given).argmax(-1)
            right[0, 0] = (right[0, 0] + 1) % 50
            correct = linear_cross_entropy(dual, given[1], right, bias=given[2]).correct
    assert correct == 5  # of six
    torch.testing.assert_close(found, torch.func.jvp(lambda h: theirs(h, *given[1:]), given[:1], tangents[:1])[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_of_equal_maxima_the_first_counts_as_argmax_counts_it(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    # Few distinct rows of few distinct values: most maxima are shared.
    hidden = torch.randint(-1, 2, (60, 2), generator=random).to(dtype)
    weight = torch.randint(-1, 2, (23, 2), generator=random).to(dtype)
    targets = torch.randint(23, (60,), generator=random)
    logits = hidden @ weight.T
    targets[:40] = torch.stack([row.eq(row.max()).nonzero().flatten()[-1] for row in logits[:40]])
    targets[:20] = logits[:20].argmax(-1)
    targets[5] = IGNORE_INDEX
    shared = (logits == logits.amax(-1, keepdim=True)).sum(-1) > 1
    assert shared.sum() > 20
    correct = linear_cross_entropy(hidden, weight, targets).correct
    assert int(correct) == int((logits.argmax(-1) == targets).sum())


def test_a_constant_model_is_right_for_one_token_of_the_vocabulary() -> None:
    targets = torch.arange(50)
    result = linear_cross_entropy(torch.ones(50, 4), torch.ones(50, 4), targets)
    assert int(result.correct) == 1


def test_in_bfloat16_accuracy_is_that_of_argmax() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 8), torch.randn(300, 8)
    with torch.autocast("cpu", torch.bfloat16):
        # The chunks hold logits to the base 2, which round elsewhere: these are the logits whose ties count.
        logits = (hidden / math.log(2)) @ weight.T
        targets = logits.max(-1, keepdim=True).values.eq(logits).int().flip(-1).argmax(-1)
        targets = 299 - targets  # the last of equal maxima
        correct = int(linear_cross_entropy(hidden, weight, targets).correct)
    assert int((logits.argmax(-1) == targets).sum()) == correct < 200


def test_wrong_arguments() -> None:
    hidden, weight, targets, _ = inputs(2, 3, 4, 50, bias=False, ignored=0)
    with pytest.raises(ValueError, match=r"targets have the shape \[2, 2\], but there are \[2, 3\] positions"):
        linear_cross_entropy(hidden, weight, targets[:, :2])
    with pytest.raises(ValueError, match="reduction is 'none'; it can be mean, sum"):
        linear_cross_entropy(hidden, weight, targets, reduction="none")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_whole_model_gradients(tied: bool, bias: bool) -> None:
    config = GPT2Config(
        d_model=12,
        n_layers=2,
        n_heads=3,
        d_vocab=61,
        n_ctx=9,
        tie_word_embeddings=tied,
        unembed_bias=bias,
        init_range=0.3,
    )
    torch.manual_seed(0)
    model = GPT2(config, dtype=torch.float64)
    twin = copy.deepcopy(model)
    tokens, targets = torch.randint(61, (2, 3, 9))
    result = NextTokenLoss(model)(tokens, targets)
    result.loss.backward()
    expected = F.cross_entropy(twin(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    expected.backward()
    torch.testing.assert_close(result.loss, expected, atol=1e-12, rtol=1e-14)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, atol=1e-12, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_bfloat16_autocast_is_as_near_to_float32_as_the_plain_formulation() -> None:
    *drawn, targets, b = inputs(4, 8, 32, 100, bias=True, ignored=2)
    assert b is not None
    hidden, weight, bias = (tensor.detach().float().requires_grad_() for tensor in (*drawn, b))
    exact = plain(hidden, weight, targets, bias, "mean")
    exact_grads = torch.autograd.grad(exact, (hidden, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets, bias=bias).loss
        theirs = plain(hidden, weight, targets, bias, "mean")
    assert ours.dtype == torch.float32
    # Each product is rounded to 8 bits: 0.4% of logits whose size is about 6.
    torch.testing.assert_close(ours, exact, atol=0.02, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
    for ours_grad, grad in zip(torch.autograd.grad(ours, (hidden, weight, bias)), exact_grads, strict=True):
        assert ours_grad.dtype == torch.float32
        torch.testing.assert_close(ours_grad, grad, atol=float(0.02 * grad.abs().max()), rtol=0)


def test_compiles_without_a_graph_break() -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=61, n_ctx=6))
    loss = NextTokenLoss(model)
    tokens, targets = torch.randint(61, (2, 2, 6))
    expected = loss(tokens, targets)
    expected_grads = torch.autograd.grad(expected.loss, list(model.parameters()))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(tokens, targets)
    torch.testing.assert_close(compiled.loss, expected.loss)
    assert compiled.correct == expected.correct
    for ours, theirs in zip(torch.autograd.grad(compiled.loss, list(model.parameters())), expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(
            torch.compile(loss, fullgraph=True, backend="aot_eager")(tokens, targets).loss, expected.loss
        )


def test_the_operator_keeps_pytorchs_contract() -> None:
    """Its schema, its shapes without data, its registration for autograd and compilation: PyTorch's own check."""
    hidden, weight, targets, bias = inputs(1, 3, 4, 50, bias=True, ignored=1)
    arguments = (
        hidden.detach().flatten(0, 1).requires_grad_(),
        weight,
        bias,
        targets.flatten(),
        IGNORE_INDEX,
        torch.float64,
        True,
    )
    torch.library.opcheck(torch.ops.gptladder.linear_cross_entropy.default, arguments)


def test_logits_of_the_whole_batch_never_exist() -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    hidden, weight, targets, _ = inputs(4, 16, 3, 75, bias=False, ignored=0)
    with Watch():
        loss_module._chunked(
            hidden.detach().flatten(0, 1), weight.detach(), None, targets.flatten(), IGNORE_INDEX, torch.float64, True
        )
    assert weight.numel() <= largest <= max(150, loss_module._aligned(weight).numel(), hidden.numel()) < 4 * 16 * 75


@pytest.mark.parametrize(
    ("positions", "d_vocab", "d_model", "rows"),
    [
        (10, 15, 3, 10),  # 150 logits
        (11, 15, 3, 6),  # two chunks of about the same size
        (0, 15, 3, 1),
        (7, 1000, 3, 1),
        (30, 1000, 30, 10),  # a third of the width, for a wide projection
        (30, 1000, 32, 10),
        (31, 1000, 32, 8),
        (13, 23, 3, 5),  # 138 logits are six positions
        (7, 1000, 2, 1),
    ],
)
def test_chunks_hold_as_many_positions_as_are_worth_it(positions: int, d_vocab: int, d_model: int, rows: int) -> None:
    hidden, weight = torch.empty(positions, d_model), torch.empty(d_vocab, d_model)
    assert loss_module._rows_of_a_chunk(hidden, weight) == rows


def test_whatever_is_not_a_cpu_is_accelerated() -> None:
    assert not is_accelerated(torch.empty(1))
    assert is_accelerated(torch.empty(1, device="meta"))


def test_an_accelerator_gets_rows_of_zeros_and_more_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_LOGITS_ELSEWHERE", 600)
    hidden, weight = torch.ones(100, 3), torch.ones(60, 3)
    for accelerated, rows, height in ((False, 2, 60), (True, 10, 64)):
        monkeypatch.setattr(loss_module, "_is_accelerated", lambda tensor, accelerated=accelerated: accelerated)
        assert loss_module._rows_of_a_chunk(hidden, weight) == rows
        assert loss_module._aligned(weight).shape == (height, 3)
        assert loss_module._aligned(weight).sum() == 180
        assert loss_module._aligned(weight[:32].repeat(2, 1)).shape == (64, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    *drawn, targets, b = inputs(4, 8, 32, 100, bias=True, ignored=2)
    assert b is not None
    hidden, weight, bias = (tensor.detach().cuda().requires_grad_() for tensor in (*drawn, b))
    targets = targets.cuda()
    result = linear_cross_entropy(hidden, weight, targets, bias=bias)
    ours, theirs = result.loss, plain(hidden, weight, targets, bias, "mean")
    assert int(result.correct) == int((F.linear(hidden, weight, bias).argmax(-1) == targets).sum())
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight, bias)),
        torch.autograd.grad(theirs, (hidden, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
