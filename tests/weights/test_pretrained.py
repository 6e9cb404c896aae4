"""Whole models in and out: folders of every kind, memory that is not wasted or shared, and what comes back."""

import copy
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from gptladder.assembly.config import GPT2Config
from gptladder.assembly.model import GPT2
from gptladder.files import FileError
from gptladder.ladder.rungs import draw_case
from gptladder.tokenizer import CharTokenizer
from gptladder.weights import (
    CheckpointError,
    HubError,
    WeightsError,
    from_bridge,
    from_hf,
    from_hooked_transformer,
    from_pretrained,
    save_pretrained,
    to_bridge_state_dict,
    to_hf,
    to_hooked_state_dict,
    to_hooked_transformer,
)
from gptladder.weights.convert import convert
from gptladder.weights.formats import huggingface

from . import support

RANDOM = st.randoms(use_true_random=False)
# The folder is a fresh one for each example.
FRESH = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])

transformers.utils.logging.disable_progress_bar()


def hf_model(source: random.Random, dtype: torch.dtype = torch.float64, **changes: Any) -> transformers.GPT2LMHeadModel:
    config = support.hf_config(draw_case(source).config, source, **changes)
    return support.hf_model(config, source.getrandbits(32), dtype)


@torch.no_grad()
def largest_difference(ours: GPT2, hf: Any) -> float:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(ours.config.d_vocab, (3, ours.config.n_ctx), generator=generator)
    return (ours(tokens) - hf(tokens).logits).abs().max().item()


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def same_model(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return same_bits(dict(a.state_dict()), dict(b.state_dict()))


# Folders of every kind, as others write them.


def state_of(hf: transformers.GPT2LMHeadModel) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    if hf.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def published(hf: transformers.GPT2LMHeadModel) -> dict[str, Tensor]:
    """As OpenAI's conversions were published: no prefix, and the causal mask among the weights."""
    n = hf.config.n_positions
    state = {name.removeprefix("transformer."): tensor for name, tensor in state_of(hf).items()}
    return state | {f"h.{i}.attn.bias": torch.ones(1, 1, n, n).tril() for i in range(hf.config.n_layer)}


def write_prefixed(hf: transformers.GPT2LMHeadModel, folder: Path) -> None:
    hf.save_pretrained(folder)


def write_published(hf: transformers.GPT2LMHeadModel, folder: Path) -> None:
    hf.config.save_pretrained(folder)
    save_file(published(hf), folder / "model.safetensors", {"format": "pt"})


def write_shards(hf: transformers.GPT2LMHeadModel, folder: Path) -> None:
    hf.save_pretrained(folder, max_shard_size=max(tensor.nbytes for tensor in hf.state_dict().values()))


def write_bin(hf: transformers.GPT2LMHeadModel, folder: Path) -> None:
    hf.config.save_pretrained(folder)
    torch.save(hf.state_dict(), folder / "pytorch_model.bin")  # with lm_head.weight, in the memory of the embedding


def write_published_bin(hf: transformers.GPT2LMHeadModel, folder: Path) -> None:
    hf.config.save_pretrained(folder)
    torch.save(published(hf), folder / "pytorch_model.bin")


def write_bin_shards(hf: transformers.GPT2LMHeadModel, folder: Path) -> None:
    hf.config.save_pretrained(folder)
    state = state_of(hf)
    files = {name: f"pytorch_model-{1 + number % 3:05}-of-00003.bin" for number, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: tensor for name, tensor in state.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (write_prefixed, "model.safetensors"),
        (write_published, "model.safetensors"),
        (write_shards, "model.safetensors.index.json"),
        (write_bin, "pytorch_model.bin"),
        (write_published_bin, "pytorch_model.bin"),
        (write_bin_shards, "pytorch_model.bin.index.json"),
    ],
)
@given(source=RANDOM)
@FRESH
def test_a_folder_of_any_kind_is_the_model_in_memory(
    write: Callable[..., None], file: str, tmp_path_factory: pytest.TempPathFactory, source: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("hf")
    hf = hf_model(source)
    write(hf, folder)
    assert (folder / file).exists()
    ours = from_pretrained(folder)
    assert ours.config == from_hf(hf).config
    assert same_model(ours, from_hf(hf))
    assert largest_difference(ours, hf) <= 1e-12
    assert same_model(to_hf(ours), hf)


@given(source=RANDOM, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), shards=st.booleans())
@FRESH
def test_what_is_saved_is_read_by_transformers_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, source: random.Random, dtype: torch.dtype, shards: bool
) -> None:
    folder = tmp_path_factory.mktemp("ours") / "model"
    hf = hf_model(source, dtype)
    ours = from_hf(hf)
    save_pretrained(ours, folder, max_shard_size=500 if shards else 2**30)
    assert (folder / "model.safetensors.index.json").exists() == shards
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    read = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    assert same_model(read, hf)
    fields = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "activation_function", "layer_norm_epsilon")
    assert all(getattr(read.config, name) == getattr(hf.config, name) for name in (*fields, "tie_word_embeddings"))
    if dtype == torch.float64:
        assert largest_difference(ours, read) <= 1e-12
    back = from_pretrained(folder)
    assert back.config == ours.config
    assert same_model(back, ours)


def test_a_bias_on_the_logits_survives_a_folder(tmp_path: Path) -> None:
    model = support.our_model(torch.float64, unembed_bias=True)
    model.save_pretrained(tmp_path / "model")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True).eval()
    assert largest_difference(model, read) <= 1e-11
    assert largest_difference(GPT2.from_pretrained(tmp_path / "model"), read) <= 1e-12


# What comes in.


def sources() -> dict[str, Callable[[GPT2, Path], GPT2]]:
    """Each way in, fed with a model of ours."""

    def by_folder(model: GPT2, folder: Path) -> GPT2:
        save_pretrained(model, folder / "model")
        return from_pretrained(str(folder / "model"))

    return {
        "folder": by_folder,
        "hf": lambda model, _: from_hf(to_hf(model)),
        "hooked": lambda model, _: from_hooked_transformer(to_hooked_transformer(model)),
        "bridge": lambda model, _: from_bridge(to_bridge_state_dict(model, conv1d=True), model.config),
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", sources())
def test_a_model_that_comes_in_is_ready(way: str, tied: bool, tmp_path: Path) -> None:
    model = support.our_model(tie_word_embeddings=tied)
    hf = to_hf(model)
    for parameter in hf.parameters():
        parameter.requires_grad_(False)
    random_state = torch.random.get_rng_state()
    loaded = from_hf(hf) if way == "hf" else sources()[way](model, tmp_path)
    if way in ("folder", "hf"):
        assert torch.equal(torch.random.get_rng_state(), random_state), "loading drew random numbers"
    assert same_model(loaded, model)
    assert not any(module.training for module in loaded.modules())
    for name, parameter in loaded.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.is_contiguous(), name
        assert parameter.is_leaf, name
        assert parameter.device.type == "cpu", name
    assert loaded.unembed.tied == tied
    W_U, W_E = loaded.unembed.W_U, loaded.embed.W_E
    assert (W_U.untyped_storage().data_ptr() == W_E.untyped_storage().data_ptr()) == tied
    assert loaded.num_parameters() == model.num_parameters()
    loaded(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize("fused", [True, False])
def test_the_choice_of_kernels_reaches_the_layers(fused: bool, tmp_path: Path) -> None:
    model = support.our_model()
    save_pretrained(model, tmp_path / "model")
    hooked = to_hooked_state_dict(model)
    for loaded in (
        from_pretrained(tmp_path / "model", fused=fused),
        from_hf(to_hf(model), fused=fused),
        from_hooked_transformer(hooked, model.config, fused=fused),
        from_bridge(to_bridge_state_dict(model, conv1d=True), model.config, fused=fused),
    ):
        assert loaded.blocks[1].attn.fused is fused


def test_dtype_is_what_is_asked_for(tmp_path: Path) -> None:
    model = support.our_model()
    save_pretrained(model, tmp_path / "model")
    half = from_pretrained(tmp_path / "model", dtype=torch.bfloat16, device="cpu")
    assert same_model(half, copy.deepcopy(model).to(torch.bfloat16))
    assert same_model(from_pretrained(tmp_path / "model"), model)


def test_a_mixture_of_dtypes_needs_the_dtype_argument(tmp_path: Path) -> None:
    hf = hf_model(random.Random(0), torch.float32)
    write_published(hf, tmp_path)
    state = published(hf)
    state["ln_f.weight"] = state["ln_f.weight"].half()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"ln_final\.w is torch\.float16.* is torch\.float32.*convert"):
        from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in from_pretrained(tmp_path, dtype=torch.float32).parameters()} == {
        torch.float32
    }


# Whose memory it is.


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("write", [write_prefixed, write_published, write_shards, write_bin, write_bin_shards])
def test_training_a_loaded_model_leaves_its_file_alone(write: Callable[..., None], tmp_path: Path) -> None:
    hf = hf_model(random.Random(1), torch.float32)
    write(hf, tmp_path)
    before = files_in(tmp_path)
    model = from_pretrained(tmp_path).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([[1, 2]])).square().sum().backward()
    optimizer.step()
    fresh = from_pretrained(tmp_path)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert same_model(fresh, from_hf(hf))
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("write", [write_prefixed, write_published, write_shards, write_bin, write_bin_shards])
def test_a_model_can_be_saved_over_the_files_that_it_is_mapped_from(write: Callable[..., None], tmp_path: Path) -> None:
    hf = hf_model(random.Random(2), torch.float32)
    write(hf, tmp_path)
    model, bystander = from_pretrained(tmp_path), from_pretrained(tmp_path)
    with torch.no_grad():
        model.blocks[0].mlp.W_in.mul_(2)  # the others are still nothing but the file's pages
    expected = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match="overwrite=True"):
        model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, overwrite=True)
    assert same_model(model, expected)
    assert same_model(from_pretrained(tmp_path), expected)
    assert same_model(bystander, from_hf(hf))
    model.save_pretrained(tmp_path, overwrite=True, max_shard_size=400)
    assert same_model(from_pretrained(tmp_path), expected)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert same_model(read, to_hf(expected))


def test_a_loaded_model_outlives_its_folder(tmp_path: Path) -> None:
    model = support.our_model()
    save_pretrained(model, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert same_model(loaded, model)


PEAK = """
import sys
import torch
from gptladder.assembly.model import GPT2
import gptladder.weights

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

baseline = status("VmRSS")
dtype = {"as stored": None, "bfloat16": torch.bfloat16}[sys.argv[2]]
model = GPT2.from_pretrained(sys.argv[1], dtype=dtype)
loaded = status("VmHWM") - baseline
with torch.no_grad():
    logits = model(torch.arange(64)[None])
assert logits.isfinite().all()
print(loaded, status("VmHWM") - baseline)
"""


@pytest.fixture(scope="module")
def folder_124m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("124m") / "model"
    save_pretrained(GPT2(GPT2Config.preset("gpt2")), folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("file", "dtype", "bound"),
    [
        ("model.safetensors", "as stored", 1.25),
        ("pytorch_model.bin", "as stored", 1.25),
        ("model.safetensors", "bfloat16", 0.9),  # half as much for the result, and a few tensors at a time
        ("pytorch_model.bin", "bfloat16", 0.9),
    ],
)
def test_loading_takes_the_memory_of_the_file_and_little_more(
    folder_124m: Path, tmp_path: Path, file: str, dtype: str, bound: float
) -> None:
    size = (folder_124m / "model.safetensors").stat().st_size
    assert size > 124_439_808 * 4
    folder = folder_124m
    if file == "pytorch_model.bin":
        folder = tmp_path
        shutil.copy(folder_124m / "config.json", folder)
        torch.save(to_hf_state(from_pretrained(folder_124m)), folder / file)
    run = subprocess.run([sys.executable, "-c", PEAK, folder, dtype], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded, used = (int(number) / size for number in run.stdout.split())
    if file == "pytorch_model.bin":
        (folder / file).unlink()
    print(f"{file}, {dtype}: {loaded:.3f} of the file after loading, {used:.3f} after a forward pass")
    assert loaded <= used <= bound


def to_hf_state(model: GPT2) -> dict[str, Tensor]:
    return dict(huggingface.state_to_hf(model.config, model.state_dict())[1])


# Refused.


def test_a_folder_that_is_wrong_is_named_with_its_fault(tmp_path: Path) -> None:
    hf = hf_model(random.Random(3))
    write_published(hf, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def message() -> str:
        with pytest.raises(WeightsError) as caught:
            from_pretrained(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: ")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "config.json").write_text(json.dumps({**config, "add_cross_attention": True}))
    assert "add_cross_attention=True" in message()
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 1e4}))
    assert "rope_theta=10000.0" in message()
    (tmp_path / "config.json").write_text(json.dumps(config))

    def save(state: dict[str, Tensor]) -> None:
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})

    state = published(hf)
    save({name: tensor for name, tensor in state.items() if name != "h.0.mlp.c_proj.bias"})
    assert "missing: h.0.mlp.c_proj.bias" in message()
    save({**state, "h.0.attn.rotary.inv_freq": torch.ones(2)})
    assert "not a parameter of this model: h.0.attn.rotary.inv_freq" in message()
    save({**state, "wpe.weight": state["wpe.weight"][1:].clone()})
    assert f"wpe.weight has the shape {list(state['wpe.weight'][1:].shape)}" in message()
    save({**state, "ln_f.bias": state["ln_f.bias"].int()})
    assert "ln_f.bias holds torch.int32" in message()
    save({**state, "transformer.ln_f.bias": state["ln_f.bias"].clone()})
    assert "ln_f.bias is there twice" in message()
    save(state)
    assert same_model(from_pretrained(tmp_path), from_hf(hf))


@pytest.mark.parametrize("name", ["no-such-model", "no-such-owner/no-such-model"])
def test_a_missing_name_is_reported_without_a_network(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=name):
        from_pretrained(name, local_files_only=True)


def test_a_missing_path_is_reported(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="there is no file or folder"):
        from_pretrained(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(("changes", "message"), [({"d_head": 5}, r"2 \* 5 is not 6"), ({"norm": "post"}, "post-norm")])
def test_what_the_format_cannot_hold_leaves_no_folder(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{message}.*to='ours' saves every model"):
        save_pretrained(support.our_model(**changes), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"d_head": 5}, {"norm": "post"}, {"unembed_bias": True}], ids=str)
def test_our_own_format_holds_every_model(changes: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    model = support.our_model(dtype, **changes)
    model.tokenizer = CharTokenizer("abc", end_of_text=True)
    save_pretrained(model, tmp_path / "model", to="ours")
    again = from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert again.dtype == dtype
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(again.to_tokens("cab"), model.to_tokens("cab"))
    save_pretrained(again, tmp_path / "model", to="ours", overwrite=True)
    with pytest.raises(WeightsError, match="to is 'gguf'; it can be 'hf' or 'ours'"):
        save_pretrained(model, tmp_path / "other", to="gguf")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", ["float16", "auto", torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_a_dtype_that_weights_cannot_have_is_refused(tmp_path: Path, dtype: Any) -> None:
    support.our_model().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"it can be torch\.float64, torch\.float32"):
        from_pretrained(tmp_path, dtype=dtype)


def test_a_model_is_not_written_over_the_settings_of_a_run(tmp_path: Path) -> None:
    run_settings = '{"format": "gptladder-run", "version": 2}'
    (tmp_path / "config.json").write_text(run_settings)
    with pytest.raises(FileError, match="is the folder of a training run"):
        save_pretrained(support.our_model(), tmp_path, overwrite=True)
    support.our_model().save_pretrained(tmp_path / "final")
    with pytest.raises(FileError, match="is the folder of a training run"):
        convert(tmp_path / "final", tmp_path, to="hf", overwrite=True)
    assert (tmp_path / "config.json").read_text() == run_settings
