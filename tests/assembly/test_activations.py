"""Activations: every one that HookedTransformer has too is the same, with its gradient; and what it has beyond ours."""

import random
from typing import Any

import pytest
import torch
from einops import einsum, repeat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.components import HookPoint, LayerNorm, named_taps
from gptladder.ladder.numbers import randomize
from gptladder.ladder.rungs import draw_case
from gptladder.weights import to_hooked_transformer

pytest.importorskip("transformer_lens")

# Its Unembed has two hook points of its own: what goes in is ln_final's output, and what comes out is the logits.
NOT_OURS = {"unembed.hook_in", "unembed.hook_out"}


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
    assert set(cache) == set(expected) - NOT_OURS
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
    names = list(named_taps(models[0]))
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


def test_what_only_theirs_offers_can_be_computed_from_ours() -> None:
    ours, theirs = pair(CONFIG)
    beyond = set(theirs.hook_dict) - set(named_taps(ours)) - NOT_OURS
    per_block = {"attn.hook_result", "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in"}
    assert beyond == {f"blocks.{layer}.{name}" for layer in range(2) for name in per_block}
    for switch in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"):
        getattr(theirs, f"set_{switch}")(True)
    _, expected = theirs.run_with_cache(TOKENS)
    _, cache = ours.run_with_cache(TOKENS)
    for layer, block in enumerate(ours.blocks):
        result = einsum(cache["z", layer], block.attn.W_O, "b s h e, h e d -> b s h d")
        assert off(result, expected["result", layer]) < 1e-12
        assert off(result.sum(2) + block.attn.b_O, cache["attn_out", layer]) < 1e-12
        for letter in "qkv":
            given = repeat(cache["resid_pre", layer], "b s d -> b s h d", h=3)
            assert off(given, expected[f"{letter}_input", layer]) < 1e-12
        assert off(cache["resid_mid", layer], expected["mlp_in", layer]) < 1e-12
    # And those that stand in its cache by default.
    logits, _ = ours.run_with_cache(TOKENS)
    assert isinstance(ours.ln_final, LayerNorm)
    normalized = cache["normalized", None, "ln_final"] * ours.ln_final.w + ours.ln_final.b
    assert off(normalized, expected["unembed.hook_in"]) < 1e-12
    assert off(logits, expected["unembed.hook_out"]) < 1e-12
