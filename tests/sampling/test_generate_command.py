"""``gptladder generate``, as a user calls it."""

import builtins
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder import GPT2, sampling
from gptladder.lens.command import look
from gptladder.sampling import Chunk, model_options, stream
from gptladder.sampling import generate_command as command
from gptladder.sampling.predict_command import predict
from gptladder.sampling.prompt_options import unescaped
from gptladder.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from gptladder.weights import from_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, byte_model: GPT2, byte_tokenizer: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("model")
    byte_model.float().save_pretrained(path)
    byte_model.double()
    byte_tokenizer.save(path)
    return path


def test_generate_writes_what_the_library_gives(
    folder: Path, byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--temperature", "0.8", "--top-k", "20", "--max-new-tokens", "15", "--seed", "3", "--stop", "zq"]
    assert command.generate(["Once", "--model", str(folder), *options]) == 0
    printed = capsys.readouterr()
    params = sampling.SamplingParams(temperature=0.8, top_k=20)
    model = from_pretrained(folder)
    found = sampling.generate(model, "Once", params, tokenizer=byte_tokenizer, max_new_tokens=15, seed=3, stop="zq")
    assert printed.out == f"Once{found[0].text}\n"
    assert f"weights: {folder}; {model.num_parameters():,} parameters, on cpu" in printed.err
    assert "15 tokens" in printed.err
    assert "length 1" in printed.err


def test_top_k_is_50_by_default(folder: Path, byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    command.generate(["Once", "--model", str(folder), "--temperature", "3"])
    params = sampling.SamplingParams(temperature=3, top_k=50)
    found = sampling.generate(from_pretrained(folder), "Once", params, tokenizer=byte_tokenizer, seed=42)
    assert capsys.readouterr().out == f"Once{found[0].text}\n"


def test_several_samples_follow_one_another(
    folder: Path, byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.generate(["Once", "--model", str(folder), "--n", "3", "--max-new-tokens", "9", "--seed", "5"]) == 0
    params = sampling.SamplingParams(top_k=50)
    found = sampling.generate(
        from_pretrained(folder), "Once", params, tokenizer=byte_tokenizer, n=3, max_new_tokens=9, seed=5
    )
    expected = [f"--- {i + 1} of 3, seed {5 + i} ---\nOnce{row.text}\n" for i, row in enumerate(found)]
    assert capsys.readouterr().out == "".join(expected)


def test_the_text_is_shown_as_it_comes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After each token of the first row, what is settled of it stands on the screen."""
    shown = []
    original = stream

    def watched(*args: Any, **kwargs: Any) -> Iterator[Chunk]:
        for chunk in original(*args, **kwargs):
            yield chunk
            if chunk.row == 0:
                shown.append(capsys.readouterr().out)

    monkeypatch.setattr(command, "stream", watched)
    command.generate(["Once", "--model", str(folder), "--n", "2", "--max-new-tokens", "6", "--temperature", "0"])
    assert len(shown) == 6
    assert shown[0].startswith("--- 1 of 2, seed 42 ---\nOnce")
    assert sum(map(bool, shown)) > 1


def test_the_flush_comes_with_each_piece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    original = builtins.print
    monkeypatch.setattr(builtins, "print", lambda *a, **k: flushed.append(k.get("flush", False)) or original(*a, **k))
    command.generate(["Once", "--model", str(folder), "--max-new-tokens", "5"])
    assert all(flushed[:-1]), "only the summary at the end may wait"


def test_beams(folder: Path, byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--beams",
        "3",
        "--n",
        "2",
        "--max-new-tokens",
        "8",
        "--early-stopping",
        "never",
        "--length-penalty",
        "0.5",
    ]
    assert command.generate(["Once", "--model", str(folder), *options]) == 0
    found = sampling.beam_search(
        from_pretrained(folder),
        "Once",
        sampling.SamplingParams(temperature=0),
        tokenizer=byte_tokenizer,
        num_beams=3,
        num_return=2,
        max_new_tokens=8,
        early_stopping="never",
        length_penalty=0.5,
    )
    expected = [f"--- {i + 1} of 2, score {beam.score:.4f} ---\nOnce{beam.text}\n" for i, beam in enumerate(found)]
    assert capsys.readouterr().out == "".join(expected)


def test_random_weights_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, sizes in (([], "a small model of bytes"), (["--model", str(folder)], f"the sizes of {folder}")):
        assert command.generate(["Grüße", "--random-init", "--max-new-tokens", "4", *options]) == 0
        printed = capsys.readouterr()
        assert f"weights: random ones (seed 0, {sizes}), so expect noise" in printed.err
        assert printed.out.startswith("Grüße")


def test_sliding_past_the_context(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(folder), "--max-new-tokens", "140", "--min-new-tokens", "140"]
    command.generate(["Once", *options])
    assert "context 1" in capsys.readouterr().err
    command.generate(["Once", *options, "--past-context", "slide"])
    assert "length 1" in capsys.readouterr().err


def test_ctrl_c_leaves_the_line_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = stream

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Chunk]:
        yield from itertools.islice(original(*args, **kwargs), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.generate(["Once", "--model", str(folder)])
    assert capsys.readouterr().out.endswith("\n")


REFUSED = [
    ([], "there is no prompt: give PROMPT in quotes, --prompt-file FILE, or - for standard input"),
    (["x", "--prompt-file", "y.txt"], "there are two prompts"),
    (["x"], "which model"),
    (["x" * 300, "--random-init"], "300 tokens.*n_ctx=256"),
    (["x", "--random-init", "--device", "abacus"], "'abacus' names no device; it can be cuda, mps, cpu"),
    (["x", "--model", "./nowhere"], "nowhere"),
    (["--prompt-file", "nowhere.txt", "--random-init"], "nowhere.txt"),
    (["x", "--random-init", "--tokenizer", "nowhere"], "nowhere"),
    (["x", "--random-init", "--temperature", "-1"], "--temperature must be from 1e-06 to 1e[+]06.*, not -1.0"),
    (["x", "--random-init", "--temperature", "nan"], "--temperature must be .*, not nan"),
    (["x", "--random-init", "--temperature", "inf"], "--temperature must be .*, not inf"),
    (["x", "--random-init", "--temperature", "1e-300"], "--temperature must be .*, not 1e-300"),
    (["x", "--random-init", "--top-k", "-1"], "--top-k must be a whole number of at least 0, not -1"),
    (["x", "--random-init", "--top-p", "1.5"], "--top-p must be above 0 and at most 1"),
    (["x", "--random-init", "--frequency-penalty", "1e39"], "--frequency-penalty must be .*, not 1e[+]39"),
    (["x", "--random-init", "--stop", ""], "a stop string is empty"),
    (["x", "--random-init", "--n", "0"], "--n must be a whole number of at least 1, not 0"),
    (["x", "--random-init", "--n", str(10**9)], "--n is too large: 1,000,000,000 texts of up to 129 tokens need"),
    (
        ["x", "--random-init", "--seed", str(2**64)],
        "--seed must be a whole number from .*, not 184467440",
    ),
    (["x", "--random-init", "--max-new-tokens", "0"], "--max-new-tokens must be a whole number of at least 1, not 0"),
    (["x", "--random-init", "--min-new-tokens", "200"], "--min-new-tokens 200 is more than --max-new-tokens 128"),
    (["x", "--random-init", "--beams", "0"], "--beams must be a whole number of at least 1, not 0"),
    (["x", "--random-init", "--beams", "2", "--n", "3"], "--n is 3, more than --beams 2 can find"),
    (["x", "--random-init", "--beams", "2", "--length-penalty", "1000"], "--length-penalty must be from -20 to 20"),
    (["x", "--random-init", "--length-penalty", "2"], "--length-penalty is for beam search: give --beams too"),
    *(
        (["x", "--random-init", "--beams", "2", option, value], f"{option} does nothing with --beams")
        for option, value in [
            ("--temperature", "1.0"),
            ("--top-k", "50"),
            ("--seed", "42"),
            ("--stop", "y"),
            ("--past-context", "slide"),
        ]
    ),
]


@pytest.mark.parametrize(("argv", "message"), REFUSED, ids=[" ".join(argv)[-60:] for argv, _ in REFUSED])
def test_an_unusable_setting_is_refused_with_its_option(argv: list[str], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message) as caught:
        command.generate(argv)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_needs_one_named(
    tmp_path: Path, folder: Path, byte_model: GPT2, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_model.save_pretrained(tmp_path / "bare")
    options = ["x", "--model", str(tmp_path / "bare"), "--max-new-tokens", "4"]
    with pytest.raises(ValueError, match=r"no tokenizer in .*bare: it has neither .*--tokenizer FOLDER"):
        command.generate(options)
    assert command.generate([*options, "--tokenizer", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("x")


def test_a_model_of_another_kind_is_not_asked_for_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "model_type": "llama"}')
    for run in (command.generate, predict, look):
        with pytest.raises(ValueError, match="model_type='llama' is not supported, only 'gpt2'"):
            run(["x", "--model", str(tmp_path)])


def test_top_k_of_0_chooses_among_all(
    folder: Path, byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.generate(["Once", "--model", str(folder), "--top-k", "0", "--temperature", "3"]) == 0
    params = sampling.SamplingParams(temperature=3)
    found = sampling.generate(from_pretrained(folder), "Once", params, tokenizer=byte_tokenizer, seed=42)
    assert capsys.readouterr().out == f"Once{found[0].text}\n"


def test_a_huge_number_of_tokens_means_until_the_context_is_full(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-new-tokens", str(10**12), "--min-new-tokens", "200", "--temperature", "0"]
    assert command.generate(["Once", "--model", str(folder), *options]) == 0
    assert "context 1" in capsys.readouterr().err


def test_a_stop_string_may_be_typed_with_escapes(
    tmp_path: Path, tiny: Callable[..., GPT2], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny(d_vocab=3, dtype=torch.float32).save_pretrained(tmp_path)
    CharTokenizer("\nab").save(tmp_path)
    for typed in (r"\n", "\n"):
        assert command.generate(["a", "--model", str(tmp_path), "--stop", typed, "--top-k", "0"]) == 0
        out, err = capsys.readouterr()
        assert "stop 1" in err
        assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"\n", "\n"),
        (r"\t|\r", "\t|\r"),
        (r"\\n", r"\n"),
        (r"\x41\u00e9", "Aé"),
        (r"\q \x4 \ ", r"\q \x4 \ "),
        ("a\nb", "a\nb"),
    ],
)
def test_escapes_that_are_known_are_replaced(typed: str, text: str) -> None:
    assert unescaped(typed) == text


@pytest.mark.parametrize("content", [b"Once", b"Once\n", b"Once\r\n", b"\xef\xbb\xbfOnce\n"])
def test_a_prompt_comes_from_a_file_or_standard_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    options = ["--model", str(folder), "--max-new-tokens", "5"]
    command.generate(["Once", *options])
    expected = capsys.readouterr().out
    (tmp_path / "prompt.txt").write_bytes(content)
    assert command.generate(["--prompt-file", str(tmp_path / "prompt.txt"), *options]) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert command.generate(["-", *options]) == 0
    assert capsys.readouterr().out == expected


def test_a_prompt_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"prompt\.txt is not UTF-8 text: byte 0xe9 at position 3"):
        command.generate(["--prompt-file", str(tmp_path / "prompt.txt"), "--random-init"])


def test_an_empty_prompt_begins_after_the_end_of_text(
    folder: Path, byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.generate(["", "--model", str(folder), "--max-new-tokens", "6"]) == 0
    params = sampling.SamplingParams(top_k=50)
    model = from_pretrained(folder)
    found = sampling.generate(model, [256], params, tokenizer=byte_tokenizer, max_new_tokens=6)
    assert capsys.readouterr().out == f"{found[0].text}\n"


def test_an_empty_prompt_needs_a_token_to_begin_after(tmp_path: Path, tiny: Callable[..., GPT2]) -> None:
    tiny(d_vocab=3).save_pretrained(tmp_path)
    CharTokenizer("abc").save(tmp_path)
    with pytest.raises(ValueError, match="the prompt is empty, and a model needs at least one token to read"):
        command.generate(["", "--model", str(tmp_path)])


def test_a_character_that_the_tokenizer_lacks(folder: Path, tmp_path: Path, tiny: Callable[..., GPT2]) -> None:
    tiny(d_vocab=3).save_pretrained(tmp_path)
    CharTokenizer("abc").save(tmp_path)
    with pytest.raises(ValueError, match="'x'"):
        command.generate(["abx", "--model", str(tmp_path)])


def test_the_bytes_of_the_small_model_are_any_text() -> None:
    tokenizer = model_options._bytes()
    assert isinstance(tokenizer, BPETokenizer)
    assert tokenizer.decode(tokenizer.encode("Ünïcödé \N{PILE OF POO}")) == "Ünïcödé \N{PILE OF POO}"
    assert tokenizer.n_vocab == model_options.SMALL.d_vocab
