"""A layer in training mode, without its dropout: an experiment, since a mask may depend on the mode."""

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FUSED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


class WithoutDropout(TorchFunctionMode):
    """Leaves out what torch's dropout does in training mode.

    If it draws random numbers all the same, nothing follows from another output.
    """

    def __enter__(self) -> "WithoutDropout":
        self._before = _states()
        super().__enter__()
        return self

    @property
    def drew(self) -> bool:
        """Whether random numbers were drawn."""
        return _states() != self._before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function; of a dropout, return what it is given."""
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        if "dropout" in name:
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            return func(**{**dict(zip(_FUSED, args, strict=False)), **kwargs, "dropout_p": 0.0})
        return func(*args, **kwargs)


def _states() -> tuple[object, ...]:
    """Return the states of all generators that are shared."""
    numpy = sys.modules.get("numpy")
    own = numpy.random.get_state(legacy=False) if numpy else None
    return torch.get_rng_state().tolist(), random.getstate(), repr(own and {**own, "state": str(own["state"])})
