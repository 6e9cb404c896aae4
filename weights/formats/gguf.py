"""llama.cpp's GGUF: a model and its tokenizer in one file, written with the package ``gguf``, and read without it.

llama.cpp computes one fixed GPT-2 from such a file (``src/models/gpt2.cpp`` in https://github.com/ggml-org/llama.cpp).
The file has no field for another activation, attention scale or kind of tokenizer: a reader would compute something
else without a message. So `state_to_gguf` and `vocabulary` refuse every model that is not exactly that GPT-2.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...assembly.config import GPT2Config
from ...extras import import_extra
from ...gguf_file import BLOCKS, GGUFTensor, read_header
from ...tokenizer import BPETokenizer, Tokenizer
from ..files.tensors import StableFile, Storage
from ..layout import WeightsError, check_type, from_ours
from ..lazy import Lazy, chosen

__all__ = [
    "GGUFType",
    "Vocabulary",
    "gguf_type",
    "how_to_read",
    "open_gguf",
    "rounded",
    "state_to_gguf",
    "vocabulary",
    "write_gguf",
]

GGUFType = Literal["f32", "f16", "q8_0"]
"""What the matrices are stored as. Gains, biases and the position embedding are float32 in all three, as in the files
that llama.cpp's own converter writes."""

_TYPES: dict[torch.dtype | str, GGUFType] = {torch.float32: "f32", torch.float16: "f16", "q8_0": "q8_0"}
_ALWAYS_F32 = "position_embd.weight"
_EMBEDDING, _PROJECTION = "token_embd.weight", "output.weight"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK = 32
"""Numbers of a row that share one scale in q8_0."""


class Vocabulary(NamedTuple):
    """A tokenizer as GGUF holds it.

    Args:
        tokens: one for each row of the embedding, with each byte written as GPT-2 writes it.
        types: for each token 1 (normal), 3 (control), 4 (matched before merging) or 5 (unused).
        merges: the pairs in the order in which they are merged, each as ``"left right"``.
        special: the ids of the tokens that begin and end a text, and of the padding token if there is one.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]


def gguf_type(asked: torch.dtype | Literal["q8_0"] | None, stored: torch.dtype) -> GGUFType:
    """Return the type to store matrices as.

    Args:
        asked: the user's choice (default: the smallest type that holds each of the model's numbers exactly).
        stored: the dtype that the model has.

    Raises:
        WeightsError: there is no such type for a GPT-2 in GGUF.

    Example:
        >>> gguf_type(None, torch.bfloat16), gguf_type(torch.float16, torch.float32)
        ('f32', 'f16')
    """
    if asked is None:
        asked = torch.float32 if stored == torch.bfloat16 else stored
    if asked not in _TYPES:
        raise WeightsError(f"GGUF is not written in {str(asked).removeprefix('torch.')}: add --dtype f32, f16 or q8_0")
    return _TYPES[asked]


def state_to_gguf(config: GPT2Config, ours: Mapping[str, Tensor]) -> tuple[GPT2Config, Lazy]:
    """Return the configuration that GGUF holds, and llama.cpp's tensors. A ``b_U`` of zeros is left out.

    Raises:
        WeightsError: llama.cpp would compute another function from the file; the message names the difference.
    """
    if config.unembed_bias and not ours["unembed.b_U"].any():
        config = dataclasses.replace(config, unembed_bias=False)
    for fault, is_there in (
        (f"computes act_fn={config.act_fn}, where llama.cpp computes gelu_new", config.act_fn != "gelu_new"),
        ("has scale_attn_by_inverse_layer_idx=True", config.scale_attn_by_inverse_layer_idx),
        ("has scale_attn_weights=False", not config.scale_attn_weights),
        ("has n_heads * d_head other than d_model", config.n_heads * config.d_head != config.d_model),
        ("is post-norm", config.norm != "pre"),
        ("has an output bias b_U (convert it with --to hf first, which puts it elsewhere)", config.unembed_bias),
    ):
        if is_there:
            raise WeightsError(f"GGUF has no place for this model, which {fault}")
    return config, from_ours("gguf", config, ours)


def vocabulary(tokenizer: Tokenizer, d_vocab: int) -> Vocabulary:
    """Return a tokenizer as GGUF holds it; rows of the embedding without a token get an unused one.

    Args:
        tokenizer: the model's.
        d_vocab: rows of its embedding.

    Raises:
        WeightsError: the tokenizer is not GPT-2's byte-level byte-pair encoding, has no token that ends a text, or has
            more tokens than the model.

    Example:
        >>> tokenizer = BPETokenizer.train("the cat sat on the mat", vocab_size=260)
        >>> vocabulary(tokenizer, 262).tokens[-5:]
        ['at', 'Ġt', '<|endoftext|>', '[UNUSED260]', '[UNUSED261]']
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise WeightsError(
            "GGUF holds GPT-2's byte-level byte-pair tokenizer alone, and this model's tokenizer is of another kind "
            f"({type(tokenizer).__name__}): llama.cpp would give other ids; train with --tokenizer bpe or gpt2"
        )
    if tokenizer.eot_id is None or tokenizer.start_id is None:
        raise WeightsError(
            "the tokenizer names no token that ends a text, and llama.cpp would take token 11 for it: name its "
            "eos_token in tokenizer_config.json"
        )
    if tokenizer.n_vocab > d_vocab:
        raise WeightsError(f"the tokenizer has {tokenizer.n_vocab:,} tokens and the model {d_vocab:,}")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        pipeline = json.loads(Path(folder, "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["id"]: token for token in pipeline["added_tokens"]}
    texts = {i: text for text, i in pipeline["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    kind = _gguf().TokenType
    types = [kind.NORMAL if i in texts else kind.UNUSED for i in range(d_vocab)]
    for i, token in added.items():
        types[i] = kind.CONTROL if token["special"] else kind.USER_DEFINED
    taken = set(texts.values())
    tokens = [texts[i] if i in texts else _unused(i, taken) for i in range(d_vocab)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in pipeline["model"]["merges"]]
    if not merges:
        raise WeightsError("the tokenizer merges nothing, and llama.cpp reads none without merges: give a larger one")
    special = {"bos": tokenizer.start_id, "eos": tokenizer.eot_id}
    if tokenizer.pad_id is not None:
        special["pad"] = tokenizer.pad_id
    return Vocabulary(tokens, [int(each) for each in types], merges, special)


def write_gguf(
    path: Path,
    config: GPT2Config,
    tensors: Mapping[str, Tensor],
    words: Vocabulary,
    *,
    to: GGUFType,
    name: str,
    watch: Callable[[str, Tensor], None] = lambda name, tensor: None,
) -> None:
    """Write a GGUF file, one tensor in memory at a time.

    Args:
        path: the file, which is overwritten.
        config: the configuration that `state_to_gguf` returned.
        tensors: the tensors that it returned.
        words: the tokenizer.
        to: what the matrices are stored as.
        name: name of the model in the file.
        watch: is given each tensor with its numbers as a reader will get them.

    Raises:
        WeightsError: rows that q8_0 cannot divide into blocks.
        ImportError: the package gguf is not installed.
    """
    gguf = _gguf()
    _check_rows(config, to)
    writer = gguf.GGUFWriter(path, "gpt2")
    try:
        _add_sizes(writer, gguf, config, to, name)
        _add_vocabulary(writer, words)
        for key, tensor in tensors.items():
            shape, kind = list(tensor.shape), _kind(gguf, key, tensor.dim(), to)
            block, nbytes = gguf.GGML_QUANT_SIZES[kind]
            # The shape is that of the numbers, whatever they are stored as.
            writer.add_tensor_info(key, shape, np.dtype(np.float32), tensor.numel() // block * nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, tensor in tensors.items():
            stored = _stored(gguf, key, tensor, to)
            watch(key, _restored(gguf, key, stored, tensor.dim(), to))
            writer.write_tensor_data(stored)
    finally:
        writer.close()


def rounded(tensors: Mapping[str, Tensor], to: GGUFType) -> Lazy:
    """Return the tensors as a reader of the file gets them, in float32: rounded to what they are stored as."""
    gguf = _gguf()

    def round_trip(key: str) -> Tensor:
        tensor = tensors[key]
        return _restored(gguf, key, _stored(gguf, key, tensor, to), tensor.dim(), to)

    return Lazy({key: partial(round_trip, key) for key in tensors})


def how_to_read(path: Path, config: GPT2Config) -> str:
    """Return a sentence on what the readers of a file must be given, because they do not take it from the file.

    Example:
        >>> how_to_read(Path("x.gguf"), GPT2Config(n_ctx=256))
        'llama.cpp: -c 256 or less; transformers: from_pretrained(FOLDER, gguf_file="x.gguf", n_positions=256)'
    """
    inner = "" if config.d_mlp == 4 * config.d_model else f", n_inner={config.d_mlp}"
    return (
        f"llama.cpp: -c {config.n_ctx} or less; transformers: from_pretrained(FOLDER, "
        f'gguf_file="{path.name}", n_positions={config.n_ctx}{inner})'
    )


def open_gguf(path: Path) -> tuple[GPT2Config, Lazy]:
    """Return the configuration of a GGUF file, and its tensors in float32, each read when it is looked up.

    An ``output.weight`` that only repeats the embedding is left out, and the configuration is that of a tied model.

    Raises:
        WeightsError: the file holds another model than a GPT-2, or sizes that make none.
        FileError: the file is damaged, or stores numbers in a type that is not read.
    """
    file, header = StableFile(path), read_header(path)
    architecture = header.fields.get("general.architecture")
    if architecture != "gpt2":
        raise WeightsError(f"holds a model of the architecture {architecture!r:.40}, where 'gpt2' is expected")

    def value(name: str, kind: type) -> Any:
        found = header.fields.get(f"gpt2.{name}")
        check_type("fields", f"gpt2.{name}", found, kind)
        return found

    tensors = Lazy({name: partial(_read, file, name, tensor) for name, tensor in header.tensors.items()})
    table = header.tensors.get(_EMBEDDING)
    if table is None or len(table.shape) != 2:
        raise WeightsError(f"has no matrix {_EMBEDDING}")
    tied = _PROJECTION not in tensors or torch.equal(tensors[_PROJECTION], tensors[_EMBEDDING])
    try:
        config = GPT2Config(
            d_model=value("embedding_length", int),
            n_layers=value("block_count", int),
            n_heads=value("attention.head_count", int),
            d_mlp=value("feed_forward_length", int),
            n_ctx=value("context_length", int),
            d_vocab=table.shape[0],
            # The file holds a float32: the shortest number that rounds to it is the one that was meant (1e-05).
            layer_norm_eps=float(str(np.float32(value("attention.layer_norm_epsilon", float)))),
            tie_word_embeddings=tied,
        )
    except ValueError as error:
        raise error if isinstance(error, WeightsError) else WeightsError(f"fields: {error}") from error
    return config, chosen(tensors, [name for name in tensors if not (tied and name == _PROJECTION)])


def _read(file: StableFile, name: str, tensor: GGUFTensor) -> Tensor:
    raw = Storage(file, tensor.offset, torch.uint8, tensor.nbytes, record=name).read()
    kind, _, block = BLOCKS[tensor.kind]
    if kind == "Q8_0":  # a float16 scale, and 32 numbers of 8 bits
        blocks = raw.view(-1, block)
        scales = blocks[:, :2].contiguous().view(torch.float16).float()
        numbers = blocks[:, 2:].contiguous().view(torch.int8).float() * scales
    else:
        numbers = raw.view(_DTYPES[kind]).float()
    return numbers.reshape(tensor.shape)


def _gguf() -> ModuleType:
    return import_extra("gguf")


def _unused(i: int, taken: set[str]) -> str:
    """Return a text for an id without a token, and take it: llama.cpp aborts if two tokens have the same text."""
    text = f"[UNUSED{i}]"
    while text in taken:
        text = f"[{text}]"
    taken.add(text)
    return text


def _kind(gguf: ModuleType, key: str, n_axes: int, to: GGUFType) -> Any:
    """Return how a tensor is stored, as a member of the package's ``GGMLQuantizationType``."""
    kept = n_axes == 1 or key == _ALWAYS_F32
    return gguf.GGMLQuantizationType["F32" if kept else to.upper()]


def _stored(gguf: ModuleType, key: str, tensor: Tensor, to: GGUFType) -> Any:
    """Return the numpy array of a tensor's bytes in the file."""
    exact = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, and the caller refuses it
        return gguf.quants.quantize(exact, _kind(gguf, key, tensor.dim(), to))


def _restored(gguf: ModuleType, key: str, stored: Any, n_axes: int, to: GGUFType) -> Tensor:
    """Return the numbers that a reader finds in a tensor's bytes."""
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(stored, _kind(gguf, key, n_axes, to)))


def _check_rows(config: GPT2Config, to: GGUFType) -> None:
    """Refuse rows that are not whole blocks. (llama.cpp's converter would store such matrices otherwise.)"""
    if to != "q8_0":
        return
    for size in ("d_model", "d_mlp"):
        if getattr(config, size) % _BLOCK:
            raise WeightsError(
                f"q8_0 stores rows in blocks of {_BLOCK} numbers, and {size}={getattr(config, size)} is not divisible "
                f"by {_BLOCK}: use --dtype f16"
            )


def _add_sizes(writer: Any, gguf: ModuleType, config: GPT2Config, to: GGUFType, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_mlp)
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if to == "f32" else f"MOSTLY_{to.upper()}"])
    if to == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: Any, words: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")  # llama.cpp looks the way of splitting into words up by this name
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    writer.add_add_bos_token(False)
    writer.add_bos_token_id(words.special["bos"])
    writer.add_eos_token_id(words.special["eos"])
    if "pad" in words.special:
        writer.add_pad_token_id(words.special["pad"])
