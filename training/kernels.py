"""What a run computes with: in which precision, and by which of PyTorch's kernels. Tried out once, and recorded.

Which is quickest differs from processor to processor, and is not to be had from its name. What is found is written into
the run's configuration, so that a resumed run computes as it began, to the bit.
"""

import ctypes
import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..components.kernels import chosen_products, set_onednn_products
from .presets import TrainConfig

# Rounding differs between kernels by the order of their sums: by a factor of 2 where this was measured. Products whose
# factors were rounded to bfloat16 are off by a factor of thousands.
_SAME_ROUNDING = 8.0
# Not a near tie, which the next run might decide the other way: two equal runs are to give equal bytes.
_CLEARLY_SLOWER = 0.67
# bfloat16 must be worth the precision that it costs.
_WORTH_BF16 = 1.5


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of trying oneDNN for float32 products."""

    accurate: bool
    """Its rounding is float32's."""
    speedup: float
    """How many times as quick as PyTorch's choice."""


def try_onednn() -> Trial:
    """Try oneDNN for float32 products on this processor: a third of a second."""
    if not torch.backends.mkldnn.is_available():
        return Trial(accurate=False, speedup=0.0)
    x, W = torch.randn(2, 1024, 1024, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ W.double()

    def product(by_onednn: bool) -> Tensor:
        before = set_onednn_products(by_onednn)
        try:
            with chosen_products():
                return x @ W
        finally:
            set_onednn_products(before)

    errors = [float((product(by_onednn) - exact).abs().max()) for by_onednn in (False, True)]
    return Trial(
        accurate=errors[1] <= _SAME_ROUNDING * errors[0],
        speedup=_speedup(lambda: product(False), lambda: product(True)),
    )


def bf16_speedup(device: torch.device) -> float:
    """How many times as quick products in bfloat16 are as in float32; 0 where the device has none."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return 0.0
    if device.type not in ("cpu", "cuda"):
        return 0.0
    x = torch.randn(1024, 1024, device=device)
    narrow = x.bfloat16()

    def product(factor: Tensor) -> None:
        torch.mm(factor, factor)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return _speedup(lambda: product(x), lambda: product(narrow))


def settle(config: TrainConfig, device: torch.device, recorded: Mapping[str, Any] | None) -> TrainConfig:
    """The configuration with ``auto`` replaced by what this device does best, or by what a resumed run began with.

    Args:
        recorded: the ``optim`` part of a snapshot's configuration.
    """
    precision, products = config.optim.precision, config.optim.products
    recorded = recorded or {}
    if precision == "auto":
        precision = recorded.get("precision") or ("bf16" if bf16_speedup(device) >= _WORTH_BF16 else "float32")
    if products != "default" and (device.type != "cpu" or precision == "bf16" or config.optim.compile):
        products = "default"  # the choice is for float32 on a CPU, by PyTorch's own operators
    elif products != "default":
        trial = try_onednn()
        if products == "onednn" and not trial.accurate:
            raise ValueError(
                "products=onednn would not be float32 on this processor, whose oneDNN rounds to less: take auto, or "
                "precision=bf16 if that is what is wanted"
            )
        if products == "auto":
            wanted = recorded.get("products") or ("onednn" if trial.speedup > _CLEARLY_SLOWER else "default")
            products = wanted if trial.accurate else "default"
    return config.replace(precision=precision, products=products)


@contextmanager
def computing_by(config: TrainConfig) -> Iterator[None]:
    """For the block, compute as a settled configuration says."""
    before = set_onednn_products(config.optim.products == "onednn")
    try:
        yield
    finally:
        set_onednn_products(before)


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed; whether there is such an allocator.

    It hands every tensor above 32 MB back to the system as soon as it is freed, and the next step pays for the same
    memory again, page by page: a fifth of a float32 step of GPT-2 small on two processors. From here on the process
    keeps the most memory that it ever needed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    allocator = ctypes.CDLL(None)
    # M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h: no maps of their own for large pieces, never give the top
    # of the heap back, and grow it by 64 MB at a time.
    return all([allocator.mallopt(-4, 0), allocator.mallopt(-1, 2**31 - 1), allocator.mallopt(-2, 2**26)])


def _speedup(slow: Callable[[], object], fast: Callable[[], object], tries: int = 10) -> float:
    """How many times as quick the second is, at best; they take turns, so that other work on the machine hits both."""
    quickest = [math.inf, math.inf]
    for _ in range(tries):
        for place, work in enumerate((slow, fast)):
            began = time.perf_counter()
            work()
            quickest[place] = min(quickest[place], time.perf_counter() - began)
    return quickest[0] / quickest[1]
