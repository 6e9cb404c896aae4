"""Check the contents of a snapshot before native code and the files of a run depend on them.

A fused optimizer trusts the sizes of its state when it writes to memory, and a random number generator reads its state
as raw bytes. So every field is checked twice: alone when the file is read (`check_contents`), and against the model
and the optimizer when a run resumes from it (`check_fits`).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..files import listed
from ..weights.layout import WeightsError
from ..weights.sources import config_from_ours
from .metrics import RunFiles, metrics_row
from .optim import check_state

_REQUIRED = {
    "model_state_dict": dict,
    "optimizer_state_dict": dict,
    "step": int,
    "loss": (float, int, type(None)),
    "metrics": dict,
    "rng": list,
    "data": dict,
    "config": dict,
    "tokenizer": str,
    "files": dict,
}
_OPTIONAL = {"model_config": dict, "text": str}
_DATA = {"position": int, "seed": int, "order": str, "seq": int, "tokens": int}
_GENERATORS = frozenset({"cpu", "cuda", "mps"})
_MAX_COUNT = 2**62
_MAX_PROCESSES = 4096

# Larger numbers come from a training that has diverged. Healthy weights of GPT-2 are below 100. So is the gradient of a
# mean loss for each weight; an optimizer's state holds its running mean and mean square.
_EXPLODED_WEIGHT = 1e4
_EXPLODED_GRADIENT = 1e4


class SnapshotError(ValueError):
    """A snapshot cannot be written, read, or used for this run."""


def check_contents(contents: object, source: Path) -> dict[str, Any]:
    """Return the contents of a snapshot after checking each field alone.

    Raises:
        SnapshotError: A field is missing, unknown, of a wrong type, or out of range; the message names the first one.
    """
    known = {**_REQUIRED, **_OPTIONAL}
    if not isinstance(contents, dict) or not contents.keys() >= _REQUIRED.keys():
        missing = _REQUIRED.keys() - contents.keys() if isinstance(contents, dict) else _REQUIRED.keys()
        raise SnapshotError(f"{source} is not a snapshot of a run: it lacks {', '.join(sorted(missing))}")
    if unknown := [name for name in contents if name not in known]:
        raise _damaged(source, listed(map(str, unknown)), "no field of a snapshot of this version")
    for name, kind in known.items():
        if name in contents and (not isinstance(contents[name], kind) or isinstance(contents[name], bool)):
            raise _damaged(source, name, f"a {type(contents[name]).__name__}")
    _check_plain(source, "config", contents["config"])
    try:
        row = metrics_row(contents["metrics"])
    except ValueError as error:
        raise _damaged(source, "metrics", f"not a row of metrics: {error}") from None
    step, loss = contents["step"], contents["loss"]
    if step != row.step or not 0 <= step < _MAX_COUNT:
        raise _damaged(source, "step", f"{step}, and the row of metrics is of step {row.step}")
    if loss != row.loss:
        raise _damaged(source, "loss", f"{loss}, and the row of metrics has {row.loss}")
    _check_position(source, contents["data"])
    _check_files(source, contents["files"])
    _check_random_states(source, contents["rng"])
    if "model_config" in contents:
        try:
            config_from_ours(contents["model_config"])
        except (WeightsError, TypeError) as error:
            raise _damaged(source, "model_config", str(error)) from None
    return contents


def check_fits(
    contents: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, tokenizer: str, source: Path
) -> None:
    """Check that a snapshot fits the model, the optimizer and the vocabulary of a run.

    Args:
        contents: Contents of the snapshot, which `check_contents` has accepted.
        model: The model that will load the weights.
        optimizer: The optimizer of ``model`` that will load the state.
        tokenizer: Fingerprint of the run's vocabulary.
        source: Path of the snapshot, for the message.

    Raises:
        SnapshotError: A parameter, shape or dtype differs (the message names the first); the state belongs to another
            optimizer; the vocabulary differs.
    """
    there, here = contents["model_state_dict"], model.state_dict()
    for name in sorted(there.keys() | here.keys(), key=str):
        found, expected = _shape(there.get(name)), _shape(here.get(name))
        if found == expected and not _is_dense(there[name]):
            raise _damaged(source, str(name)[:80], "no plain tensor")
        if found != expected:
            raise SnapshotError(
                f"{source} is of another model: {str(name)[:80]} is {found} in it and {expected} here; resume with the "
                "sizes that it was made with (they are in the run's config.json), or begin another run"
            )
    if contents["tokenizer"] != tokenizer:
        raise SnapshotError(
            f"{source} is of a model of another vocabulary, though as large: resume with the tokenizer that it was "
            "made with"
        )
    _check_optimizer(source, contents, optimizer)


def health(contents: Mapping[str, Any]) -> str | None:
    """Return a message if a snapshot holds numbers that are not finite or have exploded, or else None.

    Training that diverges writes snapshots that can be read, but from which no model can be trained.
    """
    limits = [(name, value, _EXPLODED_WEIGHT) for name, value in contents["model_state_dict"].items()]
    for number, state in contents["optimizer_state_dict"].get("state", {}).items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                limit = _EXPLODED_GRADIENT**2 if name == "exp_avg_sq" else _EXPLODED_GRADIENT
                limits.append((f"the optimizer's {name} of parameter {number}", value, limit))
    for name, value, limit in limits:
        if value.numel():
            lowest, highest = (float(bound) for bound in torch.aminmax(value.detach()))
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                return f"{name} holds values that are not finite"
            if max(-lowest, highest) > limit:
                return f"{name} has exploded, to {max(-lowest, highest):.1e}"
    return None


def _check_position(source: Path, data: Mapping[str, Any]) -> None:
    if data.keys() != _DATA.keys():
        raise _damaged(source, "data", f"a position with {listed(map(str, data))}")
    for name, kind in _DATA.items():
        value = data[name]
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < _MAX_COUNT):
            raise _damaged(source, f"data.{name}", f"{value!r:.40}")


def _check_files(source: Path, files: Mapping[str, Any]) -> None:
    if files.keys() != set(RunFiles.NAMES):
        raise _damaged(source, "files", f"lengths of {listed(map(str, files))}")
    for name, size in files.items():
        if type(size) is not int or not 0 <= size < _MAX_COUNT:
            raise _damaged(source, f"files[{name!r}]", f"{size!r:.40}")


def _check_random_states(source: Path, states: Sequence[Any]) -> None:
    if not 1 <= len(states) <= _MAX_PROCESSES:
        raise _damaged(source, "rng", f"of {len(states)} processes")
    expected = torch.get_rng_state()
    for state in states:
        if not isinstance(state, dict) or "cpu" not in state or not state.keys() <= _GENERATORS:
            raise _damaged(source, "rng", "not a state of each random number generator")
        for value in state.values():
            if not _is_dense(value) or value.dtype != torch.uint8 or value.dim() != 1:
                raise _damaged(source, "rng", "not bytes")
        if state["cpu"].shape != expected.shape:
            raise _damaged(source, "rng", f"{len(state['cpu'])} bytes for the CPU, where {len(expected)} are expected")
        try:
            torch.Generator().set_state(state["cpu"].contiguous())
        except RuntimeError as error:
            raise _damaged(source, "rng", f"no state of PyTorch's generator ({str(error).splitlines()[0]})") from None


def _check_optimizer(source: Path, contents: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Check that the optimizer's state has the form of one, fits the optimizer, and holds numbers that can be."""
    what = "optimizer_state_dict"
    saved = contents[what]
    groups, state = saved.get("param_groups"), saved.get("state")
    # The form: lists and tables of plain values, in which `check_state` looks up groups and parameters.
    if saved.keys() != {"state", "param_groups"} or not isinstance(groups, list) or not isinstance(state, dict):
        raise _damaged(source, what, "not the state of an optimizer")
    for group in groups:
        _check_plain(source, what, group)
        numbers = group.get("params") if isinstance(group, dict) else None
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise _damaged(source, what, "a group without a list of parameters")
    try:
        check_state(optimizer, saved)
    except ValueError as error:
        raise SnapshotError(f"{source}: {error}; resume from another snapshot") from None
    # The parameters: each has a state as soon as there was an update.
    numbers = [number for group in groups for number in group["params"]]
    if numbers != list(range(len(numbers))):
        raise _damaged(source, what, "for other parameters")
    if (contents["step"] or state) and state.keys() != set(numbers):
        raise _damaged(source, what, f"of {len(state)} parameters, not {len(numbers)}")
    # The numbers.
    for number, tensors in state.items():
        for name, value in tensors.items():
            where = f"{name} of the optimizer's state of parameter {number}"
            if not _is_dense(value) or value.dtype != torch.float32:
                raise _damaged(source, where, "not a plain float32 tensor")
            if name == "step" and not 0 < float(value) <= contents["step"]:
                raise _damaged(source, where, f"{float(value)} after {contents['step']} steps")
            if name == "exp_avg_sq" and value.numel() and not float(value.min()) >= 0:
                raise _damaged(source, where, "negative")


def _is_dense(value: Any) -> bool:
    """Return whether a value is an ordinary tensor on the CPU, each of whose elements has memory of its own."""
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.device.type != "cpu"
        or value.is_quantized
    ):
        return False
    # Axes in order of their strides: each must step over all of the smaller ones.
    size = 1
    for stride, length in sorted(
        (stride, length) for stride, length in zip(value.stride(), value.shape, strict=True) if length > 1
    ):
        if stride < size:
            return False
        size = stride * length
    return True


def _shape(value: Any) -> object:
    if value is None:
        return "absent"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return list(value.shape) if value.dtype == torch.float32 else f"{list(value.shape)} of {value.dtype}"


def _check_plain(source: object, name: str, value: Any, depth: int = 0) -> None:
    """Refuse anything but a small tree of strings, numbers, truth values and None."""
    if isinstance(value, Mapping) and depth < 6 and len(value) < 10_000:
        for key, item in value.items():
            _check_plain(source, name, key, depth + 1)
            _check_plain(source, name, item, depth + 1)
    elif isinstance(value, list | tuple) and depth < 6:
        for item in value:
            _check_plain(source, name, item, depth + 1)
    elif not (value is None or isinstance(value, str | int | float | bool)):
        raise _damaged(source, name, f"a table that holds a {type(value).__name__}")


def _damaged(source: object, name: str, found: str) -> SnapshotError:
    return SnapshotError(f"{source} is damaged, or no snapshot: {name} is {found}; resume from another snapshot")
