"""Choose the precision and the backend of matrix products for a run, by a trial at its start.

Which backend is fastest differs between processors, and a processor's name does not tell. The result is recorded in the
run's configuration, so that a resumed run computes bit for bit what it would have computed without the interruption.
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

# Kernels sum in different orders, so their rounding errors differ: by a factor of 2 in measurements. If a kernel rounds
# the factors to bfloat16, its errors are thousands of times as large.
_SAME_ROUNDING = 8.0
# Far below 1: the next trial could decide a near tie the other way, and equal runs should give equal bytes.
_CLEARLY_SLOWER = 0.67
# bfloat16 costs precision, so it is chosen only if it is this much faster.
_WORTH_BF16 = 1.5


@dataclasses.dataclass(frozen=True)
class Trial:
    """Result of trying oneDNN for float32 products."""

    accurate: bool
    """Whether its rounding errors are those of float32."""
    speedup: float
    """Speed relative to PyTorch's default backend."""


def try_onednn() -> Trial:
    """Try oneDNN for float32 products on this processor. This takes a third of a second."""
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
    """Return the speed of bfloat16 products relative to float32; 0 if the device has no bfloat16."""
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
    """Return the configuration with each ``auto`` replaced by a choice.

    Args:
        config: the configuration.
        device: where the run computes.
        recorded: the ``optim`` part of a snapshot's configuration, whose choices are used again (default: the choices
            that are best on this device).

    Raises:
        ValueError: ``products`` is "onednn", and oneDNN does not round as float32 does on this processor.
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
                "products=onednn is less accurate than float32 on this processor: use products=auto, or "
                "precision=bf16 if you want lower precision"
            )
        if products == "auto":
            wanted = recorded.get("products") or ("onednn" if trial.speedup > _CLEARLY_SLOWER else "default")
            products = wanted if trial.accurate else "default"
    return config.replace(precision=precision, products=products)


@contextmanager
def computing_by(config: TrainConfig) -> Iterator[None]:
    """Use the backend of a settled configuration within the block."""
    before = set_onednn_products(config.optim.products == "onednn")
    try:
        yield
    finally:
        set_onednn_products(before)


def keep_freed_memory() -> bool:
    """Make glibc's allocator keep freed memory. Return whether the process uses glibc and it accepted the settings.

    By default it returns every tensor above 32 MB to the system as soon as it is freed, and the next step has to map
    the same memory again, page by page: a fifth of the time of a float32 step of GPT-2 small on two processors. With
    these settings the process keeps the largest amount of memory that it ever needed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    allocator = ctypes.CDLL(None)
    # M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h: no maps of their own for large pieces, never give the top
    # of the heap back, and grow it by 64 MB at a time.
    return all([allocator.mallopt(-4, 0), allocator.mallopt(-1, 2**31 - 1), allocator.mallopt(-2, 2**26)])


def _speedup(slow: Callable[[], object], fast: Callable[[], object], tries: int = 10) -> float:
    """Return the ratio of the shortest times of two functions.

    The calls alternate, so that other work on the machine affects both.
    """
    shortest = [math.inf, math.inf]
    for _ in range(tries):
        for place, work in enumerate((slow, fast)):
            began = time.perf_counter()
            work()
            shortest[place] = min(shortest[place], time.perf_counter() - began)
    return shortest[0] / shortest[1]
