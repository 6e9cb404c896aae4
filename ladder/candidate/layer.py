"""The user's layer: built for given sizes, filled with given parameters, run forwards and backwards."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from ..numbers import Answer, backward
from ..results import Fault
from .borrowed import BorrowedCalls, borrowed_classes
from .configuration import FIELDS, SIZES, Builder, Refused, Sizes
from .parameters import Layout, Reading, Unreadable, read, shapes
from .source import CandidateError, Code, said
from .trace import Births, Place, Recorder, Trace, Widened


@dataclass(frozen=True)
class Request:
    """A trial without its expected answer, and how to run the layer on it.

    Args:
        rung: its name.
        parameters, given, cotangent: as in `Trial`.
        layout: which way to read the layer's parameters.
        before: inputs that the same instance is called with first.
        look: record a trace.
        wide: compute in the trial's dtype even where the layer asks for a lower one.
        gradients: run the backward pass too.
    """

    rung: str
    config: GPT2Config
    dtype: torch.dtype
    parameters: Mapping[str, Tensor]
    given: Tensor
    cotangent: Tensor
    layout: int = 0
    before: tuple[Tensor, ...] = ()
    look: bool = False
    wide: bool = False
    gradients: bool = True


@dataclass(frozen=True)
class Reply:
    """A layer's reply to a request.

    Args:
        answer: None if there is a fault.
        asked: the fields of the configuration that it has read so far; the others make no difference to it.
        missing: TransformerLens's names of the parameters that it does not have.
        layouts: a label and an oddity for each way to read its parameters; see `Layout`.
        passed: arguments that were given another value than the file's default: ``(value, default)``.
        notes: how it was called, if not in the plain way.
        trace: if one was asked for.
        borrowed: what it takes ready-made from libraries.
    """

    answer: Answer | None = None
    fault: Fault | None = None
    asked: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    layouts: tuple[tuple[str, str], ...] = ()
    passed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trace: Trace = field(default_factory=Trace)
    borrowed: tuple[str, ...] = ()


class _Faulty(Exception):
    def __init__(self, kind: str, message: str, place: Place | None = None, **more: Any) -> None:
        super().__init__(message)
        at, code = place or (None, None)
        self.fault = Fault(kind, message, at, code, **more)


# Ways to make a causal mask, for a forward that takes one.
_MASKS: Mapping[str, Callable[[int, torch.dtype], Tensor]] = {
    "ones where a query may look": lambda seq, dtype: torch.ones(1, 1, seq, seq, dtype=torch.bool).tril(),
    "True where a query may not look": lambda seq, dtype: torch.ones(1, 1, seq, seq, dtype=torch.bool).triu(1),
    "-inf where a query may not look": lambda seq, dtype: torch.full((1, 1, seq, seq), -torch.inf, dtype=dtype).triu(1),
}


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
        self._missing: frozenset[str] = frozenset()
        self._layouts: tuple[tuple[str, str], ...] = ()
        self._borrowed: set[str] = set()
        self._called_once = False

    def respond(self, request: Request) -> Reply:
        """Build the layer, fill it with the request's parameters, and run it forwards and backwards."""
        answer = fault = None
        trace = Trace()
        try:
            answer = self._answer(request, trace)
        except _Faulty as error:
            fault = error.fault
        return Reply(
            answer=answer,
            fault=fault,
            asked=frozenset(self.asked),
            missing=self._missing,
            layouts=self._layouts,
            passed=dict(self._passed),
            notes=tuple(self._notes),
            trace=trace,
            borrowed=tuple(sorted(self._borrowed)),
        )

    def _answer(self, request: Request, trace: Trace) -> Answer:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in request.parameters.items()}
        births = Births(self.code)
        with ExitStack() as stack:
            if request.wide:
                stack.enter_context(Widened(request.dtype))
            with births:
                layer, reading = self._build(request, leaves)
            self._borrowed |= borrowed_classes(layer, request.rung)
            layer.to(request.dtype).eval()
            layout, way = self._layout(layer, reading, request)
            state = layout.fill(leaves)
            self._fill(layer, state, leaves, request, reading)
            leaf = request.given.clone().requires_grad_(request.given.is_floating_point())
            # As in a model, where it comes from the layer before: no leaf of the graph, but what others still need.
            given = leaf.clone()
            for earlier in request.before:
                with torch.no_grad():
                    self._run("the call before", lambda earlier=earlier: _call(layer, earlier.clone(), way, set()))
            extras: set[str] = set()
            if request.look:
                recorder = Recorder(self.code, layer, given, request.dtype, births)
                recorder.trace = trace
                with recorder.recording(_parts(layer, state, leaves)):
                    output = self._run("forward", lambda: _call(layer, given, way, extras))
                recorder.ended(output)
            else:
                # Which functions of libraries it calls is the same in every case.
                with BorrowedCalls(request.rung, libraries=not self._called_once) as borrowed:
                    output = self._run("forward", lambda: _call(layer, given, way, extras))
                self._called_once = True
                self._borrowed |= borrowed.names
            output = self._checked(output, given, request)
            self._notes |= dict.fromkeys(sorted(extras))
            if output.requires_grad and request.gradients:  # a layer that cuts the graph has no gradients
                self._run("the backward pass", lambda: backward(output, request.cotangent))
        gradients = _pull_back(layer, state, leaves)
        if leaf.grad is not None:
            gradients["input"] = leaf.grad
        # A tensor of a class of the user's own is one for the user's process only.
        bare = {name: gradient.as_subclass(Tensor) for name, gradient in gradients.items()}
        return Answer(output.detach().as_subclass(Tensor), bare)

    def _build(self, request: Request, leaves: dict[str, Tensor]) -> tuple[nn.Module, Reading | None]:
        """Return the layer, and how its parameters are read if an adapter says so."""
        sizes = Sizes.of(request.config, self.chosen, self.asked)
        builder = self._builders.setdefault(request.rung, Builder(self.make, request.rung, self.namespace))
        if self.is_adapter:
            builder.set_constants(sizes)
            config = _AdapterConfig(sizes)
            made = self._run(self.name, lambda: self.make(config, leaves), "build")
            if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
                must = "it must return the layer and its state dict"
                raise _Faulty("build", f"{self.name} returns {_kind(made)}; {must}")
            layer, state = made
            reading = Reading([Layout(lambda given: state, "by the adapter")])
        else:
            layer, reading = self._run(self.name, lambda: builder.build(sizes), "build"), None
        self._passed |= sizes.passed
        if not isinstance(layer, nn.Module):
            raise _Faulty("build", f"{self.name} makes {_kind(layer)}, which is no nn.Module")
        return layer, reading

    def _layout(self, layer: nn.Module, reading: Reading | None, request: Request) -> tuple[Layout, str]:
        """Return the requested way to read the parameters, and to make the mask that forward takes."""
        if reading is None:
            try:
                reading = read(layer, request.rung, request.config)
            except Unreadable as error:
                names = shapes(request.rung, request.config)
                sizes = _sizes(request)
                listing = _both_sides(names, {n: tuple(t.shape) for n, t in layer.named_parameters()}, sizes)
                message = f"{self.name}'s parameters cannot be read: {error}"
                raise _Faulty("parameters", message, listing=listing) from error
            self._missing = reading.missing
        masks = _masks(layer)
        ways = [(layout, mask) for mask in masks for layout in reading.layouts]
        self._layouts = tuple((layout.label, layout.oddity) for layout, _ in ways)
        return ways[min(request.layout, len(ways) - 1)]

    def _run(self, what: str, call: Callable[[], Any], kind: str = "raises") -> Any:
        """Call the user's code; what it raises is its fault."""
        try:
            return call()
        except KeyboardInterrupt:
            raise
        except Refused as error:
            message = f"{self.name} asks for {error}, which is not known: give it with --set {error}=VALUE"
            raise _Faulty("build", message, names=(str(error),)) from error
        except SystemExit as error:
            raise _Faulty("exit", f"{what} calls exit()", self.code.raised(error)) from error
        except BaseException as error:
            raise _Faulty(kind, f"{what} raises {said(error)}", self.code.raised(error)) from error

    def _fill(
        self,
        layer: nn.Module,
        state: Mapping[str, Tensor],
        leaves: dict[str, Tensor],
        request: Request,
        reading: Reading | None,
    ) -> None:
        """Copy parameters in; every place must get one."""
        places = dict(layer.named_parameters(remove_duplicate=False))
        filled = {id(places[name]) for name in state if name in places}
        buffers = dict(layer.named_buffers())
        wrong = [name for name, place in places.items() if name in state and place.shape != state[name].shape]
        empty = [name for name, place in places.items() if id(place) not in filled]
        unknown = [name for name in state if name not in places and name not in buffers]
        if wrong or empty or unknown:
            given = {name: tuple(tensor.shape) for name, tensor in state.items()}
            own = {name: tuple(tensor.shape) for name, tensor in places.items()}
            raise _Faulty(
                "parameters",
                f"{self.name}'s parameters do not match: {_mismatch(wrong, empty, unknown)}",
                listing=_both_sides(given, own, _sizes(request), [*wrong, *empty, *unknown]),
            )
        if reading is not None:  # an adapter: what it makes nothing of is missing
            used = [tensor.sum() for name, tensor in state.items() if name in places and tensor.requires_grad]
            reached = (
                torch.autograd.grad(used, list(leaves.values()), allow_unused=True, retain_graph=True) if used else ()
            )
            pairs = zip(leaves, reached or [None] * len(leaves), strict=True)
            self._missing = frozenset(name for name, found in pairs if found is None)
        with torch.no_grad():
            for name, tensor in state.items():
                (places | buffers)[name].copy_(tensor)

    def _checked(self, output: Any, given: Tensor, request: Request) -> Tensor:
        if not isinstance(output, Tensor):
            must = "it must return a tensor, or a tuple that begins with one"
            raise _Faulty("type", f"forward returns {_kind(output)}; {must}")
        shared = output.shape[:-2] in ((), (1,)) and output.shape[-2:] == request.cotangent.shape[-2:]
        if request.rung == "pos-embed" and shared and output.shape != request.cotangent.shape:
            self._notes["forward returns the positions once, for all sequences of the batch"] = None
            output = output.expand(request.cotangent.shape)
        if output.shape != request.cotangent.shape:
            sizes = _sizes(request)
            got, want = _axes(output.shape, sizes), _axes(request.cotangent.shape, sizes)
            raise _Faulty("shape", f"forward returns {got}; it must return {want}")
        if output.dtype != request.dtype:
            got, want = (str(dtype).removeprefix("torch.") for dtype in (output.dtype, request.dtype))
            raise _Faulty("dtype", f"forward returns {got} where its input and its parameters are {want}")
        if not torch.equal(given, request.given):
            raise _Faulty("input", "forward changes its input in place; the layers around it still need the old one")
        return output


def _mismatch(wrong: Sequence[str], empty: Sequence[str], unknown: Sequence[str]) -> str:
    said = [f"{', '.join(wrong)} of another shape"] if wrong else []
    said += [f"{', '.join(unknown)} not in the layer"] if unknown else []
    said += [f"nothing for {', '.join(empty)}"] if empty else []
    return "; ".join(said)


class _AdapterConfig:
    """The configuration that an adapter gets: TransformerLens's names, as attributes."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._sizes.get(name)
        except KeyError:
            raise AttributeError(f"the configuration has no {name!r}; it has {', '.join(FIELDS)}") from None


def _is_mask(name: str) -> bool:
    return "mask" in name.lower()


def _forward(layer: nn.Module) -> list[inspect.Parameter]:
    named = inspect.signature(layer.forward).parameters.values()
    return [
        each for each in named if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]


def _masks(layer: nn.Module) -> list[str]:
    """Return the ways to make the mask that forward takes; first none, if it can do without."""
    taking = [each for each in _forward(layer) if _is_mask(each.name)]
    if not taking:
        return [""]
    return [*([""] if all(each.default is not each.empty for each in taking) else []), *_MASKS]


def _call(layer: nn.Module, given: Tensor, mask: str, extras: set[str]) -> Any:
    """Call the layer with its input, and with what else its forward needs."""
    arguments = _forward(layer)
    required = [each for each in arguments if each.default is each.empty and not _is_mask(each.name)]
    # TransformerLens's attention takes the input of queries, of keys and of values.
    positional = [given] * (3 if len(required) == 3 else 1)
    keywords = {}
    if mask:
        name = next(each.name for each in arguments if _is_mask(each.name))
        keywords[name] = _MASKS[mask](given.shape[1], given.dtype)
        extras.add(f"forward was given a causal mask ({name}: {mask}), so its own masking was not judged")
    output = layer(*positional, **keywords)
    if (
        isinstance(output, tuple)
        and output
        and isinstance(output[0], Tensor)
        and not given.is_floating_point()
        and output[0].ndim == 3
        and given.shape[1] > 1
        and output[0].shape[1] == 1
        and any(each.name in ("targets", "labels") for each in arguments)
    ):
        # nanoGPT's model gives all logits only if it is asked for the loss.
        name = next(each.name for each in arguments if each.name in ("targets", "labels"))
        try:
            again = layer(*positional, **keywords, **{name: given})
        except Exception:  # then its one position is its answer
            again = None
        if isinstance(again, tuple) and isinstance(again[0], Tensor) and again[0].shape[1:2] == given.shape[1:]:
            extras.add(f"without {name}, forward returns the last position's logits only; it was judged with {name}")
            output = again
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output:
        return output[0]
    return getattr(output, "logits", output)


def _parts(layer: nn.Module, state: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Return the submodules that hold one of GPT-2's layers each, by our layer's name (``blocks.0.attn``)."""
    holds: dict[str, set[str]] = {}
    for name, tensor in state.items():
        if tensor.requires_grad and name in dict(layer.named_parameters(remove_duplicate=False)):
            found = torch.autograd.grad(tensor.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
            ours = {leaf for leaf, gradient in zip(leaves, found, strict=True) if gradient is not None}
            path = name.rpartition(".")[0]
            while path:
                holds.setdefault(path, set()).update(ours)
                path = path.rpartition(".")[0]
    modules = dict(layer.named_modules(remove_duplicate=False))
    wanted: dict[str, set[str]] = {}
    for leaf in leaves:
        parts = leaf.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            wanted.setdefault(".".join(parts[:depth]), set()).add(leaf)
    found_parts: dict[str, nn.Module] = {}
    for ours, leaves_of in wanted.items():
        exact = [path for path, held in holds.items() if held == leaves_of]
        if exact and ours != "blocks":
            found_parts[ours] = modules[min(exact, key=len)]
    return found_parts


def _pull_back(layer: nn.Module, state: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of the layer's parameters as gradients of those that they were made from."""
    names: dict[int, str] = {}
    for name, place in layer.named_parameters(remove_duplicate=False):
        if name in state and state[name].requires_grad and place.grad is not None:
            names.setdefault(id(place), name)  # a tied one has two names, and one gradient
    if not names:
        return {}
    # As one number: autograd.grad with several outputs imports sympy to check their shapes.
    terms = []
    for name in names.values():
        grad = layer.get_parameter(name).grad
        assert grad is not None
        terms.append((state[name] * grad).sum())
    total = torch.stack(terms).sum()
    pulled = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name: found for name, found in zip(leaves, pulled, strict=True) if found is not None}


def _sizes(request: Request) -> dict[int, str]:
    """Return the name of each length. The sizes of a case are different; where they are not, the first name counts."""
    batch, seq = request.given.shape[:2]
    named = {"batch": batch, "seq": seq} | {name: getattr(request.config, name) for name in SIZES if name != "n_layers"}
    names: dict[int, str] = {}
    for factor in (1, 3):
        for name, size in named.items():
            names.setdefault(factor * size, name if factor == 1 else f"3*{name}")
    return names


def _axes(shape: Sequence[int], sizes: Mapping[int, str]) -> str:
    return f"[{' '.join(sizes.get(length, str(length)) for length in shape)}]"


def _both_sides(
    given: Mapping[str, Sequence[int]],
    own: Mapping[str, Sequence[int]],
    sizes: Mapping[int, str],
    wrong: Sequence[str] | None = None,
) -> str:
    """Return GPT-2's parameters beside the layer's, marked where they differ."""
    lines = [f"    {'GPT-2':<36} yours"]
    rows = dict.fromkeys((*given, *own))
    for name in list(rows)[:24]:
        left = f"{name} {_axes(given[name], sizes)}" if name in given else ""
        right = f"{name} {_axes(own[name], sizes)}" if name in own else ""
        mark = "x" if (left != right if wrong is None else name in wrong) else " "
        lines.append(f"  {mark} {left:<36} {right}".rstrip())
    if len(rows) > 24:
        lines.append(f"    … and {len(rows) - 24} more")
    return "\n".join(lines)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
