"""`load_tokenizer`: our tokenizer from a folder, a name, or a tokenizer of another library."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as Backend

from ..files import first_sentence, user_path
from ..gguf_file import is_gguf
from .base import END_OF_TEXT, Tokenizer
from .byte_pairs import BPETokenizer
from .characters import CharTokenizer
from .folder import TOKENIZER_FILES, has_tokenizer, read_folder
from .gguf import read_gguf_tokenizer
from .nanogpt import META_FILE, read_meta
from .network import OfflineError, answer_within
from .pipeline import PipelineTokenizer

__all__ = ["TokenizerSource", "load_tokenizer"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_GPT2_NAMES = {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"}


class SavedByTransformers(Protocol):
    """A ``PreTrainedTokenizer`` or ``PreTrainedTokenizerFast`` of transformers."""

    def save_pretrained(self, save_directory: str) -> Any:
        """Write the tokenizer's files into a folder."""
        ...


TokenizerSource = str | os.PathLike[str] | Tokenizer | Backend | SavedByTransformers
"""What `load_tokenizer` takes."""


def load_tokenizer(source: TokenizerSource) -> Tokenizer:
    """Return our tokenizer for what a user has.

    Its ids are those of ``transformers.AutoTokenizer``: ``encode(text, allow_special=True)`` equals
    ``AutoTokenizer.from_pretrained(folder)(text)["input_ids"]``.

    Args:
        source: a model folder, which has ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, or OpenAI's
            ``encoder.json`` and ``vocab.bpe``, or nanoGPT's ``meta.pkl``; a run's folder; a GGUF file; ``"gpt2"`` or a
            model's name on the hub; a tokenizer of transformers or of ``tokenizers``; or one of ours, which is returned
            as it is.

    Raises:
        ValueError: no such files, files that are damaged, or a kind of tokenizer that cannot be read.
        OfflineError: GPT-2's vocabulary is neither on this machine nor available from the network.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> words = Tokenizer(models.WordLevel({"hello": 0, "world": 1}, unk_token=""))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> load_tokenizer(words).encode("hello world")
    [0, 1]
    """
    if isinstance(source, Tokenizer):
        return source
    if isinstance(source, str | os.PathLike):
        return _by_name(source)
    if isinstance(source, Backend):
        return _of_pipeline(source, {})
    if isinstance(backend := getattr(source, "_tokenizer", None), Backend) and not hasattr(source, "save_pretrained"):
        return _of_pipeline(backend, {})  # `tokenizers.ByteLevelBPETokenizer` and its like
    if hasattr(source, "save_pretrained"):
        return _of_transformers(source)
    raise ValueError(
        f"{type(source).__name__} is no tokenizer: give a folder, 'gpt2', or a tokenizer of gptladder, transformers or "
        "tokenizers"
    )


def _by_name(source: str | os.PathLike[str]) -> Tokenizer:
    folder = user_path(source)
    if is_gguf(folder):
        return _of_pipeline(*read_gguf_tokenizer(folder))
    if folder.suffix == ".json" and folder.is_file():
        folder = folder.parent
    # A run keeps its tokenizer beside its models.
    places = [place for place in (folder, folder / "tokenizer", folder / "final") if has_tokenizer(place)]
    if not places and isinstance(source, str):
        if source.removeprefix("openai-community/") in _GPT2_NAMES:
            return BPETokenizer.gpt2()
        if _HUB_NAME.fullmatch(source) and not folder.exists():
            places = [_from_hub(source)]
    meta = folder if folder.name == META_FILE else folder / META_FILE
    if not places and meta.is_file():
        return read_meta(meta)
    return _of_pipeline(*read_folder(places[0] if places else folder))


def _from_hub(name: str) -> Path:
    """Return the folder in the hub's cache with the tokenizer of a model; fetch it if it is not there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            answer_within(60, lambda: snapshot_download(name, allow_patterns=list(TOKENIZER_FILES), etag_timeout=3))
        )
    except Exception as error:
        raise OfflineError(
            f"the tokenizer of {name} is neither in the hub's cache nor available from the hub "
            f"({first_sentence(error)}); give a folder that has its tokenizer.json"
        ) from None


def _of_transformers(source: SavedByTransformers) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(folder)
        backend, config = read_folder(Path(folder), as_written=hasattr(source, "backend_tokenizer"))
    return _of_pipeline(backend, config)


def _of_pipeline(backend: Backend, config: Mapping[str, Any]) -> Tokenizer:
    """Return the fastest of our tokenizers that is the same function, with the special tokens of ``config``."""
    pipeline = json.loads(backend.to_str())
    fast = BPETokenizer.from_pipeline(pipeline, backend.model) or CharTokenizer.from_pipeline(pipeline)
    tokenizer = fast or PipelineTokenizer(backend)
    tokenizer.take_config(config)
    if tokenizer.eot_id is None and END_OF_TEXT in {token["content"] for token in pipeline["added_tokens"]}:
        tokenizer.take_config({"eos_token": END_OF_TEXT, **config})
    return tokenizer
