"""Weights between ours and everybody's: Hugging Face, HookedTransformer, TransformerBridge, files and names."""

from .checkpoint import CheckpointError
from .hub import HubError, resolve
from .layout import WeightsError
from .models import (
    from_bridge,
    from_hf,
    from_hooked_transformer,
    from_nanogpt,
    from_pretrained,
    from_tensorflow,
    save_pretrained,
    to_bridge_state_dict,
    to_hf,
    to_hooked_state_dict,
    to_hooked_transformer,
)
from .processing import fold

__all__ = [
    "CheckpointError",
    "HubError",
    "WeightsError",
    "fold",
    "from_bridge",
    "from_hf",
    "from_hooked_transformer",
    "from_nanogpt",
    "from_pretrained",
    "from_tensorflow",
    "resolve",
    "save_pretrained",
    "to_bridge_state_dict",
    "to_hf",
    "to_hooked_state_dict",
    "to_hooked_transformer",
]
