"""Train with one process or many: divide the work, and combine gradients, numbers and states.

PyTorch does the work: ``torchrun`` starts the processes; DistributedDataParallel or FSDP2 (``fully_shard``) combines
their gradients; ``torch.distributed.checkpoint.state_dict`` gathers and distributes sharded states, so that a snapshot
is the same file for any number of processes.
"""

import atexit
import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .loss import NextTokenLoss

Parallel = Literal["ddp", "fsdp"]

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_EACH_HAS_ALL = StateDictOptions(full_state_dict=True)


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees it (default: this process is alone)."""

    rank: int = 0
    world: int = 1
    parallel: Parallel = "ddp"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process has only a part of the weights."""
        return self.world > 1 and self.parallel == "fsdp"

    def wrap(self, loss: NextTokenLoss) -> nn.Module:
        """Return a module whose backward pass averages the gradients of all processes."""
        if self.world == 1:
            return loss
        if self.parallel == "ddp":
            device = next(loss.parameters()).device
            return DistributedDataParallel(loss, device_ids=[device] if device.type == "cuda" else None)
        # Shard each block separately, and everything else (such as the embedding) as one unit.
        for block in loss.model.blocks:
            fully_shard(block)
        fully_shard(loss)
        return loss

    def sum(self, *values: float, device: torch.device) -> list[float]:
        """Return the sum of each value over the processes."""
        if self.world == 1:
            return list(values)
        # MPS has no float64. float32 is enough there: the values are losses, and counts below 2**24.
        total = torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes in order on the first process, and an empty list on the others."""
        if self.world == 1:
            return [value]
        gathered = [None] * self.world if self.first else None
        dist.gather_object(value, gathered)
        return gathered or []

    def share(self, value: Any) -> Any:
        """Return the first process's value on all processes, which wait for it."""
        if self.world == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared)
        return shared[0]


@contextmanager
def joined(parallel: Parallel, device: torch.device) -> Iterator[Processes]:
    """Connect the processes that ``torchrun`` has started, within the block (without ``torchrun``: only this one)."""
    if "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Gloo's threads hold tensors of the last operations, and FSDP's modules, which refer to each other in cycles, hold
    # Gloo. If these were freed while the interpreter ends, a thread that still uses them would abort the process.
    atexit.register(gc.collect)
    # The timeout is long because the others wait while the first process prepares the data or draws samples.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), parallel)
        dist.barrier()  # a process that left early would break connections that others still use
    finally:
        # Gloo's thread still frees the tensors of the last operation, for which it needs the interpreter's lock. A
        # process group whose last reference goes at that moment waits for the thread, with the lock: for ever.
        time.sleep(0.5)
        dist.destroy_process_group()


@contextmanager
def gradients_joined(module: nn.Module, join: bool) -> Iterator[None]:
    """Choose whether backward passes within the block combine the gradients of the processes.

    The block must contain the forward pass too. If gradients accumulate over several backward passes, only the last one
    needs to combine them.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(join)
        yield
    elif isinstance(module, DistributedDataParallel) and not join:
        with module.no_sync():
            yield
    else:
        yield


def whole_model_state(loss: NextTokenLoss) -> dict[str, Any]:
    """Return the whole state dict of the model on the first process. All processes must call it."""
    if not _sharded(loss):
        return loss.model.state_dict()
    return {name.removeprefix("model."): value for name, value in get_model_state_dict(loss, options=_WHOLE).items()}


def whole_optimizer_state(loss: NextTokenLoss, optimizer: Optimizer) -> dict[str, Any]:
    """Return the whole state dict of the optimizer on the first process. All processes must call it."""
    if not _sharded(loss):
        return optimizer.state_dict()
    state: dict[str, Any] = get_optimizer_state_dict(loss, optimizer, options=_WHOLE)
    if not state:  # on the other processes
        return {}
    # Here PyTorch gives the parameters names; an optimizer's own state dict has numbers.
    names = [name for group in state["param_groups"] for name in group["params"]]
    return _renamed(state, {name: number for number, name in enumerate(names)})


def load_whole_state(
    loss: NextTokenLoss, optimizer: Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]
) -> None:
    """Load the states that `whole_model_state` and `whole_optimizer_state` have returned.

    The number of processes may have changed since. All processes must call it with the states.
    """
    if not _sharded(loss):
        loss.model.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)
        return
    name_of = {parameter: name for name, parameter in loss.named_parameters()}
    names = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    set_model_state_dict(loss, {f"model.{name}": value for name, value in model_state.items()}, options=_EACH_HAS_ALL)
    by_name = _renamed(optimizer_state, dict(enumerate(names)))
    set_optimizer_state_dict(loss, optimizer, by_name, options=_EACH_HAS_ALL)


def _sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def _renamed(optimizer_state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    return {
        "state": {names[parameter]: value for parameter, value in optimizer_state["state"].items()},
        "param_groups": [
            {**group, "params": [names[parameter] for parameter in group["params"]]}
            for group in optimizer_state["param_groups"]
        ],
    }


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random number generators of dropout: PyTorch's, for the CPU and for the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore the states that `rng_state` has returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
