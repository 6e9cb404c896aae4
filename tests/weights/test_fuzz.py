"""Every reader of weights against mutated files: each is refused in one line, or read with the contents that it has.

``PYTHONPATH=tests/helpers python tests/weights/test_fuzz.py`` prints, for each reader, how many mutations were tried,
and with which outcomes.
"""

import json
import pickle
import random
import shutil
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from time_limit import HangError, seconds
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.files import FileError
from gptladder.tokenizer import load_tokenizer
from gptladder.weights import HubError, WeightsError, config_to_ours, load_torch_file, open_source
from gptladder.weights.convert import convert
from gptladder.weights.files.write import write_folder
from gptladder.weights.formats.huggingface import config_to_hf, state_to_hf
from gptladder.weights.formats.tensorflow import read_tensorflow
from gptladder.weights.generation import read_generation_config, write_generation_config
from gptladder.weights.layout import from_ours

MUTATIONS = 300
PATIENCE = 30  # seconds; what takes longer is a hang

CONFIG = GPT2Config(d_model=4, n_layers=1, n_heads=2, d_vocab=5, n_ctx=5, act_fn="gelu")
REFUSALS = (FileError, WeightsError, HubError)

Bytes = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """One way in.

    Args:
        write: writes a whole source into a folder.
        file: the file of it that is mutated.
        read: reads the source.
        mutate: changes the file's content.
        checked: the file has checksums, so that what is accepted must be what was written.
    """

    write: Callable[[Path], None]
    file: str
    read: Callable[[Path], Any]
    mutate: Bytes
    checked: bool = False


# Sources


@torch.no_grad()
def model() -> GPT2:
    generator = torch.Generator().manual_seed(0)
    made = GPT2(CONFIG).eval()
    for parameter in made.parameters():
        parameter.normal_(generator=generator)
    return made


def hf_state() -> dict[str, Tensor]:
    return dict(state_to_hf(CONFIG, model().state_dict())[1])


def write_hf(folder: Path) -> None:
    model().save_pretrained(folder)


def write_shards(folder: Path) -> None:
    model().save_pretrained(folder, max_shard_size=400)


def write_ours(folder: Path) -> None:
    write_folder(folder, config_to_ours(CONFIG), model().state_dict())


def write_hooked(folder: Path) -> None:
    write_ours(folder / "ours")
    convert(folder / "ours", folder / "hooked", to="hooked")


def write_bin(folder: Path, zipped: bool = True) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
    torch.save(hf_state(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


def write_nanogpt(folder: Path) -> None:
    write_ours(folder / "ours")
    convert(folder / "ours", folder / "ckpt.pt", to="nanogpt")


def write_snapshot(folder: Path) -> None:
    (folder / "snapshots").mkdir(parents=True)
    state = model().state_dict()
    contents = {
        "model_state_dict": state,
        "model_config": config_to_ours(CONFIG),
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(2.0)}}},
        "step": 5,
        "rng": [torch.get_rng_state()[:64]],
        "metrics": {"loss": 1.5},
    }
    torch.save(contents, folder / "snapshots" / "snapshot_step_5.pt")


def write_hparams(folder: Path) -> None:
    folder.mkdir()
    sizes = {"n_vocab": 5, "n_ctx": 5, "n_embd": 4, "n_head": 2, "n_layer": 1}
    (folder / "hparams.json").write_text(json.dumps(sizes))
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    for ending in ("index", "data-00000-of-00001"):
        (folder / f"model.ckpt.{ending}").write_bytes(b"not of tensorflow")


def write_gguf(folder: Path) -> None:
    """Made by hand: the package gguf, which writes such files, is an extra."""
    tokens = ["a", "b", "c", "ab", "<|endoftext|>"]
    its = {
        **{name: ("I", size) for name, size in GGUF_SIZES.items()},
        "gpt2.attention.layer_norm_epsilon": ("f", 1e-5),
        "general.architecture": "gpt2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": ("I", 4),
    }
    tensors = from_ours("gguf", replace(CONFIG, act_fn="gelu_new"), model().state_dict())
    head, body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(its)), b""
    for name, value in its.items():
        head += text(name)
        if isinstance(value, tuple):
            head += struct.pack(f"<I{value[0]}", 4 if value[0] == "I" else 6, value[1])
        elif isinstance(value, str):
            head += struct.pack("<I", 8) + text(value)
        else:
            head += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    for name, tensor in tensors.items():
        head += text(name) + struct.pack(f"<I{tensor.dim()}Q", tensor.dim(), *reversed(tensor.shape))
        head += struct.pack("<IQ", 0, len(body))
        body += tensor.contiguous().numpy().tobytes()
        body += bytes(-len(body) % 32)
    folder.mkdir()
    (folder / "x.gguf").write_bytes(head + bytes(-len(head) % 32) + body)


GGUF_SIZES = {
    "gpt2.embedding_length": 4,
    "gpt2.block_count": 1,
    "gpt2.attention.head_count": 2,
    "gpt2.feed_forward_length": 16,
    "gpt2.context_length": 5,
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def write_generation(folder: Path) -> None:
    folder.mkdir()
    write_generation_config(folder, eos_id=4, bos_id=4, pad_id=None, max_length=5)


# What is read


def read_model(path: Path) -> tuple[GPT2Config, dict[str, Tensor]]:
    source = open_source(path)
    return source.config, dict(source.state)


def read_tensorflow_folder(folder: Path) -> Any:
    """Read as far as tensorflow itself is not needed."""
    try:
        read_tensorflow(folder)
    except ImportError:
        return "tensorflow is not installed"
    except FileError as error:  # tensorflow is: it refuses the files
        if "tensorflow cannot read it" not in str(error):
            raise


def read_words(path: Path) -> int:
    return load_tokenizer(path).n_vocab


def under(name: str, read: Callable[[Path], Any] = read_model) -> Callable[[Path], Any]:
    return lambda folder: read(folder / name)


# Mutations


def flipped(source: random.Random, content: bytes) -> bytes:
    """Flip bits, cut, insert, repeat or zero bytes."""
    changed = bytearray(content)
    place = source.randrange(len(content))
    length = source.choice([1, 2, 8, 100])
    match source.randrange(7):
        case 0 | 1:
            changed[place] ^= 1 << source.randrange(8)
        case 2:
            del changed[place:]
        case 3:
            del changed[place : place + length]
        case 4:
            changed[place:place] = source.randbytes(length)
        case 5:
            changed[place : place + length] = bytes(min(length, len(content) - place))
        case _:
            changed += content[place : place + length]
    return bytes(changed)


ODD: list[Any] = [
    None,
    True,
    "",
    "x" * 300,
    "8",
    [],
    {},
    [[[]]],
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1e300,
    0.5,
    -0.0,
    "\x1b[31m",
]


def odd_json(source: random.Random, content: bytes) -> bytes:
    """Change one field of a JSON object, or its text."""
    table = json.loads(content)
    inner = table
    while isinstance(deeper := source.choice([None, *inner.values()]), dict) and deeper:
        inner = deeper
    name = source.choice(list(inner))
    match source.randrange(8):
        case 0 | 1:
            inner[name] = source.choice(ODD)
        case 2:
            del inner[name]
        case 3:
            inner[f"{name}{source.choice(['s', '_', '2'])}"] = inner.pop(name)
        case 4:
            other = source.choice(list(inner))
            inner[name], inner[other] = inner[other], inner[name]
        case 5:
            return content.rstrip()[:-1] + f",{json.dumps(name)}:{json.dumps(source.choice(ODD))}}}".encode()
        case 6:
            depth = source.choice([10, 1000, 200_000])
            return content.rstrip()[:-1] + f',"deep":{"[" * depth}{"]" * depth}}}'.encode()
        case _:
            return content.replace(b"1", source.choice([b"NaN", b"Infinity", b"1e999", b"01", b"1" * 5000]), 1)
    return json.dumps(table).encode()


def text_or_fields(source: random.Random, content: bytes) -> bytes:
    return (flipped if source.random() < 0.4 else odd_json)(source, content)


def safetensors(source: random.Random, content: bytes) -> bytes:
    """Change the header, its length, or any byte."""
    if source.random() < 0.4:
        return flipped(source, content)
    length = int.from_bytes(content[:8], "little")
    header, numbers = content[8 : 8 + length].rstrip(), content[8 + length :]
    header = odd_json(source, header)
    claimed = source.choice([len(header)] * 6 + [0, 1, len(content) * 2, 2**63])
    return claimed.to_bytes(8, "little") + header + numbers


REWRITTEN = b"rewritten"


class Foreign:
    """What no state dict holds."""

    def __reduce__(self) -> Any:
        return print, ("this must never be printed",)


def archive(source: random.Random, content: bytes) -> bytes:
    """Change any byte, or a record of the archive, with a checksum that fits."""
    if source.random() < 0.5:
        return flipped(source, content)
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old"), Path(folder, "new")
        old.write_bytes(content)
        with zipfile.ZipFile(old) as records, zipfile.ZipFile(new, "w") as changed:
            changed.comment = REWRITTEN
            names = records.namelist()
            victim = source.choice([*names, *[name for name in names if name.endswith("data.pkl")] * 10])
            for name in names:
                record = records.read(name)
                if name == victim and source.random() < 0.1:
                    continue
                if name == victim and name.endswith("data.pkl") and source.random() < 0.1:
                    record = pickle.dumps({"model": Foreign()}, protocol=2)
                elif name == victim and record:
                    record = flipped(source, record)
                changed.writestr(name, record)
        return new.read_bytes()


READERS: dict[str, Reader] = {
    "config.json, Hugging Face": Reader(write_hf, "config.json", read_model, text_or_fields),
    "config.json, ours": Reader(write_ours, "config.json", read_model, text_or_fields),
    "config.json, HookedTransformer": Reader(write_hooked, "hooked/config.json", under("hooked"), text_or_fields),
    "model.safetensors": Reader(write_hf, "model.safetensors", read_model, safetensors),
    "safetensors, a shard": Reader(write_shards, "model-00001-of-*.safetensors", read_model, safetensors),
    "safetensors, the index": Reader(write_shards, "model.safetensors.index.json", read_model, text_or_fields),
    "pytorch_model.bin": Reader(write_bin, "pytorch_model.bin", read_model, archive, checked=True),
    "pytorch_model.bin before 1.6": Reader(
        lambda folder: write_bin(folder, False), "pytorch_model.bin", read_model, flipped
    ),
    "nanoGPT's ckpt.pt": Reader(write_nanogpt, "ckpt.pt", under("ckpt.pt"), archive, checked=True),
    "a snapshot, as a model": Reader(
        write_snapshot,
        "snapshots/snapshot_step_5.pt",
        under("snapshots/snapshot_step_5.pt"),
        archive,
        checked=True,
    ),
    "a snapshot, all of it": Reader(
        write_snapshot,
        "snapshots/snapshot_step_5.pt",
        under("snapshots/snapshot_step_5.pt", load_torch_file),
        archive,
        checked=True,
    ),
    "hparams.json": Reader(write_hparams, "hparams.json", read_tensorflow_folder, text_or_fields),
    "TensorFlow's checkpoint": Reader(write_hparams, "checkpoint", read_tensorflow_folder, flipped),
    "GGUF": Reader(write_gguf, "x.gguf", under("x.gguf"), flipped),
    "GGUF, the tokenizer": Reader(write_gguf, "x.gguf", under("x.gguf", read_words), flipped),
    "generation_config.json": Reader(
        write_generation, "generation_config.json", read_generation_config, text_or_fields
    ),
}


# Trying


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def similar(found: Any, expected: Any) -> bool:
    """Whether the model has the parameters that its configuration names, or what was read is no model."""
    if not isinstance(expected, tuple):
        return True
    config, state = found
    wanted = GPT2(config, device="meta").state_dict()
    return {name: tensor.shape for name, tensor in state.items()} == {name: t.shape for name, t in wanted.items()}


def fuzz(name: str, folder: Path, count: int = MUTATIONS) -> tuple[Counter[str], list[str]]:
    """Try mutations of a reader's file; return how many had which outcome, and descriptions of the bad ones."""
    reader = READERS[name]
    whole = folder / "whole"
    reader.write(whole)
    (path,) = whole.glob(reader.file)
    content = path.read_bytes()
    expected = reader.read(whole)
    outcomes: Counter[str] = Counter(tried=0, refused=0, read=0, tracebacks=0, hangs=0, silent=0)
    bad: list[str] = []
    for seed in range(count):
        source = random.Random(f"{name} {seed}")
        changed = reader.mutate(source, content)
        if changed == content:
            continue
        outcomes["tried"] += 1
        path.write_bytes(changed)
        try:
            with seconds(PATIENCE):
                found = reader.read(whole)
        except REFUSALS as error:
            text = str(error)
            outcomes["refused"] += 1
            if "\n" in text or not text.isprintable() or len(text) > 700:
                outcomes["tracebacks"] += 1
                bad.append(f"seed {seed}: not one plain line: {text[:200]!r}")
        except HangError:
            outcomes["hangs"] += 1
            bad.append(f"seed {seed}: a hang")
        except Exception as error:
            outcomes["tracebacks"] += 1
            bad.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
        else:
            outcomes["read"] += 1
            # With a checksum that was made to fit, another number is as good as the old one; names and sizes are not.
            numbers = reader.checked and not changed.endswith(REWRITTEN)
            if not (same(found, expected) if numbers else similar(found, expected)):
                outcomes["silent"] += 1
                bad.append(f"seed {seed}: other contents were accepted")
    shutil.rmtree(whole)
    return outcomes, bad


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_refused_or_read_as_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    outcomes, bad = fuzz(name, tmp_path)
    assert bad == []
    assert outcomes["tried"] > 0.9 * MUTATIONS
    assert outcomes["refused"] > 0.3 * MUTATIONS
    assert "never be printed" not in capsys.readouterr().out


def main() -> None:
    """Print the table."""
    columns = ("tried", "refused", "read", "tracebacks", "hangs", "silent")
    print(f"{'reader':32}", *(f"{column:>10}" for column in columns))
    for name in READERS:
        with tempfile.TemporaryDirectory() as folder:
            outcomes, bad = fuzz(name, Path(folder))
        print(f"{name:32}", *(f"{outcomes[column]:10}" for column in columns), flush=True)
        for line in bad[:5]:
            print("   ", line)


if __name__ == "__main__":
    sys.exit(main())
