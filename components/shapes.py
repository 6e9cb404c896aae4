"""The axis glossary, and the check that holds every layer to it.

Every public tensor signature is written in these axes (after Noam Shazeer's shape suffixes):

    batch      sequences processed together
    seq        positions of one sequence
    query_pos  positions that attend
    key_pos    positions attended to: those in the cache, then those of this call
    d_model    width of the residual stream
    n_heads    attention heads
    d_head     width of one head; ``n_heads * d_head`` may differ from ``d_model``
    d_mlp      hidden width of the MLP
    d_vocab    tokens in the vocabulary
    n_ctx      positions the model has embeddings for

The check is jaxtyping's with beartype, with four additions:

* it costs nothing inside ``torch.compile`` and ``torch.export``, and breaks no graph there;
* it runs once for each shape that a layer meets, not once for each call;
* its error names the layer's own sizes, which jaxtyping leaves as ``{self.d_model}``;
* ``GPTLADDER_TYPECHECK=0`` in the environment, or ``with typecheck(False):``, switches it off.
"""

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

__all__ = ["TypeCheckError", "shape_checked", "typecheck"]

F = TypeVar("F", bound=Callable[..., Any])

_enabled: ContextVar[bool] = ContextVar(
    "gptladder_typecheck", default=os.environ.get("GPTLADDER_TYPECHECK", "1") != "0"
)

# Growing shapes (decoding without a static cache) must not make this set grow without end.
_MOST_SHAPES_REMEMBERED = 512


@contextmanager
def typecheck(enabled: bool) -> Iterator[None]:
    """Switch the shape check on or off for the block, in this thread or asyncio task alone.

    Example:
        >>> from gptladder.components import MLP
        >>> with typecheck(False):
        ...     MLP(d_model=4)(torch.zeros(2, 4)).shape  # no batch axis
        torch.Size([2, 4])
    """
    token = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(token)


def shape_checked(method: F) -> F:
    """Return a method that checks its arguments and result against its jaxtyping annotations.

    Axes may name the object's own sizes: ``Float[Tensor, "batch seq d_model={self.d_model}"]``. The sizes of an object
    must not change after its first call.

    Raises (when the method is called):
        TypeCheckError: a wrong shape, dtype or type; the message names the argument, the axis and the expected sizes.

    Example:
        >>> from jaxtyping import Float
        >>> class Double:
        ...     width = 4
        ...
        ...     @shape_checked
        ...     def double(self, x: Float[Tensor, "batch width={self.width}"]) -> Float[Tensor, "batch width"]:
        ...         return 2 * x
        >>> Double().double(torch.zeros(2, 5))
        Traceback (most recent call last):
        ...
        jaxtyping.TypeCheckError: Type-check error whilst checking the parameters of ...
    """

    @functools.cache
    def checked() -> Callable[..., Any]:
        """Return the method with the check. It is made for the first call, since beartype takes long to import."""
        from beartype import beartype

        return jaxtyped(typechecker=beartype)(method)

    sizes = sorted(set(re.findall(r"\{self\.(\w+)\}", str(inspect.signature(method)))))

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not _enabled.get():
            return method(self, *args, **kwargs)
        shapes = (*map(_shape, args), *((name, _shape(value)) for name, value in kwargs.items()))
        seen = self.__dict__.setdefault("_shapes_seen", {}).setdefault(method.__name__, set())
        if shapes in seen:
            return method(self, *args, **kwargs)
        try:
            result = checked()(self, *args, **kwargs)
        except TypeCheckError as error:
            if sizes and not hasattr(error, "sizes"):  # a layer inside this one may have named its sizes already
                error.sizes = {name: getattr(self, name) for name in sizes}  # pyright: ignore[reportAttributeAccessIssue]
                own = " ".join(f"{name}={size}" for name, size in error.sizes.items())  # pyright: ignore[reportAttributeAccessIssue]
                error.args = (f"{error}\nThis {type(self).__name__} has {own}.",)
            raise
        if len(seen) >= _MOST_SHAPES_REMEMBERED:
            seen.clear()
        seen.add(shapes)
        return result

    # A code object of its own: torch.compile counts recompilations by code object, and with one shared among all the
    # layers only 8 of a model's blocks could be compiled one by one.
    function = cast(FunctionType, wrapper)
    function.__code__ = function.__code__.replace(co_name=method.__name__)
    return cast(F, wrapper)


def _shape(value: object) -> object:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)
