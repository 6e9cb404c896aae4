"""The logit lens and direct logit attribution give TransformerLens's numbers, and attribution adds up exactly."""

from typing import Any

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.components import LayerNorm
from gptladder.lens import direct_logit_attribution, logit_lens
from gptladder.tokenizer import BPETokenizer
from gptladder.weights import to_hooked_transformer

TOKENS = [3, 1, 4, 15, 9, 3, 1, 4, 15, 9]


def test_the_logit_lens_is_theirs(ours: GPT2, theirs: Any) -> None:
    found = logit_lens(ours, TOKENS)
    logits, cache = theirs.run_with_cache(torch.tensor([TOKENS]))
    expected = theirs.unembed(cache.accumulated_resid(incl_mid=True, apply_ln=True))[:, 0]
    assert found.values.shape == (7, 10, 17)
    assert (found.values - expected).abs().max() < 1e-12
    assert (found.values[-1] - logits[0]).abs().max() < 1e-12
    assert list(found.axes) == ["stage", "position", "token"]


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("wrong", [None, 5])
def test_direct_logit_attribution_is_theirs(ours: GPT2, theirs: Any, wrong: int | None) -> None:
    found = direct_logit_attribution(ours, TOKENS, 15, wrong)
    _, cache = theirs.run_with_cache(torch.tensor([TOKENS]))
    # logit_attrs is for weights whose final layer norm has been folded; here that is done by hand, in float64.
    folded = to_hooked_transformer(ours)
    with torch.no_grad():
        folded.unembed.W_U.mul_(folded.ln_final.w[:, None])
    stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    cache.model = folded
    attributed = cache.logit_attrs(stack, 15, wrong)
    expected = dict(zip(labels, attributed[:, 0], strict=True))
    direction = ours.unembed.W_U[:, 15] - (0 if wrong is None else ours.unembed.W_U[:, wrong])
    b_U = ours.unembed.b_U
    assert b_U is not None
    assert isinstance(ours.ln_final, LayerNorm)
    constant = ours.ln_final.b @ direction + b_U[15] - (0 if wrong is None else b_U[wrong])
    assert len(found.axes["part"]) == len(labels)
    for name, part in zip(found.axes["part"], found.values, strict=True):
        theirs_is = expected[f"{name[1]}_mlp_out" if "mlp" in name else name]
        if name == "bias":  # theirs leaves out what the final layer norm and the unembedding add
            theirs_is = theirs_is + constant
        assert (part - theirs_is).abs().max() < 1e-12, name


def test_the_parts_add_up_to_the_logit(ours: GPT2) -> None:
    logits = ours(torch.tensor([TOKENS]))[0].detach()
    alone = direct_logit_attribution(ours, TOKENS, 7)
    assert (alone.values.sum(0) - logits[:, 7]).abs().max() < 1e-12
    less = direct_logit_attribution(ours, TOKENS, 7, 2)
    assert (less.values.sum(0) - (logits[:, 7] - logits[:, 2])).abs().max() < 1e-12


def test_text_answers_and_labels(text_model: GPT2, reader: BPETokenizer) -> None:
    found = direct_logit_attribution(text_model, "abc", "d", tokenizer=reader)
    assert found.axes["position"] == ["0 a", "1 b", "2 c"]
    assert torch.equal(found.values, direct_logit_attribution(text_model, [97, 98, 99], 100).values)
    with pytest.raises(ValueError, match=r"'de' has 2 tokens \('d', 'e'\)"):
        direct_logit_attribution(text_model, "abc", "de", tokenizer=reader)
    with pytest.raises(ValueError, match="outside the vocabulary: ids are 0 to 256"):
        direct_logit_attribution(text_model, "abc", 257, tokenizer=reader)
    with pytest.raises(ValueError, match="pass tokenizer="):
        logit_lens(text_model, "abc")
    with pytest.raises(ValueError, match="the prompt is empty"):
        logit_lens(text_model, [], tokenizer=reader)
    with pytest.raises(ValueError, match="65 tokens, and the model reads at most n_ctx=64"):
        logit_lens(text_model, "a" * 65, tokenizer=reader)


def test_post_norm_blocks_are_refused() -> None:
    model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=10, n_ctx=8, norm="post")).eval()
    with pytest.raises(ValueError, match="needs pre-norm blocks"):
        direct_logit_attribution(model, [1, 2], 3)


def test_the_models_own_tokenizer_is_the_default(text_model: GPT2, reader: BPETokenizer) -> None:
    given = logit_lens(text_model, "once", tokenizer=reader)
    with pytest.raises(ValueError, match=r"set model\.tokenizer"):
        logit_lens(text_model, "once")
    text_model.tokenizer = reader
    for text in ("once", list(b"once")):
        own = logit_lens(text_model, text)
        assert torch.equal(own.values, given.values)
        assert own.axes == given.axes


@pytest.mark.parametrize("given", [[[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]]), torch.tensor([1.5]), None, 3])
def test_several_prompts_or_other_numbers_are_refused(ours: GPT2, given: Any) -> None:
    with pytest.raises(ValueError, match=r"are expected, |the prompt must be a text or the ids of its tokens"):
        logit_lens(ours, given)


def test_an_empty_text_is_the_token_that_begins_every_text(text_model: GPT2, reader: BPETokenizer) -> None:
    found = logit_lens(text_model, "", tokenizer=reader)
    assert found.axes["position"] == ["0 <|endoftext|>"]
    assert torch.equal(found.values, logit_lens(text_model, [256]).values)
