"""GPT-2 as a library of typed layers, each proved against an independent reference before the next stands on it.

>>> from gptladder.components import Attention
>>> from gptladder import GPT2, GPT2Config
"""

# The types of the names that `__getattr__` imports are in __init__.pyi.
import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["GPT2", "PRESETS", "GPT2Config", "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]

_PARTS = ("assembly", "components", "ladder", "lens", "sampling", "tokenizer", "training", "weights")


def __getattr__(name: str) -> Any:
    """Import the model when its name is first used, so that `gptladder --help` does not wait for torch."""
    if name in __all__:
        return getattr(importlib.import_module(".assembly", __name__), name)
    if name in _PARTS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
