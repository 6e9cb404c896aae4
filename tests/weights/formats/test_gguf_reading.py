"""GGUF files as a source: every number and id is the file's, whoever wrote it; without the package gguf."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.cli import main
from gptladder.files import FileError
from gptladder.ladder.answers import randomize
from gptladder.sampling import SamplingParams, generate
from gptladder.tokenizer import BPETokenizer, load_tokenizer
from gptladder.weights import WeightsError, from_pretrained, tokenizer_folder
from gptladder.weights.convert import convert
from gptladder.weights.formats.gguf import open_gguf, state_to_gguf, vocabulary

gguf = pytest.importorskip("gguf")

TEXT = "the cat sat on the mat, and the hat sat on the cat; it's 12 o'clock. " * 3
AS_DTYPE: dict[str, Any] = {"f32": torch.float32, "f16": torch.float16, "q8_0": "q8_0"}


def words() -> BPETokenizer:
    return BPETokenizer.train(TEXT, vocab_size=280)


def our_model(**changes: Any) -> GPT2:
    model = GPT2(GPT2Config(**{"d_model": 64, "n_layers": 2, "n_heads": 4, "d_vocab": 280, "n_ctx": 24, **changes}))
    randomize(model, torch.Generator().manual_seed(0))
    model.tokenizer = words()
    return model.eval()


def written(folder: Path, model: GPT2, dtype: str = "f32") -> Path:
    model.save_pretrained(folder / "source")
    convert(folder / "source", folder / "x.gguf", to="gguf", dtype=AS_DTYPE[dtype])
    return folder / "x.gguf"


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"d_mlp": 96, "n_layers": 1}, {"layer_norm_eps": 1e-3, "n_ctx": 30}]
)
def test_f32_comes_back_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = our_model(**changes)
    path = written(tmp_path, model)
    again = from_pretrained(path)
    assert again.config == model.config
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again(TEXT[:30]), model(TEXT[:30]))


@pytest.mark.parametrize("dtype", AS_DTYPE)
def test_every_number_is_what_the_package_makes_of_it(tmp_path: Path, dtype: str) -> None:
    path = written(tmp_path, our_model(tie_word_embeddings=False), dtype)
    _, found = open_gguf(path)
    reader = gguf.GGUFReader(path)
    assert {tensor.name for tensor in reader.tensors} == found.keys()
    for tensor in reader.tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = found[tensor.name]
        assert ours.dtype == torch.float32
        assert np.array_equal(ours.numpy(), theirs.reshape(ours.shape)), tensor.name


@pytest.mark.parametrize("padded", [280, 300])
def test_the_tokenizer_comes_with_the_file(tmp_path: Path, padded: int) -> None:
    model = our_model(d_vocab=padded)
    path = written(tmp_path, model)
    assert tokenizer_folder(path) == path
    its, again = words(), load_tokenizer(path)
    assert type(again) is BPETokenizer
    assert (again.n_vocab, again.eot_id, again.bos_id, again.model_max_length) == (280, its.eot_id, its.bos_id, 24)
    for text in (TEXT, "naïve 狐 🙂\n\n  x  ", "<|endoftext|> as text", ""):
        assert again.encode(text) == its.encode(text)
        assert again.encode(text, allow_special=True) == its.encode(text, allow_special=True)
    greedy = SamplingParams(temperature=0)
    assert generate(from_pretrained(path), "the", greedy, max_new_tokens=9) == generate(
        model, "the", greedy, max_new_tokens=9
    )


def test_commands_take_a_file_as_any_other_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(written(tmp_path, our_model()))
    assert main(["convert", path, str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert (tmp_path / "hf" / "tokenizer.json").exists()
    for name, tensor in our_model().state_dict().items():
        assert torch.equal(from_pretrained(tmp_path / "hf").state_dict()[name], tensor), name
    outputs = []
    for model in (path, str(tmp_path / "hf")):
        capsys.readouterr()
        assert main(["generate", "the cat", "--model", model, "--temperature", "0", "--max-new-tokens", "5"]) == 0
        assert main(["predict", "the cat", "--model", model]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    (tmp_path / "text.txt").write_text(TEXT * 9)
    options = ["--corpus", str(tmp_path / "text.txt"), "--runs-dir", str(tmp_path / "runs"), "--max-steps", "1"]
    data = ["--data-dir", str(tmp_path / "data"), "--name", "tuned", "--device", "cpu"]
    assert main(["train", "--init-from", path, *options, *data]) == 0
    assert load_tokenizer(tmp_path / "runs" / "tuned" / "final").fingerprint == words().fingerprint


def test_the_package_is_not_needed_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, our_model(), "q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert from_pretrained(path)("the cat").isfinite().all()


# Files by another writer


def by_the_package(path: Path, ours: GPT2, *, stored: Any = None, skip: str = "", **fields: Any) -> Path:
    """Write a file as llama.cpp's converter does: in other orders than ours, with a projection that repeats wte."""
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "gpt2"))
    config, tensors = state_to_gguf(ours.config, ours.state_dict())
    its = vocabulary(words(), config.d_vocab)
    writer.add_custom_alignment(64)
    writer.add_tokenizer_model(fields.pop("model", "gpt2"))
    writer.add_tokenizer_pre(fields.pop("pre", "gpt-2"))
    writer.add_token_list(its.tokens)
    writer.add_token_merges(its.merges)
    writer.add_eos_token_id(its.special["eos"])
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_head_count(config.n_heads)
    writer.add_feed_forward_length(config.d_mlp)
    writer.add_embedding_length(config.d_model)
    writer.add_context_length(config.n_ctx)
    writer.add_block_count(config.n_layers)
    writer.add_chat_template("none")
    numbers = {name: tensor.contiguous().numpy() for name, tensor in reversed(list(tensors.items())) if name != skip}
    for name, array in {"output.weight": numbers["token_embd.weight"], **numbers}.items():
        kind = gguf.GGMLQuantizationType.F32 if array.ndim == 1 or stored is None else stored
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_file_by_another_writer_is_read(tmp_path: Path, kind: str) -> None:
    model = our_model()
    stored = gguf.GGMLQuantizationType[kind]
    read = from_pretrained(by_the_package(tmp_path / "y.gguf", model, stored=stored))
    assert read.config == model.config
    assert read.unembed.tied
    exact = model.blocks[1].mlp.W_in.detach().T.contiguous().numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(exact, stored), stored)
    assert np.array_equal(read.blocks[1].mlp.W_in.detach().T.numpy(), expected)
    assert read.to_tokens("the cat", prepend_bos=False).tolist() == [words().encode("the cat")]
    assert read.tokenizer is not None
    assert read.tokenizer.eot_id == words().eot_id


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = by_the_package(tmp_path / "y.gguf", our_model(), stored=gguf.GGMLQuantizationType.Q4_0)
    with pytest.raises(FileError, match=r"as Q4_0, and F32, F16, Q8_0, BF16 are read; give a file of one of these"):
        from_pretrained(path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = by_the_package(tmp_path / "y.gguf", our_model(), architecture="llama")
    with pytest.raises(WeightsError, match="architecture 'llama', where 'gpt2' is expected"):
        from_pretrained(path)


@pytest.mark.parametrize(("field", "value"), [("model", "llama"), ("pre", "llama-bpe")])
def test_another_tokenizer_is_refused_when_it_is_needed(tmp_path: Path, field: str, value: str) -> None:
    read = from_pretrained(by_the_package(tmp_path / "y.gguf", our_model(), **{field: value}))
    assert read(torch.tensor([[1, 2]])).isfinite().all()
    with pytest.raises(
        FileError, match=f"tokenizer of another kind .*{value}.* give the model's tokenizer as a folder"
    ):
        read("the cat")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = by_the_package(tmp_path / "y.gguf", our_model(), skip="blk.1.ffn_up.bias")
    with pytest.raises(WeightsError, match=r"y\.gguf: missing: blk\.1\.ffn_up\.bias"):
        from_pretrained(path)


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        (0, b"GGML", None),
        (4, b"\x09\0\0\0", "is of GGUF version 9, and 2 and 3 are read"),
        (8, b"\xff" * 8, "claims 18446744073709551615 tensors"),
        (16, b"\xff" * 8, "claims 18446744073709551615 fields"),
        (24, b"\xff" * 8, "claims 18446744073709551615 bytes in one text"),
        (32, b"\xff\xff", "not UTF-8"),
    ],
)
def test_a_damaged_header_is_refused_in_one_line(
    tmp_path: Path, place: int, content: bytes, message: str | None
) -> None:
    path = written(tmp_path, our_model())
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + content + whole[place + len(content) :])
    with pytest.raises((FileError, WeightsError), match=message) as caught:
        from_pretrained(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole[:-40])
    with pytest.raises(FileError, match="ends before the end of"):
        from_pretrained(path)
