"""What a pickle of ``torch.save`` describes besides plain values: tensors, their storages, and objects by name."""

from dataclasses import dataclass
from typing import Any

import torch


class PickleError(ValueError):
    """A pickle that is damaged, hostile, or holds more than plain values and tensors."""


class ForeignError(PickleError):
    """A pickle that asks for a Python object that is not known here. Its text is the object's name."""


@dataclass(frozen=True)
class Named:
    """The name of a Python object, in place of the object."""

    module: str
    name: str


@dataclass
class Record:
    """The fields of an instance of a class that this reader does not load, in place of the instance."""

    kind: Named
    fields: dict[str, Any]


@dataclass(frozen=True)
class StorageName:
    """A storage that a pickle names: its numbers lie elsewhere in the file. ``dtype`` is None for bare bytes."""

    dtype: torch.dtype | None
    key: str
    numel: int


@dataclass(frozen=True)
class TensorView:
    """A tensor that a pickle describes."""

    storage: StorageName
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
