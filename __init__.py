"""GPT-2 as a library of typed layers, each proved against an independent reference before the next stands on it.

>>> from gptladder.components import Attention
>>> from gptladder import GPT2, GPT2Config
"""

from .assembly import GPT2, PRESETS, GPT2Config

__version__ = "0.1.0"

__all__ = ["GPT2", "PRESETS", "GPT2Config", "__version__"]
