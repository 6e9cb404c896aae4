"""Find a model by a name or path, recognise its format by what the files hold, and read its weights under our names."""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..assembly.config import GPT2Config
from ..components.mlp import ActFn
from ..files import FileError, file_in, listed, read_json, user_path
from ..gguf_file import is_gguf
from .files import hub
from .files.folders import CONFIG_FILE, WEIGHT_FILES, open_tensors, open_training_checkpoint, read_config
from .files.hub import HubError
from .files.tensors import check_finite
from .formats import gguf, hooked_transformer, huggingface, nanogpt, tensorflow
from .layout import Format, WeightsError, check_type, to_ours
from .lazy import chosen
from .wrapper_prefixes import unwrapped

OUR_MODEL_TYPE = "gptladder"
RUN_FORMAT = "gptladder-run"
"""``format`` in the ``config.json`` of a training run's folder."""

SNAPSHOTS = "snapshots"
_SNAPSHOT = re.compile(r"snapshot_step_(\d+)\.pt")
_NANOGPT_FILE = "ckpt.pt"
_ADAPTER = "adapter_config.json"
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))

Kind = Literal["hf", "ours", "hooked", "nanogpt", "tensorflow", "gguf", "snapshot"]


@dataclass(frozen=True)
class Source:
    """A model on the disk, whose weights are read when they are looked up. Example: see `open_source`.

    Args:
        kind: its format.
        path: the folder or file.
        config: the configuration that the weights fit.
        state: the weights under our names.
        names: its tensors' names in the table of `layout` -> their names in the file, with prefixes.
    """

    kind: Kind
    path: Path
    config: GPT2Config
    state: Mapping[str, Tensor]
    names: Mapping[str, str]

    @property
    def layout(self) -> Format:
        """The column of the table in `layout` that describes its tensors."""
        return "ours" if self.kind == "snapshot" else self.kind


def open_source(path: Path, *, act_fn: ActFn | None = None) -> Source:
    """Open the model in a folder or file of any format that is read here.

    Args:
        path: a folder in Hugging Face's format, in ours, HookedTransformer's or OpenAI's; a training run's folder or
            one of its snapshots; a checkpoint of nanoGPT; a GGUF file.
        act_fn: for nanoGPT's checkpoints, which do not record it: see `nanogpt.config_from_nanogpt`.

    Raises:
        WeightsError: the weights or the configuration do not make a GPT-2.
        FileError: a file is missing, damaged, hostile, or of no format known here.
        ImportError: it is a TensorFlow checkpoint, and tensorflow is not installed.

    Example:
        >>> import tempfile
        >>> from gptladder import GPT2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6)).save_pretrained(folder)
        ...     source = open_source(Path(folder))
        ...     source.kind, source.config.d_vocab, source.state["embed.W_E"].shape
        ('hf', 11, torch.Size([11, 8]))
    """
    path = user_path(path)
    if path.is_dir():
        path = _in_folder(path, path)
    try:
        source = _open_folder(path) if path.is_dir() else _open_file(path, act_fn)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    if act_fn is not None and source.kind != "nanogpt":
        raise WeightsError(
            f"{path}: its configuration names the activation ({source.config.act_fn}); leave act_fn out: it is for "
            "nanoGPT's checkpoints"
        )
    return source


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """Return the folder or file that holds a model, which `open_source` reads.

    Args:
        name_or_path: a model's folder; a training run's folder, which stands for its ``final`` model, or for its newest
            readable snapshot as long as there is none; a folder with nanoGPT's ``ckpt.pt``; a snapshot or a nanoGPT
            checkpoint; or, if no such path exists, a name on the hub. ``~`` is the home folder.
        revision, token, local_files_only, endpoint, cache_dir: for a name: see `hub.fetch`.

    Raises:
        FileError: the path exists and holds no model.
        HubError: a name that cannot be fetched, or a path that does not exist.

    Example:
        >>> resolve("runs/no-such-run/final")
        Traceback (most recent call last):
        gptladder.weights.files.hub.HubError: there is no file or folder 'runs/no-such-run/final'; ...
    """
    if name_or_path == "":  # which would be the present folder
        raise HubError("the name of the model is empty: give a folder, a file, or a name on the hub")
    path = user_path(name_or_path)
    if path.is_dir():
        return _in_folder(path, name_or_path)
    if path.exists():
        if path.suffix == ".safetensors" or path.name in WEIGHT_FILES or path.name == CONFIG_FILE:
            raise FileError(f"{path}: is one file of a model folder; give the folder: {path.parent}")
        return path
    text = os.fspath(name_or_path)
    looks_like_path = (
        not isinstance(name_or_path, str)
        or text.startswith((".", "/", "~"))
        or text.count("/") > 1
        or text.endswith("/")
        or "\\" in text
        or path.suffix in {".safetensors", ".bin", ".pt", ".pth", ".json", ".ckpt", ".h5", ".gguf"}
    )
    if looks_like_path:
        raise HubError(
            f"there is no file or folder {text!r}; give a folder that holds {CONFIG_FILE} and {WEIGHT_FILES[0]}, the "
            "folder of a training run, or a checkpoint"
        )
    return hub.fetch(
        text,
        revision=revision,
        token=token,
        local_files_only=local_files_only,
        endpoint=endpoint,
        cache_dir=cache_dir,
    )


def tokenizer_folder(path: Path) -> Path | None:
    """Return the folder that holds the tokenizer of a model, or None if it has none.

    Args:
        path: a folder or file that `resolve` takes or returns. A snapshot's tokenizer is the run's; a GGUF file holds
            its own, and is returned itself.

    Example:
        >>> import tempfile
        >>> from gptladder.tokenizer import CharTokenizer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     before = tokenizer_folder(Path(folder))
        ...     CharTokenizer("abc").save(folder)
        ...     before is None, tokenizer_folder(Path(folder)) == Path(folder)
        (True, True)
    """
    path = user_path(path)
    if is_gguf(path):
        return path
    if is_run(path):
        candidates = [path / "tokenizer", path / "final"]
    elif path.is_dir():
        candidates = [path]
    elif path.parent.name == SNAPSHOTS:
        candidates = [path.parent.parent / "tokenizer", path.parent.parent / "final"]
    else:
        candidates = [path.parent]
    return next((folder for folder in candidates if _has_tokenizer(folder)), None)


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a training run, by its ``config.json``."""
    try:
        fields = read_json(file_in(folder, CONFIG_FILE))
    except FileError:
        return False
    # Runs of 0.1.0 did not write a format.
    return fields.get("format") == RUN_FORMAT or (
        "model_type" not in fields and {"data", "model", "optim"} <= fields.keys()
    )


def refuse_run(folder: Path) -> None:
    """Raise FileError for the folder of a training run, before a model is written into it in place of its settings.

    Example:
        >>> refuse_run(Path("no-such-folder"))
    """
    if is_run(folder):
        raise FileError(f"{folder}: is the folder of a training run, which has its models in it; give another folder")


def _has_tokenizer(folder: Path) -> bool:
    return any(all((folder / name).exists() for name in names) for names in _TOKENIZERS)


def _in_folder(folder: Path, given: str | os.PathLike[str]) -> Path:
    """Return the model in a folder that exists."""
    if is_run(folder):
        return _in_run(folder)
    if any((folder / name).exists() for name in (CONFIG_FILE, *tensorflow.FILES)):
        return folder
    if (folder / _NANOGPT_FILE).exists():
        return folder / _NANOGPT_FILE
    if (folder / _ADAPTER).exists():
        raise FileError(
            f"{folder}: this folder holds an adapter (LoRA), and its base model is elsewhere; merge them with peft, as "
            "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(NEW), and give NEW"
        )
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    one_of_them = f", such as {listed(inside)} in it" if inside else ""
    on_the_hub = ""
    if isinstance(given, str) and folder == Path(given) and given.count("/") <= 1:
        names = given if "/" in given else f"openai-community/{given}"
        on_the_hub = f", or for the hub's model of this name change the directory or write {names!r}"
    raise FileError(
        f"{folder}: this folder holds no model, as there is no {CONFIG_FILE} in it; give one that does"
        f"{one_of_them}{on_the_hub}"
    )


def _in_run(folder: Path) -> Path:
    """Return a run's best model, else its newest snapshot whose weights can be read and are finite."""
    if (folder / "final" / CONFIG_FILE).exists():
        return folder / "final"
    steps = {
        int(match[1]): path for path in (folder / SNAPSHOTS).glob("*.pt") if (match := _SNAPSHOT.fullmatch(path.name))
    }
    faults: list[str] = []
    for step in sorted(steps, reverse=True):
        try:
            check_finite(open_source(steps[step]).state, steps[step])
            return steps[step]
        except (FileError, WeightsError) as error:
            faults.append(str(error))
    if faults:
        raise FileError(f"{folder}: no snapshot of this run can be used: {faults[0]}")
    raise FileError(f"{folder}: this run has no model yet; it has one after its first evaluation or snapshot")


def open_tensorflow(folder: Path) -> Source:
    """Open the model in a folder as OpenAI published it, whatever else the folder holds.

    Raises:
        WeightsError, FileError, ImportError: as for `open_source`.
    """
    config, tensors = tensorflow.read_tensorflow(folder)
    return Source(
        "tensorflow", folder, config, to_ours("tensorflow", config, tensors), {name: name for name in tensors}
    )


def config_to_ours(config: GPT2Config) -> dict[str, Any]:
    """Return the fields of ``config.json`` in our own format.

    Example:
        >>> config_to_ours(GPT2Config(d_model=8, n_heads=2))["d_mlp"]
        32
    """
    return {"model_type": OUR_MODEL_TYPE, **dataclasses.asdict(config)}


def config_from_ours(fields: Mapping[str, Any]) -> GPT2Config:
    """Return our configuration from ``config.json``'s fields in our own format.

    Raises:
        WeightsError: a field is not known, or a value is not possible.
    """
    values = {name: value for name, value in fields.items() if name not in ("model_type", "dtype")}
    for field in dataclasses.fields(GPT2Config):
        check_type("config", field.name, values.get(field.name, field.default), type(field.default))
    try:
        return GPT2Config(**values)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"config: {error}") from error


def _open_folder(folder: Path) -> Source:
    if not (folder / CONFIG_FILE).exists() and any((folder / name).exists() for name in tensorflow.FILES):
        return open_tensorflow(folder)
    fields = read_config(folder)
    if fields.get("model_type") == OUR_MODEL_TYPE:
        config, tensors = config_from_ours(fields), open_tensors(folder)
        return _ours("ours", folder, config, tensors)
    if "model_type" not in fields and "normalization_type" in fields:
        config, tensors = hooked_transformer.config_from_hooked_fields(fields), open_tensors(folder)
        config, state = hooked_transformer.state_from_hooked(config, tensors)
        return Source("hooked", folder, config, state, unwrapped(tensors))
    config, tensors = huggingface.config_from_hf(fields), open_tensors(folder)
    names = huggingface.parameter_names(tensors)
    return Source("hf", folder, config, huggingface.state_from_hf(config, tensors), names)


def _ours(kind: Kind, path: Path, config: GPT2Config, tensors: Mapping[str, Tensor]) -> Source:
    names = unwrapped(tensors)
    return Source(kind, path, config, to_ours("ours", config, chosen(tensors, names)), names)


def _open_file(path: Path, act_fn: ActFn | None) -> Source:
    if path.suffix == ".safetensors" or path.name in WEIGHT_FILES:
        raise FileError(f"{path}: holds weights alone; give the folder that has {CONFIG_FILE} beside them")
    if is_gguf(path):
        config, tensors = gguf.open_gguf(path)
        return Source("gguf", path, config, to_ours("gguf", config, tensors), {name: name for name in tensors})
    key, saved, tensors = open_training_checkpoint(path, ("model", "model_state_dict"))
    if key == "model_state_dict":
        recorded = saved.get("model_config")  # since 0.2
        if recorded is not None and not isinstance(recorded, dict):
            raise WeightsError(f"is not a snapshot of a training run: its model_config is {recorded!r:.80}")
        config = (
            config_from_ours(recorded)
            if recorded
            else _config_of_snapshot(saved.get("config"), chosen(tensors, unwrapped(tensors)))
        )
        return _ours("snapshot", path, config, tensors)
    config = nanogpt.config_from_nanogpt(saved, act_fn)
    state = nanogpt.state_from_nanogpt(config, tensors, bias=nanogpt.has_bias(saved))
    return Source("nanogpt", path, config, state, huggingface.parameter_names(tensors))


def _config_of_snapshot(recorded: Any, tensors: Mapping[str, Tensor]) -> GPT2Config:
    """Return the configuration of a snapshot of 0.1.0: the sizes of the weights, with the choices that it records."""
    try:
        chosen = recorded["model"]
        if chosen["init_from"] is not None:
            raise WeightsError(
                f"began from {chosen['init_from']}, whose choices it does not record; give the run's final folder"
            )
        if not isinstance(chosen["tie_word_embeddings"], bool):
            raise WeightsError(f"records tie_word_embeddings={chosen['tie_word_embeddings']!r:.200}, not true or false")
        dropout: Any = dict.fromkeys(("embed_dropout", "attn_dropout", "resid_dropout"), chosen["dropout"])
        d_vocab, d_model = tensors["embed.W_E"].shape
        n_heads, d_head, _ = tensors["blocks.0.attn.W_O"].shape
        return GPT2Config(
            d_model=d_model,
            d_vocab=d_vocab,
            n_ctx=tensors["pos_embed.W_pos"].shape[0],
            n_heads=n_heads,
            d_head=d_head,
            d_mlp=tensors["blocks.0.mlp.W_in"].shape[1],
            n_layers=chosen["n_layers"],
            act_fn=chosen["act_fn"],
            tie_word_embeddings=chosen["tie_word_embeddings"],
            **dropout,
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"is not a snapshot of a training run ({type(error).__name__}: {error})") from error
