"""Named activations: read, replace and cache what flows through a layer, under TransformerLens's names.

Every layer passes its intermediate values through identity modules, `Tap`, whose path is the activation's name:
``blocks.0.attn.hook_pattern``. `hooks`, `run_with_hooks` and `run_with_cache` work on any module that contains taps: a
whole model, one layer, or somebody else's model with one of our layers in it. They behave as
``transformer_lens.HookedTransformer``'s methods of the same names, and differ in four things: a name that matches
nothing raises; a hook gets a copy of its own, so that changing it in place changes nothing else; hooks are taken off at
the end whatever happens; and they act on a compiled model too (by running it uncompiled for that call).
"""

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Names = str | Sequence[str] | Callable[[str], bool]


class HookFunction(Protocol):
    """Takes an activation and the tap it stands at; returns what is to stand in its place, or None to leave it."""

    def __call__(self, activation: Tensor, /, *, hook: "Tap") -> Tensor | None:
        """What is to stand at ``hook`` in place of the activation."""
        ...


Hook = tuple[Names, HookFunction]


class Tap(nn.Module):
    """The identity, at a place where an activation can be read or replaced (TransformerLens's ``HookPoint``).

    ``name`` is its path in the module that `hooks` was last called on.
    """

    name: str = ""

    @property
    def active(self) -> bool:
        """Whether anybody listens: a fused kernel, which never forms this activation, must then be avoided."""
        return bool(self._forward_hooks)

    def layer(self) -> int:
        """The number of the block that this tap belongs to.

        Raises:
            ValueError: it belongs to none.
        """
        head, _, rest = self.name.partition(".")
        if head != "blocks":
            raise ValueError(f"{self.name!r} belongs to no block")
        return int(rest.partition(".")[0])

    def forward(self, activation: Tensor) -> Tensor:
        """The activation itself, or a copy where hooks are about to see it."""
        return activation.clone() if self._forward_hooks else activation


def named_taps(module: nn.Module) -> dict[str, Tap]:
    """All taps of a module by name; the wrappers that ``torch.compile`` puts around submodules leave no trace in it."""
    return {
        name.replace("_orig_mod.", ""): submodule
        for name, submodule in module.named_modules()
        if isinstance(submodule, Tap)
    }


@contextmanager
def hooks(module: nn.Module, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = ()) -> Iterator[None]:
    """Put hooks on a module's taps for the block.

    Args:
        module: anything that contains taps.
        fwd_hooks: pairs of names and a function ``(activation, hook) -> activation or None``, applied in this order.
            Names are one name, several, or a predicate on names.
        bwd_hooks: the same, for the gradient of the activation; ``backward`` must be called within the block.

    Raises:
        ValueError: names that match no tap of the module.
    """
    points = named_taps(module)
    handles: list[Any] = []

    def on_gradient(function: HookFunction) -> HookFunction:
        def attach(activation: Tensor, *, hook: Tap) -> None:
            if activation.requires_grad:
                handles.append(activation.register_hook(lambda gradient: function(gradient, hook=hook)))

        return attach

    # Hooks added after torch.compile would be ignored by the compiled code. Asking for eager mode imports torch's
    # compiler, which takes seconds, so it is not asked for where nothing can have been compiled.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with eager:
            for names, function in [*fwd_hooks, *((names, on_gradient(function)) for names, function in bwd_hooks)]:
                for name in _matching(points, names):
                    points[name].name = name
                    handles.append(points[name].register_forward_hook(_as_forward_hook(function)))
            yield
    finally:
        for handle in handles:
            handle.remove()


def run_with_hooks(module: nn.Module, *args: Any, fwd_hooks: Sequence[Hook] = (), **kwargs: Any) -> Any:
    """Call ``module(*args, **kwargs)`` with hooks on its taps, and return what it returns. See `hooks`."""
    with hooks(module, fwd_hooks):
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

    Args:
        names_filter: which activations: one name, several, a predicate on names, or None for all.
        device: where to keep them; None leaves them where they are.
        remove_batch_dim: keep ``activation[0]``, for a batch of one.

    Returns:
        What the module returns, and its activations (detached) by name.

    Raises:
        ValueError: a ``names_filter`` that matches no tap; ``remove_batch_dim`` with a batch that is not of one.
    """
    cache = ActivationCache()

    def keep(activation: Tensor, *, hook: Tap) -> None:
        if remove_batch_dim and activation.shape[0] != 1:
            raise ValueError(f"remove_batch_dim is for a batch of 1; {hook.name} has a batch of {activation.shape[0]}")
        kept = activation.detach().to(device)
        cache[hook.name] = kept[0] if remove_batch_dim else kept

    with hooks(module, [(names_filter if names_filter is not None else lambda _: True, keep)]):
        return module(*args, **kwargs), cache


class ActivationCache(dict[str, Tensor]):
    """Activations by name, long or short (see `act_name`): ``cache["pattern", 0]``."""

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        name = act_name(*key) if isinstance(key, tuple) else key if key in self.keys() else act_name(key)
        if name not in self.keys():
            raise KeyError(f"{name} is not cached{_suggestion(name, list(self))}")
        return super().__getitem__(name)


_IN_ATTENTION = {"k", "q", "v", "z", "attn_scores", "pattern"}
_IN_MLP = {"pre", "post"}


def act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The full name of an activation from its short one, as ``transformer_lens.utilities.get_act_name`` gives it.

    ``act_name("q", 0)`` is ``blocks.0.attn.hook_q``, ``act_name("scale", 1, "ln2")`` is ``blocks.1.ln2.hook_scale``,
    ``act_name("embed")`` is ``hook_embed``, ``act_name("scale", layer_type="ln_final")`` is ``ln_final.hook_scale``.
    """
    if layer_type is None:
        layer_type = "attn" if name in _IN_ATTENTION else "mlp" if name in _IN_MLP else None
    parts = [] if layer is None else [f"blocks.{layer}"]
    return ".".join([*parts, *([] if layer_type is None else [layer_type]), f"hook_{name}"])


def _as_forward_hook(function: HookFunction) -> Callable[[Tap, tuple[Tensor], Tensor], Tensor | None]:
    return lambda tap, _, activation: function(activation, hook=tap)


def _matching(points: dict[str, Tap], names: Names) -> list[str]:
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
