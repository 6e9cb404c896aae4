"""The tokenizer in a GGUF file: GPT-2's byte-level byte-pair encoding, as llama.cpp's files hold it."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ..files import FileError
from ..gguf_file import read_header
from .base import MAX_ID, default_config
from .folder import refusing

__all__ = ["read_gguf_tokenizer"]

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_SPLITS = ("gpt-2", "gpt2", "default")
"""The names under which llama.cpp splits a text into words as GPT-2 does."""


def read_gguf_tokenizer(path: Path) -> tuple[Backend, dict[str, Any]]:
    """Return the tokenizer of a GGUF file, and the fields that ``tokenizer_config.json`` would have.

    Raises:
        FileError: the file is damaged, or its tokenizer is of another kind.
    """
    fields = read_header(path).fields
    tokens, merges = (_texts(path, fields, name) for name in ("tokens", "merges"))
    kinds = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    model, splits = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", _SPLITS[0])
    if model != "gpt2" or splits not in _SPLITS:
        raise FileError(
            f"{path}: has a tokenizer of another kind ({model!r:.40}, {splits!r:.40}), where GPT-2's is expected: give "
            "the model's tokenizer as a folder with its tokenizer.json"
        )
    if not isinstance(kinds, list) or len(kinds) != len(tokens) or not 0 < len(tokens) <= MAX_ID:
        raise FileError(f"{path}: has {len(tokens)} tokens and another number of types; fetch it or write it again")
    named = {role: _token(path, fields, tokens, role) for role in ("bos", "eos", "padding")}
    with refusing(path):
        vocab = {token: i for i, token in enumerate(tokens) if kinds[i] != _UNUSED}
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        backend = Backend(models.BPE(vocab=vocab, merges=pairs, fuse_unk=False))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        for i, token in enumerate(tokens):
            if kinds[i] == _CONTROL or (kinds[i] != _UNUSED and token in named.values()):
                backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
            elif kinds[i] == _USER_DEFINED:
                backend.add_tokens([AddedToken(token, normalized=False, special=False)])
    roles = {"bos_token": named["bos"], "eos_token": named["eos"], "pad_token": named["padding"]}
    length = fields.get("gpt2.context_length")
    return backend, {
        **default_config(end_of_text=False),
        **{role: token for role, token in roles.items() if token is not None},
        **({"model_max_length": length} if isinstance(length, int) else {}),
    }


def _texts(path: Path, fields: dict[str, Any], name: str) -> list[str]:
    texts = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FileError(f"{path}: has no list of the {name} of its tokenizer; give the tokenizer as a folder")
    return texts


def _token(path: Path, fields: dict[str, Any], tokens: list[str], role: str) -> str | None:
    """Return the text of a token that the file names by its id, or None if it names none."""
    i = fields.get(f"tokenizer.ggml.{role}_token_id")
    if i is None:
        return None
    if type(i) is not int or not 0 <= i < len(tokens):
        raise FileError(f"{path}: its {role}_token_id is {i!r:.40}, where an id below {len(tokens)} is expected")
    return tokens[i]
