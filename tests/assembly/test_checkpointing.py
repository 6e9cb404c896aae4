"""Activation checkpointing: the same gradients, fewer activations held."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.components import HookPoint, no_dropout
from gptladder.ladder.answers import randomize

TOKENS = torch.randint(17, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(9) >= torch.tensor([[0], [2], [4]])


def made(dtype: torch.dtype = torch.float64, **changes: Any) -> GPT2:
    model = GPT2(GPT2Config(d_model=12, n_layers=3, n_heads=3, d_vocab=17, n_ctx=9, **changes), dtype=dtype)
    randomize(model, torch.Generator().manual_seed(0))
    return model


def gradients(model: GPT2, call: Callable[[GPT2], Tensor]) -> tuple[Tensor, list[Tensor], int]:
    """Return the loss, the gradients, and how many numbers were held for them."""
    held = [0]

    def count(tensor: Tensor) -> Tensor:
        held[0] += tensor.numel()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = call(model)
    model.zero_grad()
    loss.backward()
    return loss, [gradient(parameter).clone() for parameter in model.parameters()], held[0]


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def same(model: GPT2, call: Callable[[GPT2], Tensor]) -> tuple[int, int]:
    """Check that checkpointing changes no bit, and return how many numbers each way holds."""
    twin = copy.deepcopy(model)
    twin.checkpoint_blocks = True
    (loss, wanted, plain), (other, found, checkpointed) = gradients(model, call), gradients(twin, call)
    assert torch.equal(loss, other)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    return plain, checkpointed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", [None, MASK], ids=["plain", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_to_the_bit(dtype: torch.dtype, mask: Tensor | None, dropout: float) -> None:
    model = made(dtype, attn_dropout=dropout, resid_dropout=dropout, embed_dropout=dropout)
    plain, checkpointed = same(model, lambda each: each(TOKENS, return_type="loss", padding_mask=mask))
    assert checkpointed < plain / 2


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("fused", [True, False])
def test_every_kind_of_block_can_be_checkpointed(norm: Any, fused: bool) -> None:
    model = made(norm=norm)
    model.fused = fused
    plain, checkpointed = same(model, lambda each: each(TOKENS).square().mean())
    assert checkpointed < plain


def test_a_part_of_a_run_is_checkpointed_too() -> None:
    model = made()
    stream = model(TOKENS, stop_at_layer=0).detach()

    def call(each: GPT2) -> Tensor:
        others = sum(parameter.sum() * 0 for parameter in each.parameters())
        return each(stream, start_at_layer=1, return_type="loss", tokens=TOKENS) + others

    plain, checkpointed = same(model, call)
    assert checkpointed < plain


def test_hooks_are_called_once_and_act_on_the_gradients() -> None:
    for add in (False, True):
        calls = []

        def double(activation: Tensor, hook: HookPoint, calls: list[str] = calls) -> Tensor:
            calls.append(hook.name)
            return activation * 2

        def call(each: GPT2, add: bool = add, double: Any = double) -> Tensor:
            # The hooks have ended before the backward.
            if add:
                each.add_hook("blocks.1.mlp.hook_post", double)
                loss = each(TOKENS, return_type="loss")
                each.reset_hooks()
                return loss
            return each.run_with_hooks(TOKENS, return_type="loss", fwd_hooks=[("blocks.1.mlp.hook_post", double)])

        same(made(), call)
        assert len(calls) == 2  # once for each of the two models


def test_dropout_that_is_off_for_the_call_stays_off_for_its_gradients() -> None:
    def call(each: GPT2) -> Tensor:
        with no_dropout(each):
            return each(TOKENS, return_type="loss")

    same(made(resid_dropout=0.5), call)


def test_caches_and_calls_without_gradients_are_as_without_it() -> None:
    model = made().eval()
    twin = copy.deepcopy(model)
    twin.checkpoint_blocks = True
    results = []
    for each in (model, twin):
        cache = each.new_cache(3)
        first = each(TOKENS[:, :4], cache=cache)
        results.append(torch.cat([first, each(TOKENS[:, 4:], cache=cache)], dim=1))
    assert torch.equal(*results)
    with torch.no_grad():
        assert torch.equal(twin(TOKENS), model(TOKENS))
    _, cache = twin.run_with_cache(TOKENS, incl_bwd=True)
    _, wanted = model.run_with_cache(TOKENS, incl_bwd=True)
    assert all(torch.equal(cache[name], wanted[name]) for name in wanted)


# torch's compiler looks at the inner tensors' .grad, and is warned by torch.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_it_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    model = made()
    twin = copy.deepcopy(model)
    twin.checkpoint_blocks = True
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    compiled(TOKENS).square().mean().backward()
    model(TOKENS).square().mean().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert (gradient(a) - gradient(b)).abs().max() < 1e-12
