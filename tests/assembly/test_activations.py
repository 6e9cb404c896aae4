"""Activations: every one that HookedTransformer has too is the same, with its gradient."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.components import HookPoint, named_taps, offer
from gptladder.ladder.answers import randomize
from gptladder.ladder.rungs import draw_case
from gptladder.weights import to_hooked_transformer

pytest.importorskip("transformer_lens")

# Ours are formed on request, since the logits are large.
ON_REQUEST = {"unembed.hook_in", "unembed.hook_out"}


def pair(config: GPT2Config, seed: int = 0) -> tuple[GPT2, Any]:
    ours = GPT2(config, dtype=torch.float64)
    randomize(ours, torch.Generator().manual_seed(seed))
    return ours.eval(), to_hooked_transformer(ours)


def off(a: Tensor, b: Tensor) -> Tensor:
    """The largest difference; what is infinite (masked scores) must be so in both, and alike."""
    assert a.shape == b.shape
    finite = a.isfinite()
    assert torch.equal(a[~finite], b[~finite])
    return (a - b)[finite].abs().max() if finite.any() else torch.tensor(0.0)


@settings(max_examples=25)
@given(source=st.randoms(use_true_random=False))
def test_every_activation_is_theirs_at_any_size(source: random.Random) -> None:
    case = draw_case(source)
    ours, theirs = pair(case.config, case.seed)
    tokens = torch.randint(case.config.d_vocab, (case.batch, case.seq))
    _, cache = ours.run_with_cache(tokens)
    _, expected = theirs.run_with_cache(tokens)
    assert set(cache) == set(expected) - ON_REQUEST
    for name, activation in cache.items():
        assert off(activation, expected[name]) < 1e-12, name


CONFIG = GPT2Config(d_model=10, n_layers=2, n_heads=3, d_head=4, d_mlp=14, d_vocab=17, n_ctx=9)
TOKENS = torch.randint(17, (3, 7), generator=torch.Generator().manual_seed(1))


def test_with_padding_every_activation_at_a_token_is_theirs() -> None:
    ours, theirs = pair(CONFIG)
    mask = torch.arange(7) >= torch.tensor([[0], [2], [4]])
    _, cache = ours.run_with_cache(TOKENS, padding_mask=mask)
    _, expected = theirs.run_with_cache(TOKENS, attention_mask=mask.long())
    for name, activation in cache.items():
        by_head = name.endswith(("attn_scores", "pattern"))  # [batch n_heads query_pos key_pos]
        at_tokens = [each.transpose(1, 2)[mask] if by_head else each[mask] for each in (activation, expected[name])]
        assert off(*at_tokens) < 1e-12, name


def test_every_gradient_is_theirs() -> None:
    models, gradients = pair(CONFIG), []
    names = [name for name, tap in named_taps(models[0]).items() if tap.offered]
    for model in models:
        found = {}

        def keep(gradient: Tensor, hook: HookPoint, found: dict[str, Any] = found) -> None:
            # Theirs calls ln1 three times, for queries, keys and values; the gradients add.
            found[hook.name] = found.get(hook.name, 0) + gradient

        with model.hooks(bwd_hooks=[(name, keep) for name in names]):
            model(TOKENS).sigmoid().sum().backward()
        gradients.append(found)
    assert set(gradients[0]) == set(gradients[1]) == set(names)
    for name in names:
        assert off(gradients[0][name], gradients[1][name]) < 1e-12, name


SWITCHES = ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"]
# Theirs gives hook_attn_in no gradient while the inputs are split.
TOGETHER = [["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"], ["use_attn_result", "use_attn_in"]]


@pytest.mark.parametrize("switches", [*TOGETHER, *([switch] for switch in SWITCHES)], ids=lambda names: "+".join(names))
def test_what_is_formed_on_request_is_theirs_with_its_gradient(switches: list[str]) -> None:
    ours, theirs = pair(CONFIG)
    for model in (ours, theirs):
        for switch in switches:
            getattr(model, f"set_{switch}")(True)
            assert getattr(model.cfg, switch)
    logits, cache = ours.run_with_cache(TOKENS, return_type="both", incl_bwd=True)
    expected_loss, expected = theirs.run_with_cache(TOKENS, return_type="loss", incl_bwd=True)
    beyond = {"hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_mlp_in", "hook_result"}
    assert {name.rpartition(".")[2] for name in cache} & beyond
    assert set(cache) == {name for name in expected if name.removesuffix("_grad") not in ON_REQUEST}
    assert off(logits.loss, expected_loss) < 1e-12
    for name, activation in cache.items():
        if "ln1" not in name:  # called three times: theirs keeps the last
            assert off(activation, expected[name]) < 1e-12, name


def test_what_is_formed_on_request_stays_out_of_a_cache_without_it() -> None:
    ours, theirs = pair(CONFIG)
    assert not set(theirs.hook_dict) - set(named_taps(ours))
    assert set(ours.run_with_cache(TOKENS)[1]) == set(theirs.run_with_cache(TOKENS)[1]) - ON_REQUEST
    ours.set_use_attn_result(True)
    assert "blocks.1.attn.hook_result" in ours.run_with_cache(TOKENS)[1]
    ours.set_use_attn_result(False)
    assert "blocks.1.attn.hook_result" not in ours.run_with_cache(TOKENS)[1]
    with pytest.raises(ValueError, match=r"formed on request: name them exactly, as 'blocks.0.attn.hook_result'"):
        ours.run_with_cache(TOKENS, names_filter=lambda name: name.endswith("hook_result"))
    named = ours.run_with_cache(TOKENS, names_filter="blocks.0.attn.hook_result")[1]
    assert named["result", 0].shape == (3, 7, 3, 10)


def test_what_the_unembedding_reads_and_gives_can_be_named_or_offered() -> None:
    ours, theirs = pair(CONFIG)
    named = ours.run_with_cache(TOKENS, names_filter=sorted(ON_REQUEST))[1]
    expected = theirs.run_with_cache(TOKENS)[1]
    assert set(named) == ON_REQUEST
    for name, activation in named.items():
        assert off(activation, expected[name]) < 1e-12
    for tap in ("hook_in", "hook_out"):
        offer(ours, tap)
    assert list(ours.run_with_cache(TOKENS)[1]) == list(expected)


def test_a_heads_queries_can_be_given_another_input_alone() -> None:
    """A hook on one head's own input leaves the other heads, and keys and values, as they were."""
    ours, _ = pair(CONFIG)
    plain = ours.run_with_cache(TOKENS)[1]

    def shift(q_input: Tensor, hook: HookPoint) -> Tensor:
        q_input[:, :, 1] += 1.5 * torch.arange(10)
        return q_input

    for name in ("blocks.1.hook_q_input", "blocks.1.attn.hook_q_input"):  # TransformerLens 3's and 4's
        with ours.hooks([(name, shift)]):
            cache = ours.run_with_cache(TOKENS)[1]
        changed = (cache["q", 1] - plain["q", 1]).abs().amax((0, 1, 3))
        assert changed[1] > 0.1
        assert max(changed[0], changed[2]) < 1e-12
        assert off(cache["k", 1], plain["k", 1]) < 1e-12
        assert off(cache["v", 1], plain["v", 1]) < 1e-12
        assert off(cache["resid_pre", 1], plain["resid_pre", 1]) < 1e-12


def test_the_unembeddings_hook_points_can_be_computed_from_ours() -> None:
    ours, theirs = pair(CONFIG)
    _, expected = theirs.run_with_cache(TOKENS)
    logits, cache = ours.run_with_cache(TOKENS)
    normalized = cache["normalized", None, "ln_final"] * ours.ln_final.w + ours.ln_final.b
    assert off(normalized, expected["unembed.hook_in"]) < 1e-12
    assert off(logits, expected["unembed.hook_out"]) < 1e-12
