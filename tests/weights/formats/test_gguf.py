"""GGUF: what is written, read by transformers; what the format would compute otherwise is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gptladder import GPT2, GPT2Config
from gptladder.cli import main
from gptladder.ladder.answers import randomize
from gptladder.tokenizer import BPETokenizer, CharTokenizer, load_tokenizer
from gptladder.weights import WeightsError, to_hf
from gptladder.weights.convert import convert
from gptladder.weights.files.write import write_folder
from gptladder.weights.formats.gguf import vocabulary
from gptladder.weights.layout import rows
from gptladder.weights.sources import config_to_ours

gguf = pytest.importorskip("gguf")

TEXT = "the cat sat on the mat, and the hat sat on the cat; it's 12 o'clock. " * 3


def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(TEXT, vocab_size=280)


def our_model(**changes: Any) -> GPT2:
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_vocab": 280, "n_ctx": 24, **changes}
    model = GPT2(GPT2Config(**sizes))
    randomize(model, torch.Generator().manual_seed(0))
    return model.eval()


def saved(folder: Path, model: GPT2, words: Any = None) -> Path:
    """A model folder of our own format, which holds every model, with a tokenizer."""
    write_folder(folder, config_to_ours(model.config), model.state_dict())
    (tokenizer() if words is None else words).save(folder)
    return folder


def read(path: Path, model: GPT2) -> Any:
    """The file as transformers reads it, which takes neither the number of positions nor d_mlp from it."""
    config = model.config
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, n_positions=config.n_ctx, n_inner=config.d_mlp, local_files_only=True
    ).eval()


def written(folder: Path, model: GPT2, **options: Any) -> Path:
    convert(saved(folder / "source", model), folder / "x.gguf", to="gguf", **options)
    return folder / "x.gguf"


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(tokens)
    return found if isinstance(found, torch.Tensor) else found.logits


TOKENS = torch.arange(24)[None] * 11


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"d_mlp": 96}, {"layer_norm_eps": 1e-3}])
def test_transformers_reads_every_bit_of_f32(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = our_model(**changes)
    theirs, expected = read(written(tmp_path, model), model), to_hf(model)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    assert (logits(theirs, TOKENS) - logits(model, TOKENS)).abs().max() < 1e-5 * logits(model, TOKENS).abs().max()
    assert theirs.config.tie_word_embeddings == model.config.tie_word_embeddings


def test_f16_is_each_matrix_rounded(tmp_path: Path) -> None:
    model = our_model()
    theirs = read(written(tmp_path, model, dtype=torch.float16), model).state_dict()
    for name, tensor in to_hf(model).state_dict().items():
        kept = tensor.dim() == 1 or "wpe" in name
        assert torch.equal(theirs[name], tensor if kept else tensor.half().float()), name


def test_q8_0_errs_by_half_a_step_of_its_block(tmp_path: Path) -> None:
    model = our_model(tie_word_embeddings=False)
    theirs = read(written(tmp_path, model, dtype="q8_0"), model).state_dict()
    for name, tensor in to_hf(model).state_dict().items():
        if tensor.dim() == 1 or "wpe" in name:
            assert torch.equal(theirs[name], tensor), name
            continue
        # A block is 32 numbers of a row, [out in]; its scale is a float16.
        conv1d = ".h." in name
        exact, found = (x.T if conv1d else x for x in (tensor, theirs[name]))
        largest = exact.reshape(-1, 32).abs().amax(-1, keepdim=True)
        error = (exact - found).reshape(-1, 32).abs()
        assert (error <= largest * (0.5 / 127 + 2**-11) * 1.001).all(), name
        assert error.max() > 0


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
def test_the_reported_rounding_is_what_a_reader_sees(
    tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = our_model()
    source = saved(tmp_path / "source", model)
    out = tmp_path / "out" / "x.gguf"
    assert main(["convert", str(source), str(out), "--to", "gguf", "--dtype", dtype, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    tokens = torch.linspace(0, 279, 8).long()[None]
    seen = (logits(read(out, model), tokens) - logits(model, tokens)).abs().max().item()
    assert result["rounding"] == pytest.approx(seen, abs=2e-4)
    assert result["identical"] is True
    assert (result["rounding"] > 0) == (dtype != "f32")


def test_the_command_prints_what_readers_must_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "source", our_model(d_mlp=96))
    assert main(["convert", str(source), str(tmp_path / "x.gguf"), "--to", "gguf"]) == 0
    printed = capsys.readouterr().out
    assert "-c 24" in printed
    assert 'gguf_file="x.gguf", n_positions=24, n_inner=96' in printed


def test_the_fields_are_those_that_llama_cpp_reads(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(written(tmp_path, our_model(d_mlp=96, layer_norm_eps=1e-3), dtype="q8_0"))
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields["general.architecture"] == "gpt2"
    assert fields["general.name"] == "x"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    sizes = {
        "block_count": 2,
        "context_length": 24,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.layer_norm_epsilon": pytest.approx(1e-3),
    }
    assert {name: fields[f"gpt2.{name}"] for name in sizes} == sizes
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.add_bos_token"] is False
    end = tokenizer().eot_id
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.bos_token_id"] == end
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert "output.weight" not in kinds
    assert {name for name, kind in kinds.items() if kind == "F32"} == {
        name for name in kinds if name.endswith((".bias", "norm.weight")) or name == "position_embd.weight"
    }


def test_each_tensor_has_the_name_that_the_package_gives_it() -> None:
    config = GPT2Config(d_model=8, n_layers=3, n_heads=2, tie_word_embeddings=False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 3)
    hf = {ours: foreign.names[0] for ours, _, foreign in rows("hf", config)}
    for ours, _, foreign in rows("gguf", config):
        assert foreign.names[0] == names.get_name(hf[ours], try_suffixes=(".weight", ".bias")), ours


# The tokenizer


def test_the_tokens_and_merges_are_those_of_the_tokenizer() -> None:
    words, its = vocabulary(tokenizer(), 280), tokenizer()
    ends = its.eot_id
    assert ends is not None
    assert words.tokens[ends] == "<|endoftext|>"
    assert words.types[ends] == gguf.TokenType.CONTROL
    assert set(words.types[:ends]) == {gguf.TokenType.NORMAL}
    # Merging by the list gives the same ids: an implementation that knows nothing of ours.
    pieces = transformers.PreTrainedTokenizerFast(tokenizer_object=backend(words.tokens, words.merges))
    for text in (TEXT, "naïve 狐 🙂\n\n  x", ""):
        assert pieces(text)["input_ids"] == its.encode(text)


def backend(tokens: list[str], merges: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def test_rows_without_a_token_get_an_unused_one() -> None:
    its = BPETokenizer.train(TEXT, vocab_size=270)
    pairs = {its.decode_bytes([i]): i for i in range(269)}
    words = vocabulary(BPETokenizer(pairs, {"<|endoftext|>": 269, "[UNUSED271]": 270}), 275)
    assert words.tokens[269:] == [
        "<|endoftext|>",
        "[UNUSED271]",
        "[[UNUSED271]]",
        *(f"[UNUSED{i}]" for i in (272, 273, 274)),
    ]
    assert len(set(words.tokens)) == 275
    assert words.types[271:] == [gguf.TokenType.UNUSED] * 4


def test_the_padded_vocabulary_of_nanogpt_is_written_with_gpt2s_tokens() -> None:
    try:
        its = load_tokenizer("gpt2")
    except OSError:
        pytest.skip("GPT-2's vocabulary is not on this machine")
    words = vocabulary(its, 50304)
    assert len(words.tokens) == len(set(words.tokens)) == 50304
    assert len(words.merges) == 50000
    assert words.tokens[464] == "The"
    assert words.special == {"bos": 50256, "eos": 50256}


def test_an_added_token_that_is_not_special_is_marked_so(tmp_path: Path) -> None:
    backend_ = tokenizer()._backend()
    backend_.add_tokens(["<name>"])
    words = vocabulary(load_tokenizer_with_end(backend_, tmp_path), 300)
    assert words.types[words.tokens.index("<name>")] == gguf.TokenType.USER_DEFINED


def load_tokenizer_with_end(backend_: Any, folder: Path) -> Any:
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend_, eos_token="<|endoftext|>").save_pretrained(folder)
    return load_tokenizer(folder)


# What is refused


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn=gelu"),
        ({"act_fn": "relu"}, "act_fn=relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"d_head": 8}, "n_heads \\* d_head"),
        ({"norm": "post"}, "post-norm"),
        ({"unembed_bias": True}, "b_U .*--to hf first"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(WeightsError, match=named):
        written(tmp_path, our_model(**changes))
    assert not (tmp_path / "x.gguf").exists()


def test_an_output_bias_of_zeros_is_left_out(tmp_path: Path) -> None:
    model = our_model(unembed_bias=True)
    assert model.unembed.b_U is not None
    with torch.no_grad():
        model.unembed.b_U.zero_()
    assert (logits(read(written(tmp_path, model), model), TOKENS) - logits(model, TOKENS)).abs().max() < 1e-4


def no_end(folder: Path) -> Any:
    its = BPETokenizer.train(TEXT, vocab_size=270)
    return BPETokenizer({its.decode_bytes([i]): i for i in range(269)}, {})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (lambda folder: CharTokenizer("abc", end_of_text=True), "CharTokenizer.*--tokenizer bpe"),
        (no_end, "eos_token"),
        (lambda folder: BPETokenizer.train(TEXT, vocab_size=281), "281 tokens and the model 280"),
        (lambda folder: BPETokenizer.train("abc", vocab_size=280), "merges nothing"),
    ],
)
def test_a_tokenizer_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, words: Callable[[Path], Any], named: str
) -> None:
    source = saved(tmp_path / "source", our_model(), words(tmp_path / "words"))
    with pytest.raises(WeightsError, match=named):
        convert(source, tmp_path / "x.gguf", to="gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_another_kind_of_byte_pair_tokenizer_is_refused(tmp_path: Path) -> None:
    its = tokenizer()._backend()
    from tokenizers import pre_tokenizers

    its.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(WeightsError, match="of another kind"):
        vocabulary(load_tokenizer_with_end(its, tmp_path), 300)


def test_a_model_without_tokenizer_is_refused_and_takes_a_given_one(tmp_path: Path) -> None:
    model = our_model()
    write_folder(tmp_path / "source", config_to_ours(model.config), model.state_dict())
    with pytest.raises(WeightsError, match="add --tokenizer FOLDER"):
        convert(tmp_path / "source", tmp_path / "x.gguf", to="gguf")
    tokenizer().save(tmp_path / "words")
    result = convert(tmp_path / "source", tmp_path / "x.gguf", to="gguf", tokenizer=tmp_path / "words")
    assert result.tokenizer == f"the tokenizer of {tmp_path / 'words'}"


@pytest.mark.parametrize(
    ("changes", "dtype", "named"),
    [
        ({"d_model": 48}, "q8_0", "d_model=48 is not divisible by 32: use --dtype f16"),
        ({"d_mlp": 100}, "q8_0", "d_mlp=100"),
        ({}, torch.bfloat16, "not written in bfloat16"),
        ({}, torch.float64, "not written in float64"),
    ],
)
def test_a_type_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], dtype: Any, named: str) -> None:
    with pytest.raises(WeightsError, match=named):
        written(tmp_path, our_model(**changes), dtype=dtype)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("stored", "kind"), [(torch.float16, "F16"), (torch.bfloat16, "F32")])
def test_without_a_dtype_no_number_changes(tmp_path: Path, stored: torch.dtype, kind: str) -> None:
    model = our_model().to(stored)
    path = written(tmp_path, model)
    theirs = read(path, model).state_dict()
    assert all(torch.equal(theirs[name], tensor.float()) for name, tensor in to_hf(model).state_dict().items())
    assert gguf.GGUFReader(path).tensors[0].tensor_type.name == kind


def test_float64_asks_for_a_dtype(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="float64: add --dtype f32"):
        written(tmp_path, our_model().double())
    assert convert(tmp_path / "source", tmp_path / "x.gguf", to="gguf", dtype=torch.float32).identical


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 1e5), ("q8_0", 1e10)])
def test_numbers_too_large_for_the_type_are_refused(tmp_path: Path, dtype: Any, value: float) -> None:
    model = our_model()
    with torch.no_grad():
        model.blocks[1].mlp.W_in[0, 0] = value
    with pytest.raises(WeightsError, match=r"blk\.1\.ffn_up\.weight holds numbers that .* too large"):
        written(tmp_path, model, dtype=dtype)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("to", ["hf", "ours", "hooked", "nanogpt"])
def test_q8_0_is_refused_for_every_other_format(tmp_path: Path, to: Any) -> None:
    source = saved(tmp_path / "source", our_model(act_fn="gelu"))
    with pytest.raises(WeightsError, match="q8_0 is a type of GGUF alone"):
        convert(source, tmp_path / ("x.pt" if to == "nanogpt" else "x"), to=to, dtype="q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# Whole or not at all


def test_what_is_in_the_way_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "source", our_model())
    (tmp_path / "x.gguf").write_bytes(b"mine")
    (tmp_path / "folder.gguf").mkdir()
    for name, message in (("x.gguf", "is there already"), ("folder.gguf", "is there"), ("x.bin", "ends in .gguf")):
        assert main(["convert", str(source), str(tmp_path / name), "--to", "gguf"]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert (tmp_path / "x.gguf").read_bytes() == b"mine"
    assert main(["convert", str(source), str(tmp_path / "x.gguf"), "--to", "gguf", "--overwrite"]) == 0
    assert (tmp_path / "x.gguf").read_bytes()[:4] == b"GGUF"
    assert main(["convert", str(source), str(tmp_path / "folder.gguf"), "--to", "gguf", "--overwrite"]) == 1


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "source", our_model())
    (tmp_path / "x.gguf").write_bytes(b"mine")
    honest, count = gguf.GGUFWriter.write_tensor_data, 0

    def full(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise OSError(28, "No space left on device")
        honest(*arguments)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(OSError, match="No space"):
        convert(source, tmp_path / "x.gguf", to="gguf", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["source", "x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize("fault", ["number", "name", "size"])
def test_a_file_that_is_not_the_source_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    source = saved(tmp_path / "source", our_model())
    if fault == "size":
        honest_size = gguf.GGUFWriter.add_head_count
        monkeypatch.setattr(gguf.GGUFWriter, "add_head_count", lambda writer, count: honest_size(writer, 2))
    else:
        honest = gguf.GGUFWriter.add_tensor_info if fault == "name" else gguf.GGUFWriter.write_tensor_data
        count = 0

        def wrong(writer: Any, *arguments: Any, **options: Any) -> None:
            nonlocal count
            count += 1
            first, *others = arguments
            if count == 5:
                first = f"{first}.old" if fault == "name" else first + 1
            honest(writer, first, *others, **options)

        monkeypatch.setattr(gguf.GGUFWriter, honest.__name__, wrong)
    with pytest.raises(WeightsError):
        convert(source, tmp_path / "x.gguf", to="gguf")
    assert os.listdir(tmp_path) == ["source"]


def test_a_dry_run_lists_llama_cpps_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "source", our_model())
    assert main(["convert", str(source), str(tmp_path / "x.gguf"), "--to", "gguf", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "blk.1.attn_qkv.weight" in printed
    assert not (tmp_path / "x.gguf").exists()
