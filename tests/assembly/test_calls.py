"""What a call can be asked for beside logits, and from where to where it runs: as HookedTransformer, in float64."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.assembly.loss import next_token_loss
from gptladder.components import HookPoint
from gptladder.ladder.answers import randomize
from gptladder.weights import to_hooked_transformer

pytest.importorskip("transformer_lens")

CONFIG = GPT2Config(d_model=10, n_layers=3, n_heads=3, d_head=4, d_mlp=14, d_vocab=17, n_ctx=9)
TOKENS = torch.randint(17, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(7) >= torch.tensor([[0], [2], [4]])


@pytest.fixture(scope="module")
def ours() -> GPT2:
    made = GPT2(CONFIG, dtype=torch.float64)
    randomize(made, torch.Generator().manual_seed(0))
    return made.eval()


@pytest.fixture(scope="module")
def theirs(ours: GPT2) -> Any:
    return to_hooked_transformer(ours)


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-12)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_hooked_transformers(ours: GPT2, theirs: Any, per_token: bool, masked: bool) -> None:
    masks = ({"padding_mask": MASK}, {"attention_mask": MASK.long()}) if masked else ({}, {})
    options = {"return_type": "loss", "loss_per_token": per_token}
    loss, expected = ours(TOKENS, **options, **masks[0]), theirs(TOKENS, **options, **masks[1])
    assert close(loss, expected)
    assert close(ours(TOKENS, **options, **masks[1]), expected)
    both = ours(TOKENS, **{**options, "return_type": "both"}, **masks[0])
    assert close(both.loss, expected)
    assert close(both.logits, ours(TOKENS, **masks[0]))
    assert close(next_token_loss(both.logits, TOKENS, MASK if masked else None), theirs(TOKENS, "loss", **masks[1]))
    assert both[0] is both.logits


def test_nothing_is_returned_on_request_and_hooks_act(ours: GPT2) -> None:
    seen = []
    assert (
        ours.run_with_hooks(TOKENS, return_type=None, fwd_hooks=[("hook_embed", lambda x, hook: seen.append(x))])
        is None
    )
    assert len(seen) == 1
    assert torch.equal(ours(TOKENS, "logits"), ours(TOKENS))


@pytest.mark.parametrize("stop", [-3, -2, -1, 0, 1, 2, 3, None])
def test_stopping_at_a_layer_gives_the_stream_before_it(ours: GPT2, theirs: Any, stop: int | None) -> None:
    seen: list[list[str]] = [[], []]
    for model, names in zip((ours, theirs), seen, strict=True):
        model.run_with_hooks(
            TOKENS,
            stop_at_layer=stop,
            fwd_hooks=[(lambda _: True, lambda x, hook, names=names: names.append(hook.name))],
        )
    assert close(ours(TOKENS, stop_at_layer=stop), theirs(TOKENS, stop_at_layer=stop))
    assert set(seen[0]) == set(seen[1]) - {"unembed.hook_in", "unembed.hook_out"}


STARTS = list(itertools.product([-3, -1, 0, 1, 2, 3], [None, -1, 0, 2, 3]))


@pytest.mark.parametrize(("start", "stop"), STARTS)
def test_starting_at_a_layer_takes_the_stream_before_it(ours: GPT2, theirs: Any, start: int, stop: int | None) -> None:
    stream = torch.randn(3, 7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    options = {"start_at_layer": start, "stop_at_layer": stop}
    assert close(ours(stream, **options), theirs(stream, **options))
    if stop is None:
        loss = {**options, "return_type": "loss", "tokens": TOKENS}
        assert close(ours(stream, **loss), theirs(stream, **loss))
        masked = {**options, "attention_mask": MASK.long()}
        assert close(ours(stream, **masked)[MASK], theirs(stream, **masked)[MASK])


def test_the_parts_of_a_run_give_the_whole_with_its_gradients(ours: GPT2) -> None:
    gradients = []
    for parts in ([None], [0], [1, 2]):
        ours.zero_grad()
        stream: Any = TOKENS
        cuts = [None, *(parts if parts != [None] else []), None]
        for start, stop in itertools.pairwise(cuts):
            stream = ours(stream, start_at_layer=start, stop_at_layer=stop, padding_mask=MASK)
        stream[MASK].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in ours.parameters() if parameter.grad is not None])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
    ours.zero_grad()


@pytest.mark.parametrize("batch_removed", [False, True])
@pytest.mark.parametrize("pos_slice", [None, 0, -1, (3,), (1, 5), (0, 7, 2), [1, 4, 4], slice(2, None)], ids=str)
def test_positions_kept_are_hooked_transformers(ours: GPT2, theirs: Any, pos_slice: Any, batch_removed: bool) -> None:
    tokens = TOKENS[:1] if batch_removed else TOKENS
    options = {"pos_slice": pos_slice, "remove_batch_dim": batch_removed, "return_type": "loss", "incl_bwd": True}
    _, cache = ours.run_with_cache(tokens, **options)
    _, expected = theirs.run_with_cache(tokens, **options)
    assert set(cache) == {name for name in expected if not name.startswith("unembed")}
    for name, activation in cache.items():
        if name.endswith("_grad") and "ln1" in name:  # called three times there: see test_activations
            continue
        assert activation.shape == expected[name].shape, name
        finite = activation.isfinite()
        assert torch.equal(finite, expected[name].isfinite())
        assert not finite.any() or (activation - expected[name])[finite].abs().max() < 1e-12, name
    ours.zero_grad()


def test_pos_slice_takes_transformer_lens_own_slices_and_tensors(ours: GPT2) -> None:
    from transformer_lens.utilities.slice import Slice

    for given in (Slice((1, 4)), torch.tensor([1, 2, 3]), range(1, 4)):
        assert torch.equal(
            ours.run_with_cache(TOKENS, pos_slice=given)[1]["q", 0], ours.run_with_cache(TOKENS)[1]["q", 0][:, 1:4]
        )


def test_pos_slice_takes_the_positions_of_what_is_formed_on_request(ours: GPT2) -> None:
    names = ["blocks.1.attn.hook_result", "blocks.1.hook_q_input", "blocks.1.hook_attn_in", "blocks.1.hook_mlp_in"]
    whole = ours.run_with_cache(TOKENS, names_filter=names)[1]
    part = ours.run_with_cache(TOKENS, names_filter=names, pos_slice=(2, 5))[1]
    for name in names:
        assert torch.equal(part[name], whole[name][:, 2:5]), name
    tokens = ours.run_with_cache(TOKENS, names_filter="hook_tokens", pos_slice=(2, 5))[1]["hook_tokens"]
    assert torch.equal(tokens, TOKENS[:, 2:5])


def test_gradients_are_kept_of_the_loss_whatever_is_returned(ours: GPT2, theirs: Any) -> None:
    _, expected = theirs.run_with_cache(TOKENS, return_type="loss", incl_bwd=True)
    logits = ours(TOKENS)
    for return_type in ("logits", "both", "loss"):
        result, cache = ours.run_with_cache(TOKENS, return_type=return_type, incl_bwd=True)
        assert close(cache["blocks.1.hook_resid_mid_grad"], expected["blocks.1.hook_resid_mid_grad"])
        if return_type != "loss":
            assert close(result if return_type == "logits" else result.logits, logits)
    assert close(ours.run_with_cache(TOKENS, "both", incl_bwd=True)[0].logits, logits)
    _, cache = ours.run_with_cache(TOKENS, incl_bwd=lambda result: result[:, -1, 3].sum())
    assert cache["blocks.2.hook_resid_post_grad"][:, -1].any()
    assert not cache["blocks.2.hook_resid_post_grad"][:, :-1].any()
    ours.zero_grad()


def test_what_cannot_be_differentiated_is_refused(ours: GPT2) -> None:
    with pytest.raises(ValueError, match=r"needs a single number .* the shape \[3, 7, 10\]"):
        ours.run_with_cache(TOKENS, stop_at_layer=1, incl_bwd=True)
    with torch.no_grad(), pytest.raises(ValueError, match=r"outside torch\.no_grad\(\)"):
        ours.run_with_cache(TOKENS, incl_bwd=True)


def test_a_cache_may_be_a_plain_dictionary(ours: GPT2) -> None:
    _, cache = ours.run_with_cache(TOKENS, return_cache_object=False, names_filter="hook_embed")
    assert type(cache) is dict
    assert list(cache) == ["hook_embed"]


@pytest.mark.parametrize(
    "tokens", [TOKENS[0], TOKENS[0].tolist(), tuple(TOKENS[0].tolist())], ids=lambda x: str(type(x))
)
def test_one_row_of_tokens_is_a_batch_of_one(ours: GPT2, tokens: Any) -> None:
    assert torch.equal(ours(tokens), ours(TOKENS[:1]))
    assert torch.equal(ours.run_with_cache(tokens)[1]["embed"], ours.run_with_cache(TOKENS[:1])[1]["embed"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_type": "Loss"}, "return_type is 'Loss'; it can be 'logits', 'loss', 'both' or None"),
        ({"stop_at_layer": 4}, "stop_at_layer is 4, and the model has 3 layers: give -3 to 3"),
        ({"start_at_layer": -4}, "start_at_layer is -4, and the model has 3 layers"),
        ({"start_at_layer": 1}, "the input is the residual stream before that layer"),
        ({"padding_mask": MASK, "attention_mask": MASK}, "give one of padding_mask and attention_mask"),
    ],
)
def test_options_that_cannot_be_are_refused(ours: GPT2, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(TOKENS, **options)


def test_a_loss_needs_two_tokens_and_a_cache_all_layers(ours: GPT2) -> None:
    with pytest.raises(ValueError, match="there are 1 tokens: give two"):
        ours(TOKENS[:, :1], return_type="loss")
    for kept in ([], [3]):
        mask = torch.zeros(TOKENS.shape, dtype=torch.bool)
        mask[:, kept] = True
        with pytest.raises(ValueError, match="no token follows another one"):
            ours(TOKENS, return_type="loss", padding_mask=mask)
    stream = ours(TOKENS, stop_at_layer=1)
    with pytest.raises(ValueError, match="pass tokens="):
        ours(stream, start_at_layer=1, return_type="loss")
    with pytest.raises(ValueError, match=r"tokens have the shape \[3, 5\], but the logits \[3, 7\]"):
        ours(stream, start_at_layer=1, return_type="loss", tokens=TOKENS[:, :5])
    cache = ours.new_cache(3)
    with pytest.raises(ValueError, match="a cache needs all layers"):
        ours(TOKENS, stop_at_layer=1, cache=cache)
    assert cache.length == 0


def test_a_loss_with_a_cache_is_of_the_new_tokens(ours: GPT2) -> None:
    cache = ours.new_cache(3)
    ours(TOKENS[:, :3], cache=cache)
    loss = ours(TOKENS[:, 3:], cache=cache, return_type="loss", loss_per_token=True)
    assert close(loss, ours(TOKENS, return_type="loss", loss_per_token=True)[:, 3:])


# Hooks that stay, and their notes.


def test_hooks_stay_on_request_and_then_see_the_backward(ours: GPT2, theirs: Any) -> None:
    gradients = []
    for model in (ours, theirs):
        found = []

        def keep(gradient: Tensor, hook: HookPoint, found: list[Tensor] = found) -> tuple[Tensor]:
            found.append(gradient)
            return (gradient,)

        loss = model.run_with_hooks(
            TOKENS, return_type="loss", bwd_hooks=[("blocks.1.hook_resid_mid", keep)], reset_hooks_end=False
        )
        loss.backward()
        model.reset_hooks()
        model(TOKENS, return_type="loss").backward()
        gradients.append(found)
    assert len(gradients[0]) == len(gradients[1]) == 1
    assert close(gradients[0][0], gradients[1][0])
    ours.zero_grad()


def test_notes_of_a_hook_stay_until_they_are_cleared(ours: GPT2) -> None:
    seen = []

    def count(activation: Tensor, hook: HookPoint) -> None:
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
        seen.append(hook.ctx["calls"])

    hook = [("hook_embed", count)]
    with ours.hooks(hook):
        ours(TOKENS)
    ours.run_with_hooks(TOKENS, fwd_hooks=hook, clear_contexts=True)
    ours.run_with_hooks(TOKENS, fwd_hooks=hook)
    ours.reset_hooks()
    ours.run_with_hooks(TOKENS, fwd_hooks=hook)
    ours.reset_hooks(clear_contexts=False)
    ours.run_with_hooks(TOKENS, fwd_hooks=hook)
    assert seen == [1, 2, 1, 1, 2]
    ours.reset_hooks()


def test_a_hook_is_added_to_an_activation_itself(ours: GPT2) -> None:
    names = []
    remove = ours.hook_dict["blocks.1.attn.hook_z"].add_hook(lambda z, hook: names.append((hook.name, hook.layer())))
    ours.blocks[0].hook_mlp_out.add_hook(lambda out, hook: names.append((hook.name, hook.layer())))
    ours(TOKENS)
    remove()
    ours(TOKENS)
    assert names == [("blocks.0.hook_mlp_out", 0), ("blocks.1.attn.hook_z", 1), ("blocks.0.hook_mlp_out", 0)]
    ours.reset_hooks()
    ours(TOKENS)
    assert len(names) == 3


def test_a_prepended_hook_acts_first(ours: GPT2) -> None:
    for prepend, expected in ((False, 9.0), (True, 10.0)):
        last: list[float] = []
        ours.add_hook("hook_embed", lambda x, hook: x + 1)
        ours.add_hook("hook_embed", lambda x, hook: torch.full_like(x, 9), prepend=prepend)
        ours.add_hook("hook_embed", lambda x, hook, last=last: last.append(float(x.mean())))
        ours(TOKENS)
        ours.reset_hooks()
        assert last == [expected]


def test_tokens_may_be_given_by_name(ours: GPT2) -> None:
    assert torch.equal(ours(tokens=TOKENS), ours(TOKENS))
    with pytest.raises(ValueError, match="called without an input: give it tokens or a text"):
        ours()
