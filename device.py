"""The device that a model runs on."""

import os

import torch


def pick_device(name: str | None = None) -> torch.device:
    """Return the device of this name (default: CUDA if present, else MPS, else the CPU).

    Under ``torchrun`` each process gets its own GPU.

    Raises:
        ValueError: a device that this machine does not have.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        name = next(kind for kind, there in present.items() if there)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"{name!r} names no device; it can be {', '.join(present)}, or one of several as cuda:1"
        ) from None
    if not present.get(device.type):
        there = ", ".join(kind for kind, is_there in present.items() if is_there)
        raise ValueError(f"there is no device {name!r} here: this machine has {there}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ValueError(f"there is no {device}: this machine has {torch.cuda.device_count()} GPUs")
    return device
