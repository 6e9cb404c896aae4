"""What models and caches print: one line."""

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.components import ActivationCache

CONFIG = GPT2Config(d_model=16, n_layers=2, n_heads=4, d_vocab=50, n_ctx=8)


def test_a_model_prints_its_sizes_in_one_line() -> None:
    model = GPT2(CONFIG, dtype=torch.bfloat16)
    assert repr(model) == (
        "GPT2(n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=64, d_vocab=50, n_ctx=8: "
        f"{model.num_parameters():,} parameters in bfloat16 on cpu)"
    )
    assert "(model): GPT2(n_layers=2" in repr(torch.nn.ModuleDict({"model": model}))
    assert "(attn): Attention" in repr(model.blocks)


def test_a_cache_prints_a_few_of_its_activations() -> None:
    _, cache = GPT2(CONFIG).run_with_cache(torch.tensor([[3, 1, 4]]))
    shown = repr(cache)
    assert shown.startswith(f"ActivationCache({len(cache)} activations, ")
    assert "kB: hook_embed [1, 3, 16], hook_pos_embed [1, 3, 16], " in shown
    assert shown.endswith(", …, ln_final.hook_normalized [1, 3, 16])")
    assert shown.count("[") == 4
    assert repr(ActivationCache()) == "ActivationCache(0 activations, 0 bytes)"
    assert repr(ActivationCache({name: torch.zeros(1) for name in "abcd"})).endswith(
        "bytes: a [1], b [1], c [1], d [1])"
    )


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_999, "1000.0 kB"),
        (10**6, "1.0 MB"),
        (10**9 - 1, "1000.0 MB"),
        (10**9, "1.0 GB"),
    ],
)
def test_a_cache_prints_its_size(size: int, shown: str) -> None:
    assert shown in repr(ActivationCache(a=torch.empty(size, dtype=torch.uint8, device="meta")))
    assert shown in repr(ActivationCache(a=torch.empty(size // 4, device="meta"), b=torch.zeros(size % 4).bool()))


def test_a_method_that_a_cache_lacks_is_pointed_at_transformer_lens() -> None:
    cache = ActivationCache(a=torch.zeros(1))
    with pytest.raises(AttributeError, match=r"cache\.transformer_lens\(model\)\.accumulated_resid"):
        cache.accumulated_resid()
    assert not hasattr(cache, "stack_heads")
    assert cache.copy() == {"a": torch.zeros(1)}
