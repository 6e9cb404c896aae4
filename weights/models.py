"""Load and save whole models: folders, published names, and other libraries' models in memory.

A loaded model is in ``eval()`` mode and has memory of its own. Loading is strict: a key that is missing, left over or
of another shape raises an error that names it.
"""

import importlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..assembly.config import GPT2Config
from ..assembly.model import GPT2
from ..components.mlp import ActFn
from ..tokenizer import Tokenizer
from ..tokenizer.base import REPLACED_FILES
from .companions import fitting_tokenizer, tokenizer_files
from .files.tensors import check_finite, is_finite
from .files.write import write_folder
from .formats import bridge, hooked_transformer, huggingface
from .generation import special_ids
from .layout import WeightsError
from .sources import Source, open_source, open_tensorflow, resolve, tokenizer_folder

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
    """Load a model from a folder or file in any format that `open_source` knows, or from the hub by name.

    Args:
        name_or_folder: a folder with ``config.json`` and weights (``model.safetensors`` or ``pytorch_model.bin``,
            sharded or not); a training run's folder or one of its snapshots; a nanoGPT checkpoint; a GGUF file; or a
            name such as ``gpt2``, ``gpt2-xl``, ``distilgpt2``, ``someone/model``, whose files are fetched once and
            then cached.
        revision: branch, tag or commit on the hub.
        token: for models that need one.
        local_files_only: do not use the network.
        device: where to hold the weights (default: the CPU).
        dtype: what to hold them as (default: as they are stored).
        fused: as for `GPT2`.

    Returns:
        The model. Its `tokenizer` is the folder's, read when it is first needed.

    Raises:
        WeightsError: the weights or the configuration do not make a GPT-2.
        FileError: a file is missing, damaged or hostile, or changes while it is read.
        HubError: the name cannot be fetched.

    Example:
        >>> import tempfile
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     again = from_pretrained(folder)
        >>> torch.equal(again.embed.W_E, model.embed.W_E)
        True
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
    """Load a model from OpenAI's TensorFlow checkpoint: ``hparams.json``, ``checkpoint`` and ``model.ckpt.*``.

    `gptladder.tokenizer.load_tokenizer` loads its tokenizer from the same folder. Example: see `from_pretrained`.

    Args:
        device, dtype, fused: as for `from_pretrained`.

    Raises:
        WeightsError: the weights or sizes do not make a GPT-2.
        FileError: a file is missing, damaged, or of another format.
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
    """Load a model from a nanoGPT checkpoint, ``ckpt.pt``. Example: see `from_pretrained`, which reads it too.

    Args:
        act_fn: activation of the program that trained it, which nanoGPT does not record (default: ``gelu``, as nanoGPT
            computes since June 2023; before that it was ``gelu_new``).
        device, dtype, fused: as for `from_pretrained`.

    Raises:
        WeightsError: the weights or sizes do not make a GPT-2.
        FileError: a file is missing, damaged, hostile, or of another format.
    """
    source = open_source(Path(path), act_fn=act_fn)
    if source.kind != "nanogpt":
        raise WeightsError(f"{path}: is not a nanoGPT checkpoint; load it with from_pretrained")
    return _loaded(source, device=device, dtype=dtype, fused=fused)


def save_pretrained(
    model: GPT2, folder: str | PathLike[str], *, max_shard_size: int = 5 * 2**30, overwrite: bool = False
) -> None:
    """Write a folder that ``from_pretrained`` and transformers' ``AutoModelForCausalLM`` can read.

    If the model has a tokenizer, its files are written too, with a ``generation_config.json`` that names the end of a
    text: transformers' ``AutoTokenizer`` and ``pipeline`` read the same folder. To write the weights alone, set
    ``model.tokenizer = None`` before.

    Args:
        model: the model.
        folder: a new folder, or one that holds no model; its other files stay, except those of another tokenizer.
        max_shard_size: weights of more bytes than this are split into several files.
        overwrite: replace the model that the folder holds, which may be the one that this model was loaded from.

    Raises:
        WeightsError: transformers' GPT-2 cannot hold the model (``d_head * n_heads != d_model``, post-norm); or the
            tokenizer cannot be read any more, or is not the model's.
        FileError: the folder holds a model already, and ``overwrite`` is false.

    Example:
        >>> import tempfile
        >>> from gptladder import GPT2, GPT2Config
        >>> from gptladder.tokenizer import CharTokenizer
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=3, n_ctx=6))
        >>> model.tokenizer = CharTokenizer("abc")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     from_pretrained(folder).to_tokens("cab")
        tensor([[2, 0, 1]])
    """
    config, tensors = huggingface.state_to_hf(model.config, _state(model))
    dtype = str(model.embed.W_E.dtype).removeprefix("torch.")
    fields = {**huggingface.config_to_hf(config), "dtype": dtype}
    tokenizer = fitting_tokenizer(model)
    if tokenizer is not None:
        fields |= special_ids(tokenizer.eot_id, tokenizer.bos_id, tokenizer.pad_id)
    write_folder(
        Path(folder),
        fields,
        tensors,
        files={} if tokenizer is None else tokenizer_files(tokenizer, n_ctx=config.n_ctx),
        replaces=() if tokenizer is None else REPLACED_FILES,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )


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
    return _filled(ours, huggingface.state_from_hf(ours, tensors), "the model", shared=True, fused=fused)


def to_hf(model: GPT2) -> Any:
    """Return a ``transformers.GPT2LMHeadModel`` with this model's weights, in ``eval()`` mode.

    transformers' GPT-2 has no bias ``b_U``: an untied projection carries it, with the same logits to rounding.

    Raises:
        WeightsError: transformers' GPT-2 cannot hold the model.
        ImportError: transformers is not installed.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> hf = to_hf(model)
        >>> torch.equal(from_hf(hf).blocks[0].attn.W_Q, model.blocks[0].attn.W_Q)
        True
    """
    transformers = _reference("transformers")
    config, tensors = huggingface.state_to_hf(model.config, _state(model))
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
    return _filled(ours, state, "the model", shared=True, fused=fused)


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
    lens = _reference("transformer_lens")
    weight = model.embed.W_E
    fields = hooked_transformer.hooked_config_fields(model.config) | {"normalization_type": normalization_type}
    tensors = hooked_transformer.state_to_hooked(model.config, _state(model))
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
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> state = to_hooked_state_dict(model)
        >>> state["blocks.0.attn.W_Q"].shape  # n_heads d_model d_head
        torch.Size([2, 8, 4])
        >>> torch.equal(from_hooked_transformer(state, model.config).embed.W_E, model.embed.W_E)
        True
    """
    return dict(hooked_transformer.state_to_hooked(model.config, _state(model)))


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
    return _filled(ours, state, "the model", shared=True, fused=fused)


def to_bridge_state_dict(model: GPT2, *, conv1d: bool) -> dict[str, Tensor]:
    """Return the state dict of a ``TransformerBridge`` with this model's weights.

    Like any state dict it shares memory with the model, wherever the layouts allow it.

    Args:
        model: the model.
        conv1d: True for a bridge around a Hugging Face GPT-2, whose matrices are [in out]; False for a native bridge,
            [out in].

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> state = to_bridge_state_dict(model, conv1d=False)
        >>> torch.equal(from_bridge(state, model.config).embed.W_E, model.embed.W_E)
        True
    """
    return dict(bridge.state_to_bridge(model.config, _state(model), conv1d=conv1d))


def to_bridge(model: GPT2) -> Any:
    """Return TransformerLens's ``TransformerBridge`` with this model's weights and its tokenizer.

    Raises:
        WeightsError: transformers' GPT-2, which the bridge wraps, cannot hold the model.
        ImportError: transformer-lens or transformers is not installed.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> torch.equal(from_bridge(to_bridge(model)).embed.W_E, model.embed.W_E)
        True
    """
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
    state = model.state_dict()
    while not hasattr(model, attribute) and hasattr(model, "module"):  # DistributedDataParallel and others
        model = model.module
    return state, getattr(model, attribute) if config is None else config


def _loaded(source: Source, *, device: torch.device | str | None, dtype: torch.dtype | None, fused: bool) -> GPT2:
    try:
        model = _filled(source.config, source.state, source.path, shared=False, device=device, dtype=dtype, fused=fused)
    except WeightsError as error:
        raise WeightsError(f"{source.path}: {error}") from None
    model.tokenizer_source = source.path if source.kind == "tensorflow" else tokenizer_folder(source.path)
    return model


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


@contextmanager
def _saved(tokenizer: Tokenizer) -> Iterator[Any]:
    """Give a tokenizer as transformers' class, in a folder that lasts for the block: TransformerLens reads it again."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        # TransformerLens's users write special tokens as text, which ours save as text that is split.
        yield _reference("transformers").AutoTokenizer.from_pretrained(folder, split_special_tokens=False)


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
