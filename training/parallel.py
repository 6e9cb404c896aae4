"""One process or many: which part of the work is this one's, and how parts are put together.

All of it is PyTorch's own: ``torchrun`` starts the processes, DistributedDataParallel or FSDP2 (``fully_shard``) joins
their gradients, ``torch.distributed.checkpoint.state_dict`` gathers and spreads what is sharded, so that a snapshot is
the same file for any number of processes.
"""

import atexit
import gc
import os
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
    """The processes that train together, from the view of one of them; by default it is alone."""

    rank: int = 0
    world: int = 1
    parallel: Parallel = "ddp"

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self.world > 1 and self.parallel == "fsdp"

    def wrap(self, loss: NextTokenLoss) -> nn.Module:
        """The module whose backward joins the gradients of all processes (as their mean)."""
        if self.world == 1:
            return loss
        if self.parallel == "ddp":
            device = next(loss.parameters()).device
            return DistributedDataParallel(loss, device_ids=[device] if device.type == "cuda" else None)
        # Each block on its own; the rest, the embedding that is also the output projection among it, as one.
        for block in loss.model.blocks:
            fully_shard(block)
        fully_shard(loss)
        return loss

    def sum(self, *values: float, device: torch.device) -> list[float]:
        """Each value, added up over the processes."""
        if self.world == 1:
            return list(values)
        # Of the GPUs' libraries not all add doubles (MPS has none); counts below 2**24 and losses are what comes here.
        total = torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in their order, on the first; an empty list on the others."""
        if self.world == 1:
            return [value]
        gathered = [None] * self.world if self.first else None
        dist.gather_object(value, gathered)
        return gathered or []

    def share(self, value: Any) -> Any:
        """The first process's value, on all; the others wait for it."""
        if self.world == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared)
        return shared[0]


@contextmanager
def joined(parallel: Parallel, device: torch.device) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, for the block; this one alone where it did not."""
    if "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Gloo's threads keep tensors of the last collectives; FSDP's modules, which refer to each other in circles, keep
    # Gloo. Were all that freed as the interpreter ends, a thread that then asks for it would abort the process.
    atexit.register(gc.collect)
    # The others wait while the first prepares the data or draws samples.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), parallel)
        dist.barrier()  # one that left early would break the connections that others still use
    finally:
        dist.destroy_process_group()


@contextmanager
def gradients_joined(module: nn.Module, join: bool) -> Iterator[None]:
    """For the block, which must hold forward and backward, join the processes' gradients in backward, or leave that
    for later.

    Gradients that accumulate over several backward passes need joining in the last one only.
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
    """The model's state dict, none of it sharded, on the first process. Every process must call it."""
    if not _sharded(loss):
        return loss.model.state_dict()
    return {name.removeprefix("model."): value for name, value in get_model_state_dict(loss, options=_WHOLE).items()}


def whole_optimizer_state(loss: NextTokenLoss, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state dict as if one process were alone, on the first. Every process must call it."""
    if not _sharded(loss):
        return optimizer.state_dict()
    state: dict[str, Any] = get_optimizer_state_dict(loss, optimizer, options=_WHOLE)
    if not state:  # on the other processes
        return {}
    # PyTorch has it by name here, and by number in an optimizer's own state dict.
    names = [name for group in state["param_groups"] for name in group["params"]]
    return _renamed(state, {name: number for number, name in enumerate(names)})


def load_whole_state(
    loss: NextTokenLoss, optimizer: Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]
) -> None:
    """Give the model and the optimizer the states of `whole_model_state` and `whole_optimizer_state`.

    The number of processes may be another than it was. Every process must have the states.
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
    """The state of the random number generators that dropout draws from: PyTorch's, of the CPU and of the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo what has been drawn since `rng_state`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
