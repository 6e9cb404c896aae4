"""The whole GPT-2: its configuration, and the layers wired together."""

from ..device import pick_device
from .config import PRESETS, GPT2Config
from .model import GPT2

__all__ = ["GPT2", "PRESETS", "GPT2Config", "pick_device"]
