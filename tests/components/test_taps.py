"""Named activations: as HookedTransformer's, and what it does not promise."""

import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn, cast

import pytest
import torch
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.components import (
    ActivationCache,
    Attention,
    HookPoint,
    Tap,
    act_name,
    add_hook,
    hooks,
    named_taps,
    offer,
    reset_hooks,
    run_with_cache,
    run_with_hooks,
)
from gptladder.components.tap import any_hooks
from gptladder.ladder.answers import randomize
from gptladder.weights import to_hooked_transformer

CONFIG = GPT2Config(d_model=10, n_layers=3, n_heads=3, d_head=4, d_mlp=14, d_vocab=17, n_ctx=8)
TOKENS = torch.randint(17, (2, 7), generator=torch.Generator().manual_seed(1))


def model() -> GPT2:
    made = GPT2(CONFIG, dtype=torch.float64)
    randomize(made, torch.Generator().manual_seed(0))
    return made.eval()


@pytest.fixture(scope="module")
def ours() -> GPT2:
    return model()


@pytest.fixture(scope="module")
def theirs(ours: GPT2) -> Any:
    return to_hooked_transformer(ours)


def equal(a: Tensor, b: Tensor) -> bool:
    finite = a.isfinite()
    return (
        torch.equal(finite, b.isfinite())
        and torch.equal(a[~finite], b[~finite])
        and bool((a - b)[finite].abs().max() < 1e-12)
    )


def test_every_activation_is_hooked_transformers(ours: GPT2, theirs: Any) -> None:
    logits, cache = ours.run_with_cache(TOKENS)
    their_logits, their_cache = theirs.run_with_cache(TOKENS)
    assert equal(logits, their_logits)
    assert set(cache) == set(their_cache) - {"unembed.hook_in", "unembed.hook_out"}
    for name, activation in cache.items():
        assert activation.shape == their_cache[name].shape, name
        assert equal(activation, their_cache[name]), name


@pytest.mark.parametrize(
    "names",
    ["blocks.1.attn.hook_pattern", ["hook_embed", "ln_final.hook_scale"], lambda name: name.endswith("resid_mid")],
    ids=["one", "several", "predicate"],
)
def test_a_filter_keeps_what_hooked_transformers_keeps(ours: GPT2, theirs: Any, names: Any) -> None:
    assert set(ours.run_with_cache(TOKENS, names_filter=names)[1]) == set(
        theirs.run_with_cache(TOKENS, names_filter=names)[1]
    )


# An activation of integers cannot be halved: see test_text.
ALL_NAMES = sorted(set(named_taps(model())) - {"hook_tokens"})
SWITCHES = {
    "hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
}


@pytest.fixture
def switched_on(theirs: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """HookedTransformer forms some activations only after a switch; ours form them for the hook."""
    switch = SWITCHES.get(request.getfixturevalue("name").rpartition(".")[2])
    if switch is not None:
        getattr(theirs, f"set_{switch}")(True)
    yield
    if switch is not None:
        getattr(theirs, f"set_{switch}")(False)


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.usefixtures("switched_on")
def test_replacing_an_activation_acts_as_in_hooked_transformer(ours: GPT2, theirs: Any, name: str) -> None:
    def halve(activation: Tensor, hook: HookPoint) -> Tensor:
        assert hook.name == name
        return activation / 2

    def halve_in_place(activation: Tensor, hook: HookPoint) -> None:
        activation /= 2

    with torch.no_grad():
        expected = theirs.run_with_hooks(TOKENS, fwd_hooks=[(name, halve)])
        assert not equal(expected, ours(TOKENS)) or "scores" in name
        assert equal(ours.run_with_hooks(TOKENS, fwd_hooks=[(name, halve)]), expected)
        # In place, and returning nothing: the same, and the weights and the next call are untouched.
        before, state = ours(TOKENS), {key: tensor.clone() for key, tensor in ours.state_dict().items()}
        assert equal(ours.run_with_hooks(TOKENS, fwd_hooks=[(name, halve_in_place)]), expected)
        assert torch.equal(ours(TOKENS), before)
        assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())


def test_hooks_apply_in_the_order_given(ours: GPT2) -> None:
    name = "blocks.0.hook_resid_pre"
    add, double = (lambda x, hook: x + 1), (lambda x, hook: x * 2)
    seen = []

    def keep(activation: Tensor, hook: HookPoint) -> None:
        seen.append(activation.detach())

    ours.run_with_hooks(TOKENS, fwd_hooks=[(name, keep), (name, add), (name, double), (name, keep)])
    assert torch.equal(seen[1], (seen[0] + 1) * 2)


def test_gradients_can_be_read_and_replaced(ours: GPT2, theirs: Any) -> None:
    name = "blocks.1.hook_resid_mid"
    seen = {}

    def keep(gradient: Tensor, hook: HookPoint) -> None:
        seen[hook.name] = gradient

    for each in (ours, theirs):
        with each.hooks(bwd_hooks=[(name, keep)]):
            each(TOKENS).square().sum().backward()
        seen[each] = seen.pop(name)
    assert equal(seen[ours], seen[theirs])

    ours.zero_grad()
    with ours.hooks(bwd_hooks=[(name, lambda gradient, hook: torch.zeros_like(gradient))]):
        ours(TOKENS).square().sum().backward()
    # No gradient reaches the first blocks; the tied table still gets its own from the output.
    first, last = ours.blocks[0].attn.W_QKV.grad, ours.blocks[2].attn.W_QKV.grad
    assert first is not None
    assert last is not None
    assert not first.any()
    assert last.any()
    ours.zero_grad()


@pytest.mark.parametrize(
    "names", ["blocks.0.attn.hook_patern", ["hook_embed", "blocks.9.hook_resid_pre"], lambda name: False]
)
def test_a_name_that_matches_nothing_raises_and_leaves_nothing(ours: GPT2, names: Any) -> None:
    for call in (
        lambda: ours.run_with_cache(TOKENS, names_filter=names),
        lambda: ours.run_with_hooks(
            TOKENS, fwd_hooks=[("hook_embed", lambda x, hook: x * 0), (names, lambda x, hook: x)]
        ),
    ):
        with pytest.raises(ValueError, match=r"no activation|accepts none"):
            call()
    assert not any(tap.active for tap in named_taps(ours).values())


def test_a_misspelt_name_is_answered_with_the_right_one(ours: GPT2) -> None:
    with pytest.raises(
        ValueError, match=r"'blocks.0.attn.hook_patern'; did you mean blocks.0.attn.hook_pattern( or \S+){2}\?$"
    ):
        ours.run_with_cache(TOKENS, names_filter="blocks.0.attn.hook_patern")


def test_a_predicate_on_what_is_formed_on_request_gets_the_first_name(ours: GPT2) -> None:
    names = ["blocks.0.attn.hook_result", "blocks.1.hook_mlp_in"]
    with pytest.raises(ValueError, match=r"as 'blocks\.0\.attn\.hook_result', or call offer\(module, 'hook_result'\)"):
        ours.run_with_cache(TOKENS, names_filter=lambda name: name in names)


def test_nothing_stays_when_a_hook_raises(ours: GPT2) -> None:
    before = ours(TOKENS)

    def fail(activation: Tensor, hook: HookPoint) -> NoReturn:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ours.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", lambda x, hook: x * 0), ("blocks.1.hook_mlp_out", fail)])
    assert not any(tap.active for tap in named_taps(ours).values())
    assert torch.equal(ours(TOKENS), before)


def test_a_kept_activation_is_detached_and_the_models_own_is_not(ours: GPT2) -> None:
    logits, cache = ours.run_with_cache(TOKENS)
    assert logits.requires_grad
    assert not any(activation.requires_grad for activation in cache.values())


def test_the_batch_axis_can_be_left_out(ours: GPT2) -> None:
    _, cache = ours.run_with_cache(TOKENS[:1], remove_batch_dim=True)
    assert cache["pattern", 0].shape == (3, 7, 7)
    assert not cache.has_batch_dim
    assert ActivationCache().has_batch_dim
    with pytest.raises(ValueError, match="batch of 2"):
        ours.run_with_cache(TOKENS, remove_batch_dim=True)


@pytest.mark.parametrize(
    ("short", "name"),
    [
        (("pattern", 0), "blocks.0.attn.hook_pattern"),
        (("post", 2), "blocks.2.mlp.hook_post"),
        (("scale", 1, "ln2"), "blocks.1.ln2.hook_scale"),
        (("resid_mid", 1), "blocks.1.hook_resid_mid"),
        ("embed", "hook_embed"),
    ],
)
def test_short_names_are_transformer_lenss(ours: GPT2, theirs: Any, short: Any, name: str) -> None:
    from transformer_lens.utilities.components_utils import get_act_name

    parts = [short] if isinstance(short, str) else short
    assert act_name(*parts) == name == get_act_name(*parts)
    cache = ours.run_with_cache(TOKENS)[1]
    assert cache[short] is cache[name]
    assert equal(cache[short], theirs.run_with_cache(TOKENS)[1][short])


def test_an_activation_that_was_not_kept_is_named() -> None:
    with pytest.raises(KeyError, match=r"blocks.0.attn.hook_pattern is not cached"):
        ActivationCache()["pattern", 0]


def test_a_tap_knows_its_block(ours: GPT2) -> None:
    layers = {}
    ours.run_with_hooks(
        TOKENS, fwd_hooks=[(lambda n: "hook_z" in n, lambda x, hook: layers.update({hook.name: hook.layer()}))]
    )
    assert layers == {f"blocks.{i}.attn.hook_z": i for i in range(3)}


def test_one_layer_in_a_strangers_model() -> None:
    attention = Attention(d_model=10, n_heads=2)
    stranger = torch.nn.Sequential(torch.nn.Linear(5, 10), attention)
    x = torch.randn(1, 4, 5)
    _, cache = run_with_cache(stranger, x)
    assert cache["1.hook_pattern"].shape == (1, 2, 4, 4)
    ablated = run_with_hooks(stranger, x, fwd_hooks=[("1.hook_z", lambda z, hook: torch.zeros_like(z))])
    assert torch.allclose(ablated, attention.b_O.expand(1, 4, 10))
    with hooks(stranger, [("1.hook_z", lambda z, hook: torch.zeros_like(z))]):
        assert torch.equal(stranger(x), ablated)


# torch's compiler looks at the inner tensors' .grad, and is warned by torch.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("how", ["model", "blocks in place", "blocks wrapped"])
def test_compiled_models_too(how: str) -> None:
    torch.compiler.reset()
    compiled, plain = model(), model()
    if how == "model":
        compiled.compile(backend="eager")
    for index, block in enumerate(compiled.blocks):
        if how == "blocks in place":
            block.compile(backend="eager")
        elif how == "blocks wrapped":
            compiled.blocks[index] = cast(torch.nn.Module, torch.compile(block, backend="eager"))
    compiled(TOKENS)
    _, cache = compiled.run_with_cache(TOKENS)
    _, expected = plain.run_with_cache(TOKENS)
    assert cache.keys() == expected.keys()
    assert all(equal(cache[name], expected[name]) for name in cache)

    def ablate(z: Tensor, hook: HookPoint) -> None:
        z[:, :, 1] = 0

    hook = [("blocks.1.attn.hook_z", ablate)]
    assert equal(compiled.run_with_hooks(TOKENS, fwd_hooks=hook), plain.run_with_hooks(TOKENS, fwd_hooks=hook))
    assert equal(compiled(TOKENS), plain(TOKENS))


def test_a_hook_may_return_a_gradient_in_a_tuple(ours: GPT2, theirs: Any) -> None:
    models: list[Any] = [ours, theirs]
    for each in models:
        each.zero_grad()
        with each.hooks(bwd_hooks=[("blocks.1.hook_resid_mid", lambda gradient, hook: (gradient * 0,))]) as hooked:
            assert hooked is each
            hooked(TOKENS).square().sum().backward()
        assert not each.pos_embed.W_pos.grad.any()
        assert each.blocks[2].mlp.W_in.grad.any()
        each.zero_grad()


def test_run_with_hooks_takes_hooks_on_gradients(ours: GPT2) -> None:
    seen: list[torch.Tensor] = []

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ours

        def forward(self, ids: torch.Tensor) -> None:
            self.model(ids).sum().backward()

    run_with_hooks(Loss(), TOKENS, bwd_hooks=[("model.hook_embed", lambda gradient, hook: seen.append(gradient))])
    assert len(seen) == 1
    ours.zero_grad()


def test_hooks_share_notes_at_each_activation(ours: GPT2) -> None:
    found = []
    name = "blocks.0.hook_resid_mid"
    ours.run_with_hooks(
        TOKENS,
        fwd_hooks=[
            (name, lambda x, hook: hook.ctx.update(mean=x.mean())),
            ("hook_embed", lambda x, hook: found.append("mean" in hook.ctx)),
            (name, lambda x, hook: found.append("mean" in hook.ctx)),
        ],
    )
    assert found == [False, True]


def test_what_a_hook_changes_in_place_an_earlier_hook_does_not_see(ours: GPT2) -> None:
    kept = []

    def spoil(activation: torch.Tensor, *, hook: HookPoint) -> None:
        activation.zero_()

    name = "blocks.0.hook_resid_pre"
    ours.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: kept.append(x)), (name, spoil)])
    assert kept[0].any()


def test_a_tap_outside_a_block_has_no_layer() -> None:
    with pytest.raises(ValueError, match="'hook_embed' belongs to no block"):
        HookPoint("hook_embed").layer()


def double(activation: Tensor, *, hook: HookPoint) -> Tensor:
    return activation * 2


def test_a_tap_lists_the_hooks_that_act_on_it(ours: GPT2) -> None:
    tap = ours.hook_dict["hook_embed"]
    with ours.hooks([("hook_embed", double)], [("hook_embed", double)]):
        assert (tap.fwd_hooks, tap.bwd_hooks) == ([double], [double])
        with ours.hooks([("hook_embed", double)]):
            assert len(tap.fwd_hooks) == 2
        assert len(tap.fwd_hooks) == 1
        assert ours.hook_dict["hook_pos_embed"].fwd_hooks == []
    assert (tap.fwd_hooks, tap.bwd_hooks) == ([], [])


@pytest.mark.parametrize("direction", ["fwd", "bwd", "both"])
def test_reset_hooks_ends_those_of_a_block_too(direction: Any) -> None:
    fresh = model()
    plain, tap = fresh(TOKENS), fresh.hook_dict["hook_embed"]
    with fresh.hooks([("hook_embed", double)], [("hook_embed", double)]):
        assert not torch.equal(fresh(TOKENS), plain)
        fresh.reset_hooks(direction=direction)
        assert len(tap.fwd_hooks) == (direction == "bwd")
        assert len(tap.bwd_hooks) == (direction == "fwd")
        assert torch.equal(fresh(TOKENS), plain) == (direction != "bwd")
    assert torch.equal(fresh(TOKENS), plain)
    with pytest.raises(ValueError, match="dir is 'up'; it can be 'fwd', 'bwd' or 'both'"):
        fresh.reset_hooks(direction=cast(Any, "up"))


def test_permanent_hooks_stay_until_they_are_included(ours: GPT2) -> None:
    results: list[list[Tensor]] = []
    for each in (model(), to_hooked_transformer(ours)):
        results.append([each(TOKENS)])
        each.add_perma_hook("hook_embed", double)
        each.add_hook("hook_pos_embed", double)
        for remove in (lambda: None, each.reset_hooks, lambda each=each: each.reset_hooks(including_permanent=True)):
            remove()
            results[-1].append(each(TOKENS))
        each.add_perma_hook("hook_embed", double)
        each.hook_dict["hook_embed"].ctx["kept"] = True
        each.remove_all_hook_fns()
        assert len(each.hook_dict["hook_embed"].fwd_hooks) == 1
        each.remove_all_hook_fns(including_permanent=True)
        assert len(each.hook_dict["hook_embed"].fwd_hooks) == 0
        assert each.hook_dict["hook_embed"].ctx
    assert all(equal(a, b) for a, b in zip(*results, strict=True))
    assert not equal(results[0][0], results[0][2])
    assert equal(results[0][0], results[0][3])


# Taps in any module.


def plus_one(activation: Tensor, *, hook: HookPoint) -> Tensor:
    hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
    return activation + 1


def test_without_options_hooks_end_with_the_block_and_notes_stay() -> None:
    tap, x = Tap(), torch.ones(1)
    module = torch.nn.Sequential(tap)
    with hooks(module, [("0", plus_one)]):
        assert module(x) == 2
    assert run_with_hooks(module, x, fwd_hooks=[("0", plus_one)]) == 2
    _, cache = run_with_cache(module, x)
    assert type(cache) is ActivationCache
    assert module(5 * x) == 5
    assert cache["0"] == 1
    assert tap.ctx == {"calls": 2}


def test_hooks_of_a_block_may_stay_until_they_are_reset() -> None:
    module, x = torch.nn.Sequential(Tap()), torch.ones(1)
    with hooks(module, [("0", plus_one)], reset_hooks_end=False):
        assert module(x) == 2
    assert module(x) == 2
    reset_hooks(module)
    assert module(x) == 1


@pytest.mark.parametrize("on", ["tap", "module"])
def test_added_hooks_act_in_their_order_and_permanent_ones_stay(on: str) -> None:
    tap, x = Tap(), torch.ones(1)
    module = torch.nn.Sequential(tap)

    def add(function: Any, **options: Any) -> None:
        tap.add_hook(function, **options) if on == "tap" else add_hook(module, "0", function, **options)

    add(plus_one, is_permanent=True)
    add(double)
    add(lambda activation, hook: activation + 3)
    assert module(x) == 7
    tap.remove_hooks() if on == "tap" else reset_hooks(module)
    assert tap.ctx == ({"calls": 1} if on == "tap" else {})
    assert module(x) == 2
    tap.remove_hooks(including_permanent=True)
    assert module(x) == 1


def test_a_tap_is_active_if_there_is_a_hook_on_it() -> None:
    one, other = Tap(), Tap()
    with hooks(torch.nn.Sequential(one, other), [("0", double)]):
        assert (one.active, other.active) == (True, False)
    assert not one.active
    adding: list[Any] = [one.add_hook, one.register_forward_hook, one.register_forward_pre_hook]
    for add in adding:
        added = add(double)
        assert one.active
        added() if callable(added) else added.remove()
        assert not one.active


def test_a_block_of_hooks_is_under_way_in_its_own_thread_alone() -> None:
    found = []
    with hooks(torch.nn.Sequential(Tap()), [("0", double)]):
        assert any_hooks()
        thread = threading.Thread(target=lambda: found.append(any_hooks()))
        thread.start()
        thread.join()
    assert found == [False]
    assert not any_hooks()


def test_a_hook_of_pytorchs_gets_a_copy_and_no_hook_makes_none() -> None:
    tap, x = Tap(), torch.ones(1)
    assert tap(x) is x
    tap.register_forward_hook(lambda tap, args, activation: activation.zero_())
    assert tap(x) == 0
    assert x == 1


def test_a_backward_after_the_block_calls_no_hook() -> None:
    seen = []
    module, x = torch.nn.Sequential(Tap()), torch.ones(1, requires_grad=True)
    with hooks(module, bwd_hooks=[("0", lambda gradient, hook: seen.append(gradient))]):
        output = module(x)
    output.backward()
    assert not seen


def test_an_activation_is_offered_or_no_longer() -> None:
    module = torch.nn.Sequential(Tap(on_request=True), Tap())
    offer(module, "0")
    assert list(run_with_cache(module, torch.ones(1))[1]) == ["0", "1"]
    offer(module, "0", False)
    assert list(run_with_cache(module, torch.ones(1))[1]) == ["1"]
    with pytest.raises(ValueError, match="there is no activation '2' in this Sequential"):
        offer(module, "2")


def test_without_transformer_lens_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(ImportError, match=r"pip install 'gptladder\[reference\]'"):
        ActivationCache().transformer_lens(None)
