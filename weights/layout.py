"""One table of parameters: what each is called, and how it lies, in each format. Read both ways.

A tensor's layout is written as einops reads it, ours and the other's with the same axes, so that one line holds names,
shapes and the transformation in both directions: Hugging Face's ``c_attn.weight`` of shape
``d_model (qkv n_heads d_head)`` is our ``W_QKV`` of shape ``d_model qkv n_heads d_head``. Where a format keeps several
tensors for one of ours, they are stacked along a new first axis.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from ..assembly.config import GPT2Config
from .lazy import Lazy

Format = Literal["ours", "hf", "hooked", "bridge", "nanogpt", "tensorflow", "gguf"]


class WeightsError(ValueError):
    """Weights that do not make the model. The message names them and the fault in one line.

    Example:
        >>> to_ours("hf", GPT2Config(d_model=8, n_heads=2, n_layers=1), {})
        Traceback (most recent call last):
        gptladder.weights.layout.WeightsError: missing: wte.weight, wpe.weight, h.0.ln_1.weight, ...
    """


@dataclass(frozen=True)
class Foreign:
    """The tensors of another format that hold one of our parameters; several are stacked along ``axes``'s first."""

    names: tuple[str, ...]
    axes: str

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of each of the tensors."""
        return _shape(self.axes, sizes)[len(self.names) > 1 :]


@dataclass(frozen=True)
class Row:
    """One of our parameters, and its tensors in each format; None for a format that has no place for it."""

    ours: str
    axes: str
    hf: Foreign | None
    hooked: Foreign | None
    bridge: Foreign | None
    nanogpt: Foreign | None
    tensorflow: Foreign | None
    gguf: Foreign | None


def _same(ours: str, axes: str, hf: str, bridge: str, tensorflow: str, gguf: str) -> Row:
    """Return the row of a parameter with one layout in all formats. nanoGPT has the names of Hugging Face."""
    return Row(ours, axes, *(Foreign((name,), axes) for name in (hf, ours, bridge, hf, tensorflow, gguf)))


def _three(*parts: str) -> tuple[str, ...]:
    return tuple(f"blocks.{{i}}.attn.{part}" for part in parts)


# Hugging Face's and nanoGPT's names stand without their prefix. The matrices of nanoGPT and GGUF are nn.Linear's,
# [out in]; TensorFlow's are those of a convolution of width 1. The bridge's q, k and v are [out in]. So are its o, in
# and out on a native model, as they stand here; on a bridged GPT-2 they are Hugging Face's Conv1D, [in out] (`rows`).
TABLE: tuple[Row, ...] = (
    _same("embed.W_E", "d_vocab d_model", "wte.weight", "embed.weight", "model/wte", "token_embd.weight"),
    _same("pos_embed.W_pos", "n_ctx d_model", "wpe.weight", "pos_embed.weight", "model/wpe", "position_embd.weight"),
    _same(
        "blocks.{i}.ln1.w",
        "d_model",
        "h.{i}.ln_1.weight",
        "blocks.{i}.ln1.weight",
        "model/h{i}/ln_1/g",
        "blk.{i}.attn_norm.weight",
    ),
    _same(
        "blocks.{i}.ln1.b",
        "d_model",
        "h.{i}.ln_1.bias",
        "blocks.{i}.ln1.bias",
        "model/h{i}/ln_1/b",
        "blk.{i}.attn_norm.bias",
    ),
    Row(
        "blocks.{i}.attn.W_QKV",
        "d_model qkv n_heads d_head",
        hf=Foreign(("h.{i}.attn.c_attn.weight",), "d_model (qkv n_heads d_head)"),
        hooked=Foreign(_three("W_Q", "W_K", "W_V"), "qkv n_heads d_model d_head"),
        bridge=Foreign(_three("q.weight", "k.weight", "v.weight"), "qkv (n_heads d_head) d_model"),
        nanogpt=Foreign(("h.{i}.attn.c_attn.weight",), "(qkv n_heads d_head) d_model"),
        tensorflow=Foreign(("model/h{i}/attn/c_attn/w",), "1 d_model (qkv n_heads d_head)"),
        gguf=Foreign(("blk.{i}.attn_qkv.weight",), "(qkv n_heads d_head) d_model"),
    ),
    Row(
        "blocks.{i}.attn.b_QKV",
        "qkv n_heads d_head",
        hf=Foreign(("h.{i}.attn.c_attn.bias",), "(qkv n_heads d_head)"),
        hooked=Foreign(_three("b_Q", "b_K", "b_V"), "qkv n_heads d_head"),
        bridge=Foreign(_three("q.bias", "k.bias", "v.bias"), "qkv (n_heads d_head)"),
        nanogpt=Foreign(("h.{i}.attn.c_attn.bias",), "(qkv n_heads d_head)"),
        tensorflow=Foreign(("model/h{i}/attn/c_attn/b",), "(qkv n_heads d_head)"),
        gguf=Foreign(("blk.{i}.attn_qkv.bias",), "(qkv n_heads d_head)"),
    ),
    Row(
        "blocks.{i}.attn.W_O",
        "n_heads d_head d_model",
        hf=Foreign(("h.{i}.attn.c_proj.weight",), "(n_heads d_head) d_model"),
        hooked=Foreign(("blocks.{i}.attn.W_O",), "n_heads d_head d_model"),
        bridge=Foreign(("blocks.{i}.attn.o.weight",), "d_model (n_heads d_head)"),
        nanogpt=Foreign(("h.{i}.attn.c_proj.weight",), "d_model (n_heads d_head)"),
        tensorflow=Foreign(("model/h{i}/attn/c_proj/w",), "1 (n_heads d_head) d_model"),
        gguf=Foreign(("blk.{i}.attn_output.weight",), "d_model (n_heads d_head)"),
    ),
    _same(
        "blocks.{i}.attn.b_O",
        "d_model",
        "h.{i}.attn.c_proj.bias",
        "blocks.{i}.attn.o.bias",
        "model/h{i}/attn/c_proj/b",
        "blk.{i}.attn_output.bias",
    ),
    _same(
        "blocks.{i}.ln2.w",
        "d_model",
        "h.{i}.ln_2.weight",
        "blocks.{i}.ln2.weight",
        "model/h{i}/ln_2/g",
        "blk.{i}.ffn_norm.weight",
    ),
    _same(
        "blocks.{i}.ln2.b",
        "d_model",
        "h.{i}.ln_2.bias",
        "blocks.{i}.ln2.bias",
        "model/h{i}/ln_2/b",
        "blk.{i}.ffn_norm.bias",
    ),
    Row(
        "blocks.{i}.mlp.W_in",
        "d_model d_mlp",
        hf=Foreign(("h.{i}.mlp.c_fc.weight",), "d_model d_mlp"),
        hooked=Foreign(("blocks.{i}.mlp.W_in",), "d_model d_mlp"),
        bridge=Foreign(("blocks.{i}.mlp.in.weight",), "d_mlp d_model"),
        nanogpt=Foreign(("h.{i}.mlp.c_fc.weight",), "d_mlp d_model"),
        tensorflow=Foreign(("model/h{i}/mlp/c_fc/w",), "1 d_model d_mlp"),
        gguf=Foreign(("blk.{i}.ffn_up.weight",), "d_mlp d_model"),
    ),
    _same(
        "blocks.{i}.mlp.b_in",
        "d_mlp",
        "h.{i}.mlp.c_fc.bias",
        "blocks.{i}.mlp.in.bias",
        "model/h{i}/mlp/c_fc/b",
        "blk.{i}.ffn_up.bias",
    ),
    Row(
        "blocks.{i}.mlp.W_out",
        "d_mlp d_model",
        hf=Foreign(("h.{i}.mlp.c_proj.weight",), "d_mlp d_model"),
        hooked=Foreign(("blocks.{i}.mlp.W_out",), "d_mlp d_model"),
        bridge=Foreign(("blocks.{i}.mlp.out.weight",), "d_model d_mlp"),
        nanogpt=Foreign(("h.{i}.mlp.c_proj.weight",), "d_model d_mlp"),
        tensorflow=Foreign(("model/h{i}/mlp/c_proj/w",), "1 d_mlp d_model"),
        gguf=Foreign(("blk.{i}.ffn_down.weight",), "d_model d_mlp"),
    ),
    _same(
        "blocks.{i}.mlp.b_out",
        "d_model",
        "h.{i}.mlp.c_proj.bias",
        "blocks.{i}.mlp.out.bias",
        "model/h{i}/mlp/c_proj/b",
        "blk.{i}.ffn_down.bias",
    ),
    _same("ln_final.w", "d_model", "ln_f.weight", "ln_final.weight", "model/ln_f/g", "output_norm.weight"),
    _same("ln_final.b", "d_model", "ln_f.bias", "ln_final.bias", "model/ln_f/b", "output_norm.bias"),
    Row(
        "unembed.W_U",
        "d_model d_vocab",
        hf=Foreign(("lm_head.weight",), "d_vocab d_model"),
        hooked=Foreign(("unembed.W_U",), "d_model d_vocab"),
        bridge=Foreign(("unembed.weight",), "d_vocab d_model"),
        nanogpt=None,
        tensorflow=None,
        gguf=Foreign(("output.weight",), "d_vocab d_model"),
    ),
    Row(
        "unembed.b_U",
        "d_vocab",
        hf=None,
        hooked=Foreign(("unembed.b_U",), "d_vocab"),
        bridge=Foreign(("unembed.bias",), "d_vocab"),
        nanogpt=None,
        tensorflow=None,
        gguf=None,
    ),
)


def rows(kind: Format, config: GPT2Config, *, bridge_conv1d: bool = False) -> Iterator[tuple[str, str, Foreign]]:
    """Yield our name, our axes and the other format's tensors, for each parameter of a model of this configuration.

    Args:
        kind: the other format.
        config: the configuration.
        bridge_conv1d: the bridge's o, in and out are [in out].

    Raises:
        WeightsError: the format has no place for a parameter.
    """
    if config.norm != "pre" and kind != "ours":
        raise WeightsError("a post-norm model has no place in this format, which is GPT-2's pre-norm")
    absent = {
        "unembed.W_U": config.tie_word_embeddings,
        "unembed.b_U": not config.unembed_bias,
        "ln_final.w": config.norm == "post",
        "ln_final.b": config.norm == "post",
    }
    for row in TABLE:
        if absent.get(row.ours):
            continue
        foreign: Foreign | None = Foreign((row.ours,), row.axes) if kind == "ours" else getattr(row, kind)
        if foreign is None:
            raise WeightsError(f"{row.ours} has no place in the format {kind!r}")
        if bridge_conv1d and row.ours.endswith((".W_O", ".W_in", ".W_out")):
            out_axes, _, in_axes = foreign.axes.partition(" ")
            foreign = Foreign(foreign.names, f"{in_axes} {out_axes}")
        for layer in range(config.n_layers) if "{i}" in row.ours else [0]:
            names = tuple(name.format(i=layer) for name in foreign.names)
            yield row.ours.format(i=layer), row.axes, Foreign(names, foreign.axes)


def to_ours(
    kind: Format,
    config: GPT2Config,
    tensors: Mapping[str, Tensor],
    *,
    part: str = "",
    bridge_conv1d: bool = False,
) -> Lazy:
    """Return our state dict from another format's tensors: views of them where the layout allows it, else copies.

    Args:
        part: only the parameters whose name (ours) begins so: ``blocks.0.attn.``.
        bridge_conv1d: as for `rows`.

    Raises:
        WeightsError: a tensor that is missing or left over: by name. One of another shape, or not of floating point,
            is refused when it is asked for.
    """
    check_depth(config, tensors)
    table = [row for row in rows(kind, config, bridge_conv1d=bridge_conv1d) if row[0].startswith(part)]
    wanted = [name for _, _, foreign in table for name in foreign.names]
    _raise_for("missing", [name for name in wanted if name not in tensors])
    _raise_for("not a parameter of this model", sorted(set(tensors) - set(wanted)))
    sizes = axis_sizes(config)
    return Lazy({name: partial(_one_of_ours, tensors, axes, foreign, sizes) for name, axes, foreign in table})


def check_depth(config: GPT2Config, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a configuration of far more layers than there are tensors, before anything is done for each of them.

    Raises:
        WeightsError: it has more: a few bytes of a file could ask for any time and memory.
    """
    if config.n_layers > max(len(tensors), 100):  # of fewer, what is missing is named
        raise WeightsError(f"the configuration has n_layers={config.n_layers}, and there are {len(tensors)} tensors")


def _one_of_ours(tensors: Mapping[str, Tensor], axes: str, foreign: Foreign, sizes: Mapping[str, int]) -> Tensor:
    parts = [tensors[key] for key in foreign.names]
    for key, tensor in zip(foreign.names, parts, strict=True):
        if tuple(tensor.shape) != foreign.shape(sizes):
            raise WeightsError(
                f"{key} has the shape {list(tensor.shape)}, but the configuration asks for "
                f"{list(foreign.shape(sizes))} ({foreign.axes})"
            )
        if not tensor.is_floating_point():
            raise WeightsError(f"{key} holds {tensor.dtype}, not floating-point numbers")
    named = {axis: sizes[axis] for axis in re.findall(r"[a-z]\w*", foreign.axes)}
    return rearrange(torch.stack(parts) if len(parts) > 1 else parts[0], f"{foreign.axes} -> {axes}", **named)


def from_ours(kind: Format, config: GPT2Config, ours: Mapping[str, Tensor], *, bridge_conv1d: bool = False) -> Lazy:
    """Return another format's tensors from our state dict: views of them where the layout allows it, else copies.

    Raises:
        WeightsError: a parameter that the format has no place for.
    """
    makers: dict[str, Callable[[], Tensor]] = {}
    for name, axes, foreign in rows(kind, config, bridge_conv1d=bridge_conv1d):
        for number, theirs in enumerate(foreign.names):
            part = number if len(foreign.names) > 1 else None
            makers[theirs] = partial(_one_of_theirs, ours, name, f"{axes} -> {foreign.axes}", part)
    return Lazy(makers)


def _one_of_theirs(ours: Mapping[str, Tensor], name: str, pattern: str, part: int | None) -> Tensor:
    tensor = rearrange(ours[name], pattern)
    return tensor if part is None else tensor[part]


def check_type(owner: str, name: str, value: object, kind: type) -> None:
    """Raise WeightsError for a configuration field that is not of a type. An int is a float too; a bool is no int."""
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
        raise WeightsError(f"{owner}: {name}={value!r:.200} is not of type {kind.__name__}")


def axis_sizes(config: GPT2Config) -> dict[str, int]:
    """Return the length of each axis that the table names."""
    names = ("d_model", "d_vocab", "n_ctx", "n_heads", "d_head", "d_mlp")
    return {"1": 1, "qkv": 3, **{name: getattr(config, name) for name in names}}


def _shape(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape that einops axes such as ``d_model (qkv n_heads d_head)`` describe."""
    groups = re.findall(r"\([^)]*\)|\S+", axes)
    return tuple(math.prod(sizes[axis] for axis in group.strip("()").split()) for group in groups)


def _raise_for(fault: str, names: list[str]) -> None:
    if names:
        more = f" (and {len(names) - 5} more)" if len(names) > 5 else ""
        raise WeightsError(f"{fault}: {', '.join(names[:5])}{more}")
