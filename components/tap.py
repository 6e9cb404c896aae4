"""One named activation: the identity module that it passes through, and what a hook function gets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Direction = Literal["fwd", "bwd", "both"]


class HookFunction(Protocol):
    """A function on an activation: return what replaces it, or None to leave it."""

    def __call__(self, activation: Tensor, /, *, hook: "HookPoint") -> Any:
        """Return what replaces the activation at ``hook``, or None."""
        ...


class HookPoint:
    """The place of a hook function, which gets it as ``hook`` (as of TransformerLens's class of this name).

    Attributes:
        name: name of the activation, ``blocks.0.attn.hook_pattern``.
        ctx: a dictionary for the hook functions' own notes. All functions on one activation of a model share it, also
            in later calls, until `reset_hooks` or ``clear_contexts``.

    Example:
        >>> HookPoint("blocks.3.attn.hook_z").layer()
        3
    """

    def __init__(self, name: str, ctx: dict[Any, Any] | None = None) -> None:
        self.name = name
        self.ctx: dict[Any, Any] = {} if ctx is None else ctx

    def layer(self) -> int:
        """Return the number of the block that the activation belongs to.

        Raises:
            ValueError: it belongs to no block.
        """
        head, _, rest = self.name.partition(".")
        if head != "blocks":
            raise ValueError(f"{self.name!r} belongs to no block")
        return int(rest.partition(".")[0])

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r})"


class Tap(nn.Module):
    """The identity, at a place where an activation can be read or replaced.

    Args:
        on_request: the activation is large, or costs time: only hooks that name it exactly get it, until `offer`.

    Attributes:
        name: the ``hook.name`` that hook functions of `add_hook` get; a `GPT2` sets it.
        offered: predicates on names, and caches, find it.
        ctx: see `HookPoint`.

    Example:
        >>> tap = Tap()
        >>> remove = tap.add_hook(lambda activation, hook: activation + 1)
        >>> tap(torch.zeros(2))
        tensor([1., 1.])
        >>> remove()
        >>> tap(torch.zeros(2))
        tensor([0., 0.])
    """

    def __init__(self, *, on_request: bool = False) -> None:
        super().__init__()
        self.name = ""
        self.offered = not on_request
        self.ctx: dict[Any, Any] = {}

    @property
    def fwd_hooks(self) -> list[HookFunction]:
        """The functions on this activation that act in this thread, by `add_hook` or in a block of `hooks`."""
        return [hook.function for hook in self._acting() if hook.dir == "fwd"]

    @property
    def bwd_hooks(self) -> list[HookFunction]:
        """The functions on its gradient that act in this thread."""
        return [hook.function for hook in self._acting() if hook.dir == "bwd"]

    def _acting(self) -> list["ActingHook"]:
        in_blocks = [hook for functions in _in_this_thread.get() for hook in functions.get(self, ())]
        return in_blocks + [added.hook for added in self._forward_hooks.values() if isinstance(added, _Added)]

    @property
    def active(self) -> bool:
        """Whether a hook needs this activation, so that a fused kernel, which never forms it, must not be used."""
        if self._forward_hooks or self._forward_pre_hooks:
            return True
        return any_hooks() and any(functions.get(self) for functions in _in_this_thread.get())

    def forward(self, activation: Tensor) -> Tensor:
        """Return the activation as hooks leave it."""
        if self._forward_hooks:  # PyTorch calls these afterwards
            activation = activation.clone()
        if any_hooks():
            for functions in _in_this_thread.get():
                for hook in functions.get(self, ()):
                    activation = hook.call(activation)
        return activation

    def add_hook(
        self,
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        *,
        prepend: bool = False,
        is_permanent: bool = False,
        name: str | None = None,
    ) -> Callable[[], None]:
        """Call a function on this activation from now on, in every thread, and return a function that removes it.

        Args:
            hook: the function.
            dir: ``fwd`` for the activation, ``bwd`` for its gradient.
            prepend: call it before those that were added earlier.
            is_permanent: keep it when hooks are removed, unless that includes permanent ones.
            name: the ``hook.name`` that it gets (default: `name`).

        Raises:
            ValueError: another ``dir``.
        """
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"dir is {dir!r}; it can be 'fwd' or 'bwd'")
        point = HookPoint(self.name if name is None else name, self.ctx)
        acting_hook = on_activation(hook, point) if dir == "fwd" else on_gradient(hook, point, None)
        return self.register_forward_hook(_Added(acting_hook, is_permanent), prepend=prepend).remove

    def remove_hooks(self, dir: Direction = "both", *, including_permanent: bool = False) -> None:
        """Remove what `add_hook` added, and the hooks of this thread's blocks of `hooks`.

        Args:
            dir: ``fwd`` or ``bwd`` for hooks on the activation or on its gradient alone.
            including_permanent: remove permanent hooks too.

        Raises:
            ValueError: another ``dir``.
        """
        if dir not in ("fwd", "bwd", "both"):
            raise ValueError(f"dir is {dir!r}; it can be 'fwd', 'bwd' or 'both'")
        for key, added in list(self._forward_hooks.items()):
            if not isinstance(added, _Added) or (added.is_permanent and not including_permanent):
                continue
            if dir in (added.hook.dir, "both"):
                del self._forward_hooks[key]
        for functions in _in_this_thread.get():
            if self in functions:
                functions[self] = [hook for hook in functions[self] if dir not in (hook.dir, "both")]


class ActingHook(NamedTuple):
    """A hook function at a tap, and what the tap calls for it."""

    function: HookFunction
    dir: Literal["fwd", "bwd"]
    call: Callable[[Tensor], Tensor]


# What each block of hooks wants at each tap, outermost block first. Each thread and asyncio task has its own.
Functions = dict[Tap, list[ActingHook]]
_in_this_thread: ContextVar[tuple[Functions, ...]] = ContextVar("gptladder_hooks", default=())

# Blocks of hooks under way in any thread: usually none, and a tap, of which a model has hundreds, then only looks here.
_blocks: set[int] = set()


def any_hooks() -> bool:
    """Return whether a block of `hooks` is under way in this thread, on any module.

    Example:
        >>> any_hooks()
        False
    """
    return bool(_blocks) and not torch.compiler.is_compiling() and bool(_in_this_thread.get())


@contextmanager
def acting(functions: Functions) -> Iterator[None]:
    """Call functions at their taps within the block, in this thread or asyncio task alone."""
    _blocks.add(id(functions))
    _in_this_thread.set((*_in_this_thread.get(), functions))
    try:
        yield
    finally:
        _in_this_thread.set(tuple(other for other in _in_this_thread.get() if other is not functions))
        _blocks.discard(id(functions))


class _Added:
    """A hook function as PyTorch calls it, recognisable as `add_hook`'s."""

    def __init__(self, hook: ActingHook, is_permanent: bool) -> None:
        self.hook, self.is_permanent = hook, is_permanent

    def __call__(self, tap: Tap, args: tuple[Tensor], activation: Tensor) -> Tensor:
        return self.hook.call(activation)


def on_activation(function: HookFunction, point: HookPoint) -> ActingHook:
    """Return a hook on an activation, with what the tap calls for it."""

    def call(activation: Tensor) -> Tensor:
        activation = activation.clone()  # the hook may change it in place
        replacement = function(activation, hook=point)
        return activation if replacement is None else replacement

    return ActingHook(function, "fwd", call)


def on_gradient(function: HookFunction, point: HookPoint, handles: list[Any] | None) -> ActingHook:
    """Return a hook on a gradient, with what the tap calls; ``handles`` gets what removes it from the gradient."""

    def replaced(gradient: Tensor) -> Tensor | None:
        replacement = function(gradient, hook=point)
        return replacement[0] if isinstance(replacement, tuple) else replacement

    def call(activation: Tensor) -> Tensor:
        activation = activation.clone()  # a view of another activation would share its gradient's hooks
        if activation.requires_grad:
            handle = activation.register_hook(replaced)
            if handles is not None:
                handles.append(handle)
        return activation

    return ActingHook(function, "bwd", call)
