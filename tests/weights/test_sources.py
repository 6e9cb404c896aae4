"""Where a model can come from: run folders, snapshots, nanoGPT folders, names; and the tokenizer of each."""

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gptladder import GPT2, GPT2Config
from gptladder.files import FileError
from gptladder.tokenizer import CharTokenizer
from gptladder.weights import (
    WeightsError,
    config_to_ours,
    from_hf,
    from_hooked_transformer,
    from_pretrained,
    open_source,
    resolve,
    to_hooked_state_dict,
    tokenizer_folder,
)
from gptladder.weights.convert import convert
from gptladder.weights.formats.nanogpt import state_to_nanogpt

CONFIG = GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=11, n_ctx=6, act_fn="relu", attn_dropout=0.25, d_mlp=12)


@torch.no_grad()
def model(seed: int = 0, config: GPT2Config = CONFIG) -> GPT2:
    torch.manual_seed(seed)
    drawn = GPT2(config).eval()
    for parameter in drawn.parameters():
        parameter.normal_()
    return drawn


def same(one: GPT2, other: GPT2) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return one.config == other.config and all(torch.equal(mine[name], theirs[name]) for name in mine)


def write_snapshot(run: Path, step: int, model: GPT2, **more: Any) -> Path:
    path = run / "snapshots" / f"snapshot_step_{step}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {"model_state_dict": model.state_dict(), "model_config": config_to_ours(model.config), "step": step}
    torch.save({**contents, "loss": 1.5, "config": {"name": "x"}, **more}, path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"format": "gptladder-run", "version": 2, "train": {}}')
    return folder


def test_a_run_gives_its_final_model_else_its_newest_snapshot(run: Path) -> None:
    write_snapshot(run, 9, model(1))
    newest = write_snapshot(run, 100, model(2))
    assert resolve(run) == newest
    assert same(from_pretrained(run), model(2))
    model(3).save_pretrained(run / "final")
    assert resolve(run) == run / "final"
    assert torch.equal(from_pretrained(run).embed.W_E, model(3).embed.W_E)
    assert open_source(run).path == run / "final"


def test_a_damaged_or_diverged_snapshot_of_a_run_is_passed_over(run: Path) -> None:
    good = write_snapshot(run, 1, model(1))
    diverged: Any = model(2)
    with torch.no_grad():
        diverged.ln_final.b[0] = torch.nan
    write_snapshot(run, 2, diverged)
    damaged = write_snapshot(run, 3, model(3))
    content = bytearray(damaged.read_bytes())
    content[content.index(model(3).embed.W_E.detach().numpy().tobytes())] ^= 1
    damaged.write_bytes(content)
    write_snapshot(run, 4, model(4)).write_bytes(b"")
    assert resolve(run) == good
    good.unlink()
    with pytest.raises(FileError, match=r"no snapshot of this run can be used: .*snapshot_step_4.pt: is empty"):
        resolve(run)


def test_a_run_without_a_model_is_refused_in_one_line(run: Path) -> None:
    with pytest.raises(FileError, match="this run has no model yet"):
        resolve(run)


def test_a_snapshot_brings_the_whole_configuration(run: Path) -> None:
    untied = GPT2Config(**{**vars(CONFIG), "tie_word_embeddings": False, "unembed_bias": True, "norm": "post"})
    assert same(from_pretrained(write_snapshot(run, 5, model(0, untied))), model(0, untied))


@pytest.mark.parametrize("recorded", [[], "text", {"d_model": "8"}, {"d_model": 8, "strange": 1}])
def test_a_wrong_configuration_in_a_snapshot_is_refused(run: Path, recorded: object) -> None:
    path = write_snapshot(run, 5, model(), model_config=recorded)
    with pytest.raises(ValueError, match=r"snapshot_step_5.pt"):
        open_source(path)


def test_a_folder_of_nanogpt_stands_for_its_checkpoint(tmp_path: Path) -> None:
    config = GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6, act_fn="gelu")
    model(0, config).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out" / "ckpt.pt", to="nanogpt")
    assert resolve(tmp_path / "out") == tmp_path / "out" / "ckpt.pt"
    assert same(from_pretrained(tmp_path / "out"), model(0, config))


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model().save_pretrained(tmp_path / "mine")
    assert resolve("~/mine") == tmp_path / "mine"
    assert open_source(Path("~/mine")).path == tmp_path / "mine"


def test_a_folder_named_like_a_hub_model_and_without_a_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(FileError, match=r"no config.json in it; .*'openai-community/gpt2'"):
        resolve("gpt2")


def test_each_source_has_its_tokenizer(run: Path, tmp_path: Path) -> None:
    snapshot = write_snapshot(run, 1, model())
    assert tokenizer_folder(run) is None
    assert tokenizer_folder(snapshot) is None
    tokenizer = CharTokenizer.from_text("abc")
    tokenizer.save(run / "final")  # as runs of 0.1.0 have it
    assert tokenizer_folder(run) == tokenizer_folder(snapshot) == run / "final"
    tokenizer.save(run / "tokenizer")
    assert tokenizer_folder(run) == tokenizer_folder(snapshot) == run / "tokenizer"
    assert tokenizer_folder(run / "final") == run / "final"
    checkpoint = tmp_path / "out" / "ckpt.pt"
    assert tokenizer_folder(checkpoint) is None
    tokenizer.save(checkpoint.parent)
    assert tokenizer_folder(checkpoint) == checkpoint.parent


# Names with the prefixes of wrappers


def wrapped(model: Any, how: str) -> Any:
    if how == "compiled":
        return torch.compile(model)
    if how == "compiled in parallel":
        return nn.DataParallel(cast(nn.Module, torch.compile(model)))
    if how == "parallel, compiled":
        return torch.compile(nn.DataParallel(model))
    for name, child in list(model.named_modules()):
        if name.endswith((".0", ".1")):
            parent = model.get_submodule(name.rpartition(".")[0])
            parent[int(name.rpartition(".")[2])] = torch.compile(child)
    return nn.DataParallel(model)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize("how", ["compiled", "compiled in parallel", "parallel, compiled", "each layer compiled"])
def test_state_dicts_of_wrapped_models_are_read(how: str, run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    fields = {"n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 11, "n_positions": 6}
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval()
    expected = from_hf(hf)
    state = wrapped(copy.deepcopy(hf), how).state_dict()
    assert not any(name.startswith("transformer.wte") for name in state)
    assert same(from_hf(state, hf.config), expected)
    hf.config.save_pretrained(tmp_path / "bin")
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    assert same(from_pretrained(tmp_path / "bin"), expected)

    ours = model()
    inside = wrapped(model(), how).state_dict()
    path = write_snapshot(run, 5, ours, model_state_dict=inside)
    assert same(from_pretrained(path), ours)
    hooked = {f"module._orig_mod.{name}": tensor for name, tensor in to_hooked_state_dict(ours).items()}
    for name, tensor in from_hooked_transformer(hooked, CONFIG).state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])


def test_a_name_with_and_without_a_prefix_is_refused(run: Path) -> None:
    state = model().state_dict()
    path = write_snapshot(run, 5, model(), model_state_dict={**state, "module.embed.W_E": state["embed.W_E"]})
    with pytest.raises(WeightsError, match=r"embed.W_E is there twice, as embed.W_E and as module.embed.W_E"):
        open_source(path)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_model_in_a_wrapper_is_read_with_its_configuration() -> None:
    transformers = pytest.importorskip("transformers")
    fields = {"n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 11, "n_positions": 6}
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval()
    for how in ("compiled", "compiled in parallel"):
        assert same(from_hf(wrapped(hf, how)), from_hf(hf))


# Checkpoints of courses


def arena_model() -> Any:
    """The parameters and buffers of ARENA's ``DemoTransformer``, as its students write it."""

    def layer(buffers: bool = False, **shapes: tuple[int, ...]) -> nn.Module:
        made = nn.Module()
        for name, shape in shapes.items():
            setattr(made, name, nn.Parameter(torch.randn(shape, generator=generator)))
        if buffers:
            made.register_buffer("IGNORE", torch.tensor(float("-inf")))
        return made

    generator = torch.Generator().manual_seed(0)
    whole: Any = nn.Module()
    whole.embed, whole.pos_embed = layer(W_E=(11, 8)), layer(W_pos=(6, 8))
    whole.blocks = nn.ModuleList()
    for _ in range(2):
        block: Any = nn.Module()
        block.ln1, block.ln2 = layer(w=(8,), b=(8,)), layer(w=(8,), b=(8,))
        heads = {f"W_{x}": (2, 8, 4) for x in "QKV"} | {f"b_{x}": (2, 4) for x in "QKV"}
        block.attn = layer(True, **heads, W_O=(2, 4, 8), b_O=(8,))
        block.mlp = layer(W_in=(8, 12), b_in=(12,), W_out=(12, 8), b_out=(8,))
        whole.blocks.append(block)
    whole.ln_final, whole.unembed = layer(w=(8,), b=(8,)), layer(W_U=(8, 11))
    whole.unembed.b_U = nn.Parameter(torch.zeros(11), requires_grad=False)
    return whole


def test_an_arena_students_whole_model_is_read() -> None:
    student = arena_model()
    ours = from_hooked_transformer(student.state_dict(), CONFIG)
    assert not ours.config.tie_word_embeddings
    assert torch.equal(ours.blocks[1].attn.W_Q, student.blocks[1].attn.W_Q)
    assert torch.equal(ours.unembed.W_U, student.unembed.W_U)
    untied = GPT2(dataclasses.replace(CONFIG, tie_word_embeddings=False, unembed_bias=True))
    untied.load_state_dict(student.state_dict())
    assert torch.equal(untied.blocks[0].attn.W_K, student.blocks[0].attn.W_K)


@dataclasses.dataclass
class GPTConfig:
    block_size: int = 6
    vocab_size: int = 11
    n_layer: int = 1
    n_head: int = 2
    n_embd: int = 8


def nanogpt_state(config: GPT2Config) -> dict[str, Tensor]:
    return dict(state_to_nanogpt(config, model(0, config).state_dict(), config.act_fn)[1])


def test_a_checkpoint_of_build_nanogpt_is_read_with_its_activation(tmp_path: Path) -> None:
    config = GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6)
    saved = {"model": nanogpt_state(config), "config": GPTConfig(), "step": 5, "val_loss": 1.5}
    torch.save(saved, tmp_path / "model_00005.pt")
    assert same(from_pretrained(tmp_path / "model_00005.pt"), model(0, config))


def test_numpy_numbers_in_a_nanogpt_checkpoint_are_read(tmp_path: Path) -> None:
    config = GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6, act_fn="gelu")
    sizes = {
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 8,
        "block_size": 6,
        "vocab_size": np.int64(11),
        "bias": np.bool_(True),
    }
    more = {"best_val_loss": np.float64(1.5), "iter_num": np.int32(7), "config": {"learning_rate": np.float32(1e-3)}}
    torch.save({"model": nanogpt_state(config), "model_args": {**sizes, "dropout": 0.0}, **more}, tmp_path / "ckpt.pt")
    assert same(from_pretrained(tmp_path / "ckpt.pt"), model(0, config))


def test_attention_that_reorders_and_scales_by_layer_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    fields = {"n_embd": 8, "n_head": 2, "n_layer": 3, "vocab_size": 11, "n_positions": 6, "initializer_range": 0.5}
    odd = {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "attn_implementation": "eager"}
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields, **odd)).eval()
    hf.save_pretrained(tmp_path / "m")
    tokens = torch.arange(6)[None]
    loaded = from_pretrained(tmp_path / "m")
    assert loaded.config.scale_attn_by_inverse_layer_idx
    assert (loaded(tokens) - hf(tokens).logits).abs().max() < 5e-5


# A file that changes


@pytest.mark.parametrize("how", ["overwritten", "truncated", "replaced"])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "nanogpt"])
def test_a_loaded_model_stays_when_its_file_changes(tmp_path: Path, kind: str, how: str) -> None:
    config = GPT2Config(d_model=64, n_layers=1, n_heads=2, d_vocab=500, n_ctx=6, act_fn="gelu")
    model(0, config).save_pretrained(tmp_path)
    path, source = tmp_path / "model.safetensors", tmp_path
    if kind == "bin":
        torch.save(dict(open_source(tmp_path).names and load_file(path)), tmp_path / "pytorch_model.bin")
        path.unlink()
        path = tmp_path / "pytorch_model.bin"
    elif kind == "nanogpt":
        path = source = tmp_path / "ckpt.pt"
        convert(tmp_path, path, to="nanogpt")
    loaded = from_pretrained(source)
    size = path.stat().st_size
    if how == "replaced":
        (tmp_path / "new").write_bytes(bytes(size))
        (tmp_path / "new").replace(path)
    else:
        with path.open("r+b") as file:
            file.truncate(size if how == "overwritten" else 10)
            file.write(bytes(size if how == "overwritten" else 10))
    assert same(loaded, model(0, config))
    assert torch.isfinite(loaded(torch.arange(6)[None])).all()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    model(0).save_pretrained(tmp_path / "m")
    state = open_source(tmp_path / "m").state
    names = list(state)
    assert state[names[0]] is not None
    weights = tmp_path / "m" / "model.safetensors"
    content = weights.read_bytes()
    os.utime(weights, (0, 0))
    weights.write_bytes(content[:-1] + b"x")
    with pytest.raises(FileError, match="was changed while it was read"):
        state[names[1]]


def test_a_folder_of_models_names_those_in_it(tmp_path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        model(1).save_pretrained(tmp_path / "out" / name)
    with pytest.raises(FileError, match=r"out: .* give one that does, such as 'checkpoint-1', 'checkpoint-2' in it"):
        resolve(tmp_path / "out")


def test_an_adapter_is_refused_with_the_way_to_merge_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "gpt2"}')
    with pytest.raises(FileError, match=r"holds an adapter \(LoRA\).*merge_and_unload"):
        resolve(tmp_path)


def test_an_empty_name_is_not_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(1).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert resolve(".") == Path()
    with pytest.raises(OSError, match="the name of the model is empty"):
        resolve("")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    model(1).save_pretrained(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(FileError, match=f"{name}: is a pointer of Git LFS, not the file itself; run git lfs pull"):
        from_pretrained(tmp_path)
