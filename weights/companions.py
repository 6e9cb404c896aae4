"""The files of a model folder beside config and weights: the tokenizer, and the settings of generation."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from ..assembly.model import GPT2
from ..files import MAX_JSON_BYTES, file_in, read_bytes
from ..tokenizer import Tokenizer, load_tokenizer
from .generation import GENERATION_FILE, write_generation_config
from .layout import WeightsError
from .sources import Source, tokenizer_folder

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    GENERATION_FILE,
)
"""The names that such files have in a model folder."""

# nanoGPT encodes with GPT-2's tokenizer, and pads its vocabulary to a multiple of 64.
_GPT2_VOCABULARIES = range(50257, 50305)


class Companions(NamedTuple):
    """Files for a new model folder, by name, and a phrase that names where the tokenizer is from."""

    files: dict[str, bytes]
    origin: str


def companions(source: Source, tokenizer: str | Path | None = None) -> Companions:
    """Return the files that belong beside a model's weights in another folder.

    Args:
        source: the model. A folder's files are taken as they are; a snapshot's tokenizer is its run's; a nanoGPT
            checkpoint of GPT-2's vocabulary gets GPT-2's tokenizer if it can be loaded.
        tokenizer: a folder with a tokenizer, or ``"gpt2"``, to use instead.

    Raises:
        WeightsError: a tokenizer with more tokens than the model.
        FileError: a file that is damaged or too large.
    """
    if tokenizer is not None:
        return _written(source, tokenizer, f"the tokenizer of {tokenizer}")
    folder = tokenizer_folder(source.path)
    if source.kind in ("tensorflow", "gguf"):
        return _written(source, source.path, "its tokenizer")
    if folder is not None:
        there = [name for name in COMPANIONS if (folder / name).exists()]
        files = {name: read_bytes(file_in(folder, name), limit=MAX_JSON_BYTES) for name in there}
        return Companions(files, "its tokenizer" if folder == source.path else f"the tokenizer in {folder}")
    if source.kind == "nanogpt" and source.config.d_vocab in _GPT2_VOCABULARIES:
        try:
            return _written(source, "gpt2", "GPT-2's tokenizer, as nanoGPT uses it")
        except OSError:
            pass
    has_generation = source.path.is_dir() and (source.path / GENERATION_FILE).exists()
    names = [GENERATION_FILE] if has_generation else []
    files = {name: read_bytes(file_in(source.path, name), limit=MAX_JSON_BYTES) for name in names}
    return Companions(files, "no tokenizer, as none was found: add --tokenizer FOLDER or --tokenizer gpt2")


def tokenizer_of(source: Source, tokenizer: str | Path | None = None) -> tuple[Tokenizer, str]:
    """Return the tokenizer of a model, and a phrase that names where it is from.

    Args:
        source: the model. A snapshot's tokenizer is its run's; that of a nanoGPT checkpoint with GPT-2's vocabulary is
            GPT-2's.
        tokenizer: a folder with a tokenizer, or ``"gpt2"``, to use instead.

    Raises:
        WeightsError: there is no tokenizer.
        FileError: a file that is damaged or too large.
        OSError: GPT-2's vocabulary is needed, and is neither on this machine nor available from the network.
    """
    folder = source.path if source.kind == "tensorflow" else tokenizer_folder(source.path)
    if tokenizer is not None:
        return load_tokenizer(tokenizer), f"the tokenizer of {tokenizer}"
    if folder is not None:
        return load_tokenizer(folder), "its tokenizer" if folder == source.path else f"the tokenizer in {folder}"
    if source.kind == "nanogpt" and source.config.d_vocab in _GPT2_VOCABULARIES:
        return load_tokenizer("gpt2"), "GPT-2's tokenizer, as nanoGPT uses it"
    raise WeightsError("no tokenizer was found, and this format holds one: add --tokenizer FOLDER or --tokenizer gpt2")


def fitting_tokenizer(model: GPT2) -> Tokenizer | None:
    """Return a model's own tokenizer, or None if it has none.

    Raises:
        WeightsError: it cannot be read, or has tokens for which the model has no embedding.
    """
    try:
        tokenizer = model.tokenizer
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"the model's tokenizer cannot be read ({error}); set model.tokenizer to another one, or to None to write "
            "the weights alone"
        ) from error
    if tokenizer is not None and tokenizer.n_text_vocab > model.config.d_vocab:
        raise WeightsError(
            f"the model's tokenizer has {tokenizer.n_text_vocab:,} tokens for text, and the model has "
            f"{model.config.d_vocab:,} rows for them; set model.tokenizer to the one that it was trained with, or to "
            "None to write the weights alone"
        )
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer, *, n_ctx: int) -> dict[str, bytes]:
    """Return the files of a tokenizer by name, and that of the model's generation, which follows from it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder, max_length=n_ctx)
        write_generation_config(
            folder, eos_id=tokenizer.eot_id, bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id, max_length=n_ctx
        )
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _written(source: Source, tokenizer: str | Path, origin: str) -> Companions:
    """Return the files of a tokenizer, and those of the model's generation that follow from it."""
    loaded, d_vocab = load_tokenizer(tokenizer), source.config.d_vocab
    if loaded.n_vocab > d_vocab:
        raise WeightsError(f"{origin} has {loaded.n_vocab:,} tokens and the model {d_vocab:,}; give the model's own")
    return Companions(tokenizer_files(loaded, n_ctx=source.config.n_ctx), origin)
