"""Every function of the lens: without dropout and gradients in any mode, and what does not exist is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gptladder import GPT2, GPT2Config
from gptladder.lens import (
    ablation,
    activation_patching,
    attention_patterns,
    direct_logit_attribution,
    head_scores,
    logit_lens,
    look,
    ov_circuit,
    qk_circuit,
)

CALLS: dict[str, Callable[[Any], Any]] = {
    "logit_lens": lambda model: logit_lens(model, [3, 1, 4]).values,
    "direct_logit_attribution": lambda model: direct_logit_attribution(model, [3, 1, 4], 5).values,
    "activation_patching": lambda model: activation_patching(model, [3, 1], [3, 2], lambda x: x[:, -1, 5]).values,
    "ablation": lambda model: ablation(model, [[3, 1], [2, 7]], lambda x: x[:, -1, 5].mean()).values,
    "head_scores": lambda model: head_scores(model, [3, 1, 3], "induction").values,
    "attention_patterns": lambda model: attention_patterns(model, [3, 1, 4]).values,
    "qk_circuit": lambda model: qk_circuit(model, 0, 1, [3, 1, 4]).values,
    "ov_circuit": lambda model: ov_circuit(model, 0, 1, [3, 1, 4]).values,
    "look": lambda model: torch.tensor(look(model, [3, 1, 4]).data["parts"]["L0 mlp"]),
}


@pytest.fixture
def dropping() -> GPT2:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 12, "n_layers": 2, "n_heads": 3, "d_vocab": 10, "n_ctx": 8, "init_range": 0.3}
    return GPT2(GPT2Config(**sizes, embed_dropout=0.3, attn_dropout=0.3, resid_dropout=0.3))


@pytest.mark.parametrize("name", CALLS)
def test_a_model_in_training_mode_is_looked_at_without_dropout(dropping: GPT2, name: str) -> None:
    expected = CALLS[name](copy.deepcopy(dropping).eval())
    dropping.blocks[1].eval()  # frozen, say
    modes = [module.training for module in dropping.modules()]
    found = CALLS[name](dropping)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert [module.training for module in dropping.modules()] == modes
    assert not torch.equal(dropping([3, 1, 4]), dropping([3, 1, 4]))  # and training goes on with it


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong", [None, "gpt2", nn.Linear(2, 2)], ids=["none", "name", "other module"])
def test_what_is_no_model_is_refused(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match="model must be a GPT2"):
        CALLS[name](wrong)


@pytest.mark.parametrize("circuit", [qk_circuit, ov_circuit])
@pytest.mark.parametrize(
    ("layer", "head", "named"), [(2, 0, "layer is 2"), (-1, 0, "layer is -1"), (0, 3, "head is 3")]
)
def test_a_head_that_does_not_exist_is_refused(
    dropping: GPT2, circuit: Callable[..., Any], layer: int, head: int, named: str
) -> None:
    with pytest.raises(ValueError, match=f"{named}; the model's "):
        circuit(dropping, layer, head, [3, 1])


@pytest.mark.parametrize("ids", [[3, -1], [3, 10]])
def test_an_id_outside_the_vocabulary_is_refused(dropping: GPT2, ids: list[int]) -> None:
    for call in (logit_lens, attention_patterns, look):
        with pytest.raises(ValueError, match=rf"the prompt holds token {ids[1]}, but .* 0 to 9"):
            call(dropping, ids)
    for circuit in (qk_circuit, ov_circuit):
        with pytest.raises(ValueError, match="the prompt holds token"):
            circuit(dropping, 0, 0, ids)


def test_a_metric_keeps_its_precision(dropping: GPT2) -> None:
    found = activation_patching(dropping.bfloat16(), [3, 1], [3, 2], lambda x: x[:, -1, 5].double() + 1e-9)
    assert found.values.dtype == torch.float64
    with pytest.raises(ValueError, match="batch must be a whole number"):
        activation_patching(dropping, [3, 1], [3, 2], lambda x: x[:, -1, 5], batch=0)
