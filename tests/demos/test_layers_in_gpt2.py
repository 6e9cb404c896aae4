"""Our layers in transformers' GPT-2: the same logits, gradients and continuations, each alone and all at once."""

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from gptladder import GPT2, GPT2Config
from gptladder.components import MLP, Attention, Embed, LayerNorm, Unembed, run_with_cache
from gptladder.ladder.answers import randomize
from gptladder.weights import from_hf, to_hf

from .layers import EACH, OURS, TOKENS, TOLERANCE

transformers = pytest.importorskip("transformers")

DEMO = "layers_in_gpt2"


def theirs(dtype: torch.dtype = torch.float64, *, attention: str = "sdpa", **changes: Any) -> Any:
    config = GPT2Config(d_model=12, n_layers=2, n_heads=3, d_mlp=14, d_vocab=17, n_ctx=20, **changes)
    model = GPT2(config, dtype=dtype)
    randomize(model, torch.Generator().manual_seed(0))
    hf = to_hf(model)
    hf.set_attn_implementation(attention)
    return hf


def replaced(demo: ModuleType, hf: Any, *layers: str) -> Any:
    hf = copy.deepcopy(hf)
    demo.replace(hf, *layers)
    return hf


@EACH
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_logits_are_the_same(demo: ModuleType, layers: tuple[str, ...], dtype: torch.dtype, attention: str) -> None:
    hf = theirs(dtype, attention=attention)
    ours = replaced(demo, hf, *layers)
    for name in layers:
        assert any(isinstance(module, OURS[name]) for module in ours.modules()), name
    assert (ours(TOKENS).logits - hf(TOKENS).logits).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
        {"act_fn": "relu", "layer_norm_eps": 0.1},
    ],
    ids=str,
)
def test_every_choice_of_the_configuration_is_carried_over(demo: ModuleType, changes: dict[str, Any]) -> None:
    hf = theirs(**changes)
    assert (replaced(demo, hf, *OURS)(TOKENS).logits - hf(TOKENS).logits).abs().max() < 1e-12


def test_with_all_seven_nothing_that_computes_is_theirs(demo: ModuleType) -> None:
    ours = replaced(demo, theirs(), *OURS)
    kinds = {type(module) for module in ours.modules() if next(module.parameters(recurse=False), None) is not None}
    assert kinds == {Embed, demo.PositionsPosEmbed, LayerNorm, Attention, MLP}  # a tied Unembed has no parameter
    assert isinstance(ours.lm_head, Unembed)
    assert ours.lm_head.W_U.data_ptr() == ours.transformer.wte.W_E.data_ptr()


@EACH
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_padding_too(demo: ModuleType, layers: tuple[str, ...], attention: str) -> None:
    hf = theirs(attention=attention)
    mask = torch.arange(7) >= torch.tensor([[0], [2], [4]])
    given = {"attention_mask": mask.long(), "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    off = replaced(demo, hf, *layers)(TOKENS, **given).logits - hf(TOKENS, **given).logits
    assert off[mask].abs().max() < 1e-12


@EACH
def test_gradients_reach_the_input(demo: ModuleType, layers: tuple[str, ...]) -> None:
    hf = theirs()
    embeds = torch.randn(3, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = []
    for model in (hf, replaced(demo, hf, *layers)):
        given = embeds.clone().requires_grad_()
        model(inputs_embeds=given).logits.sigmoid().sum().backward()
        gradients.append(given.grad)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-12


@EACH
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
def test_it_generates_the_same_with_their_cache(demo: ModuleType, layers: tuple[str, ...], how: dict[str, Any]) -> None:
    hf = theirs()
    mask = (torch.arange(7) >= torch.tensor([[0], [2], [4]])).long()
    given = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None, **how}
    expected = hf.generate(TOKENS, attention_mask=mask, **given)
    assert torch.equal(replaced(demo, hf, *layers).generate(TOKENS, attention_mask=mask, **given), expected)


def test_our_activations_can_be_read_there(demo: ModuleType) -> None:
    hf = theirs()
    _, expected = from_hf(hf).run_with_cache(TOKENS)
    _, cache = run_with_cache(replaced(demo, hf, *OURS).transformer, TOKENS)
    for layer in range(2):
        assert (cache[f"h.{layer}.attn.hook_pattern"] - expected["pattern", layer]).abs().max() < 1e-12


def test_a_cache_with_room_left_over_is_refused(demo: ModuleType) -> None:
    hf = replaced(demo, theirs(), "attention")
    cache = transformers.StaticCache(config=hf.config, max_cache_len=12)
    with pytest.raises(ValueError, match="use a dynamic cache"):
        hf(TOKENS, past_key_values=cache, use_cache=True)


def test_an_unknown_layer_is_refused_and_nothing_is_replaced(demo: ModuleType) -> None:
    hf = theirs()
    with pytest.raises(ValueError, match=r"no layer \['norm'\]; there are embed, pos_embed"):
        demo.replace(hf, "embed", "norm")
    assert isinstance(hf.transformer.wte, nn.Embedding)


def test_the_demo_reports_that_all_are_the_same(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    GPT2(GPT2Config(d_model=12, n_layers=1, n_heads=3, d_vocab=17, n_ctx=48)).save_pretrained(tmp_path)
    for argv in ([], ["--model", str(tmp_path)]):
        demo.main(argv)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"weights: {argv[1] if argv else 'random, 3 layers'}; float64"
        assert len(lines) == 9
        assert all(line.endswith("the same") for line in lines[1:])
