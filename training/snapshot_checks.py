"""Whether the contents of a snapshot can be what a run wrote, before native code or a run's files depend on them.

A fused optimizer writes to memory by the sizes of its state, and a random number generator takes its state as bytes. So
every field is checked: by itself when the file is read, and against the model when a run resumes from it.
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

# Beyond these, a state comes from a training that diverged: healthy weights of GPT-2 are below 100, and the gradient of
# a mean loss, whose average and mean square an optimizer keeps, is below 100 for each weight.
_EXPLODED_WEIGHT = 1e4
_EXPLODED_GRADIENT = 1e4


class SnapshotError(ValueError):
    """A snapshot that cannot be written, read, or used here."""


def check_contents(contents: object, source: Path) -> dict[str, Any]:
    """Return the contents of a snapshot, if every field by itself is one that a run writes.

    Raises:
        SnapshotError: A field is missing, unknown, of another type, or out of range; the first one is named.
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
    """Make sure that a snapshot's weights and optimizer state fit a model, and mean the same tokens.

    Args:
        contents: The snapshot's, which `check_contents` has passed.
        model: The model that takes its weights; with whole parameters, even where the processes share them.
        optimizer: The optimizer that takes its state, of the parameters of ``model``.
        tokenizer: Fingerprint of the vocabulary that is used here.
        source: The snapshot's path, for the message.

    Raises:
        SnapshotError: Another parameter, shape or dtype (the first of them is named); an optimizer state that is not
            this optimizer's; another vocabulary.
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
    """Return what is wrong with the numbers of a snapshot: values that are not finite or have exploded (None: nothing).

    A training that diverges leaves snapshots that can be read and from which nothing can be trained.
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
    saved, own = contents["optimizer_state_dict"], optimizer.state_dict()
    groups = saved.get("param_groups")
    if saved.keys() != own.keys() or not isinstance(groups, list) or not isinstance(saved["state"], dict):
        raise _damaged(source, "optimizer_state_dict", "not the state of an optimizer")
    if len(groups) != len(own["param_groups"]) or not all(isinstance(group, dict) for group in groups):
        raise SnapshotError(
            f"{source} holds the state of another optimizer, with {len(groups)} groups of parameters where this one "
            f"has {len(own['param_groups'])}: resume with the --optimizer that it was made with"
        )
    for there, here in zip(groups, own["param_groups"], strict=True):
        _check_plain(source, "optimizer_state_dict", there)
        if there.get("params") != here["params"]:
            raise _damaged(source, "optimizer_state_dict", "for other parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kinds = [
        "momentum" if "momentum" in group else "adamw" for group in optimizer.param_groups for _ in group["params"]
    ]
    if not contents["step"] and not saved["state"]:
        return
    if saved["state"].keys() != set(range(len(parameters))):
        raise _damaged(source, "optimizer_state_dict", f"of {len(saved['state'])} parameters, not {len(parameters)}")
    for number, (parameter, kind) in enumerate(zip(parameters, kinds, strict=True)):
        _check_state(f"{source}", number, saved["state"][number], parameter, kind, contents["step"])


# What each optimizer keeps for a parameter.
_STATE = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "momentum": {"momentum_buffer"}}


def _check_state(source: str, number: int, state: Any, parameter: Tensor, kind: str, step: int) -> None:
    what = f"the optimizer's state of parameter {number}"
    if not isinstance(state, dict) or state.keys() != _STATE[kind]:
        raise _damaged(source, what, f"{listed(map(str, state)) if isinstance(state, dict) else 'no table'}")
    for name, value in state.items():
        if not _is_dense(value) or value.dtype != (torch.float32 if name == "step" else parameter.dtype):
            raise _damaged(source, f"{name} of {what}", "not numbers of the expected kind")
        if name == "step":
            if value.dim() or not 0 < float(value) <= step:
                raise _damaged(source, f"{name} of {what}", f"{value.flatten()[:3].tolist()} after {step} steps")
        elif value.shape != parameter.shape:
            raise _damaged(source, f"{name} of {what}", f"{list(value.shape)}, and the weight {list(parameter.shape)}")
        elif name == "exp_avg_sq" and value.numel() and not float(value.min()) >= 0:
            raise _damaged(source, f"{name} of {what}", "negative")


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
