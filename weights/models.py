"""Whole models in and out: folders, published names, and other libraries' models in memory.

What comes in is a model in ``eval()`` mode with memory of its own (a folder's file is mapped, not read, until it is
used). Loading is strict: a key that is missing, left over or misshapen raises and is named.
"""

import importlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..assembly.config import GPT2Config
from ..assembly.model import GPT2
from ..components.mlp import ActFn
from .files.tensors import check_finite, is_finite
from .files.write import write_folder
from .formats import bridge, hooked_transformer, huggingface
from .layout import WeightsError
from .sources import Source, open_source, open_tensorflow, resolve

# What HookedTransformer keeps beside its parameters; it fills them in itself.
_CONSTANTS = ("attn.mask", "attn.IGNORE")


def from_pretrained(
    name_or_folder: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    fused: bool = True,
) -> GPT2:
    """A model from a folder or file in any format that `open_source` knows, or from the hub by name.

    Args:
        name_or_folder: a folder with ``config.json`` and weights (``model.safetensors`` or ``pytorch_model.bin``,
            sharded or not), or a name such as ``gpt2``, ``gpt2-xl``, ``distilgpt2``, ``someone/model``, whose files are
            fetched once, then cached.
        revision: branch, tag or commit on the hub.
        token: for models that need one.
        local_files_only: do not ask the network.
        device, dtype: where and as what to keep the weights; as stored where not given.
        fused: as for `GPT2`.

    Raises:
        WeightsError: weights or configuration that do not make a GPT-2.
        FileError: a file that is missing, damaged or hostile.
        HubError: a name that cannot be fetched.
    """
    path = resolve(name_or_folder, revision=revision, token=token, local_files_only=local_files_only)
    return _loaded(open_source(path), device=device, dtype=dtype, fused=fused)


def from_tensorflow(
    folder: str | PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    fused: bool = True,
) -> GPT2:
    """A model from a folder with OpenAI's TensorFlow checkpoint: ``hparams.json``, ``checkpoint``, ``model.ckpt.*``.

    Its tokenizer is `gptladder.tokenizer.load_tokenizer`'s, of the same folder.

    Args:
        device, dtype, fused: as for `from_pretrained`.

    Raises:
        WeightsError: weights or sizes that do not make a GPT-2.
        FileError: a file that is missing or damaged, or another format.
        ImportError: tensorflow is not installed.
    """
    path = Path(folder)
    try:
        source = open_tensorflow(path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return _loaded(source, device=device, dtype=dtype, fused=fused)


def from_nanogpt(
    path: str | PathLike[str],
    *,
    act_fn: ActFn | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    fused: bool = True,
) -> GPT2:
    """A model from a nanoGPT checkpoint, ``ckpt.pt``.

    Args:
        act_fn: what the program that trained it computes, which nanoGPT does not write down: ``gelu``, unless it is
            given, as nanoGPT does since June 2023; ``gelu_new`` is what it did before.
        device, dtype, fused: as for `from_pretrained`.

    Raises:
        WeightsError: weights or sizes that do not make a GPT-2.
        FileError: a file that is missing, damaged or hostile, or another format.
    """
    source = open_source(Path(path), act_fn=act_fn)
    if source.kind != "nanogpt":
        raise WeightsError(f"{path}: is no nanoGPT checkpoint; from_pretrained reads it")
    return _loaded(source, device=device, dtype=dtype, fused=fused)


def save_pretrained(
    model: GPT2, folder: str | PathLike[str], *, max_shard_size: int = 5 * 2**30, overwrite: bool = False
) -> None:
    """Write a folder that ``from_pretrained`` and transformers' ``AutoModelForCausalLM`` can read.

    Args:
        max_shard_size: bytes from which the weights are split into several files.
        overwrite: replace the model that the folder holds, which may be the one that this model was loaded from.

    Raises:
        WeightsError: a model that transformers' GPT-2 cannot hold (``d_head * n_heads != d_model``, post-norm).
        FileError: the folder holds a model already, and ``overwrite`` is false.
    """
    config, tensors = huggingface.state_to_hf(model.config, _state(model))
    dtype = str(model.embed.W_E.dtype).removeprefix("torch.")
    fields = {**huggingface.config_to_hf(config), "dtype": dtype}
    write_folder(Path(folder), fields, tensors, max_shard_size=max_shard_size, overwrite=overwrite)


def from_hf(model: Any, config: Any = None, *, fused: bool = True) -> GPT2:
    """A model with the weights of a ``transformers.GPT2LMHeadModel`` (or ``GPT2Model``).

    Args:
        model: the model; or its state dict, with ``config``.
        config: the ``transformers.GPT2Config``, or its fields in a dict.

    Raises:
        WeightsError: weights or configuration that do not make a GPT-2.
    """
    tensors, config = _parts(model, config, "config")
    ours = huggingface.config_from_hf(config if isinstance(config, Mapping) else config.to_dict())
    return _filled(ours, huggingface.state_from_hf(ours, tensors), "the model", shared=True, fused=fused)


def to_hf(model: GPT2) -> Any:
    """A ``transformers.GPT2LMHeadModel`` with this model's weights, in ``eval()`` mode.

    A bias ``b_U``, which transformers' GPT-2 lacks, is carried by an untied projection: same logits, to rounding.

    Raises:
        WeightsError: a model that transformers' GPT-2 cannot hold.
        ImportError: transformers is not installed.
    """
    transformers = _reference("transformers")
    config, tensors = huggingface.state_to_hf(model.config, _state(model))
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**huggingface.config_to_hf(config)))
    hf = hf.to(model.embed.W_E.device, model.embed.W_E.dtype)
    _load_all(hf, tensors, may_lack=("lm_head.weight",) if config.tie_word_embeddings else ())
    return hf.eval()


def from_hooked_transformer(model: Any, config: GPT2Config | None = None, *, fused: bool = True) -> GPT2:
    """A model with the weights of a ``HookedTransformer``, raw or processed.

    Processed weights give the same log-probabilities as the model that they came from. (Its logits may differ
    from that model's by one constant for each position: ``center_unembed``.)

    Args:
        model: the model; or its state dict, with ``config``.
        config: sizes and choices of a bare state dict (whether the projection is tied is read off the weights).

    Raises:
        WeightsError: weights or configuration that do not make a GPT-2.
    """
    tensors, cfg = _parts(model, config, "cfg")
    ours = cfg if isinstance(cfg, GPT2Config) else hooked_transformer.config_from_hooked(cfg)
    ours, state = hooked_transformer.state_from_hooked(ours, tensors)
    return _filled(ours, state, "the model", shared=True, fused=fused)


def to_hooked_transformer(model: GPT2, *, normalization_type: Literal["LN", "LNPre"] = "LN") -> Any:
    """A ``HookedTransformer`` with this model's weights, as they are.

    Args:
        normalization_type: ``LNPre``, layer norms without parameters, is what ``HookedTransformer.from_pretrained``
            gives; the model must have been through `fold` for it.

    Raises:
        WeightsError: a post-norm model; ``LNPre``, and a layer norm that is not folded.
        ImportError: transformer-lens is not installed.
    """
    lens = _reference("transformer_lens")
    weight = model.embed.W_E
    fields = hooked_transformer.hooked_config_fields(model.config) | {"normalization_type": normalization_type}
    tensors = hooked_transformer.state_to_hooked(model.config, _state(model))
    if normalization_type == "LNPre":
        tensors = hooked_transformer.without_norms(tensors)
    cfg = lens.HookedTransformerConfig(**fields, dtype=weight.dtype, device=str(weight.device), init_weights=False)
    hooked = lens.HookedTransformer(cfg)
    _load_all(hooked, tensors, may_lack=_CONSTANTS)
    return hooked.eval()


def to_hooked_state_dict(model: GPT2) -> dict[str, Tensor]:
    """The state dict of `to_hooked_transformer`'s model, less its constants, without needing transformer-lens.

    Like any state dict it shares memory with the model, wherever the layouts allow it.
    """
    return dict(hooked_transformer.state_to_hooked(model.config, _state(model)))


def from_bridge(model: Any, config: GPT2Config | None = None, *, fused: bool = True) -> GPT2:
    """A model with the weights of a ``TransformerBridge`` around a GPT-2, bridged or native.

    Args:
        model: the bridge; or its state dict, with ``config``.
        config: sizes and choices of a bare state dict (whether the projection is tied is read off the weights).

    Raises:
        WeightsError: weights or configuration that do not make a GPT-2; ``d_mlp = d_model``, where the orientation of
            the matrices cannot be told.
    """
    tensors, cfg = _parts(model, config, "cfg")
    ours = cfg if isinstance(cfg, GPT2Config) else bridge.config_from_bridge(cfg)
    ours, state = bridge.state_from_bridge(ours, tensors)
    return _filled(ours, state, "the model", shared=True, fused=fused)


def to_bridge_state_dict(model: GPT2, *, conv1d: bool) -> dict[str, Tensor]:
    """The state dict of a ``TransformerBridge`` with this model's weights.

    Like any state dict it shares memory with the model, wherever the layouts allow it.

    Args:
        conv1d: for a bridge around a Hugging Face GPT-2, whose matrices are [in out]; False for a native one, [out in].
    """
    return dict(bridge.state_to_bridge(model.config, _state(model), conv1d=conv1d))


def _parts(model: Any, config: Any, attribute: str) -> tuple[Mapping[str, Tensor], Any]:
    """The state dict and the configuration of a model, or of a bare state dict."""
    if isinstance(model, Mapping):
        if config is None:
            raise TypeError("a bare state dict needs its configuration: give config")
        return model, config
    state = model.state_dict()
    while not hasattr(model, attribute) and hasattr(model, "module"):  # DistributedDataParallel and others
        model = model.module
    return state, getattr(model, attribute) if config is None else config


def _loaded(source: Source, *, device: torch.device | str | None, dtype: torch.dtype | None, fused: bool) -> GPT2:
    try:
        return _filled(source.config, source.state, source.path, shared=False, device=device, dtype=dtype, fused=fused)
    except WeightsError as error:
        raise WeightsError(f"{source.path}: {error}") from None


@torch.no_grad()
def _filled(
    config: GPT2Config,
    state: Mapping[str, Tensor],
    source: object,
    *,
    shared: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    fused: bool = True,
) -> GPT2:
    """Return a model with weights of its own, made one after the other, so that hardly any is in memory twice.

    Args:
        config: what the weights fit.
        state: the weights under our names; each is looked up once.
        source: what the weights are from, for messages.
        shared: another program holds the tensors of ``state``, so that all have to be copied.
        device, dtype: where and as what to hold the weights (default: as in ``state``).
        fused: as for `GPT2`.
    """
    filled: dict[str, Tensor] = {}
    stored: dict[str, str] = {}
    for name, tensor in state.items():
        stored.setdefault(str(tensor.dtype), name)
        own = tensor.to(device, dtype)
        own = own.clone(memory_format=torch.contiguous_format) if own is tensor and shared else own.contiguous()
        if not is_finite(own):
            check_finite({name: tensor}, source)
            raise WeightsError(f"{name} holds numbers that are too large for {dtype}; load it in another dtype")
        filled[name] = own
    if dtype is None and len(stored) > 1:
        mixture = ", ".join(f"{name} is {its}" for its, name in sorted(stored.items()))
        raise WeightsError(f"the weights are not of one dtype ({mixture}): convert them to one")
    model = unfilled(config, fused=fused)
    model.load_state_dict(filled, assign=True)
    return model


def unfilled(config: GPT2Config, *, fused: bool = True) -> GPT2:
    """Return a model in ``eval()`` mode on the meta device: nothing is allocated, and no initial weights are drawn."""
    return GPT2(config, fused=fused, device="meta").eval()


def _state(model: GPT2) -> dict[str, Tensor]:
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_meta:
            raise WeightsError(
                f"{name} has no values to save: the model was packed for decoding, or is on the meta device"
            )
    return state


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
