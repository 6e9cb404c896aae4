"""Keep activations: `run_with_cache`, and the cache that it returns."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .act_names import act_name
from .tap import HookPoint
from .taps import Names, hooks, suggestion

PosSlice = int | tuple[int | None, ...] | slice | Sequence[int] | Tensor | None
"""Positions to keep: one, a range ``(start, stop)``, a slice, or several."""

# Activations with an axis of heads after that of positions, [batch seq n_heads …]. In all others the positions (of
# scores and patterns: the queries) are the last axis but one.
_BY_HEAD = tuple(f"hook_{name}" for name in ("q", "k", "v", "z", "result", "q_input", "k_input", "v_input", "attn_in"))


def run_with_cache(
    module: nn.Module,
    *args: Any,
    names_filter: Names | None = None,
    device: torch.device | str | None = None,
    remove_batch_dim: bool = False,
    incl_bwd: bool | Callable[[Any], Tensor] = False,
    reset_hooks_end: bool = True,
    clear_contexts: bool = False,
    pos_slice: PosSlice = None,
    return_cache_object: bool = True,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Call ``module(*args, **kwargs)`` and keep its activations.

    The result can differ from the plain call's by rounding, since fused kernels form no pattern that could be kept;
    ``model.fused = False`` makes both the same (see the top of `gptladder.components.taps`).

    Args:
        names_filter: names to keep: one name, several, or a predicate on names (default: all that are not formed on
            request).
        device: where to keep them (default: where they are).
        remove_batch_dim: keep ``activation[0]``, for a batch of one.
        incl_bwd: also call ``backward`` on the result, which must be a single number, and keep the gradient of each
            activation as ``NAME_grad``. A function makes that number out of another result.
        reset_hooks_end, clear_contexts: as for `hooks`; without the first, later calls change the cache.
        pos_slice: positions to keep: ``-1``, ``(start, stop)``, a slice, or several (default: all).
        return_cache_object: return an `ActivationCache`, or else a plain dictionary.

    Returns:
        The module's result, and its activations (detached) by name.

    Raises:
        ValueError: a ``names_filter`` that matches no tap; ``remove_batch_dim`` with a batch that is not of one;
            ``incl_bwd`` with a result that is no single number, or that needs no gradient.

    Example:
        >>> from gptladder.components import Attention
        >>> output, cache = run_with_cache(Attention(d_model=6, n_heads=2), torch.randn(1, 3, 6))
        >>> cache["hook_pattern"].shape  # batch n_heads query_pos key_pos
        torch.Size([1, 2, 3, 3])
    """
    cache = ActivationCache()
    cache.has_batch_dim = not remove_batch_dim
    positions = _index(pos_slice)

    def keep(activation: Tensor, *, hook: HookPoint) -> None:
        cache[hook.name] = _part(activation, hook.name, positions, remove_batch_dim).to(device)

    def keep_gradient(gradient: Tensor, *, hook: HookPoint) -> None:
        cache[f"{hook.name}_grad"] = _part(gradient, hook.name, positions, remove_batch_dim).to(device)

    names = names_filter if names_filter is not None else lambda _: True
    backward = [(names, keep_gradient)] if incl_bwd else []
    with hooks(module, [(names, keep)], backward, reset_hooks_end=reset_hooks_end, clear_contexts=clear_contexts):
        output = module(*args, **kwargs)
        if incl_bwd:
            _backward(incl_bwd(output) if callable(incl_bwd) else output)
    return output, cache if return_cache_object else dict(cache)


class ActivationCache(dict[str, Tensor]):
    """Activations by name, long or short (see `act_name`); negative layers count from the last.

    Attributes:
        has_batch_dim: whether the activations begin with an axis for the batch.

    Example:
        >>> cache = ActivationCache({"blocks.0.attn.hook_k": torch.zeros(1), "blocks.1.attn.hook_k": torch.ones(1)})
        >>> cache["k", -1], cache["k0"]
        (tensor([1.]), tensor([0.]))
        >>> cache
        ActivationCache(2 activations, 8 bytes: blocks.0.attn.hook_k [1], blocks.1.attn.hook_k [1])
    """

    has_batch_dim: bool = True

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
            raise KeyError(f"{name} is not cached{suggestion(name, list(self))}")
        return super().__getitem__(name)

    def transformer_lens(self, model: Any) -> Any:
        """Return TransformerLens's ``ActivationCache`` of these activations (not copied), with all its methods.

        ``cache.transformer_lens(model).accumulated_resid(apply_ln=True)``, for instance.

        Args:
            model: the model that they are of, as it is; `GPT2` has what TransformerLens's methods ask of a model.

        Raises:
            ImportError: transformer-lens is not installed.
        """
        try:
            from transformer_lens import ActivationCache as Theirs
        except ImportError:
            raise ImportError("transformer-lens is not installed: pip install 'gptladder[reference]'") from None
        return Theirs(dict(self), model, has_batch_dim=self.has_batch_dim)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}; TransformerLens's cache may have it: "
            f"cache.transformer_lens(model).{name}",
            name=name,
            obj=self,
        )

    def __repr__(self) -> str:
        size = sum(activation.numel() * activation.element_size() for activation in self.values())
        scale, unit = next((each for each in _UNITS if size >= each[0]), (1, "bytes"))
        amount = f"{size} bytes" if scale == 1 else f"{size / scale:.1f} {unit}"
        listed = [f"{name} {list(activation.shape)}" for name, activation in self.items()]
        if len(listed) > _SHOWN:
            listed = [*listed[: _SHOWN - 1], "…", listed[-1]]
        of = f": {', '.join(listed)}" if listed else ""
        return f"{type(self).__name__}({len(self)} activations, {amount}{of})"


_SHOWN = 4  # activations in a cache's repr
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def _index(pos_slice: Any) -> Any:
    """Return what picks positions out of their axis, or None for all of them."""
    if not isinstance(pos_slice, slice):
        pos_slice = getattr(pos_slice, "slice", pos_slice)  # of TransformerLens's Slice
    if isinstance(pos_slice, tuple):
        return slice(*pos_slice)
    if pos_slice is None or isinstance(pos_slice, slice):
        return pos_slice
    return torch.as_tensor([pos_slice] if isinstance(pos_slice, int) else pos_slice)


def _part(activation: Tensor, name: str, positions: Any, remove_batch_dim: bool) -> Tensor:
    """Return the part of an activation that is kept: some positions (None: all), with or without its batch axis."""
    if remove_batch_dim and activation.shape[0] != 1:
        raise ValueError(f"remove_batch_dim is for a batch of 1; {name} has a batch of {activation.shape[0]}")
    activation = activation.detach()
    if positions is not None:
        axis = 1 if name.endswith(_BY_HEAD) or activation.dim() < 3 else activation.dim() - 2
        activation = activation[(slice(None),) * axis + (positions,)]
    return activation[0] if remove_batch_dim else activation


def _backward(output: Any) -> None:
    if not isinstance(output, Tensor) or output.numel() != 1:
        given = f"a tensor of the shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"incl_bwd needs a single number to differentiate, and the result is {given}: give incl_bwd a function "
            "that makes a loss of it"
        )
    if not output.requires_grad:
        raise ValueError(
            "incl_bwd needs gradients, and the result has none: call it outside torch.no_grad(), on a model with a "
            "parameter whose requires_grad is True"
        )
    output.backward()
