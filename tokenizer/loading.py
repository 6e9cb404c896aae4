"""`load_tokenizer`: our tokenizer from a folder, a name, or a tokenizer of another library."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as Backend

from .base import END_OF_TEXT, Tokenizer
from .byte_pairs import BPETokenizer
from .characters import CharTokenizer
from .folder import has_tokenizer, read_folder
from .pipeline import PipelineTokenizer

__all__ = ["TokenizerSource", "load_tokenizer"]

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
            ``encoder.json`` and ``vocab.bpe``; ``"gpt2"``; a tokenizer of transformers or of ``tokenizers``; or one of
            ours, which is returned as it is.

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
    folder = Path(source).expanduser()
    name = str(source).removeprefix("openai-community/")
    if name in _GPT2_NAMES and not has_tokenizer(folder):
        return BPETokenizer.gpt2()
    return _of_pipeline(*read_folder(folder))


def _of_transformers(source: SavedByTransformers) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(folder)
        backend, config = read_folder(Path(folder), as_written=hasattr(source, "backend_tokenizer"))
    return _of_pipeline(backend, config)


def _of_pipeline(backend: Backend, config: Mapping[str, Any]) -> Tokenizer:
    """Return the fastest of our tokenizers that is the same function, with the special tokens of ``config``."""
    pipeline = json.loads(backend.to_str())
    tokenizer = (
        BPETokenizer.from_pipeline(pipeline) or CharTokenizer.from_pipeline(pipeline) or PipelineTokenizer(backend)
    )
    tokenizer.take_config(config)
    if tokenizer.eot_id is None and END_OF_TEXT in {token["content"] for token in pipeline["added_tokens"]}:
        tokenizer.take_config({"eos_token": END_OF_TEXT, **config})
    return tokenizer
