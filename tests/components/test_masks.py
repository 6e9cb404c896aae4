"""The masks: which keys a query may attend to, and keys and values at padding."""

import pytest
import torch

from gptladder.components.masks import allowed_keys, zeros_at_padding

CPU = torch.device("cpu")


@pytest.mark.parametrize("query_pos", [1, 3, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_a_query_sees_its_own_and_earlier_keys_without_padding(query_pos: int, masked: bool) -> None:
    mask = torch.tensor([[True] * 5, [False, False, True, True, True]]) if masked else None
    allowed = allowed_keys(query_pos, 5, mask, device=CPU).expand(2, 1, query_pos, 5)
    for row in range(2):
        for query in range(query_pos):
            position = 5 - query_pos + query  # the last query stands at the last key
            for key in range(5):
                seen = key <= position and (mask is None or bool(mask[row, key]))
                assert bool(allowed[row, 0, query, key]) == seen


@pytest.mark.parametrize("past", [0, 2])
def test_new_keys_and_values_are_zero_at_padding_alone(past: int) -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(2, 3, 2, 4, generator=generator) for _ in "kv")
    new = torch.tensor([[False, True, True], [True, True, False]])
    mask = torch.cat([torch.zeros(2, past, dtype=torch.bool), new], dim=1)
    for before, after in zip((k, v), zeros_at_padding(k, v, mask, past=past), strict=True):
        assert torch.equal(after[new], before[new])
        assert not after[~new].any()


def test_what_is_not_finite_at_padding_is_gone() -> None:
    k = torch.tensor([torch.inf, 1.0]).view(1, 2, 1, 1)
    v = torch.tensor([torch.nan, 1.0]).view(1, 2, 1, 1)
    for after in zeros_at_padding(k, v, torch.tensor([[False, True]]), past=0):
        assert after.flatten().tolist() == [0.0, 1.0]


def test_a_mask_of_other_keys_is_refused() -> None:
    k = torch.zeros(1, 2, 1, 1)
    with pytest.raises(ValueError, match="padding_mask covers 2 keys, but there are 5, cached ones included"):
        zeros_at_padding(k, k, torch.ones(1, 2, dtype=torch.bool), past=3)
