"""Run code that asks for a GPU on the CPU: files are often written on a machine that has one."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NO_GPU = re.compile(r"not compiled with CUDA|NVIDIA driver|CUDA GPUs are available|on the same device", re.I)


def asks_for_gpu(message: str) -> bool:
    """Return whether an error is that there is no GPU, or that some tensors are on one.

    Example:
        >>> asks_for_gpu("AssertionError: Torch not compiled with CUDA enabled")
        True
    """
    return bool(_NO_GPU.search(message))


class OnCpu(TorchFunctionMode):
    """Takes ``cuda`` and ``mps`` for ``cpu`` in its context.

    Example:
        >>> with OnCpu():
        ...     print(torch.zeros(2, device="cuda").to("mps").cuda().device)
        cpu
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function with the CPU in place of a GPU."""
        if getattr(func, "__name__", "") == "cuda" and args and isinstance(args[0], Tensor):
            return args[0].cpu()
        return func(*map(_moved, args), **{name: _moved(each) for name, each in (kwargs or {}).items()})


def _moved(value: Any) -> Any:
    if isinstance(value, str | torch.device) and re.match(r"(cuda|mps)\b", str(value)):
        return torch.device("cpu")
    return value
