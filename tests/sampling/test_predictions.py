"""`top_predictions`: the most probable next tokens, as a function."""

import pytest
import torch

from gptladder import GPT2
from gptladder.sampling import top_predictions
from gptladder.tokenizer import BPETokenizer, CharTokenizer


def test_it_returns_the_most_probable_tokens_with_their_numbers(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    with torch.no_grad():
        logits = byte_model(torch.tensor([list(b"Once")]))[0, -1]
    probs = logits.softmax(-1)
    best = top_predictions(byte_model, "Once", 5, tokenizer=byte_tokenizer)
    assert [each.token for each in best] == probs.topk(5).indices.tolist()
    for each in best:
        assert each.text == byte_tokenizer.decode([each.token])
        assert abs(each.logit - float(logits[each.token])) < 1e-12
        assert abs(each.prob - float(probs[each.token])) < 1e-12
        assert abs(each.log_prob - float(probs[each.token].log())) < 1e-12
    assert top_predictions(byte_model, list(b"Once"), 5, tokenizer=byte_tokenizer) == best


def test_ids_need_no_tokenizer_and_a_small_vocabulary_gives_fewer(model: GPT2) -> None:
    everything = top_predictions(model, [3, 1, 4], k=1000)
    assert len(everything) == model.d_vocab
    assert abs(sum(each.prob for each in everything) - 1) < 1e-12
    assert everything[0].text is None


def test_rows_without_a_token_are_left_out_and_still_count(model: GPT2) -> None:
    small = CharTokenizer("abcdefghijklmnopqrst")
    best = top_predictions(model, [3, 1, 4], k=1000, tokenizer=small)
    assert sorted(each.token for each in best) == list(range(20))
    assert sum(each.prob for each in best) < 1


def test_the_models_own_tokenizer_is_the_default(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    expected = top_predictions(byte_model, "Once", tokenizer=byte_tokenizer)
    with pytest.raises(ValueError, match="the prompt is text"):
        top_predictions(byte_model, "Once")
    byte_model.tokenizer = byte_tokenizer
    try:
        assert top_predictions(byte_model, "Once") == expected
    finally:
        byte_model.tokenizer = None


def test_what_cannot_be_is_refused(model: GPT2) -> None:
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, not 0"):
        top_predictions(model, [3], k=0)
    with pytest.raises(ValueError, match="the prompt is empty"):
        top_predictions(model, [])
    with pytest.raises(ValueError, match="n_ctx=24"):
        top_predictions(model, [3] * 25)


def test_a_model_in_training_mode_predicts_without_dropout(model: GPT2) -> None:
    expected = top_predictions(model, [3, 1, 4])
    model.train()
    try:
        assert top_predictions(model, [3, 1, 4]) == expected
    finally:
        model.eval()
