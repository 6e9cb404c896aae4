"""Tensors by name that are made when they are asked for: a model can then be larger than what memory holds twice."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for, and kept by nobody but who asked.

    Args:
        makers: what makes each of them.
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
    """Some of the tensors, none of them made yet; a mapping gives them other names: new -> old."""
    renamed = names if isinstance(names, Mapping) else {name: name for name in names}
    return Lazy({new: partial(tensors.__getitem__, old) for new, old in renamed.items()})


def layered(*layers: Mapping[str, Tensor]) -> Lazy:
    """The tensors of several mappings; where two have one name, the first one's."""
    return Lazy({name: partial(layer.__getitem__, name) for layer in reversed(layers) for name in layer})
