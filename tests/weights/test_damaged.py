"""Damaged and hostile models on the disk: none runs anything or becomes a model, and each is refused in one plain line.

`damages` is the generator: it knows a model of each kind with nothing wrong, and changes one thing.
"""

import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptladder.assembly.config import GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.ladder.answers import randomize
from gptladder.weights import CheckpointError, HubError, WeightsError
from gptladder.weights.files.write import write_folder
from gptladder.weights.formats.hooked_transformer import hooked_config_fields, state_to_hooked
from gptladder.weights.formats.huggingface import config_to_hf, state_to_hf
from gptladder.weights.formats.nanogpt import state_to_nanogpt
from gptladder.weights.sources import config_to_ours

# Tables of tokens and of positions are of one size, so that each would fit in the other's place.
CONFIG = GPT2Config(d_model=4, n_layers=1, n_heads=2, d_vocab=5, n_ctx=5, act_fn="gelu")
NAMED = "ckpt.pt"  # the file of the kinds that are one


def whole_model() -> GPT2:
    model = GPT2(CONFIG).eval()
    randomize(model, torch.Generator().manual_seed(0))
    return model


def tensors_of(kind: str) -> dict[str, Tensor]:
    """The model's tensors as this kind names them."""
    ours = {name: tensor.detach() for name, tensor in whole_model().state_dict().items()}
    if kind in ("ours", "snapshot"):
        return ours
    if kind == "hooked":
        return dict(state_to_hooked(CONFIG, ours))
    if kind == "nanogpt":
        return dict(state_to_nanogpt(CONFIG, ours)[1])
    return {name.removeprefix("transformer."): tensor for name, tensor in state_to_hf(CONFIG, ours)[1].items()}


def fields_of(kind: str) -> dict[str, Any]:
    """What this kind writes down of the configuration, as one flat object."""
    if kind == "snapshot":
        choices = ("n_layers", "act_fn", "tie_word_embeddings")
        return {name: getattr(CONFIG, name) for name in choices} | {"dropout": 0.0, "init_from": None}
    if kind == "nanogpt":
        return state_to_nanogpt(CONFIG, whole_model().state_dict())[0]["model_args"]
    return {"ours": config_to_ours, "hooked": hooked_config_fields}.get(kind, config_to_hf)(CONFIG)


def write(folder: Path, kind: str, fields: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """A model of this kind, whatever it holds."""
    shutil.rmtree(folder, ignore_errors=True)
    if kind in ("safetensors", "ours", "hooked", "shards"):
        write_folder(folder, fields, tensors, max_shard_size=640 if kind == "shards" else 10**9)
        return
    folder.mkdir()
    if kind == "nanogpt":
        torch.save({"model": tensors, "model_args": fields, "optimizer": {"state": {}}, "iter_num": 5}, folder / NAMED)
        return
    if kind == "snapshot":
        contents = {"model_state_dict": tensors, "config": {"model": fields}, "step": 5, "loss": 1.5}
        torch.save(contents, folder / NAMED)
        return
    (folder / "config.json").write_text(json.dumps(fields))
    if kind == "bin shards":
        names = list(tensors)
        parts = {"pytorch_model-00001-of-00002.bin": names[:3], "pytorch_model-00002-of-00002.bin": names[3:]}
        for file_name, part in parts.items():
            torch.save({name: tensors[name] for name in part}, folder / file_name)
        weight_map = {name: file_name for file_name, part in parts.items() for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")


FOLDERS = ["safetensors", "shards", "bin", "legacy", "bin shards", "ours", "hooked"]
FILES = ["nanogpt", "snapshot"]
KINDS = [*FOLDERS, *FILES]


def load(folder: Path, kind: str) -> GPT2:
    return GPT2.from_pretrained(folder / NAMED if kind in FILES else folder)


def outcome(folder: Path, kind: str) -> GPT2 | str:
    """A model, or the text of its refusal."""
    try:
        return load(folder, kind)
    except (CheckpointError, WeightsError, HubError) as error:
        return str(error)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind with nothing wrong."""
    root = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        write(root / kind, kind, fields_of(kind), tensors_of(kind))
    return {kind: root / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_damaged_is_the_model(whole: dict[str, Path], kind: str) -> None:
    model, expected = load(whole[kind], kind), whole_model()
    assert model.config == CONFIG
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())


MARKER = "executed"


class Runs:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def code(folder: Path) -> dict[str, Callable[[], object]]:
    """Objects whose unpickling would leave a file named MARKER in the folder."""
    marker = str(folder / MARKER)
    return {
        "os.system": lambda: Runs(os.system, f"touch {marker}"),
        "subprocess": lambda: Runs(subprocess.check_call, ["touch", marker]),
        "eval": lambda: Runs(eval, f"__import__('os').mkdir({marker!r})"),
        "exec": lambda: Runs(exec, f"import os; os.mkdir({marker!r})"),
        "os.symlink": lambda: Runs(os.symlink, folder, marker),
        "os.mkdir": lambda: Runs(os.mkdir, marker),
        "torch.save": lambda: Runs(torch.save, 1, marker),
        "getattr": lambda: Runs(getattr, Runs(__import__, "os"), "mkdir"),
        "pathlib": lambda: Runs(Path.touch, Path(marker)),
        "in a tensor's place": lambda: OrderedDict(a=torch.ones(2), b=Runs(os.mkdir, marker)),
        "as a key": lambda: {("a", Runs(os.mkdir, marker)): torch.ones(2)},
        "a module": lambda: torch.nn.Linear(2, 2),
    }


OLD_OPCODES = {
    "INST": lambda marker: b"(S'%s'\nios\nmkdir\n." % marker,
    "OBJ": lambda marker: b"(cos\nmkdir\nS'%s'\no." % marker,
    "GLOBAL REDUCE": lambda marker: b"cos\nmkdir\n(S'%s'\ntR." % marker,
    "STACK_GLOBAL": lambda marker: b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(S'%s'\ntR." % marker,
    "EXT1": lambda marker: b"\x80\x02\x82\x01.",
    "BUILD": lambda marker: b"ctorch\nTensor\n)\x81}S'__setstate__'\ncos\nmkdir\nsb(S'%s'\ntb." % marker,
}


def rewrite_zip(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> None:
    """Pass every record of an archive through ``change``, which writes what it likes into the new archive."""
    old = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            change(target, zipfile.ZipInfo(entry.filename), source.read(entry))


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def edit_pickle(path: Path, edit: Callable[[dict], object]) -> None:
    value = torch.load(path)
    edit(value)
    torch.save(value, path)


def split_header(path: Path) -> tuple[bytes, bytes]:
    """Header and numbers of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def edit_header(path: Path, edit: Callable[[dict], object]) -> None:
    header, numbers = split_header(path)
    table = json.loads(header)
    edit(table)
    put_header(path, json.dumps(table).encode(), numbers)


def put_header(path: Path, header: bytes, numbers: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + numbers)


def cut(path: Path, thousandths: int) -> None:
    """Keep the first part of a file, and never all of it but its last newline."""
    content = path.read_bytes()
    end = len(content.rstrip()) if path.suffix == ".json" else len(content)
    path.write_bytes(content[: min(max(1, end * thousandths // 1000), end - 1)])


def put_link(path: Path, target: Path | str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


Damages = Iterator[tuple[str, str, Callable[[], object]]]


class Places:
    """Where the files of a folder are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.single, self.binary = folder / "model.safetensors", folder / "pytorch_model.bin"
        self.index, self.shard = folder / "model.safetensors.index.json", folder / "model-00001-of-00002.safetensors"
        self.other = folder / "model-00002-of-00002.safetensors"
        self.bin_index = folder / "pytorch_model.bin.index.json"
        self.bin_shard = folder / "pytorch_model-00001-of-00002.bin"
        self.indices = {"shards": (self.index, self.shard), "bin shards": (self.bin_index, self.bin_shard)}


def damages(folder: Path) -> Damages:
    """(what it is, kind of model, what does it to a whole one of that kind in the folder); each must be refused."""
    at = Places(folder)
    yield from damaged_files(at)
    yield from damaged_json(at)
    yield from damaged_headers(at)
    yield from damaged_indices(at)
    yield from damaged_pickles(at)
    yield from damaged_archives(at)
    yield from damaged_tensors(at)
    yield from damaged_fields(at)


def damaged_files(at: Places) -> Damages:
    """Any file: cut short, empty, gone, or no file at all."""
    files = [("safetensors", at.config), ("safetensors", at.single), ("bin", at.binary), ("legacy", at.binary)]
    files += [(kind, path) for kind, pair in at.indices.items() for path in pair]
    for kind, path in [*files, *((kind, at.folder / NAMED) for kind in FILES)]:
        label = f"{kind}: {path.name}"
        # Where the bytes end in the original; 1/1000 falls into length fields, the rest into headers and numbers.
        for part in (1, 10, 100, 200, 300, 400, 500, 600, 700, 800, 900, 990, 999):
            yield (
                f"{label} cut at {part}/1000",
                kind,
                lambda p=path, n=part: cut(p, n),
            )
        yield f"{label} without its last byte", kind, lambda p=path: cut(p, 1000)
        yield f"{label} empty", kind, lambda p=path: p.write_bytes(b"")
        yield f"{label} missing", kind, lambda p=path: p.unlink()
        yield f"{label} a folder", kind, lambda p=path: (p.unlink(), p.mkdir())
        yield f"{label} a pipe", kind, lambda p=path: (p.unlink(), os.mkfifo(p))
        yield f"{label} zeros", kind, lambda p=path: p.write_bytes(bytes(p.stat().st_size))
        yield f"{label} noise", kind, lambda p=path: p.write_bytes(random.Random(0).randbytes(p.stat().st_size))
        yield f"{label} a page of HTML", kind, lambda p=path: p.write_text("<!doctype html><title>404</title>" * 9)
        yield f"{label} a git-lfs pointer", kind, lambda p=path: p.write_text("version https://git-lfs.github.com/\n")
        if kind not in FILES:  # which may be links to anywhere: they are given by their own names
            yield f"{label} a link to outside", kind, lambda p=path: put_link(p, p.rename(p.parent.parent / p.name))
        yield f"{label} a link to a device", kind, lambda p=path: put_link(p, "/dev/zero")
        yield f"{label} a link to itself", kind, lambda p=path: put_link(p, p.name)
        yield f"{label} a link to nothing", kind, lambda p=path: put_link(p, "nothing")
    yield "no folder", "safetensors", lambda: shutil.rmtree(at.folder)


def damaged_json(at: Places) -> Damages:
    """What is no JSON object, in each place where one belongs."""
    for label, text in {
        "not UTF-8": b'{"a": "\xff"}',
        "a list": b"[1]",
        "a string": b'"x"',
        "null": b"null",
        "NaN": b'{"n_layer": NaN}',
        "Infinity": b'{"n_layer": -Infinity}',
        "a key twice": b'{"n_layer": 2, "n_layer": 12}',
        "a key twice inside": b'{"task": {"a": 1, "a": 2}}',
        "deep": b'{"a": ' + b"[" * 100_000,
        "a number of many digits": b'{"a": ' + b"1" * 5000 + b"}",
        "two objects": b"{}{}",
        "Python": b"{'n_layer': 2}",
    }.items():
        yield f"config.json: {label}", "safetensors", lambda t=text: at.config.write_bytes(t)
        yield f"index: {label}", "shards", lambda t=text: at.index.write_bytes(t)
        yield (
            f"safetensors header: {label}",
            "safetensors",
            lambda t=text: put_header(at.single, t, split_header(at.single)[1]),
        )
    yield (
        "config.json: a number beyond all",
        "safetensors",
        lambda: at.config.write_text(at.config.read_text().replace("1e-05", "1e999")),
    )


def damaged_headers(at: Places) -> Damages:
    """The header of a safetensors file."""
    single = at.single
    for label, edit in {
        "overlap": lambda h: h["wte.weight"].update(data_offsets=h["wpe.weight"]["data_offsets"]),
        "hole": lambda h: h.pop("wte.weight"),
        "end before begin": lambda h: h["wte.weight"]["data_offsets"].reverse(),
        "beyond the end": lambda h: h["wte.weight"].update(data_offsets=[0, 10**6]),
        "negative": lambda h: h["wte.weight"].update(data_offsets=[-8, 72]),
        "larger shape": lambda h: h["wte.weight"].update(shape=[5, 5]),
        "smaller shape": lambda h: h["wte.weight"].update(shape=[5, 3]),
        "huge shape": lambda h: h["wte.weight"].update(shape=[2**62, 2**62]),
        "negative shape": lambda h: h["wte.weight"].update(shape=[-5, -4]),
        "shape of words": lambda h: h["wte.weight"].update(shape=["5", "4"]),
        "shape missing": lambda h: h["wte.weight"].pop("shape"),
        "offsets missing": lambda h: h["wte.weight"].pop("data_offsets"),
        "three offsets": lambda h: h["wte.weight"].update(data_offsets=[0, 40, 80]),
        "dtype missing": lambda h: h["wte.weight"].pop("dtype"),
        "dtype unknown": lambda h: h["wte.weight"].update(dtype="F31"),
        "dtype a list": lambda h: h["wte.weight"].update(dtype=["F32"]),
        "dtype wider": lambda h: h["wte.weight"].update(dtype="F64"),
        "dtype narrower": lambda h: h["wte.weight"].update(dtype="BF16"),
        "dtype complex": lambda h: h["wte.weight"].update(dtype="C64", shape=[5, 2]),
        "dtype float8": lambda h: h["wte.weight"].update(dtype="F8_E4M3", shape=[80]),
        "dtype float4": lambda h: h["wte.weight"].update(dtype="F4", shape=[160]),
        "entry a number": lambda h: h.update({"wte.weight": 5}),
        "entry null": lambda h: h.update({"wte.weight": None}),
        "metadata of numbers": lambda h: h.update(__metadata__={"format": 5}),
        "one tensor more": lambda h: h.update(more={"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}),
        "nothing": lambda h: h.clear(),
    }.items():
        yield f"safetensors header: {label}", "safetensors", lambda e=edit: edit_header(single, e)
        yield f"a shard's header: {label}", "shards", lambda e=edit: edit_header(at.shard, e)

    def name_twice() -> None:
        header, numbers = split_header(single)
        again = b',"wte.weight":{"dtype":"F32","shape":[4,5],"data_offsets":%s}}'
        place = json.dumps(json.loads(header)["wte.weight"]["data_offsets"]).encode()
        put_header(single, header.rstrip()[:-1] + again % place, numbers)

    yield "safetensors header: a name twice, with another shape", "safetensors", name_twice
    for length in (0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1):
        yield (
            f"safetensors header: claims {length} bytes",
            "safetensors",
            lambda n=length: single.write_bytes(struct.pack("<Q", n) + single.read_bytes()[8:]),
        )
    yield "numbers after the end", "safetensors", lambda: single.write_bytes(single.read_bytes() + b"\0" * 4)


def damaged_indices(at: Places) -> Damages:
    """The index of shards, and the shards that it lists."""
    for kind, (path, first) in at.indices.items():
        suffix = first.suffix
        for name in (
            *(f"../x{suffix}", f"/etc/x{suffix}", f"sub/x{suffix}", f"..\\x{suffix}", f"C:x{suffix}", "..", "."),
            *("", f".hidden{suffix}", f"x{suffix}\n", f"x\0{suffix}", "config.json", f"~/x{suffix}"),
            *(
                f"x{'.bin' if suffix == '.safetensors' else '.safetensors'}",
                5,
                None,
                ["x"],
                {"x": 1},
                f"absent{suffix}",
            ),
        ):
            yield (
                f"{kind}: shard named {name!r}",
                kind,
                lambda p=path, n=name: edit_json(p, lambda v: v["weight_map"].update({"wte.weight": n})),
            )
        for label, edit in {
            "lists a tensor too many": lambda v, s=first.name: v["weight_map"].update(more=s),
            "lists a tensor too few": lambda v: v["weight_map"].pop("wte.weight"),
            "lists no tensor": lambda v: v["weight_map"].clear(),
            "has no map": lambda v: v.pop("weight_map"),
            "has a list for a map": lambda v: v.update(weight_map=["wte.weight"]),
            "renames a tensor": lambda v: v["weight_map"].update(renamed=v["weight_map"].pop("wte.weight")),
            "swaps the shards": lambda v: v.update(
                weight_map=dict(zip(v["weight_map"], reversed(v["weight_map"].values()), strict=True))
            ),
        }.items():
            yield f"{kind}: the index {label}", kind, lambda p=path, e=edit: edit_json(p, e)
    yield "a tensor in two shards", "shards", lambda: save_file(load_file(at.shard) | load_file(at.other), at.other)
    yield (
        "a tensor in two shards of .bin",
        "bin shards",
        lambda: torch.save(tensors_of("bin"), at.folder / "pytorch_model-00002-of-00002.bin"),
    )
    yield (
        "shards exchanged",
        "shards",
        lambda: (at.shard.rename(at.folder / "x"), at.other.rename(at.shard), (at.folder / "x").rename(at.other)),
    )


def damaged_pickles(at: Places) -> Damages:
    """Pickles that would run code, and pickles of other things than tensors."""
    binary = at.binary
    for label, make in code(at.folder).items():
        yield f"code: {label}", "bin", lambda m=make: torch.save(m(), binary)
        yield f"code: {label}, in a table", "bin", lambda m=make: torch.save({"a": torch.ones(2), "b": m()}, binary)
        yield (
            f"code: {label}, legacy",
            "legacy",
            lambda m=make: torch.save({"b": m()}, binary, _use_new_zipfile_serialization=False),
        )
        yield f"code: {label}, in a shard", "bin shards", lambda m=make: torch.save({"b": m()}, at.bin_shard)
        for protocol in (0, 2, 4):
            yield (
                f"code: {label}, plain pickle {protocol}",
                "legacy",
                lambda m=make, p=protocol: binary.write_bytes(pickle.dumps({"b": m()}, p)),
            )
        for key in ("model", "model_state_dict", "model_args", "config", "optimizer"):
            kind = "snapshot" if key in ("model_state_dict", "config") else "nanogpt"
            yield (
                f"code: {label}, under {key}",
                kind,
                lambda m=make, k=key: edit_pickle(at.folder / NAMED, lambda v: v.update({k: m()})),
            )
    for label, opcodes in OLD_OPCODES.items():
        text = opcodes(str(at.folder / MARKER).encode())
        yield f"code: {label}, plain", "legacy", lambda t=text: binary.write_bytes(t)
        yield (
            f"code: {label}, in an archive",
            "bin",
            lambda t=text: rewrite_zip(
                binary, lambda z, e, b: z.writestr(e, t if e.filename.endswith("data.pkl") else b)
            ),
        )
    for label, table in {
        "nested": {"model": tensors_of("bin"), "step": 5},
        "a list": [torch.ones(2)],
        "a tensor": torch.ones(2),
        "a number": 5,
        "nothing": {},
        "numbers as names": {0: torch.ones(2)},
        "a number under a name": tensors_of("bin") | {"step": 7},
        "sparse": {"a": torch.ones(3).to_sparse()},
        "without data": {"a": torch.ones(3, device="meta")},
        "complex": {"a": torch.ones(3, dtype=torch.complex64)},
        "float8": {"a": torch.ones(3).to(torch.float8_e4m3fn)},
        "expanded": {"a": torch.ones(1).expand(10**6, 10**6)},
    }.items():
        yield f".bin: {label}", "bin", lambda t=table: torch.save(t, binary)
        yield (
            f".bin: {label}, legacy",
            "legacy",
            lambda t=table: torch.save(t, binary, _use_new_zipfile_serialization=False),
        )


def damaged_archives(at: Places) -> Damages:
    """The zip archive around a pickle."""
    binary = at.binary

    def deflate(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        archive.writestr(entry, content, compress_type=zipfile.ZIP_DEFLATED)

    def bomb(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        kind = zipfile.ZIP_BZIP2 if entry.filename.endswith("data/0") else zipfile.ZIP_STORED
        archive.writestr(entry, content if kind == zipfile.ZIP_STORED else bytes(10**8), compress_type=kind)

    def twice(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        archive.writestr(entry, content)
        if entry.filename.endswith("data/0"):
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(entry, bytes(len(content)))

    def short(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        archive.writestr(entry, content[:-4] if entry.filename.endswith("data/0") else content)

    def without(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        if not entry.filename.endswith("data/0"):
            archive.writestr(entry, content)

    for change in (deflate, bomb, twice, short, without):
        yield f"archive: {change.__name__}", "bin", lambda c=change: rewrite_zip(binary, c)
    yield "archive: another program's", "bin", lambda: zipfile.ZipFile(binary, "w").writestr("hello.txt", "hello")
    yield (
        "archive: a flipped number",
        "bin",
        lambda: binary.write_bytes(
            binary.read_bytes().replace(
                bytes(tensor := tensors_of("bin")["wte.weight"].flatten().view(torch.uint8).tolist()),
                bytes([tensor[0] ^ 1, *tensor[1:]]),
            )
        ),
    )
    yield "archive: TorchScript", "bin", lambda: shutil.copy(_torchscript(at.folder.parent), binary)
    # Claims of more than there is, in the archive's directory (sizes at 20 and 24 of each entry).
    for field in (20, 24):
        for size in (10**6, 2**32 - 2):
            yield (
                f"archive: an entry claims {size} bytes in field {field}",
                "bin",
                lambda f=field, s=size: _patch_directory(binary, f, struct.pack("<I", s)),
            )
    # Claims of more than there is, in the pickle: numel of a storage, as BININT1 and as BININT.
    yield "legacy: a storage that claims more", "legacy", lambda: _claim_storage(binary, zipped=False)
    yield "archive: a storage that claims more", "bin", lambda: _claim_storage(binary, zipped=True)


def damaged_tensors(at: Places) -> Damages:
    """The names, shapes and values of the tensors, in files that are well formed."""

    def changed(kind: str, edit: Callable[[dict[str, Tensor]], object], dtype: torch.dtype = torch.float32) -> None:
        tensors = {name: tensor.to(dtype, copy=True) for name, tensor in tensors_of(kind).items()}
        edit(tensors)
        write(at.folder, kind, fields_of(kind), tensors)

    for kind in KINDS:
        ours = kind in ("ours", "hooked", "snapshot")
        prefix = "transformer." if kind == "nanogpt" else ""
        table = "embed.W_E" if ours else f"{prefix}wte.weight"
        positions = "pos_embed.W_pos" if ours else f"{prefix}wpe.weight"
        norm = "blocks.0.ln2.b" if ours else f"{prefix}h.0.ln_2.bias"
        for label, edit in {
            "renamed": lambda t, n=table: t.update({f"{n}2": t.pop(n)}),
            "missing": lambda t, n=norm: t.pop(n),
            "one too many": lambda t: t.update(extra=torch.ones(2)),
            "a block too many": lambda t: t.update({n.replace(".0.", ".1."): v for n, v in t.items() if ".0." in n}),
            "transposed": lambda t, n=positions: t.update({n: t[n].T.contiguous()}),
            "of another shape": lambda t, n=positions: t.update({n: t[n].reshape(2, 10)}),
            "with a column more": lambda t, n=norm: t.update({n: torch.ones(5)}),
            "exchanged": lambda t, a=table, b=norm: t.update({a: t[b], b: t[a]}),
            "flat": lambda t, n=positions: t.update({n: t[n].flatten()}),
            "a number": lambda t, n=positions: t.update({n: torch.tensor(1.0)}),
            "without rows": lambda t, n=positions: t.update({n: t[n][:0]}),
            "of integers": lambda t, n=positions: t.update({n: t[n].long()}),
            "of booleans": lambda t, n=positions: t.update({n: t[n] > 0}),
            "of another dtype": lambda t, n=positions: t.update({n: t[n].double()}),
        }.items():
            yield f"{kind}: a tensor {label}", kind, lambda k=kind, e=edit: changed(k, e)
        for value in ("nan", "inf", "-inf"):
            for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
                edit = lambda t, n=positions, v=value: t[n].view(-1)[7:8].fill_(float(v))  # noqa: E731
                yield f"{kind}: {value} in {dtype}", kind, lambda k=kind, e=edit, d=dtype: changed(k, e, d)
        if not ours:
            edit = lambda t: t.update({"lm_head.weight": torch.ones(5, 4)})  # noqa: E731
            yield f"{kind}: a head that is not the table", kind, lambda k=kind, e=edit: changed(k, e)
            name = table.removeprefix("transformer.") if prefix else f"transformer.{table}"
            edit = lambda t, a=table, b=name: t.update({b: t[a].clone()})  # noqa: E731
            yield f"{kind}: with and without a prefix", kind, lambda k=kind, e=edit: changed(k, e)


def damaged_fields(at: Places) -> Damages:
    """The fields of the configuration."""

    def changed(kind: str, edit: Callable[[dict[str, Any]], object]) -> None:
        fields = fields_of(kind)
        edit(fields)
        write(at.folder, kind, fields, tensors_of(kind))

    sizes = {
        "safetensors": ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
        "ours": ("d_vocab", "n_ctx", "d_model", "n_layers", "n_heads"),
        "hooked": ("d_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "d_head", "d_mlp"),
        "nanogpt": ("vocab_size", "block_size", "n_embd", "n_layer", "n_head"),
        "snapshot": ("n_layers",),
    }
    for kind, names in sizes.items():
        for name in names:
            for value in ("4", 4.5, None, [4], {"a": 1}, True, "", -1, 0, 3, 10**4, 10**9, 2**70):
                if value == 0 and name in ("d_head", "d_mlp"):
                    continue  # what it follows from is there
                yield (
                    f"{kind}: {name} is {value!r}",
                    kind,
                    lambda k=kind, n=name, v=value: changed(k, lambda f: f.update({n: v})),
                )
    others = {
        "safetensors": {
            "layer_norm_epsilon": ("1e-5", None, True, -1.0, 0, [1e-5]),
            "initializer_range": ("0.02", -1.0, True),
            "attn_pdrop": ("0.1", 1.0, -0.1, True),
            "activation_function": ("swish", None, 5, ["gelu"], {"gelu": 1}),
            "tie_word_embeddings": ("yes", 1, None, False),
            "scale_attn_weights": ("yes", 1),
            "n_inner": ("16", 4, 16.5, -1, [16]),
            "model_type": ("bert", 5, ["gpt2"]),
            "add_cross_attention": (True,),
            "reorder_and_upcast_attn": ("no", 1, None),
            "quantization_config": ({"bits": 4},),
            "rotary": (True, None),
        },
        "ours": {
            "layer_norm_eps": ("1e-5", None, True, -1.0, 0),
            "act_fn": ("swish", None, 5, ["gelu"]),
            "norm": ("post", "rms", None, ["pre"]),
            "tie_word_embeddings": ("yes", 1, False),
            "unembed_bias": (True, "no"),
            "d_mlp": (15, "16", None),
            "rotary": (True,),
            "not a name": (None,),
        },
        "hooked": {
            "eps": ("1e-5", None, True, -1.0, 0),
            "act_fn": ("swish", None, 5, ["gelu"], {"gelu": 1}),
            "normalization_type": ("RMS", None, ["LN"]),
            "initializer_range": ("0.02", [1], None),
            "attn_only": (True,),
            "rotary": (True,),
            "not a name": (True, None),
            "class": (True,),
        },
        "nanogpt": {
            "bias": ("no", None, False, 1),
            "dropout": ("0.1", 1.0, float("nan"), None),
            "rotary": (True,),
        },
        "snapshot": {
            "dropout": ("0.1", 1.0, float("nan"), None),
            "act_fn": ("swish", None, 5, ["gelu"]),
            "tie_word_embeddings": ("yes", None, False),
            "init_from": ("gpt2", 5),
        },
    }
    for kind, fields in others.items():
        for name, values in fields.items():
            for value in values:
                yield (
                    f"{kind}: {name} is {value!r}",
                    kind,
                    lambda k=kind, n=name, v=value: changed(k, lambda f: f.update({n: v})),
                )
    for kind, keys in {"nanogpt": ("model", "model_args"), "snapshot": ("model_state_dict", "config")}.items():
        file = at.folder / NAMED
        for key in keys:
            yield f"{kind}: no {key}", kind, lambda p=file, k=key: edit_pickle(p, lambda v: v.pop(k))
            for value in (None, 5, "x", [1], {}, {"model": 5}, {1: 2}):
                yield (
                    f"{kind}: {key} is {value!r}",
                    kind,
                    lambda p=file, k=key, x=value: edit_pickle(p, lambda v: v.update({k: x})),
                )


def _torchscript(folder: Path) -> Path:
    """A minimal archive of the kind torch.load hands over to torch.jit."""
    path = folder / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("script/constants.pkl", "script/data.pkl"):
            archive.writestr(name, b"\x80\x02}.")
        archive.writestr("script/version", b"3\n")
    return path


def _patch_directory(path: Path, at: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + at : start + at + len(value)] = value
    path.write_bytes(content)


def _claim_storage(path: Path, zipped: bool) -> None:
    torch.save({"a": torch.ones(200)}, path, _use_new_zipfile_serialization=zipped)

    def claim(pickled: bytes) -> bytes:
        assert b"K\xc8" in pickled
        return pickled.replace(b"K\xc8", b"J" + struct.pack("<i", 2**31 - 1))

    if zipped:
        rewrite_zip(path, lambda z, e, b: z.writestr(e, claim(b) if e.filename.endswith("data.pkl") else b))
    else:
        path.write_bytes(claim(path.read_bytes()))


COUNT = sum(1 for _ in damages(Path("model")))
BATCHES = 12


def test_there_are_enough_damages() -> None:
    assert len({label for label, _, _ in damages(Path("model"))}) == COUNT >= 200


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("batch", range(BATCHES))
def test_each_damage_is_refused_in_one_line_and_runs_nothing(
    tmp_path: Path, whole: dict[str, Path], batch: int
) -> None:
    folder = tmp_path / "inner" / "model"
    load(whole["safetensors"], "safetensors")  # what is loaded at first use is not the damage's
    for label, kind, damage in list(damages(folder))[batch::BATCHES]:
        shutil.rmtree(tmp_path / "inner", ignore_errors=True)
        shutil.copytree(whole[kind], folder)
        damage()
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
            before = memory("VmRSS")
        start = time.process_time()
        text = outcome(folder, kind)
        assert time.process_time() - start < 2, label
        assert sys.platform != "linux" or memory("VmHWM") - before < 50e6, label
        assert isinstance(text, str), f"{label}: gave {text.config}"
        assert str(folder) in text[: len(str(folder)) + 40], f"{label}: {text}"
        assert text.isprintable(), f"{label}: {text!r}"
        assert len(text) < 700, f"{label}: {text}"
        if "shard named" in label and "absent" not in label:  # refused for its name, whether the file is there or not
            assert "as a shard" in text, f"{label}: {text}"
        assert not (folder / MARKER).exists(), label


def test_the_code_of_the_damages_would_run(tmp_path: Path) -> None:
    """The proof above proves something: opened without care, most of these pickles do leave the file."""
    ran = 0
    for number, (label, _) in enumerate(code(tmp_path).items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            pickle.loads(pickle.dumps(code(folder)[label]()))
        except Exception:  # some need more than a pickle to go through
            continue
        finally:
            ran += (folder / MARKER).exists()
    assert ran >= 9


def test_messages_name_the_fault(tmp_path: Path, whole: dict[str, Path]) -> None:
    """The messages for the most common faults."""

    def message(label: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "model"
        kind, damage = next((kind, damage) for other, kind, damage in damages(folder) if other == label)
        shutil.copytree(whole[kind], folder)
        damage()
        text = outcome(folder, kind)
        assert isinstance(text, str)
        return text

    assert "holds Python objects other than tensors ('posix.system')" in message("code: os.system")
    assert "under 'model', 'step'; save the model's state_dict() alone" in message(".bin: nested")
    assert "compressed archive" in message("archive: bomb")
    assert "two records of one name" in message("archive: twice")
    assert "contents larger than the file" in message("archive: an entry claims 1000000 bytes in field 24")
    assert "'wte.weight' more than once" in message("safetensors header: a name twice, with another shape")
    assert "its header claims 1,048,576 bytes, the file has" in message("safetensors header: claims 1048576 bytes")
    assert "not a whole safetensors file" in message("safetensors: model.safetensors without its last byte")
    assert "names '../x.safetensors' as a shard" in message("shards: shard named '../x.safetensors'")
    assert "outside the folder" in message("shards: model-00001-of-00002.safetensors a link to outside")
    assert "no such file" in message("shards: model-00001-of-00002.safetensors missing")
    assert "lists 'more', which the shards do not hold" in message("shards: the index lists a tensor too many")
    assert "holds 'wte.weight', which" in message("shards: the index lists a tensor too few")
    assert "'pos_embed.W_pos' holds values that are not finite" in message("safetensors: nan in torch.float32")
    assert "model: missing: h.0.ln_2.bias" in message("safetensors: a tensor missing")
    assert "wpe.weight has the shape [4, 5], but the configuration asks for [5, 4]" in message(
        "bin: a tensor transposed"
    )
    assert "wpe.weight holds torch.int64, not floating-point numbers" in message("shards: a tensor of integers")
    assert "n_embd='4' is not of type int" in message("safetensors: n_embd is '4'")
    assert "n_layers=1000000000, and there are 17 tensors" in message("nanogpt: n_layer is 1000000000")
    assert "fails its checksum" in message("archive: a flipped number")
    assert "'n_layer' more than once" in message("config.json: a key twice")
    assert "NaN is not a JSON number" in message("config.json: NaN")
    assert "1e999 is too large a number" in message("config.json: a number beyond all")
    assert "repeats a smaller tensor" in message(".bin: expanded")
    assert "there is no file or folder" in message("no folder")
