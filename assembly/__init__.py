"""GPT-2 as a whole: its configuration, and the wiring of the layers."""

from .config import PRESETS, GPT2Config
from .device import pick_device
from .model import GPT2

__all__ = ["GPT2", "PRESETS", "GPT2Config", "pick_device"]
