"""What `evaluate` sums up: against transformers, and whatever the stride, the batch and the pieces of the text."""

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from gptladder import GPT2, cli
from gptladder.sampling import Evaluation, evaluate
from gptladder.sampling.evaluation import _windows
from gptladder.tokenizer import BPETokenizer, CharTokenizer
from gptladder.weights import to_hf

TEXT = "Once upon a time there was a fox. Grüße, 狐!\n" * 7


def test_loss_and_accuracy_are_transformers(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    """On a text that fits into one window, the loss is that of transformers to float64 rounding."""
    text = TEXT[:80]
    ids = torch.tensor([[256, *text.encode()]])
    with torch.inference_mode():
        logits = to_hf(byte_model)(ids).logits[0, :-1]
        theirs = torch.nn.functional.cross_entropy(logits, ids[0, 1:])  # its own loss is computed in float32
    found = evaluate(byte_model, text, tokenizer=byte_tokenizer, stride=128)
    assert found.tokens == found.predicted == found.bytes == len(text.encode())
    assert math.isclose(found.loss, float(theirs), rel_tol=1e-13)
    assert found.correct == int((logits.argmax(-1) == ids[0, 1:]).sum())
    assert math.isclose(found.bits_per_byte, found.loss / math.log(2), rel_tol=1e-15)


def test_strided_windows_are_transformers_recipe(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    """Each token's probability is the one that transformers gives it in the window that predicts it."""
    ids = [256, *TEXT.encode()]
    n_ctx, stride = 128, 32
    nats, counted = 0.0, 0
    reference = to_hf(byte_model)
    for begin in range(1, len(ids), stride):
        end = min(begin + stride, len(ids))
        window = torch.tensor([ids[max(0, end - n_ctx - 1) : end]])
        with torch.inference_mode():
            log_probs = reference(window[:, :-1]).logits[0].log_softmax(-1)
        targets = window[0, 1:]
        nats -= float(log_probs.gather(1, targets[:, None])[-(end - begin) :].sum())
        counted += end - begin
    found = evaluate(byte_model, TEXT, tokenizer=byte_tokenizer, stride=stride, batch=3)
    assert found.predicted == counted == len(TEXT.encode())
    assert math.isclose(found.nats, nats, rel_tol=1e-13)


@given(
    length=st.integers(2, 70),
    n_ctx=st.integers(2, 12),
    data=st.data(),
    start=st.sampled_from([None, 99]),
)
def test_windows_predict_every_token_once(length: int, n_ctx: int, data: st.DataObject, start: int | None) -> None:
    stride = data.draw(st.integers(1, n_ctx))
    tokens = list(range(length))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=5)))
    pieces = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
    windows = list(_windows(pieces, start, n_ctx, stride))
    predicted = [token for window in windows for token in window.tokens[-window.count :]]
    assert predicted == (tokens if start is not None else tokens[1:])
    whole = tokens if start is None else [start, *tokens]
    for window in windows:
        first = whole.index(window.tokens[0])
        assert whole[first : first + len(window.tokens)] == window.tokens
        assert len(window.tokens) <= n_ctx + 1
        context = len(window.tokens) - window.count
        assert first == 0 or context >= n_ctx + 1 - stride
    assert all(window.count == stride for window in windows[:-1])


@settings(max_examples=30)
@given(stride=st.integers(1, 24), batch=st.integers(1, 9), cut=st.integers(0, 60), documents=st.integers(1, 3))
def test_stride_batch_and_pieces_do_not_change_what_is_counted(
    tiny: Callable[..., GPT2], stride: int, batch: int, cut: int, documents: int
) -> None:
    model, tokenizer = tiny(d_vocab=4), CharTokenizer("abcd")
    text = "abcdabdcab" * 6
    found = evaluate(
        model,
        [iter((text[:cut], text[cut:]))] * 1 + [text] * (documents - 1),
        tokenizer=tokenizer,
        stride=stride,
        batch=batch,
    )
    assert (found.documents, found.tokens, found.predicted) == (documents, 60 * documents, 59 * documents)
    assert found.bytes == 59 * documents
    plain = evaluate(model, [text] * documents, tokenizer=tokenizer, stride=stride, batch=1)
    assert math.isclose(found.nats, plain.nats, rel_tol=1e-13)
    assert found.correct == plain.correct


def test_bits_per_byte_compare_tokenizers(tiny: Callable[..., GPT2], byte_tokenizer: BPETokenizer) -> None:
    """A uniform model of bytes needs log2(257) bits for each byte, and one of characters log2(n) for each character."""
    text = "é狐" * 20
    uniform = tiny(d_vocab=257)
    characters = tiny(d_vocab=2)
    for model in (uniform, characters):
        torch.nn.init.zeros_(model.unembed.W_U)
    by_bytes = evaluate(uniform, text, tokenizer=byte_tokenizer)
    assert math.isclose(by_bytes.bits_per_byte, math.log2(257), rel_tol=1e-12)
    by_characters = evaluate(characters, text, tokenizer=CharTokenizer("é狐"))
    assert (by_characters.predicted, by_characters.bytes) == (39, 98)
    assert math.isclose(by_characters.bits_per_byte, 39 / 98, rel_tol=1e-12)
    # A tie counts as argmax decides it: the first of all tokens.
    assert by_bytes.correct == 0
    assert by_characters.correct == sum(token == 0 for token in CharTokenizer("é狐").encode(text)[1:])


def test_documents_do_not_see_each_other(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    first, second = "Once upon", "a time there was"
    together = evaluate(byte_model, [first, second], tokenizer=byte_tokenizer)
    alone = [evaluate(byte_model, text, tokenizer=byte_tokenizer) for text in (first, second)]
    assert math.isclose(together.nats, sum(found.nats for found in alone), rel_tol=1e-13)


def test_a_stream_is_never_held_whole(tiny: Callable[..., GPT2]) -> None:
    """A text of a million pieces is read piece by piece, as far as the model has read."""
    model, read = tiny(d_vocab=2, dtype=torch.float32), 0

    def pieces() -> Iterator[str]:
        nonlocal read
        for _ in range(3000):
            read += 1
            yield "ab" * 8

    behind = []
    evaluate(
        model,
        [pieces()],
        tokenizer=CharTokenizer("ab"),
        stride=24,
        progress=lambda done: behind.append(read * 16 - done),
    )
    assert max(behind) < 24 * 8 * 3 + 16


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("abc", {"stride": 0}, "stride must be a whole number of at least 1, not 0"),
        ("abc", {"stride": 25}, "stride is 25, and the model reads at most n_ctx=24 tokens"),
        ("abc", {"batch": 0}, "batch must be a whole number of at least 1, not 0"),
        ("a", {}, "no token to predict"),
        ("", {}, "no token to predict"),
        ("abz", {}, "'z'"),
        ("abd", {}, "the tokenizer makes token 3 of the text, and the model's vocabulary ends at 2"),
    ],
)
def test_an_unusable_text_or_number_is_refused(
    tiny: Callable[..., GPT2], text: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tiny(d_vocab=3), text, tokenizer=CharTokenizer("abcd"), **settings)


def test_a_model_in_training_mode_stays_in_it(tiny: Callable[..., GPT2]) -> None:
    model = tiny(d_vocab=3, embed_dropout=0.5, resid_dropout=0.5).train()
    losses = {evaluate(model, "abcabc", tokenizer=CharTokenizer("abc")).loss for _ in range(2)}
    assert len(losses) == 1
    assert model.training


def test_measures_of_a_hopeless_model() -> None:
    found = Evaluation(documents=1, tokens=1, predicted=1, correct=0, bytes=1, nats=1e6)
    assert found.perplexity == math.inf


@pytest.fixture
def folder(tmp_path: Path, byte_model: GPT2, byte_tokenizer: BPETokenizer) -> Path:
    byte_model.save_pretrained(tmp_path / "model")
    byte_tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_the_command_reads_files_folders_and_standard_input(
    folder: Path, tmp_path: Path, byte_model: GPT2, byte_tokenizer: BPETokenizer,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT)
    (tmp_path / "texts" / "b.txt").write_text("one<|endoftext|>two")
    expected = evaluate(byte_model, [TEXT, "one", "two"], tokenizer=byte_tokenizer, stride=16)
    assert cli.main(["evaluate", str(folder), str(tmp_path / "texts"), "--stride", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] == 3
    assert found["tokens"] == found["predicted"] == found["bytes"] == expected.tokens
    assert math.isclose(found["bits_per_byte"], expected.bits_per_byte, rel_tol=1e-12)
    assert (found["n_ctx"], found["stride"]) == (128, 16)

    assert cli.main(["evaluate", str(folder), str(tmp_path / "texts" / "a.txt")]) == 0
    from_file = capsys.readouterr().out
    assert f"tokens         {len(TEXT.encode()):,}, each counted once" in from_file
    stdin = io.TextIOWrapper(io.BytesIO(TEXT.encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert cli.main(["evaluate", str(folder), "-"]) == 0
    assert capsys.readouterr().out == from_file
    assert max(map(len, from_file.splitlines())) <= 60


def test_the_command_takes_another_encoding(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Füchse „hier“ ".encode("cp1252") * 9)
    assert cli.main(["evaluate", str(folder), str(path)]) == 1
    assert "add --encoding cp1252" in capsys.readouterr().err
    assert cli.main(["evaluate", str(folder), str(path), "--encoding", "cp1252"]) == 0
    read = capsys.readouterr().out
    path.write_text("Füchse „hier“ " * 9, encoding="utf-8")
    assert cli.main(["evaluate", str(folder), str(path)]) == 0
    assert capsys.readouterr().out == read
    assert cli.main(["evaluate", str(folder), str(path), "--encoding", "nope"]) == 1
    assert "--encoding is 'nope', which Python does not know" in capsys.readouterr().err


def test_the_command_refuses_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    for argv, message in (
        ([str(folder), str(tmp_path / "nowhere.txt")], "nowhere.txt"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "a.txt")], "nowhere"),
        ([str(folder), str(tmp_path / "a.txt"), "--stride", "1000"], "--stride is 1000, and the model reads at most"),
        ([str(folder), str(tmp_path / "a.txt"), "--batch", "0"], "--batch must be a whole number of at least 1"),
    ):
        assert cli.main(["evaluate", *argv]) == 1
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1]
        assert "Traceback" not in error
