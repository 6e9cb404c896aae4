"""Somebody's layer: built for given sizes, filled with given parameters, run forwards and backwards.

Nothing here needs the references: it can run in a process that has not loaded them.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from ..numbers import Answer
from .source import CandidateError, Code, said
from .trace import Place, Watch, tapped

SIZES = ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "n_layers")
# What a constructor may ask for: ARENA's fields, and the two that change the arithmetic.
FIELDS = (*SIZES, "layer_norm_eps", "init_range", "debug", "act_fn", "scale")

Look = Literal["", "watch", "taps"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a layer.

    Args:
        kind: of a layer that gives no answer ``build``, ``parameters``, ``raises``, ``exit``, ``type``, ``shape``,
            ``dtype``, ``input``, ``hang`` or ``died``; of one that does ``nan``, ``some nan``, ``output``,
            ``precision`` (right in float32 alone), ``missing`` (a gradient), ``gradient`` or ``float32`` (alone).
        message: what happened, as a sentence without its full stop.
        at: ``file:line`` in the user's source, where that is known.
        code: that line.
        listing: for ``parameters``: those given beside those that the layer has.
        names: for ``parameters``: those given that have no place in the layer.
    """

    kind: str
    message: str
    at: str | None = None
    code: str | None = None
    listing: str = ""
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f"\n  {self.at}: {self.code}" if self.at else ""
        return f"{self.message}.{at}" + (f"\n{self.listing}" if self.listing else "")


@dataclass(frozen=True)
class Question:
    """A trial, without what is expected of it.

    Args:
        rung: its name.
        parameters, given, cotangent: as in `Trial`.
    """

    rung: str
    config: GPT2Config
    dtype: torch.dtype
    parameters: Mapping[str, Tensor]
    given: Tensor
    cotangent: Tensor


@dataclass(frozen=True)
class Reply:
    """What a layer made of a question.

    Args:
        answer: None where there is a fault.
        asked: the fields of the configuration that it has read so far; the others make no difference to it.
        places: what `Watch` saw, where it was to look.
        taps: what `tapped` kept, where it was to look.
    """

    answer: Answer | None = None
    fault: Fault | None = None
    asked: frozenset[str] = frozenset()
    places: Mapping[str, Place] = field(default_factory=dict)
    taps: Mapping[str, Tensor] = field(default_factory=dict)


class _Faulty(Exception):
    def __init__(self, kind: str, message: str, place: Place | None = None, **more: Any) -> None:
        super().__init__(message)
        at, code = place or (None, None)
        self.fault = Fault(kind, message, at, code, **more)


class _Config:
    """The configuration that a layer is built with. It notes what is read."""

    def __init__(self, config: GPT2Config, asked: set[str]) -> None:
        self._fields = {name: getattr(config, name) for name in FIELDS if hasattr(config, name)}
        self._fields |= {"scale": config.attn_scale(0), "debug": False}
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"the configuration has no {name!r}; it has {', '.join(FIELDS)}")
        self._asked.add(name)
        return self._fields[name]


class Candidate:
    """A layer under test.

    Args:
        make: its class (built with one configuration object, or with the fields of it that its constructor names), a
            function that builds it likewise, or an adapter ``(cfg, parameters) -> (layer, state dict)``.
        name: what it is called in messages.
        code: where its author's source is.

    Raises:
        CandidateError: a constructor that asks for something else.
    """

    def __init__(self, make: Callable[..., Any], name: str, code: Code) -> None:
        self.make, self.name, self.code = make, name, code
        self.asked: set[str] = set()
        try:
            arguments = inspect.signature(make).parameters.values()
        except (TypeError, ValueError):
            raise CandidateError(f"{name} is neither a class nor a function") from None
        named = [each for each in arguments if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        required = [each.name for each in named if each.default is each.empty]
        self.takes = [each.name for each in named if each.name in FIELDS]
        self.is_adapter = len(required) == 2 and required[1] == "parameters"
        alone = required[0] if len(required) == 1 else ""
        # Where it has a default, that is a configuration of sizes that nothing here would fit.
        self.takes_config = bool(alone and alone not in FIELDS) or (bool(named) and named[0].name in ("cfg", "config"))
        strange = [each for each in required if each not in FIELDS]
        if strange and not self.is_adapter and not (self.takes_config and len(required) == 1):
            raise CandidateError(
                f"{name} asks for {', '.join(strange)}. It can be given one configuration object (cfg), or any of "
                f"{', '.join(FIELDS)}; for anything else write an adapter: docs/your-layer.md"
            )

    def respond(self, question: Question, look: Look = "") -> Reply:
        """Build the layer, fill it with the question's parameters, and run it forwards and backwards."""
        places: dict[str, Place] = {}
        taps: dict[str, Tensor] = {}
        answer = fault = None
        try:
            answer = self._answer(question, look, places, taps)
        except _Faulty as error:
            fault = error.fault
        return Reply(answer, fault, frozenset(self.asked), places, taps)

    def _answer(self, question: Question, look: Look, places: dict[str, Place], taps: dict[str, Tensor]) -> Answer:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in question.parameters.items()}
        layer, state = self._build(question, leaves)
        layer.to(question.dtype).eval()
        if state is None:
            state = _fuse(layer, leaves)
        self._fill(layer, state, leaves, question)
        leaf = question.given.clone().requires_grad_(question.given.is_floating_point())
        # As in a model, where it comes from the layer before: no leaf of the graph, but what others still need.
        given = leaf.clone()
        watch = Watch(self.code, given, question.dtype, places) if look == "watch" else nullcontext()
        tap = tapped(layer, question.rung, taps) if look == "taps" else nullcontext()
        with watch, tap:
            output = self._run("forward", lambda: _call(layer, given))
        self._check(output, given, question)
        if output.requires_grad:  # a layer that cuts the graph has no gradients
            self._run("the backward pass", lambda: output.backward(question.cotangent))
        gradients = _pull_back(layer, state, leaves)
        if leaf.grad is not None:
            gradients["input"] = leaf.grad
        # A tensor of a class of the user's own is one for the user's process only.
        bare = {name: gradient.as_subclass(Tensor) for name, gradient in gradients.items()}
        return Answer(output.detach().as_subclass(Tensor), bare)

    def _build(self, question: Question, leaves: dict[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
        """The layer, and its state dict in terms of ``leaves`` where an adapter gives one."""
        config, state = _Config(question.config, self.asked), None
        if self.is_adapter:
            made = self._run(self.name, lambda: self.make(config, leaves), "build")
            if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
                raise _Faulty(
                    "build", f"{self.name} returns {_kind(made)}; it must return the layer and its state dict"
                )
            layer, state = made
        elif self.takes_config:
            layer = self._run(self.name, lambda: self.make(config), "build")
        else:
            arguments = {name: getattr(config, name) for name in self.takes}
            layer = self._run(self.name, lambda: self.make(**arguments), "build")
        if not isinstance(layer, nn.Module):
            raise _Faulty("build", f"{self.name} makes {_kind(layer)}, which is no nn.Module")
        return layer, state

    def _run(self, what: str, call: Callable[[], Any], kind: str = "raises") -> Any:
        """Call the user's code; what it raises is its fault."""
        try:
            return call()
        except KeyboardInterrupt:
            raise
        except SystemExit as error:
            raise _Faulty("exit", f"{what} calls exit()", self.code.raised(error)) from error
        except BaseException as error:
            raise _Faulty(kind, f"{what} raises {said(error)}", self.code.raised(error)) from error

    def _fill(
        self, layer: nn.Module, state: Mapping[str, Tensor], leaves: dict[str, Tensor], question: Question
    ) -> None:
        """Copy parameters in; every one must find its place, and every place its parameter."""
        places = dict(layer.named_parameters(remove_duplicate=False))
        filled = {id(places[name]) for name in state if name in places}
        buffers = dict(layer.named_buffers())
        wrong = [name for name, place in places.items() if name in state and place.shape != state[name].shape]
        missing = [name for name, place in places.items() if id(place) not in filled]
        unknown = [name for name in state if name not in places and name not in buffers]
        used = [tensor.sum() for name, tensor in state.items() if name in places and tensor.requires_grad]
        reached = torch.autograd.grad(used, list(leaves.values()), allow_unused=True, retain_graph=True) if used else ()
        unused = [name for name, found in zip(leaves, reached or [None] * len(leaves), strict=True) if found is None]
        if wrong or missing or unknown or unused:
            left_out = [name for name in unused if state.get(name) is not leaves[name]]
            message = f"{self.name}'s parameters do not match"
            if left_out:
                message += f": the adapter makes nothing of {', '.join(left_out)}, or cuts it from the graph"
            listing = _both_sides(state, places, [*wrong, *missing, *unknown], _sizes(question))
            raise _Faulty("parameters", message, listing=listing, names=tuple(unused))
        with torch.no_grad():
            for name, tensor in state.items():
                (places | buffers)[name].copy_(tensor)

    def _check(self, output: Any, given: Tensor, question: Question) -> None:
        if not isinstance(output, Tensor):
            must = "it must return a tensor, or a tuple that begins with one"
            raise _Faulty("type", f"forward returns {_kind(output)}; {must}")
        if output.shape != question.cotangent.shape:
            sizes = _sizes(question)
            got, want = _axes(output.shape, sizes), _axes(question.cotangent.shape, sizes)
            raise _Faulty("shape", f"forward returns {got}; it must return {want}")
        if output.dtype != question.dtype:
            got, want = (str(dtype).removeprefix("torch.") for dtype in (output.dtype, question.dtype))
            raise _Faulty("dtype", f"forward returns {got} where its input and its parameters are {want}")
        if not torch.equal(given, question.given):
            raise _Faulty("input", "forward changes its input in place; the layers around it still need the old one")


def _call(layer: nn.Module, given: Tensor) -> Any:
    arguments = inspect.signature(layer.forward).parameters.values()
    required = [
        each
        for each in arguments
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    # TransformerLens's attention takes the input of queries, of keys and of values.
    output = layer(*[given] * (3 if len(required) == 3 else 1))
    return output[0] if isinstance(output, tuple | list) and output else output


def _fuse(layer: nn.Module, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TransformerLens's parameters, in one ``W_QKV`` and ``b_QKV`` where the layer keeps them so, as ours does."""
    state = dict(leaves)
    for name, _ in layer.named_parameters():
        prefix, last = name[: name.rfind(".") + 1], name[name.rfind(".") + 1 :]
        parts = [f"{prefix}{last[:2]}{letter}" for letter in "QKV"]
        if last in ("W_QKV", "b_QKV") and all(part in state for part in parts):
            stacked = torch.stack([state.pop(part) for part in parts])
            state[name] = rearrange(stacked, "qkv n m h -> m qkv n h") if last == "W_QKV" else stacked
    return state


def _pull_back(layer: nn.Module, state: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the layer's parameters, as gradients of those that they were made from."""
    names: dict[int, str] = {}
    for name, place in layer.named_parameters(remove_duplicate=False):
        if name in state and state[name].requires_grad and place.grad is not None:
            names.setdefault(id(place), name)  # a tied one has two names, and one gradient
    if not names:
        return {}
    grads = [layer.get_parameter(name).grad for name in names.values()]
    pulled = torch.autograd.grad(
        [state[name] for name in names.values()], list(leaves.values()), grads, allow_unused=True
    )
    return {name: found for name, found in zip(leaves, pulled, strict=True) if found is not None}


def _sizes(question: Question) -> dict[int, str]:
    """What each length is called. The sizes of a case are different, as a rule; the first name counts where not."""
    batch, seq = question.given.shape[:2]
    named = {"batch": batch, "seq": seq} | {
        name: getattr(question.config, name) for name in SIZES if name != "n_layers"
    }
    names: dict[int, str] = {}
    for name, size in named.items():
        names.setdefault(size, name)
    for name, size in named.items():
        names.setdefault(3 * size, f"3*{name}")
    return names


def _axes(shape: Sequence[int], sizes: Mapping[int, str]) -> str:
    return f"[{' '.join(sizes.get(length, str(length)) for length in shape)}]"


def _both_sides(
    state: Mapping[str, Tensor], places: Mapping[str, Tensor], wrong: Sequence[str], sizes: Mapping[int, str]
) -> str:
    """What is given beside what the layer has, marked where they differ."""

    def line(mark: str, left: str, right: str) -> str:
        return f"  {mark} {left:<36} {right}".rstrip()

    def shaped(name: str, tensor: Tensor) -> str:
        return f"{name} {_axes(tensor.shape, sizes)}"

    lines = [line(" ", "given", "yours")]
    for name, tensor in state.items():
        left = shaped(name, tensor)
        if name in places:
            lines.append(line("x" if name in wrong else " ", left, shaped(name, places[name])))
        elif name in wrong:
            close = difflib.get_close_matches(name, [each for each in places if each not in state], n=1, cutoff=0.4)
            lines.append(line("x", left, f"none of this name{f'; is it {close[0]}?' if close else ''}"))
    lines += [
        line("x", "", shaped(name, place)) for name, place in places.items() if name in wrong and name not in state
    ]
    return "\n".join(lines)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
