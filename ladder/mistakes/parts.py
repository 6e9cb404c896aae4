"""Wrong layers inside larger ones."""

from collections.abc import Mapping

import torch
from torch import nn

from ...assembly.config import GPT2Config
from ..rungs import Build
from .embeddings import PlainUnembed

# Wrong layers by the places that they take inside a larger layer.
Parts = Mapping[str, Build]


def no_parts(self: nn.Module, config: GPT2Config) -> Parts:
    """Return no wrong layers: a block or a model is made of ours."""
    return {}


def put_in(layer: nn.Module, parts: Parts, config: GPT2Config, dtype: torch.dtype) -> None:
    """Put wrong layers, whose parameters are empty, in some places of a block or a model."""
    for path, build in parts.items():
        layer.set_submodule(path, build(config, dtype))
    unembed = getattr(layer, "unembed", None)
    if isinstance(unembed, PlainUnembed) and config.tie_word_embeddings:
        unembed.tie_to(layer.get_submodule("embed"))
