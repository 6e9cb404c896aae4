"""OpenAI's TensorFlow checkpoints, written by the real tensorflow: `make test-tensorflow`."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptladder import GPT2
from gptladder.cli import main
from gptladder.ladder.answers import randomize
from gptladder.ladder.rungs import draw_case
from gptladder.tokenizer import END_OF_TEXT, BPETokenizer, load_tokenizer
from gptladder.weights import CheckpointError, WeightsError, from_hf, from_pretrained, from_tensorflow

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tensorflow = pytest.importorskip("tensorflow", reason="tensorflow is not installed: make test-tensorflow")

TEXT = "the model reads the text and the text reads the model, they say; 1,234 times"


def hf_model(source: random.Random, d_vocab: int | None = None) -> transformers.GPT2LMHeadModel:
    sizes = draw_case(source).config
    config = transformers.GPT2Config(
        vocab_size=d_vocab or sizes.d_vocab,
        n_positions=sizes.n_ctx,
        n_embd=sizes.n_heads * sizes.d_head,
        n_layer=sizes.n_layers,
        n_head=sizes.n_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    hf = transformers.GPT2LMHeadModel(config).eval()
    randomize(hf, torch.Generator().manual_seed(source.getrandbits(32)))
    return hf


def variables(hf: transformers.GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """The numbers under the names and in the shapes of OpenAI's model.py: a matrix is a convolution of width 1."""
    ends = {"weight": "w", "bias": "b"}
    named = {}
    for name, tensor in hf.transformer.state_dict().items():
        *path, end = name.split(".")
        if path[0] == "h":
            path[:2] = [f"h{path[1]}"]
        if path[0] in ("wte", "wpe"):
            theirs = path
        elif path[-1].startswith("ln_"):
            theirs = [*path, {"weight": "g", "bias": "b"}[end]]
        else:
            theirs = [*path, ends[end]]
            tensor = tensor[None] if end == "weight" else tensor
        named["/".join(["model", *theirs])] = tensor
    return named


def write(folder: Path, hf: transformers.GPT2LMHeadModel, **changes: torch.Tensor | None) -> None:
    """What OpenAI published: a graph's variables by TensorFlow 1's Saver, and the sizes beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:
        for name, tensor in (variables(hf) | changes).items():
            if tensor is not None:
                v1.get_variable(name, initializer=tensor.numpy())
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "model.ckpt"))
    c = hf.config
    sizes = {
        "n_vocab": c.vocab_size,
        "n_ctx": c.n_positions,
        "n_embd": c.n_embd,
        "n_head": c.n_head,
        "n_layer": c.n_layer,
    }
    (folder / "hparams.json").write_text(json.dumps(sizes))


def write_tokenizer(folder: Path) -> BPETokenizer:
    """encoder.json and vocab.bpe, as OpenAI published them, of a small vocabulary; the tokenizer is returned."""
    tokenizer = BPETokenizer.train(TEXT, 270)
    tokenizer.save(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "encoder.json").write_text(json.dumps(model["vocab"]))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"]), ""]))
    return tokenizer


@torch.no_grad()
def logits(model: torch.nn.Module, d_vocab: int, n_ctx: int) -> torch.Tensor:
    tokens = torch.randint(d_vocab, (2, n_ctx), generator=torch.Generator().manual_seed(1))
    found = model(tokens)
    return found if isinstance(found, torch.Tensor) else found.logits


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@given(source=st.randoms(use_true_random=False))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_published_folder_is_the_model_that_transformers_has(tmp_path: Path, source: random.Random) -> None:
    shutil.rmtree(tmp_path)
    hf = hf_model(source)
    write(tmp_path, hf)
    ours = from_tensorflow(tmp_path)
    assert same_weights(ours, from_hf(hf))
    theirs = logits(hf, hf.config.vocab_size, hf.config.n_positions)
    assert (logits(ours, hf.config.vocab_size, hf.config.n_positions) - theirs).abs().max() < 5e-5
    assert same_weights(GPT2.from_pretrained(tmp_path), ours)


def test_on_the_command_line_with_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "124M", tmp_path / "out"
    hf = hf_model(random.Random(3), d_vocab=270)
    write(folder, hf)
    tokenizer = write_tokenizer(folder)
    assert tokenizer.n_vocab == hf.config.vocab_size
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint

    assert main(["convert", str(folder), str(out), "--to", "hf", "--dry-run"]) == 0
    assert "1 d_model (qkv n_heads d_head) -> d_model (qkv n_heads d_head)" in capsys.readouterr().out
    assert not out.exists()
    assert main(["convert", str(folder), str(out), "--to", "hf", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["identical"], report["difference"]) == ("tensorflow", True, 0)
    read = transformers.AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert same_weights(read, hf)
    theirs = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)
    text = f"the text is: {END_OF_TEXT} über"
    assert theirs(text)["input_ids"] == tokenizer.encode(text, allow_special=True)

    assert main(["generate", "the", "--model", str(folder), "--max-new-tokens", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("the")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    write(tmp_path / "117M", hf_model(random.Random(1)))
    return tmp_path / "117M"


def refusal(folder: Path, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_variable_that_is_missing_left_over_or_misshapen_is_named(tmp_path: Path) -> None:
    hf = hf_model(random.Random(1))
    for number, (changes, message) in enumerate(
        [
            ({"model/ln_f/g": None}, "missing: model/ln_f/g"),
            (
                {"model/h0/attn/c_attn/w/Adam": torch.ones(2)},
                "not a parameter of this model: model/h0/attn/c_attn/w/Adam",
            ),
            ({"model/ln_f/g": torch.ones(3)}, "model/ln_f/g has the shape [3]"),
            ({"model/ln_f/g": torch.ones(3, dtype=torch.int32)}, "model/ln_f/g is int32"),
        ]
    ):
        folder = tmp_path / str(number)
        write(folder, hf, **changes)
        assert refusal(folder, WeightsError).startswith(f"{folder}: {message}")


@pytest.mark.parametrize("name", ["checkpoint", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "hparams.json"])
def test_a_file_that_is_missing_or_cut_is_named(published: Path, name: str) -> None:
    content = (published / name).read_bytes()
    for length in (0, len(content) // 4):
        (published / name).write_bytes(content[:length])
        assert str(published) in refusal(published, CheckpointError)
    (published / name).unlink()
    assert name in refusal(published, CheckpointError)


def test_flipped_bits_never_yield_another_model(published: Path) -> None:
    """Some bits of the index mean nothing; all others are under checksums."""
    expected, source, refused = from_pretrained(published), random.Random(0), 0
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        content = bytearray((published / name).read_bytes())
        for _ in range(20):
            at, bit = source.randrange(len(content)), 1 << source.randrange(8)
            content[at] ^= bit
            (published / name).write_bytes(content)
            try:
                assert same_weights(from_pretrained(published), expected)
            except (CheckpointError, WeightsError):
                refused += 1
            content[at] ^= bit
        (published / name).write_bytes(content)
    assert refused > 30


@pytest.mark.parametrize("named", ["model.ckpt", "/home/someone/117M/model.ckpt", "../other/model.ckpt"])
def test_the_checkpoint_is_looked_for_beside_its_name(published: Path, named: str) -> None:
    expected = from_pretrained(published)
    (published / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    assert same_weights(from_pretrained(published), expected)


@pytest.mark.parametrize("named", ["", "..", "/etc/", "no-such.ckpt", "a\\b"])
def test_a_name_that_is_none_is_refused(published: Path, named: str) -> None:
    (published / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    assert str(published) in refusal(published, CheckpointError)


def test_a_link_out_of_the_folder_is_refused(published: Path) -> None:
    (published / "model.ckpt.index").rename(published.parent / "elsewhere")
    (published / "model.ckpt.index").symlink_to(published.parent / "elsewhere")
    assert "outside the folder" in refusal(published, CheckpointError)


def test_other_fields_among_the_sizes_are_refused(published: Path) -> None:
    sizes = json.loads((published / "hparams.json").read_text())
    for changed in (sizes | {"n_hidden": 4}, {"n_vocab": 3}, sizes | {"n_head": 0}, sizes | {"n_embd": "8"}):
        (published / "hparams.json").write_text(json.dumps(changed))
        assert "hparams.json" in refusal(published, WeightsError)
