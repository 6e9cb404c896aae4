"""The commands, as a user calls them."""

import builtins
import itertools

import pytest
import torch

from gptladder import sampling
from gptladder.sampling import command
from gptladder.tokenizer import BPETokenizer, CharTokenizer
from gptladder.weights import from_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_model, byte_tokenizer):
    path = tmp_path_factory.mktemp("model")
    byte_model.float().save_pretrained(path)
    byte_model.double()
    byte_tokenizer.save(path)
    return path


def test_generate_writes_what_the_library_gives(folder, byte_tokenizer, capsys):
    options = ["--temperature", "0.8", "--top-k", "20", "--max-new-tokens", "15", "--seed", "3", "--stop", "zq"]
    assert command.generate(["Once", "--model", str(folder), *options]) == 0
    said = capsys.readouterr()
    params = sampling.SamplingParams(temperature=0.8, top_k=20)
    model = from_pretrained(folder)
    found = sampling.generate(model, "Once", params, tokenizer=byte_tokenizer, max_new_tokens=15, seed=3, stop="zq")
    assert said.out == f"Once{found[0].text}\n"
    assert f"weights: {folder}; {model.num_parameters():,} parameters, on cpu" in said.err
    assert "15 tokens" in said.err
    assert "length 1" in said.err


def test_top_k_is_50_where_nothing_is_said(folder, byte_tokenizer, capsys):
    command.generate(["Once", "--model", str(folder), "--temperature", "3"])
    params = sampling.SamplingParams(temperature=3, top_k=50)
    found = sampling.generate(from_pretrained(folder), "Once", params, tokenizer=byte_tokenizer, seed=42)
    assert capsys.readouterr().out == f"Once{found[0].text}\n"


def test_several_samples_follow_one_another(folder, byte_tokenizer, capsys):
    assert command.generate(["Once", "--model", str(folder), "--n", "3", "--max-new-tokens", "9", "--seed", "5"]) == 0
    params = sampling.SamplingParams(top_k=50)
    found = sampling.generate(
        from_pretrained(folder), "Once", params, tokenizer=byte_tokenizer, n=3, max_new_tokens=9, seed=5
    )
    expected = [f"--- {i + 1} of 3, seed {5 + i} ---\nOnce{row.text}\n" for i, row in enumerate(found)]
    assert capsys.readouterr().out == "".join(expected)


def test_the_text_is_shown_as_it_comes(folder, monkeypatch, capsys):
    """After each token of the first row, what is settled of it stands on the screen."""
    shown = []
    original = command.stream

    def watched(*args, **kwargs):
        for chunk in original(*args, **kwargs):
            yield chunk
            if chunk.row == 0:
                shown.append(capsys.readouterr().out)

    monkeypatch.setattr(command, "stream", watched)
    command.generate(["Once", "--model", str(folder), "--n", "2", "--max-new-tokens", "6", "--temperature", "0"])
    assert len(shown) == 6
    assert shown[0].startswith("--- 1 of 2, seed 42 ---\nOnce")
    assert sum(map(bool, shown)) > 1


def test_the_flush_comes_with_each_piece(folder, monkeypatch):
    flushed = []
    original = builtins.print
    monkeypatch.setattr(builtins, "print", lambda *a, **k: flushed.append(k.get("flush", False)) or original(*a, **k))
    command.generate(["Once", "--model", str(folder), "--max-new-tokens", "5"])
    assert all(flushed[:-1]), "only the summary at the end may wait"


def test_beams(folder, byte_tokenizer, capsys):
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


def test_random_weights_are_said_to_be_random(folder, capsys):
    for options, sizes in (([], "a small model of bytes"), (["--model", str(folder)], f"the sizes of {folder}")):
        assert command.generate(["Grüße", "--random-init", "--max-new-tokens", "4", *options]) == 0
        said = capsys.readouterr()
        assert f"weights: random ones (seed 0, {sizes}), so expect noise" in said.err
        assert said.out.startswith("Grüße")


def test_sliding_past_the_context(folder, capsys):
    options = ["--model", str(folder), "--max-new-tokens", "140", "--min-new-tokens", "140"]
    command.generate(["Once", *options])
    assert "context 1" in capsys.readouterr().err
    command.generate(["Once", *options, "--past-context", "slide"])
    assert "length 1" in capsys.readouterr().err


def test_ctrl_c_leaves_the_line_ended(folder, monkeypatch, capsys):
    original = command.stream

    def interrupted(*args, **kwargs):
        yield from itertools.islice(original(*args, **kwargs), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.generate(["Once", "--model", str(folder)])
    assert capsys.readouterr().out.endswith("\n")


def test_predict_shows_the_likeliest_tokens_and_transformers_beside_them(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert command.predict(["Once", "--model", str(folder), "-k", "4"]) == 0
    said = capsys.readouterr().out
    with torch.inference_mode():
        probs = from_pretrained(folder)(torch.tensor([list(b"Once")]))[0, -1].softmax(-1)
    best = probs.topk(4)
    rows = [line for line in said.splitlines() if line.startswith("│") and "%" in line]
    assert len(rows) == 4
    for row, token, prob in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[2:5] == [str(token), f"{prob:.4%}", f"{prob:.4%}"]
    lengths = [row.count("█") for row in rows]
    assert lengths[0] == 24
    assert lengths == sorted(lengths, reverse=True)
    assert "transformers agrees: largest difference" in said


def test_predict_fails_where_transformers_differs(folder, capsys, monkeypatch):
    original = command.from_pretrained

    def damaged(*args, **kwargs):
        model = original(*args, **kwargs)
        with torch.no_grad():
            model.ln_final.b[0] += 0.01
        return model

    monkeypatch.setattr(command, "from_pretrained", damaged)
    assert command.predict(["Once", "--model", str(folder)]) == 1
    assert "transformers differs" in capsys.readouterr().out


def test_predict_without_transformers(folder, capsys, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "transformers":
            raise ModuleNotFoundError(name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert command.predict(["Once", "--model", str(folder)]) == 0
    assert "transformers is not installed" in capsys.readouterr().out


def test_predict_with_random_weights_and_markup_in_tokens(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert command.predict(["[bold]", "--random-init", "-k", "257"]) == 0
    said = capsys.readouterr().out
    assert "'['" in said
    assert r"b'\xff'" in said
    assert "transformers agrees" in said


def test_what_cannot_be_used_is_refused(folder, tmp_path, byte_model):
    wrong = [
        (["x"], "which model"),
        (["x" * 300, "--random-init"], "300 tokens.*n_ctx=256"),
        (["x", "--random-init", "--device", "abacus"], "'abacus' names no device; it can be cuda, mps, cpu"),
        (["x", "--model", str(tmp_path / "nowhere")], "nowhere"),
    ]
    only_generate = [
        (["x", "--random-init", "--temperature", "-1"], "temperature must be from 1e-06 to 1e[+]06"),
        (["x", "--random-init", "--top-k", "0"], "top_k must be a whole number of at least 1"),
        (["x", "--random-init", "--top-p", "1.5"], "top_p must be above 0 and at most 1"),
        (["x", "--random-init", "--stop", ""], "a stop string is empty"),
        (["x", "--random-init", "--n", "0"], "n must be a whole number of at least 1"),
        (["x", "--random-init", "--beams", "2", "--stop", "y"], "--stop does nothing with --beams"),
        (["x", "--random-init", "--beams", "2", "--past-context", "slide"], "slide does nothing with --beams"),
    ]
    for argv, message in [*wrong, *only_generate]:
        with pytest.raises((ValueError, OSError), match=message):
            command.generate(argv)
    for argv, message in [*wrong, (["x", "--random-init", "-k", "0"], "-k is 0")]:
        with pytest.raises((ValueError, OSError), match=message):
            command.predict(argv)
    byte_model.save_pretrained(tmp_path / "bare")
    for run in (command.generate, command.predict):
        with pytest.raises(ValueError, match=r"no tokenizer in .*bare: it has neither tokenizer.json nor"):
            run(["x", "--model", str(tmp_path / "bare")])


def test_a_character_that_the_tokenizer_lacks(folder, tmp_path, tiny):
    tiny(d_vocab=3).save_pretrained(tmp_path)
    CharTokenizer("abc").save(tmp_path)
    with pytest.raises(ValueError, match="'x'"):
        command.generate(["abx", "--model", str(tmp_path)])


def test_the_bytes_of_the_small_model_are_any_text():
    tokenizer = command._bytes()
    assert isinstance(tokenizer, BPETokenizer)
    assert tokenizer.decode(tokenizer.encode("Ünïcödé \N{PILE OF POO}")) == "Ünïcödé \N{PILE OF POO}"
    assert tokenizer.n_vocab == command._SMALL.d_vocab
