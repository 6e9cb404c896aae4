"""Tensors by name that are made when they are asked for: a model can then be larger than what memory holds twice."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each made anew when it is looked up.

    Args:
        makers: for each name the function that makes its tensor.
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
    """Return some of the tensors, none of them made yet; a mapping gives them other names: new -> old."""
    renamed = names if isinstance(names, Mapping) else {name: name for name in names}
    return Lazy({new: partial(tensors.__getitem__, old) for new, old in renamed.items()})


def layered(*layers: Mapping[str, Tensor]) -> Lazy:
    """Return the tensors of several mappings; for a name that several have, the first mapping's."""
    return Lazy({name: partial(layer.__getitem__, name) for layer in reversed(layers) for name in layer})
