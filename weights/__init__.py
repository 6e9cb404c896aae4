"""Load, save and convert models: Hugging Face, HookedTransformer, TransformerBridge, nanoGPT, TensorFlow, our runs."""

from ..files import FileError as CheckpointError
from .files.hub import HubError
from .files.torch_files import load_torch_file
from .layout import WeightsError
from .libraries import (
    from_bridge,
    from_hf,
    from_hooked_transformer,
    to_bridge,
    to_bridge_state_dict,
    to_hf,
    to_hooked_state_dict,
    to_hooked_transformer,
)
from .pretrained import from_nanogpt, from_pretrained, from_tensorflow, save_pretrained
from .processing import fold
from .push import push_to_hub
from .sources import Source, config_to_ours, open_source, resolve, tokenizer_folder

__all__ = [
    "CheckpointError",
    "HubError",
    "Source",
    "WeightsError",
    "config_to_ours",
    "fold",
    "from_bridge",
    "from_hf",
    "from_hooked_transformer",
    "from_nanogpt",
    "from_pretrained",
    "from_tensorflow",
    "load_torch_file",
    "open_source",
    "push_to_hub",
    "resolve",
    "save_pretrained",
    "to_bridge",
    "to_bridge_state_dict",
    "to_hf",
    "to_hooked_state_dict",
    "to_hooked_transformer",
    "tokenizer_folder",
]
