"""What a pickle may name or call: for each of the few allowed names, the function that takes its place here.

Nothing that a file names is looked up or called. A name that is not in these tables stays a `Named`, and calling it is
refused.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .pickle_values import ForeignError, Named, PickleError, Record, TensorView
from .tensors import DTYPES


@dataclass
class NumpyDType:
    """A dtype of NumPy: the kind and size of a number, and the order of its bytes."""

    code: str
    order: str = "="


@dataclass(frozen=True)
class StorageKind:
    """The type of a storage. ``dtype`` is None for bare bytes."""

    dtype: torch.dtype | None


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": None,
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_NUMPY = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_NUMPY |= {"f2": "e", "f4": "f", "f8": "d"}
ORDERS = {"<": "<", ">": ">", "|": "=", "=": "="}
"""The byte order of a NumPy dtype, as the module ``struct`` writes it."""


def named(module: str, name: str) -> Any:
    """Return what a name stands for: a storage's type, a dtype, or else the name itself."""
    if module in ("torch", "torch.storage") and name in _STORAGES:
        return StorageKind(_STORAGES[name])
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    return Named(module, name)


def described(value: Any) -> str:
    """Return the name of an object, or of its type: the text of a value from a file may be endless."""
    value = value.kind if type(value) is Record else value
    return f"{value.module}.{value.name}" if type(value) is Named else type(value).__name__


def string(value: Any) -> str:
    """Return a string that is to be looked up; other values may be too deeply nested to be hashed."""
    if type(value) is not str:
        raise PickleError(f"it has a {type(value).__name__} in place of a string")
    return value


def checked_key(key: Any) -> Any:
    """Refuse keys that are expensive or impossible to hash: nested ones, and numbers made to collide."""
    parts: tuple[Any, ...] = key if type(key) is tuple and len(key) <= 4 else (key,)
    for part in parts:
        small = abs(part) < 2**60 if type(part) in (int, float) else isinstance(part, str | bytes | bool | None)
        if not small:
            raise PickleError(f"it has a dict with a {type(part).__name__} of no common size among its keys")
    return key


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    return {checked_key(key): value for key, value in pairs}


def _set(items: Any) -> set[Any]:
    return {checked_key(item) for item in items}


def _size(sizes: Any) -> tuple[Any, ...]:
    return tuple(sizes)


def _device(*names: Any) -> str:
    return ":".join(str(name) if type(name) is int else string(name) for name in names)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorView:
    if storage.dtype is None:
        raise PickleError("a tensor of bytes without a dtype")
    return TensorView(storage, offset, tuple(shape), tuple(stride), storage.dtype)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
) -> TensorView:
    if type(dtype) is not torch.dtype:
        raise PickleError("a tensor without a dtype")
    return TensorView(storage, offset, tuple(shape), tuple(stride), dtype)


def _parameter(tensor: Any, *_: Any) -> TensorView:
    if type(tensor) is not TensorView:
        raise PickleError("a parameter that is no tensor")
    return tensor


def _with_attributes(function: Any, _: Any, arguments: Any, __: Any) -> TensorView:
    if (name := described(function)) not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
        raise ForeignError(name)
    return CALLS[name](*arguments)


def _octets(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise PickleError("it has bytes in another encoding than latin1")
    return string(text).encode("latin-1")


def _no_octets() -> bytes:
    return b""


def _numpy_array(*_: Any) -> Record:
    return Record(Named("numpy", "ndarray"), {})


def _numpy_dtype(code: Any, *_: Any) -> NumpyDType:
    if string(code) not in _NUMPY:
        raise ForeignError(f"numpy.dtype {code[:20]}")
    return NumpyDType(code)


def _numpy_scalar(dtype: Any, content: Any) -> bool | int | float:
    return struct.unpack(dtype.order + _NUMPY[dtype.code], content)[0]


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Size": _size,
    "torch.device": _device,
    "__builtin__.bytes": _no_octets,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _octets,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
"""By the full name of what a pickle calls: the function that is called instead."""
