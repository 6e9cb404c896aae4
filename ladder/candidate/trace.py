"""Looking into somebody's layer as it runs: every call of a torch function goes past here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .source import Code

Place = tuple[str, str]

# They make a tensor of their own like another one, and so have no gradient to pass on.
_LIKE = ("_like", "new_")


class Watch(TorchFunctionMode):
    """Notes the first line of the user's source that changes the layer's input, and the like.

    Args:
        given: the layer's input.
        dtype: the trial's.
        places: filled with ``input`` (changed in place), ``nan`` (made from none), ``dtype`` (numbers of less precision
            come in) and ``gradient`` (cut off from what it was computed from).
    """

    def __init__(self, code: Code, given: Tensor, dtype: torch.dtype, places: dict[str, Place]) -> None:
        super().__init__()
        self.code = code
        self.given, self.before = given, given.detach().clone()
        self.dtype = dtype
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function, and look at what it took and what it gave."""
        result = func(*args, **(kwargs or {}))
        if not torch.equal(self.given, self.before):
            self._note("input")
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        taken = list(_floats([args, kwargs]))
        if result.isnan().any() and not any(each.isnan().any() for each in taken):
            self._note("nan")
        own = not any(each in getattr(func, "__name__", "") for each in _LIKE)
        wide = any(each.dtype == self.dtype for each in taken)
        if wide and own and (result.dtype != self.dtype or any(map(self._rounded, taken))):
            self._note("dtype")
        if own and not result.requires_grad and any(each.requires_grad for each in taken):
            self._note("gradient")
        return result

    def _rounded(self, tensor: Tensor) -> bool:
        """Whether a tensor is of less precision, and for numbers that need more: masks, small integers do no harm."""
        if tensor.dtype == self.dtype:
            return False
        mantissa, _ = tensor[tensor.abs() < 1e6].double().frexp()
        return bool((mantissa * 2**21 % 1 != 0).any())

    def _note(self, what: str) -> None:
        place = self.code.running() if what not in self.places else None
        if place:
            self.places[what] = place


class _Softmax(TorchFunctionMode):
    def __init__(self, keep: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax" and result.ndim == 4:
            self.keep(next(_floats([args, kwargs])), result)
        return result


@contextmanager
def tapped(layer: nn.Module, rung: str, taps: dict[str, Tensor]) -> Iterator[None]:
    """Keep what the layer's submodules give, by their names, and what its softmax takes and gives.

    The latter as TransformerLens calls them, ``hook_attn_scores`` and ``hook_pattern``: few people's attention has such
    submodules, but nearly all call softmax.
    """
    seen = 0

    def keep_softmax(scores: Tensor, pattern: Tensor) -> None:
        nonlocal seen
        prefix = {"attention": "", "block": "attn."}.get(rung, f"blocks.{seen}.attn.")
        taps.setdefault(f"{prefix}hook_attn_scores", _kept(scores))
        taps.setdefault(f"{prefix}hook_pattern", _kept(pattern))
        seen += 1

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor):
                taps[name] = _kept(output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in layer.named_modules() if name]
    try:
        with _Softmax(keep_softmax):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).clone()


def _floats(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested arguments."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from _floats(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _floats(each)
