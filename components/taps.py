"""Named activations: read, replace and cache what flows through a layer, under TransformerLens's names.

Every layer passes its intermediate values through identity modules, `Tap`, whose path is the activation's name:
``blocks.0.attn.hook_pattern``. `hooks`, `run_with_hooks` and `run_with_cache` work on any module that contains taps: a
whole model, one layer, or another library's model with one of our layers in it. They behave as
``transformer_lens.HookedTransformer``'s methods of the same names, with five differences:

* a name that matches nothing raises an error;
* a hook gets a copy of its own, so changing it in place changes nothing else;
* hooks are removed at the end of the block, whatever happens in it;
* they act in the thread (or asyncio task) that set them alone: other threads can use the model meanwhile;
* they act on a compiled model too, which runs uncompiled in the block.

A hook on an activation that a fused kernel never forms (``hook_attn_scores``, ``hook_pattern``, ``hook_scale``,
``hook_normalized``) makes that layer compute its formula step by step. The result is then the same to rounding, but not
to the bit: in bfloat16, logits were seen to differ by 0.05. Set ``model.fused = False`` to compute every call that way.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from .act_names import act_name
from .eager import uncompiled

Names = str | Sequence[str] | Callable[[str], bool]


class HookFunction(Protocol):
    """A function on an activation: return what replaces it, or None to leave it."""

    def __call__(self, activation: Tensor, /, *, hook: "HookPoint") -> Any:
        """Return what replaces the activation at ``hook``, or None."""
        ...


Hook = tuple[Names, HookFunction]


class HookPoint:
    """The place of a hook function, which gets it as ``hook`` (as of TransformerLens's class of this name).

    Attributes:
        name: name of the activation, ``blocks.0.attn.hook_pattern``.
        ctx: a dictionary for the hook functions' own notes; functions of one block of hooks share it at each name.

    Example:
        >>> HookPoint("blocks.3.attn.hook_z").layer()
        3
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ctx: dict[Any, Any] = {}

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

    Example:
        >>> layer = nn.Sequential(Tap())
        >>> with hooks(layer, [("0", lambda activation, hook: activation + 1)]):
        ...     layer(torch.zeros(2))
        tensor([1., 1.])
        >>> layer(torch.zeros(2))
        tensor([0., 0.])
    """

    @property
    def active(self) -> bool:
        """Whether a hook needs this activation, so that a fused kernel, which never forms it, must not be used."""
        if self._forward_hooks or self._forward_pre_hooks:
            return True
        return any_hooks() and any(self in functions for functions in _in_this_thread.get())

    def forward(self, activation: Tensor) -> Tensor:
        """Return the activation as hooks leave it."""
        if self._forward_hooks:  # PyTorch calls these afterwards
            activation = activation.clone()
        if any_hooks():
            for functions in _in_this_thread.get():
                for call in functions.get(self, ()):
                    activation = call(activation)
        return activation


# What each block of hooks wants at each tap, outermost block first. Each thread and asyncio task has its own.
_Functions = dict[Tap, list[Callable[[Tensor], Tensor]]]
_in_this_thread: ContextVar[tuple[_Functions, ...]] = ContextVar("gptladder_hooks", default=())

# Blocks of hooks under way in any thread: usually none, and a tap, of which a model has hundreds, then only looks here.
_blocks: set[int] = set()


def any_hooks() -> bool:
    """Return whether a block of `hooks` is under way in this thread, on any module.

    Example:
        >>> any_hooks()
        False
    """
    return bool(_blocks) and not torch.compiler.is_compiling() and bool(_in_this_thread.get())


def named_taps(module: nn.Module) -> dict[str, Tap]:
    """Return all taps of a module by name, without the marks that ``torch.compile`` leaves in names.

    Example:
        >>> from gptladder.components import MLP
        >>> list(named_taps(MLP(d_model=4)))
        ['hook_pre', 'hook_post']
    """
    return {
        name.replace("_orig_mod.", ""): submodule
        for name, submodule in module.named_modules()
        if isinstance(submodule, Tap)
    }


@contextmanager
def hooks(module: nn.Module, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = ()) -> Iterator[None]:
    """Call functions on a module's activations, and on their gradients, within the block.

    Args:
        module: anything that contains taps.
        fwd_hooks: pairs of names and a function ``(activation, hook) -> activation or None``, applied in this order.
            Names are one name, several, or a predicate on names.
        bwd_hooks: the same for the gradient of the activation (the function may return it in a tuple, as
            TransformerLens's do); call ``backward`` within the block.

    Raises:
        ValueError: names that match no tap of the module.

    Example:
        >>> from gptladder.components import MLP
        >>> mlp, x = MLP(d_model=4), torch.randn(1, 2, 4)
        >>> with hooks(mlp, [("hook_post", lambda post, hook: torch.zeros_like(post))]):
        ...     torch.equal(mlp(x), mlp.b_out.expand(1, 2, 4))
        True
    """
    taps = named_taps(module)
    points = {name: HookPoint(name) for name in taps}
    functions: _Functions = {}
    handles: list[Any] = []
    for names, function in fwd_hooks:
        for name in _matching(points, names):
            functions.setdefault(taps[name], []).append(_on_activation(function, points[name]))
    for names, function in bwd_hooks:
        for name in _matching(points, names):
            functions.setdefault(taps[name], []).append(_on_gradient(function, points[name], handles))
    _blocks.add(id(functions))
    _in_this_thread.set((*_in_this_thread.get(), functions))
    try:
        with uncompiled():  # compiled code would ignore the hooks
            yield
    finally:
        _in_this_thread.set(tuple(other for other in _in_this_thread.get() if other is not functions))
        _blocks.discard(id(functions))
        for handle in handles:
            handle.remove()


def add_hook(
    module: nn.Module, names: Names, function: HookFunction, dir: Literal["fwd", "bwd"] = "fwd"
) -> Callable[[], None]:
    """Call a function on activations from now on, in every thread, until `reset_hooks`.

    `hooks` is safer: it ends by itself, and leaves other threads alone. Modules that are compiled already ignore what
    is added here.

    Args:
        module: anything that contains taps.
        names: one name, several, or a predicate on names.
        function: as for `hooks`.
        dir: ``fwd`` for the activation, ``bwd`` for its gradient.

    Returns:
        A function that removes this hook alone.

    Raises:
        ValueError: names that match no tap; another ``dir``.

    Example:
        >>> tap = nn.Sequential(Tap())
        >>> remove = add_hook(tap, "0", lambda activation, hook: activation + 1)
        >>> tap(torch.zeros(1))
        tensor([1.])
        >>> reset_hooks(tap)
        >>> tap(torch.zeros(1))
        tensor([0.])
    """
    if dir not in ("fwd", "bwd"):
        raise ValueError(f"dir is {dir!r}; it can be 'fwd' or 'bwd'")
    taps = named_taps(module)
    handles: list[Any] = []
    for name in _matching(taps, names):
        point = HookPoint(name)
        call = _on_activation(function, point) if dir == "fwd" else _on_gradient(function, point, None)
        handle = taps[name].register_forward_hook(_Added(call))
        handles.append(handle)

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def reset_hooks(module: nn.Module) -> None:
    """Remove every hook that `add_hook` added to a module's taps.

    Example: see `add_hook`.
    """
    for tap in named_taps(module).values():
        for key in [key for key, hook in tap._forward_hooks.items() if isinstance(hook, _Added)]:
            del tap._forward_hooks[key]


def run_with_hooks(
    module: nn.Module, *args: Any, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = (), **kwargs: Any
) -> Any:
    """Call ``module(*args, **kwargs)`` with hooks on its taps, and return the result. See `hooks`.

    ``bwd_hooks`` act on a ``backward`` within the call; if you call ``backward`` on the result, use `hooks`.

    Example:
        >>> from gptladder.components import LayerNorm
        >>> layer_norm = LayerNorm(d_model=2)
        >>> seen = []
        >>> _ = run_with_hooks(
        ...     layer_norm, torch.randn(1, 3, 2), fwd_hooks=[("hook_scale", lambda x, hook: seen.append(x.shape))]
        ... )
        >>> seen
        [torch.Size([1, 3, 1])]
    """
    with hooks(module, fwd_hooks, bwd_hooks):
        return module(*args, **kwargs)


def run_with_cache(
    module: nn.Module,
    *args: Any,
    names_filter: Names | None = None,
    device: torch.device | str | None = None,
    remove_batch_dim: bool = False,
    **kwargs: Any,
) -> tuple[Any, "ActivationCache"]:
    """Call ``module(*args, **kwargs)`` and keep its activations.

    The result can differ from the plain call's by rounding, since fused kernels form no pattern that could be kept;
    ``model.fused = False`` makes both the same (see the top of this module).

    Args:
        names_filter: names to keep: one name, several, or a predicate on names (default: all).
        device: where to keep them (default: where they are).
        remove_batch_dim: keep ``activation[0]``, for a batch of one.

    Returns:
        The module's result, and its activations (detached) by name.

    Raises:
        ValueError: a ``names_filter`` that matches no tap; ``remove_batch_dim`` with a batch that is not of one.

    Example:
        >>> from gptladder.components import Attention
        >>> output, cache = run_with_cache(Attention(d_model=6, n_heads=2), torch.randn(1, 3, 6))
        >>> cache["hook_pattern"].shape  # batch n_heads query_pos key_pos
        torch.Size([1, 2, 3, 3])
    """
    cache = ActivationCache()

    def keep(activation: Tensor, *, hook: HookPoint) -> None:
        if remove_batch_dim and activation.shape[0] != 1:
            raise ValueError(f"remove_batch_dim is for a batch of 1; {hook.name} has a batch of {activation.shape[0]}")
        kept = activation.detach().to(device)
        cache[hook.name] = kept[0] if remove_batch_dim else kept

    with hooks(module, [(names_filter if names_filter is not None else lambda _: True, keep)]):
        return module(*args, **kwargs), cache


class ActivationCache(dict[str, Tensor]):
    """Activations by name, long or short (see `act_name`); negative layers count from the last.

    Example:
        >>> cache = ActivationCache({"blocks.0.attn.hook_k": torch.zeros(1), "blocks.1.attn.hook_k": torch.ones(1)})
        >>> cache["k", -1], cache["k0"]
        (tensor([1.]), tensor([0.]))
    """

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        if not isinstance(key, tuple) and key in self.keys():
            return super().__getitem__(key)
        parts: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        short, layer, layer_type = (*parts, None, None)[:3]
        if isinstance(layer, int) and layer < 0:
            n_layers = 1 + max((HookPoint(name).layer() for name in self if name.startswith("blocks.")), default=-1)
            if layer < -n_layers:
                raise KeyError(f"layer {layer} is not cached: there are {n_layers} layers")
            layer += n_layers
        name = act_name(str(short), layer, layer_type)
        if name not in self.keys():
            raise KeyError(f"{name} is not cached{_suggestion(name, list(self))}")
        return super().__getitem__(name)


class _Added:
    """A hook function as PyTorch calls it, recognisable as `add_hook`'s."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        self.call = call

    def __call__(self, tap: Tap, args: tuple[Tensor], activation: Tensor) -> Tensor:
        return self.call(activation)


def _on_activation(function: HookFunction, point: HookPoint) -> Callable[[Tensor], Tensor]:
    def call(activation: Tensor) -> Tensor:
        activation = activation.clone()  # the hook may change it in place
        replacement = function(activation, hook=point)
        return activation if replacement is None else replacement

    return call


def _on_gradient(function: HookFunction, point: HookPoint, handles: list[Any] | None) -> Callable[[Tensor], Tensor]:
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

    return call


def _matching(points: Sequence[str] | dict[str, Any], names: Names) -> list[str]:
    if callable(names):
        matched = [name for name in points if names(name)]
        if not matched:
            raise ValueError(f"the predicate on names accepts none of the module's {len(points)} activations")
        return matched
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in points:
            raise ValueError(f"there is no activation {name!r}{_suggestion(name, list(points))}")
    return wanted


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return (
        f"; did you mean {' or '.join(close)}?" if close else f"; there are {len(known)}: named_taps(module) lists them"
    )
