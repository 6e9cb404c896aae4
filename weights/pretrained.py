"""Load models from folders, files and the hub, and save them in folders.

A loaded model is in ``eval()`` mode and has memory of its own. Loading is strict: a key that is missing, left over or
of another shape raises an error that names it.
"""

from os import PathLike
from pathlib import Path
from typing import Literal

import torch

from ..assembly.arguments import check_model
from ..assembly.model import GPT2
from ..components.mlp import ActFn
from ..tokenizer.base import REPLACED_FILES
from .building import filled_model, weights_of
from .companions import fitting_tokenizer, tokenizer_files
from .files.write import write_folder
from .formats import huggingface
from .generation import special_ids
from .layout import WeightsError
from .sources import Source, config_to_ours, open_source, open_tensorflow, refuse_run, resolve, tokenizer_folder


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
    model: GPT2,
    folder: str | PathLike[str],
    *,
    to: Literal["hf", "ours"] = "hf",
    max_shard_size: int = 5 * 2**30,
    overwrite: bool = False,
) -> None:
    """Write a folder that ``from_pretrained`` and transformers' ``AutoModelForCausalLM`` can read.

    If the model has a tokenizer, its files are written too, with a ``generation_config.json`` that names the end of a
    text: transformers' ``AutoTokenizer`` and ``pipeline`` read the same folder. To write the weights alone, set
    ``model.tokenizer = None`` before.

    Args:
        model: the model.
        folder: a new folder, or one that holds no model; its other files stay, except those of another tokenizer.
        to: ``ours`` writes `GPT2Config`'s fields and our own names, which hold every model, and which transformers
            cannot read.
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
    check_model(model)
    refuse_run(Path(folder))
    if to not in ("hf", "ours"):
        raise WeightsError(f"to is {to!r}; it can be 'hf' or 'ours', and gptladder convert writes other formats")
    weights, tokenizer = weights_of(model), fitting_tokenizer(model)
    if to == "ours":
        tensors, fields = weights, config_to_ours(model.config)
    else:
        try:
            config, tensors = huggingface.state_to_hf(model.config, weights)
            fields = huggingface.config_to_hf(config)
        except WeightsError as error:
            raise WeightsError(f"{error}; to='ours' saves every model, for gptladder alone") from None
        fields["dtype"] = str(model.embed.W_E.dtype).removeprefix("torch.")
    if tokenizer is not None and to == "hf":
        fields |= special_ids(tokenizer.eot_id, tokenizer.bos_id, tokenizer.pad_id)
    write_folder(
        Path(folder),
        fields,
        tensors,
        files={} if tokenizer is None else tokenizer_files(tokenizer, n_ctx=model.config.n_ctx),
        replaces=() if tokenizer is None else REPLACED_FILES,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )


def _loaded(source: Source, *, device: torch.device | str | None, dtype: torch.dtype | None, fused: bool) -> GPT2:
    config, state, path = source.config, source.state, source.path
    try:
        model = filled_model(config, state, path, shared=False, device=device, dtype=dtype, fused=fused)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    model.tokenizer_source = path if source.kind == "tensorflow" else tokenizer_folder(path)
    return model
