"""TransformerLens's own tools on our model, unchanged: they give what they give on TransformerLens's.

Run with TransformerLens 3 among the other tests, and with 4 by ``make test-bridge``: HookedTransformer is not used.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.ladder.answers import randomize
from gptladder.tokenizer import END_OF_TEXT, BPETokenizer
from gptladder.weights import from_bridge, to_bridge

transformer_lens = pytest.importorskip("transformer_lens")
from transformer_lens import head_detector, patching  # noqa: E402  # they need transformer_lens

CLEAN, CORRUPTED = "the cat", "the dog"


@pytest.fixture(scope="module")
def ours() -> GPT2:
    model = GPT2(GPT2Config(d_model=12, n_layers=2, n_heads=3, d_vocab=260, n_ctx=24))
    randomize(model, torch.Generator().manual_seed(0))
    model.tokenizer = BPETokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})
    return model.double().eval()


@pytest.fixture(scope="module")
def theirs(ours: GPT2) -> Any:
    return to_bridge(ours)


def close(a: Any, b: Any, at_most: float = 1e-12) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= at_most)


def test_a_bridge_is_the_same_model_with_the_same_tokenizer(ours: GPT2, theirs: Any) -> None:
    assert torch.equal(theirs.to_tokens(CLEAN), ours.to_tokens(CLEAN))
    assert close(theirs(CLEAN), ours(CLEAN))
    assert close(theirs(CLEAN, return_type="loss"), ours(CLEAN, return_type="loss"))
    back = from_bridge(theirs)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))
    alone = GPT2(ours.config)
    assert to_bridge(alone).tokenizer is None


def test_the_models_meet_the_protocols(ours: GPT2) -> None:
    protocol = pytest.importorskip("transformer_lens.model_protocol", reason="TransformerLens 3 has no protocol")
    kinds = [kind for _, kind in inspect.getmembers(protocol, inspect.isclass) if kind.__module__ == protocol.__name__]
    assert len(kinds) >= 2
    for kind in kinds:
        assert isinstance(ours, kind), kind


PATCHES = [
    "get_act_patch_resid_pre",
    "get_act_patch_resid_mid",
    "get_act_patch_attn_out",
    "get_act_patch_mlp_out",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_block_every",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
]


def metric(logits: Tensor) -> Tensor:
    return logits[0, -1, 5] - logits[0, -1, 9]


def patched(function: Callable[..., Tensor], ours: GPT2) -> Tensor:
    """What the tool gives on our model, with TransformerLens's cache of our activations."""
    cache = ours.run_with_cache(ours.to_tokens(CLEAN))[1].transformer_lens(ours)
    return function(ours, ours.to_tokens(CORRUPTED), cache, metric)


def expected(function: Callable[..., Tensor], theirs: Any) -> Tensor:
    return function(theirs, theirs.to_tokens(CORRUPTED), theirs.run_with_cache(theirs.to_tokens(CLEAN))[1], metric)


@pytest.mark.parametrize("name", PATCHES)
def test_its_patching_runs_on_our_model(ours: GPT2, theirs: Any, name: str) -> None:
    if not hasattr(patching, name):
        pytest.skip(f"this version has no {name}")
    function = getattr(patching, name)
    # The results are float32 there.
    with torch.no_grad():
        assert close(patched(function, ours).double(), expected(function, theirs).double(), 1e-5)


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_its_path_patching_runs_on_our_model(ours: GPT2, theirs: Any, component: str) -> None:
    function: Any = getattr(patching, "get_act_patch_direct_path", None)
    if function is None:
        pytest.skip("TransformerLens 3 has no path patching")
    results = []
    for model in (ours, theirs):
        clean, corrupted = (model.run_with_cache(model.to_tokens(text))[1] for text in (CLEAN, CORRUPTED))
        if model is ours:
            clean, corrupted = (cache.transformer_lens(ours) for cache in (clean, corrupted))
        options = {"src_layer": 0, "src_head": 1, "component": component, "verbose": False}
        results.append(function(model, model.to_tokens(CORRUPTED), clean, corrupted, metric, **options))
    assert results[0][1].any()
    assert close(results[0].double(), results[1].double(), 1e-5)
    assert not ours.cfg.use_split_qkv_input


@pytest.mark.parametrize("kind", ["previous_token_head", "duplicate_token_head", "induction_head"])
def test_its_head_detector_runs_on_our_model(ours: GPT2, theirs: Any, kind: Any) -> None:
    text = "ab ab ab"
    models: list[Any] = [ours, theirs]  # the detector is annotated for TransformerLens's own model
    scores, wanted = (head_detector.detect_head(model, text, kind) for model in models)
    assert close(scores.double(), wanted.double(), 1e-5)


def test_its_cache_takes_apart_our_activations(ours: GPT2, theirs: Any) -> None:
    cache = ours.run_with_cache(CLEAN)[1].transformer_lens(ours)
    wanted = theirs.run_with_cache(CLEAN)[1]
    for call in (
        lambda c: c.accumulated_resid(incl_mid=True),
        lambda c: c.decompose_resid(layer=2),
        lambda c: c.stack_head_results(layer=2),
    ):
        assert close(call(cache), call(wanted), 1e-10)
