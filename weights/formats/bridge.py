"""TransformerLens's TransformerBridge: its state dict, in both orientations, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...assembly.config import GPT2Config
from ..layout import WeightsError, from_ours, to_ours
from ..lazy import chosen
from ..wrapper_prefixes import unwrapped
from .hooked_transformer import config_from_hooked, simplified, untied, with_unembedding


def config_from_bridge(cfg: Any) -> GPT2Config:
    """Return our configuration from a ``TransformerBridgeConfig``; the weights will show whether they are tied.

    Raises:
        WeightsError: a model that is not a GPT-2.
    """
    if getattr(cfg, "architecture", None) == "TransformerLensNative":
        for name, default in (("use_attn_scale", True), ("scale_attn_by_inverse_layer_idx", False)):
            if getattr(cfg, name) != default:
                raise WeightsError(
                    f"TransformerBridgeConfig: {name}={getattr(cfg, name)!r}, of which TransformerLens's native "
                    f"model takes no notice: what it computes has {name}={default!r}"
                )
    return config_from_hooked(cfg)


def state_from_bridge(config: GPT2Config, tensors: Mapping[str, Tensor]) -> tuple[GPT2Config, Mapping[str, Tensor]]:
    """Return our state dict from a bridge's, and the configuration that it fits.

    A bridge around a Hugging Face GPT-2 holds ``o``, ``in`` and ``out`` as Conv1D does, [in out]; a native one holds
    them [out in]. ``o`` is square, so it is the shape of ``in`` that tells. A projection that equals
    the embedding is tied to it.

    Raises:
        WeightsError: a key that is missing, left over or misshapen; ``d_mlp = d_model``, where nothing tells.
    """
    theirs: dict[str, Tensor] = {}
    for key, tensor in chosen(tensors, unwrapped(tensors)).items():
        name = key.replace("._original_component", "")
        if name in theirs:
            raise WeightsError(f"{name} is there twice, with and without '._original_component'")
        theirs[name] = tensor
    d_model, d_mlp = config.d_model, config.d_mlp
    if d_mlp == d_model:
        raise WeightsError(
            f"d_mlp = d_model = {d_model}: the bridge's matrices are square, and nothing tells [in out] from [out in]. "
            "Convert the model that the bridge wraps"
        )
    first = theirs.get("blocks.0.mlp.in.weight")
    conv1d = first is not None and tuple(first.shape) == (d_model, d_mlp)
    full = untied(config)
    return simplified(full, to_ours("bridge", full, theirs, bridge_conv1d=conv1d))


def bridge_around(hf: Any, tokenizer: Any = None) -> Any:
    """Return a ``TransformerBridge`` of TransformerLens 4 (or 3.9) around a ``GPT2LMHeadModel``, without a network.

    Args:
        hf: the model; the bridge takes it apart, so hand over one that nothing else uses.
        tokenizer: transformers' tokenizer for it, or None.

    Raises:
        ImportError: transformer-lens is not installed.
    """
    try:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    except ImportError as error:
        raise ImportError("transformer-lens 3.9 or newer is not installed: pip install transformer-lens") from error
    device = next(hf.parameters()).device
    with torch.random.fork_rng(devices=[]):  # it draws numbers that it does not use
        return build_bridge_from_module(
            hf, "GPT2LMHeadModel", hf_config=hf.config, tokenizer=tokenizer, device=str(device)
        ).eval()


def state_to_bridge(config: GPT2Config, ours: Mapping[str, Tensor], *, conv1d: bool) -> Mapping[str, Tensor]:
    """Return a bridge's state dict.

    Args:
        conv1d: for a bridge around a Hugging Face GPT-2; False for a native one.
    """
    return from_ours("bridge", *with_unembedding(config, ours), bridge_conv1d=conv1d)
