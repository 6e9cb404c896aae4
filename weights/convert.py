"""Convert a model into another format, tensor by tensor, and compare the result with the source."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from ..assembly.config import GPT2Config
from ..components.mlp import ActFn
from ..files import FileError, sync_folder, write_whole
from .building import unfilled_model
from .companions import COMPANIONS, companions, tokenizer_of
from .files.write import write_folder
from .formats import gguf, hooked_transformer, huggingface, nanogpt
from .layout import WeightsError, from_ours, rows, to_ours
from .lazy import Lazy, layered
from .sources import Source, config_to_ours, open_source, refuse_run

Target = Literal["hf", "hooked", "ours", "nanogpt", "gguf"]

_ONE_FILE: dict[Target, str] = {"nanogpt": ".pt", "gguf": ".gguf"}
"""The formats that are one file, with the end of its name."""


@dataclass(frozen=True)
class Converted:
    """The result of a conversion, as found by reading it back.

    Args:
        kind: the format of the source.
        parameters: numbers in the model; a tied projection counts once.
        identical: every weight is the source's, bit for bit, as the dtype has it. Otherwise the function alone is: see
            `huggingface.without_unembed_bias`.
        difference: the largest absolute one between logits of the source, as the dtype has it, and of the result.
        rounding: the largest absolute one that the dtype makes.
        tokenizer: a phrase that names where the result's tokenizer is from; empty for nanoGPT.
        reading: a sentence on what readers of the result must be given; empty if they need nothing.
    """

    kind: str
    parameters: int
    identical: bool
    difference: float
    rounding: float
    tokenizer: str = ""
    reading: str = ""


def convert(
    source: Path,
    destination: Path,
    *,
    to: Target,
    dtype: torch.dtype | Literal["q8_0"] | None = None,
    act_fn: ActFn | None = None,
    tokenizer: str | Path | None = None,
    max_shard_size: int = 5 * 2**30,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Converted:
    """Write a model in another format.

    The result appears when it is whole and has been read back with the source's weights and logits. One tensor at a
    time is in memory, and for the logits the embedding and one block. A nanoGPT checkpoint is in memory as a whole.

    Args:
        source: a folder or file of any format that `open_source` knows.
        destination: a folder; a file for ``nanogpt`` (``….pt``) and ``gguf`` (``….gguf``).
        to: ``hf`` (transformers), ``hooked`` (``HookedTransformerConfig``'s fields and a raw state dict), ``ours``
            (``GPT2Config`` and our own names, which holds every model), ``nanogpt``, ``gguf`` (llama.cpp).
        dtype: the dtype to write (default: the source's). For ``gguf`` it is that of the matrices, and may be
            ``"q8_0"``: 8 bits a number, with a scale for each 32 of them.
        act_fn: activation of the nanoGPT version that wrote the source or will read the result: see `formats.nanogpt`.
        tokenizer: for a folder and for ``gguf``: another folder with a tokenizer, or ``"gpt2"`` (default: see
            `companions.companions`).
        max_shard_size: bytes from which a folder's weights are split into several files.
        overwrite: replace a model that is there, with its tokenizer.
        progress: called with the number of tensors written, and the number of all.

    Raises:
        WeightsError: weights that make no GPT-2, that the format or dtype cannot hold, or that were read back with
            other numbers.
        FileError: a file that is missing, damaged or hostile; a model that is in the way.
        ImportError: a TensorFlow checkpoint or GGUF, and tensorflow or gguf is not installed.
        OSError: the disk is full or not writable.
    """
    if to in _ONE_FILE:
        _check_free(destination, _ONE_FILE[to], overwrite)
    refuse_run(destination)
    opened = open_source(source, act_fn=act_fn if to != "nanogpt" else None)
    try:
        # Write the tensors of the format one by one, and read all of them back before the result gets its name.
        written, fields, tensors = _in_format(opened, to, act_fn)
        watch = _Watch(len(tensors), dtype, progress)
        if to == "gguf":
            return _write_gguf(opened, destination, written, tensors, dtype, tokenizer, watch)
        if isinstance(dtype, str):
            raise WeightsError(f"{dtype} is a type of GGUF alone, and has no place in the format {to!r}")
        check = _Check(opened, dtype)
        if to == "nanogpt":
            _write_file(destination, partial(_save_nanogpt, fields, tensors, dtype, watch, check))
            return check.result

        # A folder gets the files that belong beside the weights.
        if to == "hf":
            fields["dtype"] = str(dtype or tensors["transformer.wte.weight"].dtype).removeprefix("torch.")
        beside = companions(opened, tokenizer)
        write_folder(
            destination,
            fields,
            tensors,
            dtype=dtype,
            files=beside.files,
            replaces=COMPANIONS,
            watch=watch,
            check=check,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
        )
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    return dataclasses.replace(check.result, tokenizer=beside.origin)


def mapping(source: Path, *, to: Target, act_fn: ActFn | None = None) -> Iterator[tuple[str, list[int], str, str]]:
    """Yield for each tensor that `convert` would write: the source's names, the shape, how it is made, and its name.

    Raises:
        WeightsError, FileError: as for `convert`.
    """
    opened = open_source(source, act_fn=act_fn if to != "nanogpt" else None)
    written, _, tensors = _in_format(opened, to, act_fn)
    full = hooked_transformer.untied(opened.config) if opened.kind == "hooked" else opened.config
    here = {ours: foreign for ours, _, foreign in rows(opened.layout, full)}
    there = {
        name: (ours, foreign.axes, f", {number} of {len(foreign.names)}" if len(foreign.names) > 1 else "")
        for ours, _, foreign in rows(to, written)
        for number, name in enumerate(foreign.names, start=1)
    }
    if to == "nanogpt":  # the same tensor under a second name
        there["lm_head.weight"] = there["wte.weight"]
    for name, tensor in tensors.items():
        ours, axes, part = there[name.removeprefix("transformer.") if to in ("hf", "nanogpt") else name]
        origin = here.get("embed.W_E" if ours == "unembed.W_U" and opened.config.tie_word_embeddings else ours)
        names = [opened.names[each] for each in origin.names if each in opened.names] if origin else []
        if opened.config.unembed_bias and not written.unembed_bias and ours in _FOLDED:
            how = "with b_U folded in"
        elif origin is None or not names:
            how = "ones" if ours.endswith(".w") else "zeros"
        elif origin.axes == axes:
            how = "as it is"
        else:
            how = f"{origin.axes} -> {axes}{part}"
        yield ", ".join(names), list(tensor.shape), how, name


# What is written

_FOLDED = ("unembed.W_U", "ln_final.w", "ln_final.b")


def _in_format(
    opened: Source, to: Target, act_fn: ActFn | None
) -> tuple[GPT2Config, dict[str, Any], Mapping[str, Tensor]]:
    """Return the configuration that a format can hold, the fields that it has beside the tensors, and the tensors."""
    config, state = opened.config, opened.state
    if to == "nanogpt":
        fields, tensors = nanogpt.state_to_nanogpt(config, state, act_fn)
        return dataclasses.replace(config, unembed_bias=False), fields, tensors
    if to == "hf":
        config, tensors = huggingface.state_to_hf(config, state)
        return config, huggingface.config_to_hf(config), tensors
    if to == "gguf":
        config, tensors = gguf.state_to_gguf(config, state)
        return config, {}, tensors
    if to == "hooked":
        fields = hooked_transformer.hooked_config_fields(config)
        return hooked_transformer.untied(config), fields, hooked_transformer.state_to_hooked(config, state)
    return config, config_to_ours(config), from_ours("ours", config, state)


def _check_free(path: Path, ending: str, overwrite: bool) -> None:
    if path.suffix != ending:
        raise FileError(
            f"{path}: the result is one file; give a name that ends in {ending}: "
            f"{path / 'ckpt.pt' if ending == '.pt' else path.with_name(path.name + ending)}"
        )
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise FileError(f"{path}: is there already; overwrite=True (or --overwrite) replaces it if it is a file")


def _write_file(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, in a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save)
    sync_folder(path.parent)


def _save_nanogpt(
    fields: dict[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    watch: Callable[[str, Tensor], None],
    check: Callable[[Path], None],
    file: BinaryIO,
) -> None:
    state: dict[str, Tensor] = {}
    for name in tensors:
        if name == "lm_head.weight":
            continue
        # In memory of its own: torch.save writes all of what a tensor is a view of.
        state[name] = tensors[name].to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        watch(name, state[name])
    state["lm_head.weight"] = state["transformer.wte.weight"]
    watch("lm_head.weight", state["lm_head.weight"])
    torch.save({"model": state, **fields}, file)
    file.flush()
    state.clear()
    check(Path(file.name))


def _write_gguf(
    opened: Source,
    path: Path,
    config: GPT2Config,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | Literal["q8_0"] | None,
    tokenizer: str | Path | None,
    watch: Callable[[str, Tensor], None],
) -> Converted:
    kind = gguf.gguf_type(dtype, tensors["token_embd.weight"].dtype)
    its, origin = tokenizer_of(opened, tokenizer)
    words = gguf.vocabulary(its, config.d_vocab)
    verdict: list[Converted] = []

    def save(file: BinaryIO) -> None:
        partial_file = Path(file.name)
        gguf.write_gguf(partial_file, config, tensors, words, to=kind, name=path.stem, watch=watch)
        ours = to_ours("gguf", config, gguf.rounded(tensors, kind))
        again, state = gguf.open_gguf(partial_file)
        verdict.append(_compare(opened, again, to_ours("gguf", again, state), ours, dtype is not None))

    _write_file(path, save)
    return dataclasses.replace(verdict[0], tokenizer=origin, reading=gguf.how_to_read(path, config))


# What is checked


class _Watch:
    """Refuses a tensor that is not finite as it is written, and reports the progress.

    Args:
        total: number of tensors.
        dtype: the dtype that is written.
        progress: called with the number of tensors written, and the number of all.
    """

    def __init__(
        self, total: int, dtype: torch.dtype | Literal["q8_0"] | None, progress: Callable[[int, int], None]
    ) -> None:
        self._done, self._total, self._dtype, self._progress = 0, total, dtype, progress

    def __call__(self, name: str, tensor: Tensor) -> None:
        if not tensor.isfinite().all():
            raise WeightsError(
                f"{name} holds numbers that are not finite, or are too large for {self._dtype or tensor.dtype}"
            )
        self._done += 1
        self._progress(self._done, self._total)


class _Check:
    """Reads back what was written, and compares it with the source.

    Args:
        opened: the source.
        dtype: the dtype that was written (None: each tensor's own).

    Attributes:
        result: what was found.
    """

    result: Converted

    def __init__(self, opened: Source, dtype: torch.dtype | None) -> None:
        self._opened, self._rounds = opened, dtype is not None
        self._ours = _rounded(opened.state, dtype)

    def __call__(self, path: Path) -> None:
        again = open_source(path)
        self.result = _compare(self._opened, again.config, again.state, self._ours, self._rounds)


def _compare(
    opened: Source, config: GPT2Config, found: Mapping[str, Tensor], ours: Mapping[str, Tensor], rounds: bool
) -> Converted:
    """Compare what was read back with the source.

    Args:
        opened: the source.
        config: the configuration that was read back.
        found: the weights that were read back.
        ours: the source's weights, as the dtype has them.
        rounds: the dtype may change them.

    Raises:
        WeightsError: it is another model.
    """
    identical = found.keys() == ours.keys()
    if identical and (wrong := [name for name in ours if not torch.equal(ours[name], found[name])]):
        raise WeightsError(f"{wrong[0]} was read back with other numbers; the disk or memory may be at fault")

    source, exact, dtype = opened.config, opened.state, found["embed.W_E"].dtype
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = torch.linspace(0, source.d_vocab - 1, min(source.n_ctx, 8)).long()[None]
    expected = streamed_logits(source, layered(ours, exact), tokens, precise)
    difference = (streamed_logits(config, found, tokens, precise) - expected).abs().max().item()
    # A projection with b_U folded into it was rounded once more, to the dtype that was written.
    grain = torch.finfo(precise if identical else dtype).eps
    if not difference <= 256 * grain * expected.abs().max().item():
        raise WeightsError(f"the written model gives other logits, by {difference:.1e}, so it was deleted")
    rounding = (expected - streamed_logits(source, exact, tokens, precise)).abs().max().item() if rounds else 0.0
    parameters = sum(tensor.numel() for tensor in ours.values())
    return Converted(opened.kind, parameters, identical, difference, rounding)


def _rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Mapping[str, Tensor]:
    def one(name: str) -> Tensor:
        return tensors[name].to(dtype)

    return tensors if dtype is None else Lazy({name: partial(one, name) for name in tensors})


@torch.no_grad()
def streamed_logits(config: GPT2Config, state: Mapping[str, Tensor], tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a model's logits [batch seq d_vocab], with the weights of one block in memory at a time.

    Args:
        config: what the weights fit.
        state: the weights under our names.
        tokens: [batch seq].
        dtype: to compute in.
    """
    model = unfilled_model(config)
    for part, module in model.named_children():
        if part != "blocks":
            names = [name for name in state if name.startswith(f"{part}.")]
            filled = {name.removeprefix(f"{part}."): state[name].to(dtype).contiguous() for name in names}
            module.load_state_dict(filled, assign=True)
    # All blocks share one buffer, which is filled before each block computes.
    buffers = {name: torch.empty(tensor.shape, dtype=dtype) for name, tensor in model.blocks[0].state_dict().items()}

    def fill(prefix: str, *_: object) -> None:
        for name, buffer in buffers.items():
            buffer.copy_(state[prefix + name])

    for layer, block in enumerate(model.blocks):
        block.load_state_dict(buffers, assign=True)
        block.register_forward_pre_hook(partial(fill, f"blocks.{layer}."))
    return model(tokens)
