"""Other libraries' models in memory: whose memory it is, and libraries that are missing or of another version."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gptladder.assembly.model import GPT2
from gptladder.weights import (
    WeightsError,
    from_bridge,
    from_hf,
    from_hooked_transformer,
    libraries,
    to_bridge_state_dict,
    to_hf,
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
