"""Scores of heads and circuits in their weights, compared with TransformerLens's."""

from typing import Any, get_args

import pytest
import torch

from gptladder import GPT2
from gptladder.lens import HeadKind, attention_patterns, head_scores, ov_circuit, qk_circuit, wanted_keys
from gptladder.tokenizer import BPETokenizer

TOKENS = torch.tensor(
    [[3, 1, 4, 15, 9, 3, 1, 4, 15, 9], [2, 7, 16, 8, 0, 2, 7, 16, 8, 0], [5, 5, 6, 5, 6, 1, 1, 2, 1, 6]]
)


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_head_scores_are_the_detectors(ours: GPT2, theirs: Any, kind: HeadKind) -> None:
    lens = pytest.importorskip("transformer_lens")
    for row in TOKENS:
        expected = lens.head_detector.detect_head(theirs, row[None], f"{kind.replace(' ', '_')}_head")
        share = wanted_keys(row[None], kind).any(-1).double().mean()  # the detector divides by all queries
        assert (head_scores(ours, row[None], kind).values * share - expected).abs().max() < 1e-12


@pytest.mark.parametrize(("kind", "offset", "skipped"), [("induction", 1 - 5, 1), ("previous token", -1, 0)])
def test_a_score_is_the_mean_of_a_diagonal(ours: GPT2, kind: HeadKind, offset: int, skipped: int) -> None:
    tokens = TOKENS[:2]
    _, cache = ours.run_with_cache(tokens)
    diagonals = [cache["pattern", layer].diagonal(offset=offset, dim1=-2, dim2=-1) for layer in range(3)]
    # An induction head's first entry is of the first round's last token, which has not come before.
    expected = torch.stack([diagonal[..., skipped:].mean((0, -1)) for diagonal in diagonals])
    assert (head_scores(ours, tokens, kind).values - expected).abs().max() < 1e-12


def test_a_text_without_repetition_has_no_induction(ours: GPT2) -> None:
    with pytest.raises(ValueError, match="repeat some tokens"):
        head_scores(ours, torch.tensor([[1, 2, 3]]), "induction")
    with pytest.raises(ValueError, match="'previous token', 'duplicate token' or 'induction'"):
        wanted_keys(torch.tensor([[1, 2]]), "copy")  # pyright: ignore[reportArgumentType]


def test_scores_are_of_texts_too(text_model: GPT2, reader: BPETokenizer) -> None:
    texts = ["ab ab ab", "xyz xyz."]
    tokens = torch.tensor([reader.encode(text) for text in texts])
    expected = head_scores(text_model, tokens, "induction").values
    assert torch.equal(head_scores(text_model, texts, "induction", tokenizer=reader).values, expected)
    assert torch.equal(head_scores(text_model, tokens.tolist(), "induction").values, expected)
    text_model.tokenizer = reader
    assert torch.equal(head_scores(text_model, texts, "induction").values, expected)
    one = head_scores(text_model, tokens[:1], "induction").values
    for alone in (texts[0], tokens[0], tokens[0].tolist()):
        assert torch.equal(head_scores(text_model, alone, "induction").values, one)
    with pytest.raises(ValueError, match="the prompts have 2 to 3 tokens"):
        head_scores(text_model, ["aa", "aaa"], "induction")
    with pytest.raises(ValueError, match="there is no prompt"):
        head_scores(text_model, [], "induction")


def test_functions_of_one_prompt_refuse_several(ours: GPT2) -> None:
    with pytest.raises(ValueError, match="the tokens of one text are expected"):
        attention_patterns(ours, TOKENS)


def test_patterns_are_theirs(ours: GPT2, theirs: Any) -> None:
    found = attention_patterns(ours, TOKENS[0])
    _, cache = theirs.run_with_cache(TOKENS[:1])
    for layer in range(3):
        assert (found.values[layer] - cache["pattern", layer][0]).abs().max() < 1e-12
    assert found.axes["key"][3] == "3 15"


def test_circuits_are_theirs(ours: GPT2, theirs: Any) -> None:
    tokens = TOKENS[2].unique()
    for layer, head in ((0, 1), (2, 0)):
        qk = theirs.W_E[tokens] @ theirs.QK[layer, head].AB @ theirs.W_E[tokens].T
        assert (qk_circuit(ours, layer, head, TOKENS[2]).values - qk / 4**0.5).abs().max() < 1e-12
        ov = theirs.W_E[tokens] @ theirs.OV[layer, head].AB @ theirs.W_U[:, tokens]
        found = ov_circuit(ours, layer, head, TOKENS[2])
        assert (found.values - ov).abs().max() < 1e-12
        assert found.axes["attended"] == ["1", "2", "5", "6"]


def test_scores_of_one_prompt_in_any_form(text_model: GPT2, reader: BPETokenizer) -> None:
    text = "abcabc"
    tokens = torch.tensor([reader.encode(text)])
    expected = head_scores(text_model, tokens, "induction").values
    for given in (tokens[0], tokens[0].tolist()):
        assert torch.equal(head_scores(text_model, given, "induction").values, expected)
    assert torch.equal(head_scores(text_model, text, "induction", tokenizer=reader).values, expected)
