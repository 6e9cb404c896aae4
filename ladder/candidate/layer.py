"""The user's layer: built for given sizes, filled with given parameters, run forwards and backwards."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..answers import Answer, backward
from ..own_faults import described
from ..results import Fault
from ..rungs import Trial
from .aliases import foreign
from .as_written import recorded
from .borrowed import BorrowedCalls, borrowed_classes
from .building import Builder
from .calling import batch_first, call, parts_of, pull_back, unknown_arguments, unused, ways_to_call
from .configuration import FIELDS, Configuration, Refused, Sizes, is_unknown_field
from .fixed_sizes import fixed_sizes
from .kept_state import KeptState
from .layouts import Layout, Repeated, Unlearned, Unreadable, shapes
from .masks import ConstructorsMask
from .parameters import read
from .places import Code
from .requests import Reply, Request
from .shapes_in_words import axes, both_sides, kind_of, mismatch, size_names
from .shared_parameters import changed_parameters, repeated, tie_shared
from .source import CandidateError, one_line
from .standins import Unavailable
from .trace import Attached, Births, Place, Recorder, Trace, Widened
from .training_mode import WithoutDropout
from .ways import Ways
from .without_gpu import OnCpu, asks_for_gpu


class _Faulty(Exception):
    def __init__(self, kind: str, message: str, place: Place | None = None, **more: Any) -> None:
        super().__init__(message)
        at, code = place or (None, None)
        self.fault = Fault(kind, message, at, code, **more)


class Candidate:
    """A layer under test.

    Args:
        make: its class, a function that builds it, or an adapter ``(cfg, parameters) -> (layer, state dict)``.
        name: its name in messages.
        code: its author's source.
        namespace: of its file.
        chosen: values for what its constructor asks for, by name.

    Raises:
        CandidateError: it is neither a class nor a function.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        name: str,
        code: Code,
        namespace: Mapping[str, Any] | None = None,
        chosen: Mapping[str, Any] | None = None,
    ) -> None:
        self.make, self.name, self.code = make, name, code
        self.namespace: dict[str, Any] = namespace if isinstance(namespace, dict) else {}
        self.chosen = dict(chosen or {})
        self.asked: set[str] = set()
        try:
            arguments = list(inspect.signature(make).parameters.values())
        except (TypeError, ValueError):
            raise CandidateError(f"{name} is neither a class nor a function") from None
        required = [each for each in arguments if each.default is each.empty and each.kind not in (2, 4)]
        # A function of two arguments, neither of them a size, is an adapter, whatever they are called.
        sizes = [each for each in required if each.name in FIELDS]
        self.is_adapter = not inspect.isclass(make) and len(required) == 2 and not sizes
        self._builders: dict[str, Builder] = {}
        self._notes: dict[str, None] = {}
        self._passed: dict[str, tuple[Any, Any]] = {}
        self._borrowed: set[str] = set()
        self._known = Reply()
        self._mask = ConstructorsMask()
        self._ways: Ways | None = None
        self._called_once = False
        self._on_cpu = False  # what asks for a GPU gets the CPU

    def respond(self, request: Request) -> Reply:
        """Build the layer, fill it with the request's parameters, and run it forwards and backwards."""
        answer, fault, trace = None, None, Trace()
        self._notes = {}
        try:
            answer = recorded(partial(self._answer, request), trace) if request.look else self._answer(request, trace)
        except _Faulty as error:
            fault = error.fault
            if not self._on_cpu and asks_for_gpu(fault.message):
                self._on_cpu = True
                return self.respond(request)
        except Exception as error:
            place = self.code.raised(error)  # the user's code also runs where it is only looked at: a property, say
            if place:
                fault = Fault("raises", f"reading the layer raises {one_line(error)}", *place)
            else:
                fault = Fault("internal", described(error))
        return replace(
            self._known,
            answer=answer,
            fault=fault,
            asked=frozenset(self.asked),
            passed=dict(self._passed),
            notes=tuple(self._notes),
            trace=trace,
            borrowed=tuple(sorted(self._borrowed)),
        )

    def _answer(self, request: Request, trace: Trace) -> Answer:
        trial = request.trial
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in trial.parameters.items()}
        births = Births(self.code, request.look)
        with ExitStack() as stack:
            if self._on_cpu:
                stack.enter_context(OnCpu())
                self._notes["it asks for a GPU, and was run on the CPU"] = None
            if request.wide:
                stack.enter_context(Widened(trial.dtype))
            # Build the layer, and fill it with the trial's parameters.
            with births:
                layer, reading = self._build(trial, leaves)
            self._borrowed |= borrowed_classes(layer, trial.rung)
            layer.to(trial.dtype).train(request.training)
            _check_arguments(layer)
            layout, way = self._layout(layer, reading, request, births)
            state = layout.fill(leaves)
            _fill(layer, self.name, state, trial)
            if self.is_adapter:  # what it makes nothing of is missing
                self._known = replace(self._known, missing=unused(layer, state, leaves))
            filled = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
            # Run it forwards, after the calls that come before it.
            leaf = trial.given.clone().requires_grad_(trial.given.is_floating_point())
            # A copy, which is no leaf of the graph: in a model, the input is the output of the layer before.
            given = _ordered(leaf.clone(), request)
            if trial.before:
                trace.kept = self._call_before(layer, way, request)
            extras: set[str] = set()
            forward = partial(call, layer, given, way, extras, trial.given.shape[1], self._mask)
            mode = stack.enter_context(WithoutDropout()) if request.training else None
            if request.attach:
                stack.enter_context(Attached(self.code, request.attach))
            if request.look:
                recorder = Recorder(self.code, layer, given, trial.dtype, births)
                recorder.trace = trace
                with recorder.recording(parts_of(layer, state, leaves)):
                    output = self._run("forward", forward)
                recorder.ended(output)
                turn = partial(batch_first, given=trial.given, is_turned=request.sequence_first)
                trace.parts = [(n, turn(one), turn(two)) for n, one, two in trace.parts]
                if request.gradients and (wrong := recorder.own.wrong_backward(self.code)):
                    trace.places["backward"] = wrong
            else:
                # Which functions of libraries it calls is the same in every case.
                with BorrowedCalls(trial.rung, libraries=not self._called_once) as borrowed:
                    output = self._run("forward", forward)
                self._called_once = True
                self._borrowed |= borrowed.names
            if mode and mode.drew:
                raise _Faulty("random", "forward draws random numbers in training mode")
            output, notes = _checked(_ordered(output, request), _ordered(given, request), trial)
            if changed := changed_parameters(layer, filled):
                raise _Faulty("input", changed)
            self._notes |= dict.fromkeys([*notes, *sorted(extras)])
            # Run it backwards. A layer that cuts the graph has no gradients.
            if output.requires_grad and request.gradients:
                self._run("the backward pass", lambda: backward(output, trial.cotangent))
        gradients = pull_back(layer, state, leaves)
        if leaf.grad is not None:
            gradients["input"] = leaf.grad
        # A tensor of a class of the user's own is one for the user's process only.
        bare = {name: gradient.as_subclass(Tensor) for name, gradient in gradients.items()}
        return Answer(output.detach().as_subclass(Tensor), bare)

    def _build(self, trial: Trial, leaves: dict[str, Tensor]) -> tuple[nn.Module, list[Layout] | None]:
        """Return the layer, and how its parameters are read if it comes from an adapter."""
        sizes = Sizes(trial.config, self.chosen, self.asked)
        if trial.rung not in self._builders:
            self._builders[trial.rung] = Builder(self.make, trial.rung, self.namespace)
        builder = self._builders[trial.rung]
        if self.is_adapter:
            builder.globals.set(sizes)
            config = Configuration(sizes, [])
            made = self._run(self.name, lambda: self.make(config, leaves), "build")
            if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
                must = "it must return the layer and its state dict"
                raise _Faulty("build", f"{self.name} returns {kind_of(made)}; {must}")
            layer, state = made
            reading = [Layout(lambda given: state, label="by the adapter")]
        else:
            try:
                layer, reading = self._run(self.name, lambda: builder.build(sizes), "build"), None
            finally:
                self._known = replace(self._known, fixed={**self._known.fixed, **sizes.fixed})
        self._passed |= sizes.passed
        self._mask = sizes.mask
        if not isinstance(layer, nn.Module):
            raise _Faulty("build", f"{self.name} makes {kind_of(layer)}, which is no nn.Module")
        for one, other in tie_shared(layer):
            self._notes[
                f"two parameters have the same numbers, {one} and {other}, so that an optimizer changes them twice in "
                f"each step; they were judged as one, which {other} = {one} makes them"
            ] = None
        low = next((p.dtype for p in layer.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
        self._known = replace(self._known, precision=str(low).removeprefix("torch.") if low else "")
        return layer, reading

    def _call_before(self, layer: nn.Module, way: str, request: Request) -> list[tuple[str, Place]]:
        """Call the layer on what comes before the trial; return what that changes, if it is asked for."""
        watched = request.look or request.restore
        with ExitStack() as stack, torch.no_grad():
            kept = stack.enter_context(KeptState(self.code, layer, self.namespace)) if watched else None
            for earlier in request.trial.before:
                own, length = _ordered(earlier.clone(), request), earlier.shape[1]
                self._run("the call before", partial(call, layer, own, way, set(), length, self._mask))
        if kept is not None:
            kept.restore(request.restore)
        return kept.changed if kept is not None else []

    def _layout(
        self, layer: nn.Module, reading: Sequence[Layout] | None, request: Request, births: Births
    ) -> tuple[Layout, str]:
        """Return the requested way to read the parameters, and to make the mask that forward takes."""
        trial = request.trial
        if reading is None:
            try:
                reading = read(layer, trial.rung, trial.config, self.asked)
            except Unlearned as error:
                place = next((place for place in births.buffers.values() if place), None)
                raise _Faulty("unlearned", str(error), place) from error
            except Unreadable as error:
                fixed = fixed_sizes(layer, trial.rung, trial.config, self.asked, self.chosen)
                self._known = replace(self._known, fixed={**self._known.fixed, **fixed})
                names, sizes = shapes(trial.rung, trial.config), size_names(trial.config, trial.given)
                own = {name: tuple(tensor.shape) for name, tensor in layer.named_parameters()}
                listing = "" if isinstance(error, Repeated) else both_sides(names, own, sizes)
                message = f"{self.name}'s parameters cannot be read: {error}"
                raise _Faulty("parameters", message, listing=listing) from error
            self._known = replace(self._known, missing=reading[0].missing)
        masks = ways_to_call(layer, trial.rung, bool(self._mask.name))
        if self._ways is None:
            self._ways = Ways(reading, masks)
            self._known = replace(self._known, ways=self._ways.splits, masks=self._ways.masks)
        layout, mask = self._ways.find(request.layout, reading, masks)
        self._known = replace(self._known, reading=layout.label, oddity=layout.oddity, mask=mask)
        return layout, mask

    def _run(self, what: str, run: Callable[[], Any], kind: str = "raises") -> Any:
        """Call the user's code; what it raises is its fault."""
        try:
            return run()
        except KeyboardInterrupt:
            raise
        except Refused as error:
            raise _Faulty("build", f"{self.name} {error}", names=error.names) from error
        except Unavailable as error:
            raise _Faulty("refused", f"{what} cannot be run: {error}", self.code.raised(error)) from error
        except SystemExit as error:
            raise _Faulty("exit", f"{what} calls exit()", self.code.raised(error)) from error
        except BaseException as error:
            if isinstance(error, TypeError) and not self.code.raised(error) and "forward() " in str(error):
                message = f"forward cannot be called: {one_line(error)}; write an adapter whose layer takes one input"
                raise _Faulty("refused", message) from error
            if kind == "raises" and is_unknown_field(error):  # the message asks for the value
                kind = "refused"
            raise _Faulty(kind, f"{what} raises {one_line(error)}", self.code.raised(error)) from error


def _ordered(value: Any, request: Request) -> Any:
    """Return a tensor in the layer's order of axes if it is in GPT-2's, and the other way round."""
    is_turned = request.sequence_first and isinstance(value, Tensor) and value.ndim > 1
    return value.transpose(0, 1).contiguous() if is_turned else value


def _check_arguments(layer: nn.Module) -> None:
    """Refuse a layer whose forward asks for what is not known."""
    if unknown := unknown_arguments(layer):
        why = " and ".join(sorted({foreign(name) or "what to give it is not known" for name in unknown}))
        message = f"forward asks for {', '.join(unknown)}, and {why}: write an adapter whose layer asks for none"
        raise _Faulty("refused", message, names=tuple(unknown))


def _fill(layer: nn.Module, named: str, state: Mapping[str, Tensor], trial: Trial) -> None:
    """Copy parameters in; every place must get one."""
    places = dict(layer.named_parameters(remove_duplicate=False))
    filled = {id(places[name]) for name in state if name in places}
    if again := repeated(layer, state):
        raise _Faulty("parameters", f"{named}'s parameters cannot be read: {again}")
    buffers = dict(layer.named_buffers())
    wrong = [name for name, place in places.items() if name in state and place.shape != state[name].shape]
    empty = [name for name, place in places.items() if id(place) not in filled]
    unknown = [name for name in state if name not in places and name not in buffers]
    if wrong or empty or unknown:
        given, own = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (state, places))
        raise _Faulty(
            "parameters",
            f"{named}'s parameters do not match: {mismatch(wrong, empty, unknown)}",
            listing=both_sides(given, own, size_names(trial.config, trial.given), [*wrong, *empty, *unknown]),
        )
    with torch.no_grad():
        for name, tensor in state.items():
            (places | buffers)[name].copy_(tensor)


def _checked(output: Any, given: Tensor, trial: Trial) -> tuple[Tensor, list[str]]:
    """Return the output if it is of the kind that it must be, and what to note of it."""
    if not isinstance(output, Tensor):
        must = "it must return a tensor, or a tuple or a dictionary that begins with one"
        raise _Faulty("type", f"forward returns {kind_of(output)}; {must}")
    notes, wanted = [], trial.cotangent.shape
    shared = output.shape[:-2] in ((), (1,)) and output.shape[-2:] == wanted[-2:]
    if trial.rung == "pos-embed" and shared and output.shape != wanted:
        notes.append("forward returns the positions once, for all sequences of the batch")
        output = output.expand(wanted)
    if output.shape != wanted:
        sizes = size_names(trial.config, trial.given)
        message = f"forward returns {axes(output.shape, sizes)}; it must return {axes(wanted, sizes)}"
        if trial.rung == "model" and output.shape == (*wanted[:-1], trial.config.d_model):
            message += ", the logits: W_U is not applied to what it returns"
        raise _Faulty("shape", message)
    if output.dtype != trial.dtype:
        got, want = (str(dtype).removeprefix("torch.") for dtype in (output.dtype, trial.dtype))
        raise _Faulty("dtype", f"forward returns {got} where its input and its parameters are {want}")
    if not torch.equal(given, trial.given):
        raise _Faulty("input", "forward changes its input in place: the caller's tensor has other numbers afterwards")
    return output, notes
