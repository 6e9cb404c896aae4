"""The outputs of hundreds of wrong layers on one trial, in the time that building a few of them takes."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..answers import close
from ..rungs import Build, Trial, answer
from .mistake import Steps, with_steps
from .parts import Parts, put_in

# Far above rounding: a number that is further off is another number.
_OTHER = 1e-6


class FastOutputs:
    """Compares the outputs of wrong layers with a given one.

    One right layer of each base is built and filled with the trial's parameters; it takes on the steps of one mistake
    after another. What the steps of a base's ``stages`` give is remembered: of two wrong layers that differ in their
    last step, the second computes that step alone.

    Args:
        trial: the input and the parameters.
        output: what the wrong layers' outputs are compared with.
    """

    def __init__(self, trial: Trial, output: Tensor) -> None:
        self.trial, self.output = trial, output.to(trial.dtype)
        self._right: dict[type[nn.Module], nn.Module] = {}
        self._parts: dict[tuple[str, type[nn.Module]], nn.Module] = {}
        self._remembered: dict[tuple[object, ...], tuple[tuple[Any, ...], Any]] = {}
        # The number that the outputs are compared by first.
        finite = self.output.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).flatten()
        self._at = int(finite.abs().argmax())
        self._there = self.output.flatten()[self._at].item()

    def gives(self, base: type[nn.Module], steps: Steps) -> bool:
        """Return whether a right layer with some steps replaced has the output, to rounding."""
        found = self.of(base, steps)
        if found.shape != self.output.shape:
            return False
        there = found.flatten()[self._at].item()
        if math.isfinite(self._there) and not abs(there - self._there) <= _OTHER * max(1.0, abs(self._there)):
            return False
        return close(found, self.output)

    def of(self, base: type[nn.Module], steps: Steps) -> Tensor:
        """Return the output of a right layer with some steps replaced."""
        trial = self.trial
        if steps.keys() & getattr(base, "while_building", set()):
            return answer(with_steps(base, steps)(trial.config, trial.dtype), trial, gradients=False).output
        layer = self._loaded(base)
        parts = steps["parts"](layer, trial.config) if "parts" in steps else {}
        right = {path: layer.get_submodule(path) for path in parts}
        self._put_in(layer, parts)
        layer.__class__ = type(f"Wrong{base.__name__}", (base,), dict(self._remembering(base, steps)))
        try:
            with torch.no_grad():
                return layer(trial.given)
        finally:
            layer.__class__ = base
            for path, part in right.items():
                layer.set_submodule(path, part)

    def _loaded(self, base: type[nn.Module]) -> nn.Module:
        """Return the right layer of a base, with the trial's parameters."""
        if base not in self._right:
            layer: nn.Module = base(self.trial.config, self.trial.dtype)
            layer.eval().load_state_dict(dict(self.trial.parameters))
            self._right[base] = layer
        return self._right[base]

    def _put_in(self, layer: nn.Module, parts: Parts) -> None:
        """Put wrong layers in some places, with the trial's parameters; a right one that was put there takes steps."""
        for path, build in parts.items():
            wrong = cast(type[nn.Module], build)
            base = cast(type[nn.Module], wrong.__base__)
            if "parts" in vars(wrong):
                self._fill(layer, path, wrong)
                continue
            if (path, base) in self._parts:
                layer.set_submodule(path, self._parts[path, base])
            else:
                self._parts[path, base] = self._fill(layer, path, base)
            self._parts[path, base].__class__ = wrong

    def _fill(self, layer: nn.Module, path: str, kind: type[nn.Module]) -> nn.Module:
        """Put a new layer in a place, with the trial's parameters, and return it."""
        put_in(layer, {path: cast(Build, kind)}, self.trial.config, self.trial.dtype)
        prefix = f"{path}."
        own = {n.removeprefix(prefix): p for n, p in self.trial.parameters.items() if n.startswith(prefix)}
        part = layer.get_submodule(path)
        part.eval().load_state_dict(own)
        return part

    def _remembering(self, base: type[nn.Module], steps: Steps) -> Steps:
        """Return the steps, and the base's other ``stages``, so that none computes the same twice."""
        stages: tuple[str, ...] = getattr(base, "stages", ())
        # What the stages themselves call or read.
        others = frozenset((name, step) for name, step in steps.items() if name not in stages)

        def remembering(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def run(layer: nn.Module, *given: Any) -> Tensor:
                # The tensors are remembered too: otherwise another one could get the same id.
                key = (function, others, *map(id, given))
                if key not in self._remembered:
                    self._remembered[key] = given, function(layer, *given)
                return self._remembered[key][1]

            return run

        return {**steps, **{name: remembering(steps.get(name, getattr(base, name))) for name in stages}}
