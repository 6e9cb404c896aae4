"""OpenAI's TensorFlow checkpoints: ``hparams.json``, ``checkpoint`` and ``model.ckpt.*``, as GPT-2 was published.

The variables' names and shapes are those of ``model.py`` in https://github.com/openai/gpt-2.
"""

import importlib
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...assembly.config import GPT2Config
from ...files import FileError, file_in, first_sentence
from ..files.folders import read_config
from ..layout import WeightsError
from ..lazy import Lazy

HPARAMS_FILE = "hparams.json"
FILES = (HPARAMS_FILE, "checkpoint")

_SAME = {"n_vocab": "d_vocab", "n_ctx": "n_ctx", "n_embd": "d_model", "n_head": "n_heads", "n_layer": "n_layers"}
_DTYPES = {"float16", "float32", "float64"}


def read_tensorflow(folder: Path) -> tuple[GPT2Config, Lazy]:
    """Return our configuration from OpenAI's folder, and its tensors, each of which is read when it is looked up.

    Raises:
        WeightsError: sizes that do not make a GPT-2, or numbers of another kind.
        FileError: a file that is missing or damaged.
        ImportError: tensorflow is not installed.
    """
    config = config_from_hparams(read_config(folder, HPARAMS_FILE))
    prefix = _prefix(folder)
    tensorflow = _tensorflow()
    try:
        reader = tensorflow.train.load_checkpoint(os.fspath(prefix))
        dtypes = {name: dtype.name for name, dtype in reader.get_variable_to_dtype_map().items()}
    except Exception as error:  # a damaged file can raise anything
        raise _damaged(prefix, error) from error
    if strange := [f"{name} is {dtype}" for name, dtype in sorted(dtypes.items()) if dtype not in _DTYPES]:
        raise WeightsError(f"{strange[0]}; only {', '.join(sorted(_DTYPES))} can be read")

    def read(name: str) -> Tensor:
        try:
            return torch.from_numpy(reader.get_tensor(name))
        except Exception as error:
            raise _damaged(prefix, error) from error

    return config, Lazy({name: partial(read, name) for name in dtypes})


def config_from_hparams(fields: Mapping[str, Any]) -> GPT2Config:
    """Return our configuration from ``hparams.json``.

    Raises:
        WeightsError: a field that is missing or not known, or sizes that do not go together.
    """
    if fields.keys() != _SAME.keys():
        raise WeightsError(f"{HPARAMS_FILE} has the fields {sorted(fields)}, where OpenAI's has {sorted(_SAME)}")
    try:
        return GPT2Config(**{ours: fields[theirs] for theirs, ours in _SAME.items()})
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{HPARAMS_FILE}: {error}") from error


def _prefix(folder: Path) -> Path:
    """Return the path that the names of the checkpoint's files begin with.

    ``checkpoint`` names it, often with the path that it had where it was trained; only this folder is looked in.
    """
    path = file_in(folder, "checkpoint")
    with path.open("rb") as file:
        first = file.read(10_000).decode(errors="replace").split("\n")[0]
    named = re.fullmatch(r'model_checkpoint_path: "(?:.*/)?(\w[\w.-]*)"', first.strip(), re.ASCII)
    if named is None:
        raise FileError(f'{path}: does not begin with model_checkpoint_path: "model.ckpt" or another name; correct it')
    for ending in (".index", ".data-00000-of-00001"):
        file_in(folder, named[1] + ending)
    return folder / named[1]


def _damaged(prefix: Path, error: Exception) -> FileError:
    reason = first_sentence(error)
    return FileError(f"{prefix}: tensorflow cannot read it ({type(error).__name__}: {reason}); fetch it again")


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it would begin with remarks on the processor
    try:
        return importlib.import_module("tensorflow")
    except ImportError as error:
        raise ImportError("tensorflow is not installed: pip install 'gptladder[tensorflow]'") from error
