"""Our layers in HookedTransformer: the same logits and activations, and its own tools go on working."""

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.components import MLP, Attention, Embed, LayerNorm, Unembed
from gptladder.ladder.answers import randomize
from gptladder.weights import to_hooked_transformer

from .layers import EACH, OURS, TOKENS, TOLERANCE

lens = pytest.importorskip("transformer_lens")

DEMO = "layers_in_hooked_transformer"


def theirs(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    config = GPT2Config(d_model=10, n_layers=2, n_heads=3, d_head=4, d_mlp=14, d_vocab=17, n_ctx=12, **changes)
    model = GPT2(config, dtype=dtype)
    randomize(model, torch.Generator().manual_seed(0))
    return to_hooked_transformer(model)


def replaced(demo: ModuleType, hooked: Any, *layers: str) -> Any:
    hooked = copy.deepcopy(hooked)
    demo.replace(hooked, *layers)
    return hooked


def off(a: Tensor, b: Tensor) -> Tensor:
    """The largest difference; what is infinite (masked scores) must be so in both."""
    assert torch.equal(a.isfinite(), b.isfinite())
    return (a - b)[a.isfinite()].abs().max()


@EACH
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_logits_and_every_activation_are_the_same(
    demo: ModuleType, layers: tuple[str, ...], dtype: torch.dtype
) -> None:
    hooked = theirs(dtype)
    ours = replaced(demo, hooked, *layers)
    for name in layers:
        assert any(isinstance(module, OURS[name]) for module in ours.modules()), name
    expected, cached = hooked.run_with_cache(TOKENS)
    logits, cache = ours.run_with_cache(TOKENS)
    assert off(logits, expected) < TOLERANCE[dtype]
    lost = {"unembed.hook_in", "unembed.hook_out"} if "unembed" in layers else set()
    assert set(cache) == set(cached) - lost
    for name in cache:
        assert off(cache[name], cached[name]) < TOLERANCE[dtype], name


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
        {"act_fn": "relu", "layer_norm_eps": 0.1},
    ],
    ids=str,
)
def test_every_choice_of_the_configuration_is_carried_over(demo: ModuleType, changes: dict[str, Any]) -> None:
    hooked = theirs(**changes)
    assert off(replaced(demo, hooked, *OURS)(TOKENS), hooked(TOKENS)) < 1e-12


def test_with_all_seven_nothing_that_computes_is_theirs(demo: ModuleType) -> None:
    ours = replaced(demo, theirs(), *OURS)
    kinds = {type(module) for module in ours.modules() if next(module.parameters(recurse=False), None) is not None}
    assert kinds == {Embed, demo.TheirPosEmbed, LayerNorm, Attention, MLP, Unembed}


@EACH
def test_with_padding_and_with_their_cache(demo: ModuleType, layers: tuple[str, ...]) -> None:
    hooked = theirs()
    ours = replaced(demo, hooked, *layers)
    mask = torch.arange(7) >= torch.tensor([[0], [2], [4]])
    results = []
    for model in (hooked, ours):
        cache = lens.TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", batch_size=3)
        parts = [(TOKENS[:, part], mask[:, part].long()) for part in (slice(5), slice(5, None))]
        logits = [model(tokens, attention_mask=shown, past_kv_cache=cache) for tokens, shown in parts]
        results.append(torch.cat(logits, dim=1))
        results.append(model(TOKENS, attention_mask=mask.long()))
    assert off(results[0][mask], results[2][mask]) < 1e-12
    assert off(results[1][mask], results[3][mask]) < 1e-12
    assert off(results[2][mask], results[3][mask]) < 1e-12


def test_parts_called_alone_with_their_cache_and_no_mask(demo: ModuleType) -> None:
    hooked = theirs()
    ours = replaced(demo, hooked, *OURS)
    assert off(ours.pos_embed(TOKENS, 4), hooked.pos_embed(TOKENS, 4)) < 1e-12
    residual = torch.randn(3, 7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for model in (hooked, ours):
        entry = lens.TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", batch_size=3)[0]
        parts = [model.blocks[0](residual[:, part], past_kv_cache_entry=entry) for part in (slice(4), slice(4, None))]
        assert off(torch.cat(parts, dim=1), hooked.blocks[0](residual)) < 1e-12


def test_their_hooks_act_on_every_activation_of_ours(demo: ModuleType) -> None:
    hooked = theirs()
    ours = replaced(demo, hooked, *OURS)
    for name in ours.run_with_cache(TOKENS)[1]:
        hook = [(name, lambda activation, hook: activation / 2)]
        assert off(ours.run_with_hooks(TOKENS, fwd_hooks=hook), hooked.run_with_hooks(TOKENS, fwd_hooks=hook)) < 1e-12
    assert off(ours(TOKENS), hooked(TOKENS)) < 1e-12


def test_what_would_be_silently_wrong_is_refused(demo: ModuleType) -> None:
    split = theirs()
    split.set_use_split_qkv_input(True)
    processed = theirs()
    processed.cfg.normalization_type = "LNPre"
    for hooked in (split, processed):
        with pytest.raises(ValueError, match="raw weights, without inputs or results split by head"):
            demo.replace(hooked, "attention")
    with pytest.raises(ValueError, match=r"no layer \['norm'\]; there are embed, pos_embed"):
        demo.replace(theirs(), "norm")


def test_the_demo_reports_that_all_are_the_same(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    GPT2(GPT2Config(d_model=12, n_layers=1, n_heads=3, d_vocab=17, n_ctx=48)).save_pretrained(tmp_path)
    for argv in ([], ["--model", str(tmp_path)]):
        demo.main(argv)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"weights: {argv[1] if argv else 'random, 3 layers'}; float64"
        assert len(lines) == 9
        assert all(line.endswith("20 tokens: the same") for line in lines[1:])
