"""Take models from other libraries in memory, and hand them over: transformers, HookedTransformer, TransformerBridge.

A model that comes in has memory of its own. The conversion is strict: a key that is missing, left over or of another
shape raises an error that names it.
"""

import importlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..assembly.arguments import check_model
from ..assembly.config import GPT2Config
from ..assembly.model import GPT2
from ..tokenizer import Tokenizer
from .building import filled_model, weights_of
from .formats import bridge, hooked_transformer, huggingface
from .layout import WeightsError

# What HookedTransformer keeps beside its parameters; it fills them in itself.
_CONSTANTS = ("attn.mask", "attn.IGNORE")


def from_hf(model: Any, config: Any = None, *, fused: bool = True) -> GPT2:
    """Return a model with a copy of the weights of a ``transformers.GPT2LMHeadModel`` (or ``GPT2Model``).

    Args:
        model: the model; or its state dict, with ``config``. Prefixes of ``torch.compile``, ``DistributedDataParallel``
            and similar wrappers are removed.
        config: the ``transformers.GPT2Config``, or its fields in a dict (default: the model's).
        fused: as for `GPT2`.

    Raises:
        WeightsError: the weights or the configuration do not make a GPT-2.

    Example: see `to_hf`.
    """
    tensors, config = _parts(model, config, "config")
    ours = huggingface.config_from_hf(config if isinstance(config, Mapping) else config.to_dict())
    return filled_model(ours, huggingface.state_from_hf(ours, tensors), "the model", shared=True, fused=fused)


def to_hf(model: GPT2) -> Any:
    """Return a ``transformers.GPT2LMHeadModel`` with this model's weights, in ``eval()`` mode.

    transformers' GPT-2 has no bias ``b_U``: an untied projection carries it, with the same logits to rounding.

    Raises:
        WeightsError: transformers' GPT-2 cannot hold the model.
        ImportError: transformers is not installed.

    Example:
        >>> import torch
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> hf = to_hf(model)
        >>> torch.equal(from_hf(hf).blocks[0].attn.W_Q, model.blocks[0].attn.W_Q)
        True
    """
    check_model(model)
    transformers = _reference("transformers")
    config, tensors = huggingface.state_to_hf(model.config, weights_of(model))
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights, which ours replace
        hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**huggingface.config_to_hf(config)))
    hf = hf.to(model.embed.W_E.device, model.embed.W_E.dtype)
    _load_all(hf, tensors, may_lack=("lm_head.weight",) if config.tie_word_embeddings else ())
    return hf.eval()


def from_hooked_transformer(model: Any, config: Any = None, *, fused: bool = True) -> GPT2:
    """Return a model with a copy of the weights of a ``HookedTransformer``, raw or processed.

    Processed weights give the same log-probabilities as the model that they came from. (Logits may differ from that
    model's by one constant for each position: ``center_unembed``.)

    Args:
        model: the model; or its state dict, with ``config``. ARENA's state dicts have the same names.
        config: sizes and choices of a bare state dict, as a `GPT2Config` or the library's own configuration (the
            weights show whether the projection is tied).
        fused: as for `GPT2`.

    Raises:
        WeightsError: the weights or the configuration do not make a GPT-2.

    Example: see `to_hooked_state_dict`.
    """
    tensors, cfg = _parts(model, config, "cfg")
    ours = cfg if isinstance(cfg, GPT2Config) else hooked_transformer.config_from_hooked(cfg)
    ours, state = hooked_transformer.state_from_hooked(ours, tensors)
    return filled_model(ours, state, "the model", shared=True, fused=fused)


def to_hooked_transformer(model: GPT2, *, normalization_type: Literal["LN", "LNPre"] = "LN") -> Any:
    """Return a ``HookedTransformer`` with this model's weights, unprocessed, and its tokenizer if it has one.

    Example: see `to_hooked_state_dict`.

    Args:
        model: the model.
        normalization_type: ``LNPre`` (layer norms without parameters) is what ``HookedTransformer.from_pretrained``
            has; it needs a model that `fold` returned.

    Raises:
        WeightsError: the model is post-norm; or ``LNPre`` is asked for and a layer norm is not folded.
        ImportError: transformer-lens is not installed.
    """
    check_model(model)
    lens = _reference("transformer_lens")
    weight = model.embed.W_E
    fields = hooked_transformer.hooked_config_fields(model.config) | {"normalization_type": normalization_type}
    tensors = hooked_transformer.state_to_hooked(model.config, weights_of(model))
    if normalization_type == "LNPre":
        tensors = hooked_transformer.without_norms(tensors)
    cfg = lens.HookedTransformerConfig(**fields, dtype=weight.dtype, device=str(weight.device), init_weights=False)
    hooked = lens.HookedTransformer(cfg)
    _load_all(hooked, tensors, may_lack=_CONSTANTS)
    if model.tokenizer is not None:
        with _saved(model.tokenizer) as theirs:
            hooked.set_tokenizer(theirs)
    return hooked.eval()


def to_hooked_state_dict(model: GPT2) -> dict[str, Tensor]:
    """Return the state dict of `to_hooked_transformer`'s model, without its constants; needs no transformer-lens.

    Like any state dict it shares memory with the model, wherever the layouts allow it.

    Example:
        >>> import torch
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> state = to_hooked_state_dict(model)
        >>> state["blocks.0.attn.W_Q"].shape  # n_heads d_model d_head
        torch.Size([2, 8, 4])
        >>> torch.equal(from_hooked_transformer(state, model.config).embed.W_E, model.embed.W_E)
        True
    """
    check_model(model)
    return dict(hooked_transformer.state_to_hooked(model.config, weights_of(model)))


def from_bridge(model: Any, config: Any = None, *, fused: bool = True) -> GPT2:
    """Return a model with a copy of the weights of a ``TransformerBridge`` around a GPT-2, bridged or native.

    Args:
        model: the bridge; or its state dict, with ``config``.
        config: sizes and choices of a bare state dict, as a `GPT2Config` or the library's own configuration (the
            weights show whether the projection is tied).
        fused: as for `GPT2`.

    Raises:
        WeightsError: the weights or the configuration do not make a GPT-2; or ``d_mlp = d_model``, when the shapes do
            not show the orientation of the matrices.

    Example: see `to_bridge_state_dict`.
    """
    tensors, cfg = _parts(model, config, "cfg")
    ours = cfg if isinstance(cfg, GPT2Config) else bridge.config_from_bridge(cfg)
    ours, state = bridge.state_from_bridge(ours, tensors)
    return filled_model(ours, state, "the model", shared=True, fused=fused)


def to_bridge_state_dict(model: GPT2, *, conv1d: bool) -> dict[str, Tensor]:
    """Return the state dict of a ``TransformerBridge`` with this model's weights.

    Like any state dict it shares memory with the model, wherever the layouts allow it.

    Args:
        model: the model.
        conv1d: True for a bridge around a Hugging Face GPT-2, whose matrices are [in out]; False for a native bridge,
            [out in].

    Example:
        >>> import torch
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> state = to_bridge_state_dict(model, conv1d=False)
        >>> torch.equal(from_bridge(state, model.config).embed.W_E, model.embed.W_E)
        True
    """
    check_model(model)
    return dict(bridge.state_to_bridge(model.config, weights_of(model), conv1d=conv1d))


def to_bridge(model: GPT2) -> Any:
    """Return TransformerLens's ``TransformerBridge`` with this model's weights and its tokenizer.

    Raises:
        WeightsError: transformers' GPT-2, which the bridge wraps, cannot hold the model.
        ImportError: transformer-lens or transformers is not installed.

    Example:
        >>> import torch
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> torch.equal(from_bridge(to_bridge(model)).embed.W_E, model.embed.W_E)
        True
    """
    check_model(model)
    if model.tokenizer is None:
        return bridge.bridge_around(to_hf(model))
    with _saved(model.tokenizer) as theirs:
        return bridge.bridge_around(to_hf(model), theirs)


def _parts(model: Any, config: Any, attribute: str) -> tuple[Mapping[str, Tensor], Any]:
    """Return the state dict and the configuration of a model, or of a bare state dict."""
    if isinstance(model, Mapping):
        if config is None:
            raise TypeError("a bare state dict needs its configuration: give config")
        return model, config
    if not hasattr(model, "state_dict"):
        raise WeightsError(
            f"a model or its state dict is expected, not {model!r:.60}: GPT2.from_pretrained loads folders and names"
        )
    state = model.state_dict()
    while not hasattr(model, attribute) and hasattr(model, "module"):  # DistributedDataParallel and others
        model = model.module
    if any(getattr(tensor, "is_meta", False) for tensor in state.values()):
        raise WeightsError(
            f"the {type(model).__name__} is on the meta device, so its weights have no values: load them first"
        )
    if config is None and not hasattr(model, attribute):
        raise WeightsError(f"{type(model).__name__} has no {attribute!r}, so it is no such model; or give its config")
    return state, getattr(model, attribute) if config is None else config


@contextmanager
def _saved(tokenizer: Tokenizer) -> Iterator[Any]:
    """Give a tokenizer as transformers' class, in a folder that lasts for the block: TransformerLens reads it again."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        # TransformerLens's users write special tokens as text, which ours save as text that is split.
        yield _reference("transformers").AutoTokenizer.from_pretrained(folder, split_special_tokens=False)


def _load_all(module: nn.Module, tensors: Mapping[str, Tensor], *, may_lack: tuple[str, ...]) -> None:
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.endswith(may_lack or ("\0",)))]
    if wrong:
        raise WeightsError(
            f"this version of {type(module).__name__} has other parameters than ours: {', '.join(wrong[:5])}"
        )


def _reference(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install 'gptladder[reference]'") from error
