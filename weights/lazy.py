"""Tensors by name that are computed when they are looked up, so that a model need not be in memory twice."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each computed again whenever it is looked up.

    Args:
        makers: for each name the function that computes its tensor.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:  # Mapping's own makes the tensor
        return name in self._makers


def chosen(tensors: Mapping[str, Tensor], names: Mapping[str, str] | Iterable[str]) -> Lazy:
    """Return some of the tensors, not computed yet. A mapping renames them: new name -> old name."""
    renamed = names if isinstance(names, Mapping) else {name: name for name in names}
    return Lazy({new: partial(tensors.__getitem__, old) for new, old in renamed.items()})


def layered(*layers: Mapping[str, Tensor]) -> Lazy:
    """Return the tensors of several mappings. If several have a name, the first mapping's tensor is taken."""
    return Lazy({name: partial(layer.__getitem__, name) for layer in reversed(layers) for name in layer})
