"""Other libraries' models in memory: whose memory it is, and libraries that are missing or of another version."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from gptladder.assembly.model import GPT2
from gptladder.weights import (
    WeightsError,
    fold,
    from_bridge,
    from_hf,
    from_hooked_transformer,
    libraries,
    to_bridge,
    to_bridge_state_dict,
    to_hf,
    to_hooked_state_dict,
    to_hooked_transformer,
)

from .support import our_model


def test_models_in_memory_share_nothing() -> None:
    """Each of the two is changed in turn; the other must not move."""
    ours = our_model()
    hf, hooked = to_hf(ours), to_hooked_transformer(ours)
    state = {name: tensor.clone() for name, tensor in to_bridge_state_dict(ours, conv1d=False).items()}
    pairs: list[tuple[list[Tensor], GPT2]] = [
        (list(hf.parameters()), ours),
        (list(hooked.parameters()), ours),
        (list(hf.parameters()), from_hf(hf)),
        (list(hf.parameters()), from_hf(hf.state_dict(), hf.config)),
        (list(hooked.parameters()), from_hooked_transformer(hooked)),
        (list(state.values()), from_bridge(state, ours.config)),
    ]
    for theirs, model in pairs:
        mine = [*model.parameters()]
        for changed, other in ((theirs, mine), (mine, theirs)):
            before = [tensor.detach().clone() for tensor in other]
            with torch.no_grad():
                for tensor in changed:
                    tensor.add_(1)
            assert all(torch.equal(tensor, kept) for tensor, kept in zip(other, before, strict=True))


@pytest.mark.parametrize("convert", [to_hf, to_hooked_transformer])
def test_a_library_that_is_not_installed_is_named(convert: Callable[[GPT2], Any], monkeypatch: Any) -> None:
    for name in ("transformers", "transformer_lens"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"is not installed: pip install 'gptladder\[reference\]'"):
        convert(our_model())


def test_a_reference_with_other_parameters_than_ours_is_refused() -> None:
    """A later version of transformers or TransformerLens, perhaps: nothing may stay unset, or be dropped."""
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(WeightsError, match="version of Linear has other parameters than ours: scale, bias"):
        libraries._load_all(layer, {"weight": torch.ones(3, 2), "scale": torch.ones(1)}, may_lack=())
    libraries._load_all(layer, {"weight": torch.ones(3, 2)}, may_lack=("bias",))


@pytest.mark.parametrize("convert", [to_hf, to_hooked_transformer, to_hooked_state_dict, to_bridge, fold])
def test_only_a_model_of_ours_is_handed_over(convert: Callable[[Any], Any]) -> None:
    for other in (None, "gpt2", nn.Linear(2, 2), transformers.GPT2Config()):
        with pytest.raises(ValueError, match="model must be a GPT2, not ") as caught:
            convert(other)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("convert", [to_hf, to_hooked_transformer, to_bridge, fold])
def test_the_generator_of_torch_stays_as_it_was(convert: Callable[[GPT2], Any]) -> None:
    model, before = our_model(), torch.get_rng_state()
    convert(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("load", [from_hf, from_hooked_transformer, from_bridge])
def test_what_is_no_model_is_refused_in_a_sentence(load: Callable[[Any], GPT2]) -> None:
    for other in (None, "gpt2", 3):
        with pytest.raises(WeightsError, match=r"a model or its state dict is expected, not .*from_pretrained loads"):
            load(other)
    with pytest.raises(WeightsError, match=r"Linear has no 'c(on)?fi?g', so it is no such model"):
        load(nn.Linear(2, 2))


def test_a_model_of_another_kind_is_named_before_its_fields() -> None:
    other = transformers.GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]])
    with pytest.raises(WeightsError, match="model_type='gpt_neo' is not supported, only 'gpt2'"):
        from_hf({}, other)


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(WeightsError, match="is on the meta device, so its weights have no values"):
        from_hf(to_hf(our_model()).to("meta"))


def test_a_model_with_other_layers_is_not_saved_in_part(tmp_path: Path) -> None:
    class Adapted(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.base, self.A = layer, nn.Linear(6, 6)

    adapted, cut, extended = our_model(), our_model(), our_model()
    adapted.blocks[1].mlp = Adapted(adapted.blocks[1].mlp)  # pyright: ignore[reportAttributeAccessIssue]
    del cut.blocks[1]
    extended.head = nn.Linear(6, 2)
    for model, name in ((adapted, "blocks.1.mlp.A.bias"), (cut, "blocks.1.attn.W_O"), (extended, "head.bias")):
        for save in (lambda model: model.save_pretrained(tmp_path / "m"), to_hf, to_hooked_state_dict):
            with pytest.raises(WeightsError, match=f"has other layers than its configuration describes.*{name}"):
                save(model)
    assert not (tmp_path / "m").exists()


def test_a_model_whose_blocks_are_compiled_is_saved(tmp_path: Path) -> None:
    model = our_model()
    expected = to_hooked_state_dict(model)
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")  # pyright: ignore[reportArgumentType]
    found = to_hooked_state_dict(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
