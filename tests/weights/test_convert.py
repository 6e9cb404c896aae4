"""Conversions on the disk: between all formats, whole or not there, and lean."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformer_lens
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.cli import main
from gptladder.ladder.answers import randomize
from gptladder.ladder.rungs import draw_case
from gptladder.tokenizer import BPETokenizer, CharTokenizer, load_tokenizer
from gptladder.weights import WeightsError, from_pretrained
from gptladder.weights import convert as conversions
from gptladder.weights.companions import COMPANIONS
from gptladder.weights.convert import Target, convert, mapping, streamed_logits
from gptladder.weights.files.write import write_folder
from gptladder.weights.sources import config_to_ours

FRESH = settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
RANDOM = st.randoms(use_true_random=False)
TARGETS = ("hf", "hooked", "ours", "nanogpt")


def our_model(dtype: torch.dtype = torch.float32, **changes: Any) -> GPT2:
    config = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_vocab": 11, "n_ctx": 7, "act_fn": "gelu", **changes}
    model = GPT2(GPT2Config(**config), dtype=dtype)
    randomize(model, torch.Generator().manual_seed(0))
    return model.eval()


def drawn_model(source: random.Random, **changes: Any) -> GPT2:
    """A model that every format can hold."""
    sizes = draw_case(source).config
    return our_model(
        source.choice([torch.float32, torch.float64, torch.bfloat16]),
        d_model=sizes.n_heads * sizes.d_head,
        n_layers=sizes.n_layers,
        n_heads=sizes.n_heads,
        d_vocab=sizes.d_vocab,
        n_ctx=sizes.n_ctx,
        **changes,
    )


def write_ours(model: GPT2, folder: Path) -> Path:
    write_folder(folder, config_to_ours(model.config), model.state_dict())
    return folder


def place(folder: Path, to: Target) -> Path:
    return folder / ("ckpt.pt" if to == "nanogpt" else to)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
@given(source=RANDOM)
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_through_each_pair_of_formats_no_bit_changes(
    tmp_path_factory: pytest.TempPathFactory, first: Target, second: Target, source: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    model = drawn_model(source)
    paths = [write_ours(model, folder / "model"), place(folder / "1", first), place(folder / "2", second)]
    for here, there, to in zip(paths, paths[1:], (first, second), strict=False):
        result = convert(here, there, to=to)
        assert result.identical
        assert result.difference < 1e-5
        assert result.rounding == 0
    assert same_weights(from_pretrained(paths[-1]), model)
    convert(paths[-1], folder / "again", to="ours")
    assert same_weights(from_pretrained(folder / "again"), model)


@given(source=RANDOM)
@FRESH
def test_ours_holds_every_model(tmp_path_factory: pytest.TempPathFactory, source: random.Random) -> None:
    folder = tmp_path_factory.mktemp("ours")
    config = draw_case(source).config
    model = our_model(
        **{
            name: getattr(config, name)
            for name in ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn")
        },
        norm=source.choice(["pre", "post"]),
        tie_word_embeddings=source.random() < 0.5,
        unembed_bias=source.random() < 0.5,
        scale_attn_by_inverse_layer_idx=source.random() < 0.5,
    )
    convert(write_ours(model, folder / "a"), folder / "b", to="ours")
    again = from_pretrained(folder / "b")
    assert again.config == model.config
    assert same_weights(again, model)


def test_transformers_and_transformer_lens_read_what_is_written(tmp_path: Path) -> None:
    model, tokens = our_model(), torch.arange(7)[None]
    source = write_ours(model, tmp_path / "ours")
    convert(source, tmp_path / "hf", to="hf")
    convert(source, tmp_path / "hooked", to="hooked")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    fields = json.loads((tmp_path / "hooked" / "config.json").read_text())
    hooked = transformer_lens.HookedTransformer(transformer_lens.HookedTransformerConfig.from_dict(fields))
    missing, unexpected = hooked.load_state_dict(load_file(tmp_path / "hooked" / "model.safetensors"), strict=False)
    assert not unexpected
    assert all(name.endswith(("mask", "IGNORE")) for name in missing)
    with torch.no_grad():
        for theirs in (hf(tokens).logits, hooked.eval()(tokens)):
            assert (theirs - model(tokens)).abs().max() < 5e-5


def test_hooked_transformers_own_configuration_is_read_with_all_its_fields(tmp_path: Path) -> None:
    lens = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=7, d_head=4, n_heads=2, d_vocab=11, act_fn="gelu_new", d_mlp=32
    )
    hooked = transformer_lens.HookedTransformer(lens)
    randomize(hooked, torch.Generator().manual_seed(0))
    fields = {name: value for name, value in lens.to_dict().items() if name != "dtype"}
    fields = json.loads(json.dumps(fields, default=float))
    state = dict(hooked.state_dict())
    write_folder(tmp_path / "hooked", fields, state)
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        assert (from_pretrained(tmp_path / "hooked")(tokens) - hooked(tokens)).abs().max() < 5e-5
    for wrong in ({"rotary_base": 1}, {"attention_dir": "bidirectional"}, {"d_model": "8"}, {"use_qk_norm": True}):
        write_folder(tmp_path / "wrong", fields | wrong, state, overwrite=True)
        with pytest.raises(WeightsError, match=next(iter(wrong))):
            from_pretrained(tmp_path / "wrong")


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_each_weight_rounded(tmp_path: Path, to: Target, dtype: torch.dtype) -> None:
    model = our_model()
    result = convert(write_ours(model, tmp_path / "ours"), place(tmp_path / "out", to), to=to, dtype=dtype)
    assert result.identical
    assert 0 < result.rounding < 0.5
    assert same_weights(from_pretrained(place(tmp_path / "out", to)), model.to(dtype))


def test_numbers_that_a_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = our_model()
    for value, dtype in ((1e5, torch.float16), (float("nan"), None), (float("inf"), torch.bfloat16)):
        with torch.no_grad():
            model.blocks[1].mlp.W_in[0, 0] = value
        write_folder(tmp_path / "ours", config_to_ours(model.config), model.state_dict(), overwrite=True)
        for to in TARGETS:
            with pytest.raises(WeightsError, match="not finite"):
                convert(tmp_path / "ours", place(tmp_path / "out", to), to=to, dtype=dtype)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "model.safetensors", "ours", "out"]


def test_processed_weights_become_transformers_with_the_same_function(tmp_path: Path) -> None:
    model = our_model(torch.float64, unembed_bias=True)
    result = convert(write_ours(model, tmp_path / "ours"), tmp_path / "hf", to="hf")
    assert not result.identical
    assert 0 < result.difference < 1e-12
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        assert (from_pretrained(tmp_path / "hf")(tokens) - model(tokens)).abs().max() < 1e-12


def test_shards_in_and_shards_out_with_the_tokenizer(tmp_path: Path) -> None:
    model = our_model(d_vocab=260)
    model.save_pretrained(tmp_path / "hf", max_shard_size=5000)
    BPETokenizer.train("so many words and so many tokens", 260).save(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text("{}")
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    convert(tmp_path / "hf", tmp_path / "out", to="hf", dtype=torch.bfloat16, max_shard_size=2000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    assert not (tmp_path / "out" / "notes.txt").exists()
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert read.dtype == torch.bfloat16
    assert same_weights(from_pretrained(tmp_path / "out"), model.to(torch.bfloat16))


def test_a_snapshot_of_a_run_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text to learn,\nof some words. " * 200)
    sizes = ["--d-model", "8", "--n-layers", "1", "--n-heads", "2", "--n-ctx", "16", "--seq", "16"]
    steps = ["--max-steps", "2", "--warmup-steps", "0", "--batch", "2", "--device", "cpu", "--name", "x"]
    assert main(["train", "--preset", "shakespeare-char", "--corpus", "text.txt", *sizes, *steps]) == 0
    (snapshot,) = Path("runs/x/snapshots").glob("*.pt")
    convert(snapshot, tmp_path / "out", to="hf")
    assert same_weights(from_pretrained(tmp_path / "out"), from_pretrained("runs/x/final"))
    assert from_pretrained(snapshot).config == from_pretrained("runs/x/final").config
    convert(Path("runs/x"), tmp_path / "of-the-run", to="hf")
    assert same_weights(from_pretrained(tmp_path / "of-the-run"), from_pretrained("runs/x/final"))


# What is refused


def test_an_unrecognised_source_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_ours(our_model(), tmp_path / "ours")
    torch.save(our_model().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("text")
    for path, message in [
        (source / "model.safetensors", "is one file of a model folder; give the folder"),
        (tmp_path / "weights.pt", "is no checkpoint of a training run"),
        (tmp_path / "empty", "no config.json in it"),
        (tmp_path / "text.pt", "cannot be read as tensors"),
        (tmp_path / "gone", "there is no file or folder"),
    ]:
        assert main(["convert", str(path), str(tmp_path / "out"), "--to", "hf"]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.startswith("gptladder convert: ")
        assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_way_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_ours(our_model(), tmp_path / "ours")
    other = write_ours(our_model(d_vocab=12), tmp_path / "other")
    (tmp_path / "ckpt.pt").write_bytes(b"mine")
    for target, to in ((other, "hf"), (tmp_path / "ckpt.pt", "nanogpt"), (tmp_path / "folder", "nanogpt")):
        assert main(["convert", str(source), str(target), "--to", to]) == 1
        assert str(target) in capsys.readouterr().err
    assert (tmp_path / "ckpt.pt").read_bytes() == b"mine"
    assert from_pretrained(other).d_vocab == 12
    for target, to in ((other, "hf"), (tmp_path / "ckpt.pt", "nanogpt")):
        assert main(["convert", str(source), str(target), "--to", to, "--overwrite"]) == 0
        assert from_pretrained(target).d_vocab == 11
    convert(source, source, to="hf", overwrite=True)  # onto itself
    assert same_weights(from_pretrained(source), our_model())


def test_a_result_that_is_not_the_source_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_ours(our_model(), tmp_path / "ours")
    honest = conversions._in_format

    def wrong(at: str, change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def in_format(*arguments: Any) -> Any:
            config, fields, tensors = honest(*arguments)
            return config, fields, {name: change(t) if name == at else t for name, t in tensors.items()}

        return in_format

    for at, change in (
        ("transformer.wpe.weight", lambda t: t.flip(0)),
        ("transformer.h.1.ln_2.bias", lambda t: t.nextafter(torch.tensor(9.0))),
    ):
        monkeypatch.setattr(conversions, "_in_format", wrong(at, change))
        with pytest.raises(WeightsError, match="read back with other numbers"):
            convert(source, tmp_path / "hf", to="hf")
        with pytest.raises(WeightsError, match="read back with other numbers"):
            convert(source, tmp_path / "ckpt.pt", to="nanogpt")

    def otherwise(*arguments: Any) -> Any:
        config, fields, tensors = honest(*arguments)
        return config, fields | {"activation_function": "relu"}, tensors

    monkeypatch.setattr(conversions, "_in_format", otherwise)
    with pytest.raises(WeightsError, match="gives other logits"):
        convert(source, tmp_path / "hf", to="hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


# A conversion that is killed

KILLED = """
import os, signal, sys, traceback
from pathlib import Path
from gptladder.weights import convert as conversions, from_pretrained

source, folder, to = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def kill_at(left):
    def step(function):
        def stepping(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return stepping
    for name in ("open", "fsync", "replace", "rename", "unlink", "mkdir"):
        setattr(os, name, step(getattr(os, name)))
    conversions.streamed_logits = step(conversions.streamed_logits)
    return step(lambda done, of: None)

def same(path):
    ours, theirs = (from_pretrained(each).state_dict() for each in (source, path))
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)

for left in range(1000):
    out = folder / str(left) / ("ckpt.pt" if to == "nanogpt" else "model")
    if (child := os.fork()) == 0:
        try:
            conversions.convert(source, out, to=to, max_shard_size=2000, progress=kill_at(left))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    assert out.exists() or status, "it ended, and nothing is there"
    # What has the name, or looks like a model folder under whatever name, is the whole model.
    for found in [out] * out.exists() + [path.parent for path in folder.glob(f"{left}/**/config.json")]:
        assert same(found), found
    print(left, status, out.exists())
    if not status:
        break
"""


@pytest.mark.parametrize(("to", "at_least"), [("hf", 40), ("nanogpt", 30)])
def test_a_killed_conversion_leaves_no_incomplete_model(tmp_path: Path, to: Target, at_least: int) -> None:
    """At each of its steps in turn: a tensor, a file, a rename, the comparison."""
    source = write_ours(our_model(), tmp_path / "source")
    command = [sys.executable, "-c", KILLED, source, tmp_path / "out", to]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    steps = [line.split() for line in done.stdout.splitlines()]
    assert len(steps) > at_least
    assert [there for _, _, there in steps].count("False") > at_least
    assert steps[-1][1:] == ["0", "True"]


# Lean

LEAN = """
import sys
from pathlib import Path
import gptladder.weights.command
from gptladder.weights.convert import convert

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

before = status("VmRSS")
import torch
if sys.argv[3] == "load":
    from gptladder import GPT2
    model = GPT2.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
else:
    convert(Path(sys.argv[1]), Path(sys.argv[2]), to=sys.argv[3], dtype=torch.bfloat16, max_shard_size=50_000_000)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
def test_a_model_is_converted_in_a_part_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """290 MB of weights, shards in, shards out; the loaded half of it is half of it. Larger: benchmarks."""
    config = GPT2Config(d_model=768, n_layers=10, n_heads=12, d_vocab=2000, n_ctx=64)
    GPT2(config).save_pretrained(tmp_path / "hf", max_shard_size=200_000_000)
    size = sum(path.stat().st_size for path in (tmp_path / "hf").glob("*.safetensors"))
    assert size > 280e6
    for case, bound in (("load", 0.9), ("hf", 0.7), ("hooked", 0.7)):
        command = [sys.executable, "-c", LEAN, tmp_path / "hf", tmp_path / f"to_{case}", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        used = int(done.stdout.split()[-1]) / size
        print(case, used)
        assert used < bound, case


@given(source=RANDOM)
@FRESH
def test_logits_block_by_block_are_the_models(source: random.Random) -> None:
    model = drawn_model(source).float()
    tokens = torch.randint(model.d_vocab, (2, model.config.n_ctx), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens)
    assert torch.equal(streamed_logits(model.config, model.state_dict(), tokens, torch.float32), expected)


# The mapping


@pytest.mark.parametrize("to", TARGETS)
def test_the_dry_run_names_every_tensor_and_how_it_is_made(
    tmp_path: Path, to: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    model = our_model()
    model.save_pretrained(tmp_path / "hf")
    out = place(tmp_path / "out", to)
    assert main(["convert", str(tmp_path / "hf"), str(out), "--to", to, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not out.parent.exists() or not out.exists()
    convert(tmp_path / "hf", out, to=to)
    written = torch.load(out, weights_only=True)["model"] if to == "nanogpt" else load_file(out / "model.safetensors")
    read = load_file(tmp_path / "hf" / "model.safetensors")
    rows = list(mapping(tmp_path / "hf", to=to))
    assert {name: shape for _, shape, _, name in rows} == {name: list(tensor.shape) for name, tensor in written.items()}
    assert {origin for origin, *_ in rows} - {""} == set(read)
    for origin, shape, how, name in rows:
        assert f"{shape}  {how}" in " ".join(shown.split(" ")) or str(shape) in shown
        if how == "as it is":
            assert torch.equal(written[name], read[origin])
        elif how == "zeros":
            assert not written[name].any()
        else:
            assert "->" in how
            assert written[name].numel() * (3 if " of 3" in how else 1) == read[origin].numel()


def test_the_dry_run_reports_what_is_not_taken_over(tmp_path: Path) -> None:
    source = write_ours(our_model(unembed_bias=True), tmp_path / "ours")
    made = {name: how for _, _, how, name in mapping(source, to="hf")}
    assert made["lm_head.weight"] == made["transformer.ln_f.weight"] == "with b_U folded in"
    model = our_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2].startswith("b"):
                parameter.zero_()
    convert(write_ours(model, tmp_path / "plain"), tmp_path / "ckpt.pt", to="nanogpt")
    made = {name: how for _, _, how, name in mapping(tmp_path / "ckpt.pt", to="hf")}
    assert made["transformer.ln_f.bias"] == made["transformer.h.0.attn.c_attn.bias"] == "zeros"
    assert made["transformer.ln_f.weight"] == "as it is"


def test_the_report_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_ours(our_model(), tmp_path / "ours")
    assert main(["convert", str(source), str(tmp_path / "a"), "--to", "hf", "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr()
    assert "every weight is the same, bit for bit, as bfloat16 (which moves logits by up to" in printed.out
    assert printed.err == ""
    assert main(["convert", str(source), str(tmp_path / "b"), "--to", "hooked", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == our_model().num_parameters()
    assert (report["kind"], report["identical"], report["difference"], report["rounding"]) == ("ours", True, 0.0, 0.0)
    assert main(["convert", str(source), str(tmp_path / "c"), "--to", "hf", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "from": "embed.W_E",
        "shape": [11, 8],
        "transform": "as it is",
        "to": "transformer.wte.weight",
    }
    assert main(["convert", str(source), str(tmp_path / "d"), "--to", "hf", "--shard-gb", "0"]) == 1


# What stands beside the weights


def test_overwriting_leaves_no_file_of_the_old_model(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    our_model().save_pretrained(tmp_path / "bare")
    our_model().save_pretrained(folder, max_shard_size=1000)
    for name in (*COMPANIONS, "README.md"):
        (folder / name).write_text("{}")
    result = convert(tmp_path / "bare", folder, to="hf", overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert result.tokenizer.startswith("no tokenizer")


@pytest.mark.parametrize("to", ["hf", "ours"])
def test_a_model_converted_over_itself_keeps_everything(tmp_path: Path, to: Target) -> None:
    folder = tmp_path / "m"
    model = our_model()
    model.save_pretrained(folder, max_shard_size=1000)
    CharTokenizer("ab").save(folder, max_length=5)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    before = {name: (folder / name).read_bytes() for name in names}
    convert(folder, folder, to=to, overwrite=True)
    assert same_weights(from_pretrained(folder), model)
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_a_nanogpt_checkpoint_converted_over_itself_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    convert(write_ours(our_model(act_fn="gelu"), tmp_path / "ours"), path, to="nanogpt")
    convert(path, path, to="nanogpt", overwrite=True)
    assert same_weights(from_pretrained(path), our_model(act_fn="gelu"))


def test_a_tokenizer_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CharTokenizer("ab").save(tmp_path / "tokenizer")
    source = write_ours(our_model(), tmp_path / "ours")
    given = ["--tokenizer", str(tmp_path / "tokenizer")]
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "hf", *given]) == 0
    assert f"With the tokenizer of {tmp_path / 'tokenizer'}" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "out").decode([0, 1]) == "ab"
    assert load_tokenizer(tmp_path / "out").model_max_length == our_model().config.n_ctx
    assert main(["convert", str(source), str(tmp_path / "x.pt"), "--to", "nanogpt", *given]) == 1
    assert "--tokenizer does nothing with --to nanogpt" in capsys.readouterr().err
    CharTokenizer("".join(map(chr, range(33, 33 + 50)))).save(tmp_path / "tokenizer")
    assert main(["convert", str(source), str(tmp_path / "no"), "--to", "hf", *given]) == 1
    assert "tokens and the model" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_snapshot_brings_the_tokenizer_of_its_run(tmp_path: Path) -> None:
    model = our_model()
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    CharTokenizer("ab").save(tmp_path / "run" / "tokenizer")
    path = tmp_path / "run" / "snapshots" / "snapshot_step_3.pt"
    contents = {"model_state_dict": model.state_dict(), "model_config": config_to_ours(model.config)}
    torch.save(contents, path)
    convert(path, tmp_path / "out", to="hf")
    assert load_tokenizer(tmp_path / "out").decode([0, 1]) == "ab"


def test_a_nanogpt_checkpoint_of_gpt2s_vocabulary_gets_its_tokenizer(tmp_path: Path) -> None:
    try:
        load_tokenizer("gpt2")
    except OSError as error:
        pytest.skip(str(error))
    config = GPT2Config(d_model=4, n_layers=1, n_heads=1, d_vocab=50304, n_ctx=8, act_fn="gelu")
    convert(write_ours(GPT2(config), tmp_path / "ours"), tmp_path / "ckpt.pt", to="nanogpt")
    convert(tmp_path / "ckpt.pt", tmp_path / "out", to="hf")
    assert load_tokenizer(tmp_path / "out").encode("Hello") == [15496]
