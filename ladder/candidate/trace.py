"""Record the user's layer as it runs: every tensor that it makes, with the line that made it."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from .built_masks import BuiltMasks
from .own_functions import OwnFunctions
from .places import Code, Place

# They make a tensor of their own like another one, and so have no gradient to pass on.
_LIKE = ("_like", "new_")
# They make the first tensor that they take like the second.
_AS = ("to", "type_as", "expand_as", "view_as", "reshape_as")
# Attributes of a tensor that are tensors made of it.
_VIEWS = ("T", "mT", "H", "mH", "data", "real")
# Of other functions, single numbers are not kept: a layer written in loops has thousands.
STATISTICS = ("mean", "var", "std", "var_mean", "std_mean", "norm")
# No more is kept: of a layer that loops over positions, the beginning shows how it works.
_MOST_EVENTS, _MOST_NUMBERS, _MOST_IN_ALL = 3000, 500_000, 5_000_000
_LOW = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Event:
    """One call of a torch function; or a buffer, at its first use.

    Args:
        function: its name; ``buffer`` of a buffer.
        at: ``file:line`` in the user's source, and that line; of a buffer, those where it was registered. (The steps
            that made it are events before it, if it is a square, as masks are.)
        made: where the module that made the call was built, if it is one of torch's (an ``nn.Linear``, say).
        value: what it gave, or changed in place.
        inputs: the events that it took values from; -1 is the layer's input.
        parameters: the names of the parameters that it took.
        within: the submodules that ran, from the outermost: their names, and the line that called each.
        foreign: it took a tensor that is neither of these: one that the layer has kept, say.
        loop: the loop in whose body its line is.
        caller: the line that called the function in which its line is.
        calls: the calls of the user's functions in which it ran, from the outermost, each with a number of its own.
    """

    function: str
    at: Place | None
    made: Place | None
    value: Tensor
    inputs: tuple[int, ...]
    parameters: tuple[str, ...]
    within: tuple[tuple[str, Place | None], ...] = ()
    foreign: bool = False
    loop: Place | None = None
    caller: Place | None = None
    calls: tuple[int, ...] = ()


@dataclass
class Trace:
    """What was recorded of one forward pass.

    Args:
        events: in order.
        places: the first line that changes the layer's ``input``, makes ``nan`` from none, computes with a lower
            ``dtype``, or cuts the ``gradient``; the line of the layer's own ``forward`` that its output is ``returned``
            from; and that of a ``backward`` of the user's that does not give the derivative of its ``forward``.
        parts: input and output of each call of a submodule, by the submodule's name.
        cuts: every line that cuts the gradient, once.
        kept: what the calls before changed in the layer, such as ``self.cache``, with the line that did it last.
        output: the event that gave the layer's output; -1 if it is not known.
        whole: no event was left out, for its size or their number.
    """

    events: list[Event] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    parts: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    cuts: list[Place] = field(default_factory=list)
    kept: list[tuple[str, Place]] = field(default_factory=list)
    output: int = -1
    whole: bool = True


class Births:
    """Notes where in the user's source each module is built and each buffer registered, while the layer is built.

    Args:
        code: the user's source.
        look: note how masks are made, too.
    """

    def __init__(self, code: Code, look: bool = False) -> None:
        self.code, self.look = code, look
        self.masks = BuiltMasks(code)
        self.made: dict[tuple[int, str], int | None] = {}
        self.places: dict[int, Place | None] = {}
        self.buffers: dict[tuple[int, str], Place | None] = {}

    def __enter__(self) -> "Births":
        self._init = init = nn.Module.__init__
        self._register = register = nn.Module.register_buffer
        places, buffers, code = self.places, self.buffers, self.code
        made, masks = self.made, self.masks

        def noting(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            init(module, *args, **kwargs)
            # A method may be wrapped by a decorator of a library: the class is the user's if any of them is.
            methods = [inspect.unwrap(each) for each in vars(type(module)).values() if inspect.isfunction(each)]
            if not any(code.owns(method.__code__.co_filename) for method in methods):
                places[id(module)] = code.running()

        def registering(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> None:
            register(module, name, *args, **kwargs)
            buffers[id(module), name] = code.running()
            made[id(module), name] = masks.step_of(module._buffers[name])

        nn.Module.__init__ = noting  # pyright: ignore[reportAttributeAccessIssue]
        nn.Module.register_buffer = registering  # pyright: ignore[reportAttributeAccessIssue]
        if self.look:
            self.masks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.look:
            self.masks.__exit__(*error)
        nn.Module.__init__ = self._init
        nn.Module.register_buffer = self._register


class Recorder(TorchFunctionMode):
    """Records every call of a torch function in a `Trace`.

    Args:
        code: the user's source.
        layer: the layer that runs.
        given: its input.
        dtype: the trial's.
        births: where its modules were built.
    """

    def __init__(self, code: Code, layer: nn.Module, given: Tensor, dtype: torch.dtype, births: Births) -> None:
        super().__init__()
        self.code, self.dtype = code, dtype
        self.given, self.before = given, given.detach().clone()
        self.births, self.masks = births.places, births.masks
        self._of_mask: dict[int, int] = {}
        self.trace = Trace()
        self._names = {id(tensor): name for name, tensor in layer.named_parameters()}
        self._parameters = [(tensor, tensor.detach().clone()) for tensor in layer.parameters()]
        self._buffers = {
            id(buffer): (buffer, births.buffers.get((id(module), name)), births.made.get((id(module), name)))
            for module in layer.modules()
            for name, buffer in module.named_buffers(recurse=False)
        }
        self._outermost: dict[int, tuple[str, int] | None] = {}
        self._made_by: dict[int, int] = {id(given): -1}
        self._kept: list[Any] = [given]  # so that no id is used again
        self._running: list[nn.Module] = []
        self._within: list[tuple[str, Place | None]] = []
        self._numbers = 0
        self._calls: dict[int, tuple[int, FrameType]] = {}  # the frames too, so that no id is used again
        self._paused = False
        self.own = OwnFunctions()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function, and record what it took and what it gave."""
        if self._paused:
            return func(*args, **(kwargs or {}))
        taken = list(_tensors([args, kwargs or {}]))
        had_nan = any(each.is_floating_point() and bool(each.isnan().any()) for each in taken)
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # an attribute, such as x.mT
            name = getattr(getattr(func, "__self__", None), "__name__", name)
            if name not in _VIEWS:
                return result
        if name.startswith("_is"):
            return result
        if not torch.equal(self.given, self.before) or (
            name.endswith(("_", "embedding")) and self._has_other_parameters()
        ):
            self._note("input")
        outputs = [args[0]] if name == "__setitem__" else list(_tensors([result]))
        self._record(name, taken, outputs)
        floats = [each for each in taken if each.is_floating_point()]
        for output in outputs:
            if output.is_floating_point():
                self._look(name, output, floats, had_nan)
        return result

    def _has_other_parameters(self) -> bool:
        self._paused = True
        other = any(not torch.equal(tensor.detach(), before) for tensor, before in self._parameters)
        self._paused = False
        return other

    def ended(self, output: Any) -> None:
        """Note which event gave the layer's output, and the line of ``forward`` itself that it comes from."""
        self.trace.output = self._made_by.get(id(output), -1)
        if line := self._outermost.get(self.trace.output):
            place = self.code.first([line])
            self.trace.places |= {"returned": place} if place else {}

    def _record(self, name: str, taken: list[Tensor], outputs: list[Tensor]) -> None:
        for each in taken:
            if id(each) in self._buffers and id(each) not in self._made_by:
                _, place, step = self._buffers[id(each)]
                inputs = () if step is None else self._keep_mask(step)
                self._keep(Event("buffer", place, None, each, inputs, ()), each)
            elif id(each) not in self._made_by and (step := self.masks.step_of(each)) is not None:
                self._made_by |= dict.fromkeys([id(each)], *self._keep_mask(step))
        # Of some that they take, they use the shape or the dtype.
        taken = [] if any(each in name for each in _LIKE) else taken[:1] if name in _AS else taken
        inputs = tuple(self._made_by[id(each)] for each in taken if id(each) in self._made_by)
        parameters = tuple(self._names[id(each)] for each in taken if id(each) in self._names)
        module = self._running[-1] if self._running else None
        made = self.births.get(id(module)) if module is not None else None
        foreign = any(self._is_foreign(each) for each in taken)
        place, around, frames = self.code.running(), self.code.around(), self.code.calls()
        calls = tuple(self._calls.setdefault(id(each), (len(self._calls), each))[0] for each in frames)
        for output in outputs:
            event = Event(name, place, made, output, inputs, parameters, tuple(self._within), foreign, *around, calls)
            self._keep(event, output)

    def _keep_mask(self, step: int) -> tuple[int, ...]:
        """Keep the steps that made a mask while the layer was built, as events; return the last of these."""
        for each in self.masks.until(step):
            if each not in self._of_mask:
                name, place, value, inputs = self.masks.steps[each]
                before = tuple(self._of_mask[i] for i in inputs if i in self._of_mask)
                self._keep(Event(name, place, None, value, before, ()), value)
                if id(value) in self._made_by:
                    self._of_mask[each] = self._made_by[id(value)]
        return (self._of_mask[step],) if step in self._of_mask else ()

    def _is_foreign(self, tensor: Tensor) -> bool:
        known = id(tensor) in self._made_by or id(tensor) in self._names
        return not known and tensor.is_floating_point() and tensor.numel() > 1

    def _keep(self, event: Event, output: Tensor) -> None:
        few = output.numel() < (1 if event.inputs and event.function in STATISTICS else 2)
        if few or output.is_complex():
            return
        value = output.detach().as_subclass(Tensor)
        self._numbers += value.numel()
        too_much = value.numel() > _MOST_NUMBERS or self._numbers > _MOST_IN_ALL
        if too_much or len(self.trace.events) >= _MOST_EVENTS:
            # A tensor made of neither inputs nor parameters, such as a mask, may be left out.
            self.trace.whole &= not (event.inputs or event.parameters)
            return
        value = value.double().clone() if value.is_floating_point() else value.clone()
        index = len(self.trace.events)
        self._made_by[id(output)] = index
        self._kept.append(output)
        self.trace.events.append(replace(event, value=value))
        self._outermost[index] = self.code.outermost()

    def _look(self, name: str, output: Tensor, taken: list[Tensor], had_nan: bool) -> None:
        """Note the first line that makes NaN, that computes with a lower dtype, and that cuts the gradient."""
        if not had_nan and output.isnan().any():
            self._note("nan")
        own = not any(each in name for each in _LIKE)
        wide = any(each.dtype == self.dtype for each in taken)
        if wide and own and (output.dtype != self.dtype or any(map(self._rounded, taken))):
            self._note("dtype")
        # A function with a derivative of its own needs none from torch.
        cut = own and not self.own.running and not output.requires_grad
        if cut and any(each.requires_grad for each in taken):
            place = self.code.running()
            decorator = None if torch.is_grad_enabled() else self.code.decorated("no_grad|inference_mode")
            if decorator is not None:
                self.trace.places.setdefault("gradient", decorator)
            self._note("gradient")
            self.trace.cuts += [place] if place and place not in self.trace.cuts else []

    def _rounded(self, tensor: Tensor) -> bool:
        """Return whether a tensor is of less precision, and its numbers need more: masks and small integers do not."""
        if tensor.dtype == self.dtype or tensor.numel() == 0:
            return False
        mantissa, _ = tensor[tensor.abs() < 1e6].double().frexp()
        return bool((mantissa * 2**21 % 1 != 0).any())

    def _note(self, what: str) -> None:
        place = self.code.running() if what not in self.trace.places else None
        if place:
            self.trace.places[what] = place

    @contextmanager
    def recording(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Record what runs in this context, and the calls of some submodules, by their names."""
        names = {id(module): name for name, module in parts.items()}

        def enter(module: nn.Module, args: Any) -> None:
            self._running.append(module)
            if id(module) in names:
                self._within.append((names[id(module)], self.code.running()))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self._running:
                self._running.pop()
            if id(module) in names and self._within:
                self._within.pop()
            output = next(_tensors([output]), None)
            given = next(_tensors([args]), None)
            if id(module) in names and output is not None and given is not None:
                self._paused = True
                before, after = (each.detach().as_subclass(Tensor).clone() for each in (given, output))
                self.trace.parts.append((names[id(module)], before, after))
                self._paused = False

        handles = [
            torch_module.register_module_forward_pre_hook(enter),
            torch_module.register_module_forward_hook(leave),
        ]
        try:
            with self, self.own:
                yield
        finally:
            for handle in handles:
                handle.remove()


class Widened(TorchFunctionMode):
    """Computes in a wide dtype wherever the layer asks for a lower one: an experiment, to see what rounding does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __enter__(self) -> "Widened":
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self._default)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function with the wide dtype in place of a lower one."""
        if getattr(func, "__name__", "") in ("float", "half", "bfloat16") and args and isinstance(args[0], Tensor):
            return args[0].to(self.dtype)

        def widen(each: Any) -> Any:
            return self.dtype if isinstance(each, torch.dtype) and each in _LOW else each

        return func(*map(widen, args), **{name: widen(each) for name, each in (kwargs or {}).items()})


class Attached(TorchFunctionMode):
    """Leaves the gradient whole on some lines that cut it: an experiment, to see which cut is the mistake.

    Args:
        code: the user's source.
        lines: each as ``file:line``.
    """

    def __init__(self, code: Code, lines: tuple[str, ...]) -> None:
        super().__init__()
        self.code, self.lines = code, lines

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function; on these lines with gradients, and without what detaches."""
        place = self.code.running()
        if not place or place[0] not in self.lines:
            return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        name = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name
        if name in ("detach", "data"):
            return args[0]
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
