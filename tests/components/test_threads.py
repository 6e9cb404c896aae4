"""Hooks, and dropout switched off, act in one thread; other threads use the model undisturbed."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder import GPT2, GPT2Config
from gptladder.components import HookPoint, add_hook, hooks, no_dropout, reset_hooks
from gptladder.components.eager import uncompiled
from gptladder.sampling import SamplingParams, generate

CONFIG = GPT2Config(d_model=16, n_layers=2, n_heads=2, d_vocab=23, n_ctx=24)
TOKENS = torch.randint(23, (1, 6), generator=torch.Generator().manual_seed(0))


def zero(activation: Tensor, *, hook: HookPoint) -> Tensor:
    return activation * 0


def beside(work: Callable[[], None], other: Callable[[], None], times: int) -> None:
    """Call ``work`` so many times in this thread while another calls ``other`` again and again."""
    done, errors, began = threading.Event(), [], threading.Event()

    def loop() -> None:
        try:
            while not done.is_set():
                other()
                began.set()
        except BaseException as error:
            errors.append(error)
            began.set()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        began.wait(60)
        for _ in range(times):
            work()
    finally:
        done.set()
        thread.join()
    assert not errors, errors


@torch.no_grad()
def test_hooks_reach_no_other_thread_and_all_of_their_own() -> None:
    model = GPT2(CONFIG).eval()
    plain, hooked = model(TOKENS), model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", zero)])
    assert not torch.equal(plain, hooked)
    # A second model's layer has the same taps under other names; the names must not be mixed up either.
    names = set()

    def note(activation: Tensor, *, hook: HookPoint) -> Tensor:
        names.add(hook.name)
        return activation * 0

    @torch.no_grad()
    def with_hooks() -> None:
        assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", note)]), hooked)
        with hooks(model.blocks[0], [("attn.hook_z", note)]):
            model(TOKENS)
        model.run_with_cache(TOKENS, names_filter="blocks.0.attn.hook_z")

    def without() -> None:
        assert torch.equal(model(TOKENS), plain)

    beside(without, with_hooks, times=150)
    assert names == {"hook_embed", "attn.hook_z"}


def test_hooks_reach_no_other_task() -> None:
    model = GPT2(CONFIG).eval()
    plain = model(TOKENS)

    async def hooked() -> None:
        with model.hooks([("hook_embed", zero)]):
            await asyncio.sleep(0)
            assert not torch.equal(model(TOKENS), plain)
            await asyncio.sleep(0)

    async def other() -> None:
        for _ in range(4):
            assert torch.equal(model(TOKENS), plain)
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(hooked(), other())

    asyncio.run(both())


def test_blocks_of_hooks_that_overlap_end_one_by_one() -> None:
    model = GPT2(CONFIG).eval()
    with torch.no_grad():
        plain = model(TOKENS)
        first, second = ExitStack(), ExitStack()
        first.enter_context(model.hooks([("hook_embed", zero)]))
        second.enter_context(model.hooks([("hook_pos_embed", zero)]))
        both = model(TOKENS)
        first.close()
        one = model(TOKENS)
        second.close()
        assert torch.equal(one, model.run_with_hooks(TOKENS, fwd_hooks=[("hook_pos_embed", zero)]))
        assert not torch.equal(both, one)
        assert torch.equal(model(TOKENS), plain)


def test_an_added_hook_acts_in_every_thread_until_it_is_reset() -> None:
    model = GPT2(CONFIG).eval()
    plain = model(TOKENS)
    found: list[Tensor] = []
    model.add_hook("hook_embed", zero)
    thread = threading.Thread(target=lambda: found.append(model(TOKENS)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], model(TOKENS))
    assert not torch.equal(found[0], plain)
    model.reset_hooks()
    assert torch.equal(model(TOKENS), plain)


def test_an_added_hook_can_be_removed_alone_and_others_are_left() -> None:
    model = GPT2(CONFIG).eval()
    calls: list[str] = []
    remove = add_hook(model, "hook_embed", lambda x, hook: calls.append("first"))
    add_hook(model, lambda name: name == "hook_embed", lambda x, hook: calls.append("second"))
    handle = model.hook_embed.register_forward_hook(lambda *_: calls.append("torch's"))
    remove()
    model(TOKENS)
    assert calls == ["second", "torch's"]
    reset_hooks(model)
    model(TOKENS)
    assert calls == ["second", "torch's", "torch's"]
    handle.remove()
    with pytest.raises(ValueError, match="it can be 'fwd' or 'bwd'"):
        model.add_hook("hook_embed", zero, dir="up")  # pyright: ignore[reportArgumentType]
    gradients: list[Tensor] = []
    model.add_hook("hook_embed", lambda gradient, hook: gradients.append(gradient), dir="bwd")
    model(TOKENS).sum().backward()
    assert len(gradients) == 1


def test_generating_during_training_applies_dropout_to_training_only() -> None:
    config = GPT2Config(**{**vars(CONFIG), "embed_dropout": 0.5, "attn_dropout": 0.5, "resid_dropout": 0.5})
    model = GPT2(config).train()
    greedy = SamplingParams(temperature=0)
    expected = [row.tokens for row in generate(model, TOKENS, greedy, max_new_tokens=8)]
    model.eval()
    assert expected == [row.tokens for row in generate(model, TOKENS, greedy, max_new_tokens=8)]
    model.train()

    def sample() -> None:
        assert [row.tokens for row in generate(model, TOKENS, greedy, max_new_tokens=8)] == expected

    def train() -> None:
        assert all(module.training for module in model.modules())
        with torch.no_grad():
            outputs = [model(TOKENS) for _ in range(2)]
        assert not torch.equal(*outputs)  # dropout acts

    beside(train, sample, times=100)


@pytest.mark.parametrize("where", ["embed_dropout", "attn_dropout", "resid_dropout"])
@pytest.mark.parametrize("fused", [True, False])
def test_no_dropout_turns_off_every_layers(where: str, fused: bool) -> None:
    model = GPT2(GPT2Config(**{**vars(CONFIG), where: 0.5}), fused=fused)
    with no_dropout(model):
        outputs = [model(TOKENS) for _ in range(3)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], model.eval()(TOKENS))
    assert not torch.equal(model.train()(TOKENS), outputs[0])


def test_no_dropout_reaches_another_librarys_layers_too() -> None:
    model: Any = GPT2(CONFIG)
    model.blocks[1].mlp = nn.Sequential(model.blocks[1].mlp, nn.Dropout(0.5))
    with no_dropout(model):
        assert torch.equal(model(TOKENS), model(TOKENS))
        assert model.training
    assert model.blocks[1].mlp[1].training
    assert not torch.equal(model(TOKENS), model(TOKENS))


# torch's compiler looks at the inner tensors' .grad, and is warned by torch.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_no_dropout_acts_on_a_compiled_model() -> None:
    torch.compiler.reset()
    model = GPT2(GPT2Config(**{**vars(CONFIG), "resid_dropout": 0.5}))
    model.compile(backend="eager")
    assert not torch.equal(model(TOKENS), model(TOKENS))
    with no_dropout(model):
        assert torch.equal(model(TOKENS), model(TOKENS))
    assert not torch.equal(model(TOKENS), model(TOKENS))


def test_blocks_that_overlap_leave_the_compilers_stance_as_it_was() -> None:
    import torch._dynamo.eval_frame as eval_frame

    first, second = ExitStack(), ExitStack()
    before = eval_frame._stance.stance
    first.enter_context(uncompiled())
    second.enter_context(uncompiled())
    first.close()
    assert eval_frame._stance.stance == "force_eager"  # the second still needs it
    second.close()
    assert eval_frame._stance.stance == before
