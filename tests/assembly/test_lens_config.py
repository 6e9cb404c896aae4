"""``cfg``: TransformerLens's names for a model's configuration; and the weights of all blocks under its names."""

from typing import Any

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.assembly.lens_config import ON_REQUEST
from gptladder.ladder.answers import randomize
from gptladder.weights import from_hooked_transformer, to_hooked_transformer

pytest.importorskip("transformer_lens")


def made(**changes: Any) -> GPT2:
    sizes = {"d_model": 10, "n_layers": 3, "n_heads": 3, "d_head": 4, "d_mlp": 14, "d_vocab": 17, "n_ctx": 9}
    model = GPT2(GPT2Config(**{**sizes, **changes}), dtype=torch.float64)
    randomize(model, torch.Generator().manual_seed(0))
    return model.eval()


CHOICES: list[dict[str, Any]] = [
    {},
    {"act_fn": "relu", "layer_norm_eps": 1e-3, "init_range": 0.5, "d_head": 5},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"tie_word_embeddings": False, "unembed_bias": True},
]


@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_every_field_is_hooked_transformers(changes: dict[str, Any]) -> None:
    model = made(**changes)
    cfg, theirs = model.cfg.to_dict(), vars(to_hooked_transformer(model).cfg)
    # Theirs holds no tied weights, and does not know what it was converted from.
    assert cfg.pop("tie_word_embeddings") == model.config.tie_word_embeddings
    assert cfg.pop("original_architecture") == "GPT2LMHeadModel"
    assert cfg.pop("default_padding_side") == "right"
    for name, value in cfg.items():
        assert value == theirs[name], name
        assert getattr(model.cfg, name) == value
    kinds = ("rotary", "yarn", "NTK", "decoder", "load_in")  # of other architectures
    lacking = {name for name in theirs if name not in cfg and not any(kind in name for kind in kinds)}
    assert lacking <= {"tie_word_embeddings", "original_architecture"}


def test_a_cfg_follows_its_model_and_keeps_its_sizes() -> None:
    model = made()
    cfg = model.cfg
    assert cfg.dtype == torch.float64
    model.float()
    assert cfg.dtype == torch.float32
    with pytest.raises(AttributeError, match=r"cfg\.n_heads cannot be set"):
        cfg.n_heads = 4
    with pytest.raises(AttributeError, match=r"cfg has no 'n_head'; it has .*n_heads"):
        _ = cfg.n_head
    assert "n_heads=3" in repr(cfg)
    with pytest.raises(ValueError, match=r"post-norm .* read model\.config"):
        _ = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=4, norm="post")).cfg


@pytest.mark.parametrize("switch", ON_REQUEST)
def test_a_switch_of_cfg_offers_its_activations(switch: str) -> None:
    model = made()
    tokens = torch.tensor([[3, 1, 4]])
    names = {name for name in model.hook_dict if name.rpartition(".")[2] in ON_REQUEST[switch]}
    assert names
    before = set(model.run_with_cache(tokens)[1])
    assert not before & names
    assert getattr(model.cfg, switch) is False
    setattr(model.cfg, switch, True)
    assert getattr(model.cfg, switch) is True
    assert set(model.run_with_cache(tokens)[1]) == before | names
    setattr(model.cfg, switch, False)
    assert set(model.run_with_cache(tokens)[1]) == before


@pytest.mark.parametrize("changes", [CHOICES[0], CHOICES[-1]], ids=str)
def test_weights_of_all_blocks_are_hooked_transformers(changes: dict[str, Any]) -> None:
    ours = made(**changes)
    theirs = to_hooked_transformer(ours)
    for name in ("W_E", "W_pos", "W_U", "b_U", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name in ("W_in", "b_in", "W_out", "b_out"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for layer in range(4):
        for mlp_input in (False, True)[: 1 + (layer < 3)]:
            for include in (False, True):
                options = {"mlp_input": mlp_input, "include_mlp_biases": include}
                difference = ours.accumulated_bias(layer, **options) - theirs.accumulated_bias(layer, **options)
                # Theirs adds up in float32.
                assert difference.abs().max() < 1e-5
    total = sum(block.attn.b_O + block.mlp.b_out for block in ours.blocks)
    assert (ours.accumulated_bias(3) - total).abs().max() < 1e-12
    for layer, mlp_input, last in ((4, False, 3), (-1, False, 3), (3, True, 2)):
        with pytest.raises(ValueError, match=f"layer is {layer}; it can be 0 to {last}$"):
            ours.accumulated_bias(layer, mlp_input=mlp_input)
    one = made(n_layers=1)
    assert torch.equal(one.accumulated_bias(1), one.blocks[0].attn.b_O + one.blocks[0].mlp.b_out)


def test_cfg_makes_transformer_lens_take_the_cache() -> None:
    """Its methods on our model give what they give on its own."""
    ours = made()
    theirs = to_hooked_transformer(ours)
    tokens = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    _, expected = theirs.run_with_cache(tokens)
    cache = ours.run_with_cache(tokens)[1].transformer_lens(ours)
    for call in (
        lambda c: c.accumulated_resid(apply_ln=True, incl_mid=True, return_labels=True),
        lambda c: c.decompose_resid(layer=2, return_labels=True, mode="attn"),
        lambda c: c.stack_head_results(layer=3, incl_remainder=True, return_labels=True),
        lambda c: c.get_full_resid_decomposition(expand_neurons=True, apply_ln=True, return_labels=True),
    ):
        values, labels = call(cache)
        wanted, wanted_labels = call(expected)
        assert labels == wanted_labels
        # Theirs sums biases in float32: the remainder differs by that.
        assert (values - wanted).abs().max() < (1e-12 if len(labels) < 20 else 1e-5)
    residual = cache.accumulated_resid(apply_ln=True)
    for call in (lambda c: c.logit_attrs(residual, 7, incorrect_tokens=3), lambda c: c.stack_activation("z")):
        assert (call(cache) - call(expected)).abs().max() < 1e-12


def test_a_cache_without_a_batch_axis_stays_so() -> None:
    ours = made()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    cache = ours.run_with_cache(tokens, remove_batch_dim=True)[1].transformer_lens(ours)
    assert cache.has_batch_dim is False
    assert cache.stack_head_results(layer=1).shape == (3, 5, 10)


def test_the_model_of_its_cfg_survives_the_way_there_and_back() -> None:
    ours = made()
    hooked = to_hooked_transformer(ours)
    again = from_hooked_transformer(hooked)
    assert again.cfg.to_dict() == ours.cfg.to_dict() | {"tie_word_embeddings": again.config.tie_word_embeddings}
