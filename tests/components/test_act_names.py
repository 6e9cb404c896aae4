"""Names of activations: TransformerLens's own function gives the same for every form that it knows."""

import itertools

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.components import ActivationCache, act_name

SHORT = (
    *("q", "k", "v", "z", "attn", "pattern", "attn_scores", "attn_logits", "key", "query", "value", "result", "rot_q"),
    *("pre", "post", "mid", "mlp_pre", "mlp_mid", "mlp_post", "pre_linear", "mlp_out", "attn_out", "embed"),
    *("resid_pre", "resid_mid", "resid_post", "scale", "normalized", "pos_embed", "hook_embed", "hook_z", "q_input"),
    *("blocks.0.attn.hook_q", "blocks.1.hook_resid_pre", "ln_final.hook_scale"),
    *("k6", "pre5", "scale4ln1", "normalized10ln2", "key3", "attn2", "resid_pre7", "q0a", "mlp_post11"),
)
LAYERS = (None, 0, 3, 12)
TYPES = (None, "attn", "mlp", "ln1", "ln2", "a", "m", "b", "block", "blocks", "attention")


def test_every_form_is_what_get_act_name_gives() -> None:
    utilities = pytest.importorskip("transformer_lens.utilities")
    for name, layer, layer_type in itertools.product(SHORT, LAYERS, TYPES):
        if name in ("scale", "normalized") and layer is None and layer_type is not None:
            continue  # it puts a layer type behind ln_final, which names no activation
        assert act_name(name, layer, layer_type) == utilities.get_act_name(name, layer, layer_type)


def test_the_final_layer_norm_can_be_named() -> None:
    assert act_name("scale", layer_type="ln_final") == act_name("scale") == "ln_final.hook_scale"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("resid_post", -1), "blocks.2.hook_resid_post"),
        (("k", -3), "blocks.0.attn.hook_k"),
        (("scale", -1, "ln2"), "blocks.2.ln2.hook_scale"),
        ("k1", "blocks.1.attn.hook_k"),
        ("normalized", "ln_final.hook_normalized"),
        ("embed", "hook_embed"),
        (("attn", 1), "blocks.1.attn.hook_pattern"),
    ],
)
def test_a_cache_takes_every_form_and_counts_layers_from_the_last(key: str | tuple[str, int], name: str) -> None:
    model = GPT2(GPT2Config(d_model=8, n_layers=3, n_heads=2, d_vocab=5, n_ctx=4))
    cache = model.run_with_cache(torch.tensor([[1, 2]]))[1]
    assert cache[key] is cache[name]


def test_a_layer_that_a_cache_does_not_have_is_named() -> None:
    model = GPT2(GPT2Config(d_model=8, n_layers=3, n_heads=2, d_vocab=5, n_ctx=4))
    cache = model.run_with_cache(torch.tensor([[1, 2]]))[1]
    with pytest.raises(KeyError, match="layer -4 is not cached: there are 3 layers"):
        _ = cache["k", -4]
    with pytest.raises(KeyError, match=r"blocks.3.attn.hook_k is not cached"):
        _ = cache["k", 3]
    with pytest.raises(KeyError, match="layer -1 is not cached: there are 0 layers"):
        _ = ActivationCache(hook_embed=torch.zeros(1))["k", -1]
