"""The device that is picked."""

import pytest
import torch

from gptladder.assembly import pick_device


def test_a_device_is_picked_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="there is no device 'cuda' here: this machine has cpu"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="'gpu' names no device; it can be cuda, mps, cpu"):
        pick_device("gpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device() == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="there is no cuda:5: this machine has 2 GPUs"):
        pick_device("cuda:5")
