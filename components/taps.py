"""Named activations: read, replace and cache what flows through a layer, under TransformerLens's names.

Every layer passes its intermediate values through identity modules, `Tap`, whose path is the activation's name:
``blocks.0.attn.hook_pattern``. `hooks`, `run_with_hooks` and `run_with_cache` (in `caching`) work on any module that
contains taps: a whole model, one layer, or another library's model with one of our layers in it. They behave as
``transformer_lens.HookedTransformer``'s methods of the same names, with five differences:

* a name that matches nothing raises an error;
* a hook gets a copy of its own, so changing it in place changes nothing else;
* hooks are removed at the end of the block, whatever happens in it;
* they act in the thread (or asyncio task) that set them alone: other threads can use the model meanwhile;
* they act on a compiled model too, which runs uncompiled in the block.

A hook on an activation that a fused kernel never forms (``hook_attn_scores``, ``hook_pattern``, ``hook_scale``,
``hook_normalized``) makes that layer compute its formula step by step. The result is then the same to rounding, but not
to the bit: in bfloat16, logits were seen to differ by 0.05. Set ``model.fused = False`` to compute every call that way.

Some activations are formed on request only, since they are large: each head's contribution to the residual stream
(``hook_result``) and its own copy of the input (``hook_q_input``). A hook that names one exactly requests it; `offer`
lets predicates on names, and `run_with_cache` without names, find it too.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from .act_names import act_name
from .eager import uncompiled
from .tap import Direction, Functions, HookFunction, HookPoint, Tap, acting, on_activation, on_gradient

__all__ = [
    "Hook",
    "HookFunction",
    "HookPoint",
    "Names",
    "Tap",
    "act_name",
    "add_hook",
    "hooks",
    "named_taps",
    "offer",
    "reset_hooks",
    "run_with_hooks",
]

Names = str | Sequence[str] | Callable[[str], bool]

Hook = tuple[Names, HookFunction]


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


def offer(module: nn.Module, tap: str, offered: bool = True) -> None:
    """Let predicates on names find an activation that is formed on request, or no longer.

    Args:
        module: anything that contains taps.
        tap: the last part of the activation's name: ``hook_result``.
        offered: whether they find it.

    Raises:
        ValueError: no tap of this name.

    Example:
        >>> from gptladder.components import Attention, run_with_cache
        >>> attn = Attention(d_model=6, n_heads=2)
        >>> offer(attn, "hook_result")
        >>> run_with_cache(attn, torch.randn(1, 3, 6))[1]["hook_result"].shape  # batch seq n_heads d_model
        torch.Size([1, 3, 2, 6])
    """
    found = [each for name, each in named_taps(module).items() if name.rpartition(".")[2] == tap]
    if not found:
        raise ValueError(f"there is no activation {tap!r} in this {type(module).__name__}")
    for each in found:
        each.offered = offered


@contextmanager
def hooks(
    module: nn.Module,
    fwd_hooks: Sequence[Hook] = (),
    bwd_hooks: Sequence[Hook] = (),
    reset_hooks_end: bool = True,
    clear_contexts: bool = False,
) -> Iterator[Any]:
    """Call functions on a module's activations, and on their gradients, within the block.

    Args:
        module: anything that contains taps.
        fwd_hooks: pairs of names and a function ``(activation, hook) -> activation or None``, applied in this order.
            Names are one name, several, or a predicate on names.
        bwd_hooks: the same for the gradient of the activation (the function may return it in a tuple, as
            TransformerLens's do); call ``backward`` within the block.
        reset_hooks_end: remove these hooks at the end of the block; with False they stay, as if by `add_hook`.
        clear_contexts: empty each activation's ``hook.ctx`` at the end.

    Yields:
        The module.

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
    functions: Functions = {}
    handles: list[Any] = []
    if reset_hooks_end:
        for names, function in fwd_hooks:
            for name, tap in _matching(taps, names):
                functions.setdefault(tap, []).append(on_activation(function, HookPoint(name, tap.ctx)))
        for names, function in bwd_hooks:
            for name, tap in _matching(taps, names):
                functions.setdefault(tap, []).append(on_gradient(function, HookPoint(name, tap.ctx), handles))
    else:
        for names, function in fwd_hooks:
            add_hook(module, names, function)
        for names, function in bwd_hooks:
            add_hook(module, names, function, "bwd")
    try:
        with acting(functions), uncompiled():  # compiled code would ignore the hooks
            yield module
    finally:
        for handle in handles:
            handle.remove()
        if clear_contexts:
            _clear_contexts(taps)


def add_hook(
    module: nn.Module,
    names: Names,
    function: HookFunction,
    dir: Literal["fwd", "bwd"] = "fwd",
    *,
    prepend: bool = False,
    is_permanent: bool = False,
) -> Callable[[], None]:
    """Call a function on activations from now on, in every thread, until `reset_hooks`.

    `hooks` is safer: it ends by itself, and leaves other threads alone. Modules that are compiled already ignore what
    is added here.

    Args:
        module: anything that contains taps.
        names: one name, several, or a predicate on names.
        function: as for `hooks`.
        dir: ``fwd`` for the activation, ``bwd`` for its gradient.
        prepend: call it before those that were added earlier.
        is_permanent: keep it until `reset_hooks` is called with ``including_permanent``.

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
    removes = [
        tap.add_hook(function, dir, prepend=prepend, is_permanent=is_permanent, name=name)
        for name, tap in _matching(named_taps(module), names)
    ]

    def remove() -> None:
        for each in removes:
            each()

    return remove


def reset_hooks(
    module: nn.Module,
    clear_contexts: bool = True,
    direction: Direction = "both",
    including_permanent: bool = False,
) -> None:
    """Remove the hooks on a module's taps: those of `add_hook`, and of this thread's blocks of `hooks`.

    Args:
        module: anything that contains taps.
        clear_contexts: empty each ``hook.ctx``.
        direction: ``fwd`` or ``bwd`` for hooks on activations or on gradients alone.
        including_permanent: remove permanent hooks too.

    Raises:
        ValueError: another ``direction``.

    Example: see `add_hook`.
    """
    taps = named_taps(module)
    for tap in taps.values():
        tap.remove_hooks(direction, including_permanent=including_permanent)
    if clear_contexts:
        _clear_contexts(taps)


def run_with_hooks(
    module: nn.Module,
    *args: Any,
    fwd_hooks: Sequence[Hook] = (),
    bwd_hooks: Sequence[Hook] = (),
    reset_hooks_end: bool = True,
    clear_contexts: bool = False,
    **kwargs: Any,
) -> Any:
    """Call ``module(*args, **kwargs)`` with hooks on its taps, and return the result. See `hooks`.

    ``bwd_hooks`` act on a ``backward`` within the call; if you call ``backward`` on the result, use `hooks`, or
    ``reset_hooks_end=False``.

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
    with hooks(module, fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
        return module(*args, **kwargs)


def _clear_contexts(taps: dict[str, Tap]) -> None:
    for tap in taps.values():
        tap.ctx.clear()


def _matching(taps: dict[str, Tap], names: Names) -> list[tuple[str, Tap]]:
    """Return the taps that names choose, under the names that they have here."""
    if not callable(names):
        wanted = [names] if isinstance(names, str) else list(names)
        return [_named(taps, name) for name in wanted]
    accepted = [(name, tap) for name, tap in taps.items() if names(name)]
    matched = [(name, tap) for name, tap in accepted if tap.offered]
    if not matched and accepted:
        raise ValueError(
            f"the predicate on names accepts only activations that are formed on request: name them exactly, as "
            f"{accepted[0][0]!r}, or call offer(module, {accepted[0][0].rpartition('.')[2]!r}) first"
        )
    if not matched:
        raise ValueError(f"the predicate on names accepts none of the module's {len(taps)} activations")
    return matched


def _named(taps: dict[str, Tap], name: str) -> tuple[str, Tap]:
    # TransformerLens 4 has the heads' own inputs in the attention, where 3 has them in the block, as here.
    for known in (name, name.replace(".attn.hook_", ".hook_")):
        if known in taps:
            return known, taps[known]
    raise ValueError(f"there is no activation {name!r}{suggestion(name, list(taps))}")


def suggestion(name: str, known: list[str]) -> str:
    """Return the end of an error message about an unknown activation: the names that are most like it."""
    close = difflib.get_close_matches(name, known, n=3)
    return (
        f"; did you mean {' or '.join(close)}?" if close else f"; there are {len(known)}: named_taps(module) lists them"
    )
