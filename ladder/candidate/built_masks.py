"""Record the square tensors that are made while a layer is built: the steps that make its masks, with their lines."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .places import Code, Place

# Larger tensors are left out: a mask for a small case shows how it is made.
_MOST_NUMBERS = 2**15


class BuiltMasks(TorchFunctionMode):
    """Records the steps that make square tensors without gradients, as masks are."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code
        self.steps: list[tuple[str, Place | None, Tensor, tuple[int, ...]]] = []
        """Of each: its function's name, its line, what it gave, and the steps before it that it took values from."""
        self._made_by: dict[int, int] = {}
        self._tensors: list[Tensor] = []  # so that no id is used again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function, and record what it gave if that is a square."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        output = args[0] if name == "__setitem__" else result
        if isinstance(output, Tensor) and _is_square(output):
            taken = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor)]
            inputs = tuple(step for each in taken if (step := self.step_of(each)) is not None)
            value = output.detach().as_subclass(Tensor).clone()
            self.steps.append((name, self.code.running(), value, inputs))
            self._made_by[id(output)] = len(self.steps) - 1
            self._tensors.append(output)
        return result

    def step_of(self, tensor: Tensor | None) -> int | None:
        """Return the step that made a tensor, or changed it last."""
        return self._made_by.get(id(tensor))

    def until(self, step: int) -> Iterator[int]:
        """Yield the steps that a step takes values from, in their order, and then itself."""
        needed, stack = {step}, [step]
        while stack:
            new = set(self.steps[stack.pop()][3]) - needed
            needed |= new
            stack += new
        yield from sorted(needed)


def _is_square(tensor: Tensor) -> bool:
    if tensor.requires_grad or tensor.ndim < 2 or tensor.numel() > _MOST_NUMBERS or tensor.is_complex():
        return False
    return tensor.shape[-1] == tensor.shape[-2] and tensor.layout == torch.strided and not tensor.is_meta
