"""Activation patching and ablation, compared with TransformerLens's own functions and hooks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gptladder import GPT2
from gptladder.lens import Site, ablation, activation_patching
from gptladder.tokenizer import BPETokenizer

CLEAN = torch.tensor([[3, 1, 4, 15, 9, 3, 1, 4, 15, 9]])
CORRUPTED = CLEAN.clone()
CORRUPTED[0, 2] = 11


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1].log_softmax(-1)[:, 15]


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("site", "by_position", "theirs_is"),
    [
        ("z", True, "attn_head_out_by_pos"),
        ("z", False, "attn_head_out_all_pos"),
        ("q", True, "attn_head_q_by_pos"),
        ("k", True, "attn_head_k_by_pos"),
        ("v", False, "attn_head_v_all_pos"),
        ("resid_pre", True, "resid_pre"),
        ("resid_mid", True, "resid_mid"),
        ("attn_out", True, "attn_out"),
        ("mlp_out", True, "mlp_out"),
    ],
)
def test_patching_is_theirs(ours: GPT2, theirs: Any, site: Site, by_position: bool, theirs_is: str) -> None:
    lens = pytest.importorskip("transformer_lens")
    found = activation_patching(ours, CLEAN, CORRUPTED, metric, site=site, by_position=by_position, batch=3)
    _, cache = theirs.run_with_cache(CLEAN)
    patch = getattr(lens.patching, f"get_act_patch_{theirs_is}")
    expected = patch(theirs, CORRUPTED, cache, lambda logits: metric(logits)[0])
    if site in ("z", "q", "k", "v") and by_position:
        expected = expected.transpose(1, 2)  # theirs is [layer pos head]
    assert found.values.shape == expected.shape
    assert (found.values - expected).abs().max() < 1e-12
    assert found.values.std() > 1e-4


def test_what_comes_before_the_change_restores_nothing(ours: GPT2) -> None:
    found = activation_patching(ours, CLEAN, CORRUPTED, metric)
    plain = metric(ours(CORRUPTED)).detach()
    assert (found.values[:, :, :2] - plain).abs().max() < 1e-12
    assert list(found.axes) == ["layer", "head", "position"]


def test_the_residual_stream_at_the_first_layer_restores_all(ours: GPT2) -> None:
    found = activation_patching(ours, CLEAN, CORRUPTED, metric, site="resid_pre")
    assert (found.values[0, 2] - metric(ours(CLEAN)).detach()[0]).abs() < 1e-12


def test_prompts_of_different_length_are_refused(ours: GPT2) -> None:
    with pytest.raises(ValueError, match="10 tokens and the corrupted one 4"):
        activation_patching(ours, CLEAN, CORRUPTED[:, :4], metric)
    with pytest.raises(ValueError, match="not for mlp_out"):
        activation_patching(ours, CLEAN, CORRUPTED, metric, site="mlp_out", by_position=False)


@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_ablation_is_what_their_hooks_give(ours: GPT2, theirs: Any, kind: Any) -> None:
    tokens = torch.cat([CLEAN, CORRUPTED, CLEAN.flip(1)])

    def loss(logits: Tensor) -> Tensor:
        return -metric(logits).mean()

    found = ablation(ours, tokens, loss, kind=kind)
    for layer in range(3):
        for head in range(2):

            def ablate(z: Tensor, hook: object, head: int = head) -> Tensor:
                z = z.clone()
                z[:, :, head] = 0 if kind == "zero" else z[:, :, head].mean(0, keepdim=True)
                return z

            expected = loss(theirs.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", ablate)]))
            assert abs(found.values[layer, head] - (expected - loss(theirs(tokens)))) < 1e-12
    assert found.values.abs().min() > 1e-5


def test_ablation_takes_texts(text_model: GPT2, reader: BPETokenizer) -> None:
    def loss(logits: Tensor) -> Tensor:
        return -logits[:, -1].log_softmax(-1)[:, 97].mean()

    texts = ["ab ab a", "xyz xy."]
    expected = ablation(text_model, torch.tensor([reader.encode(text) for text in texts]), loss)
    assert torch.equal(ablation(text_model, texts, loss, tokenizer=reader).values, expected.values)
    assert ablation(text_model, texts[0], loss, kind="zero", tokenizer=reader).values.shape == (2, 2)


def test_mean_ablation_of_one_prompt_is_refused(ours: GPT2) -> None:
    with pytest.raises(ValueError, match="give several, or kind='zero'"):
        ablation(ours, CLEAN, lambda logits: -metric(logits).mean())
    with pytest.raises(ValueError, match="it can be 'zero' or 'mean'"):
        ablation(ours, CLEAN, metric, kind="none")  # pyright: ignore[reportArgumentType]


def test_a_metric_of_one_number_is_taken_row_by_row(ours: GPT2) -> None:
    expected = activation_patching(ours, CLEAN, CORRUPTED, metric).values
    for single in (
        lambda logits: metric(logits)[0],
        lambda logits: metric(logits).mean(),
        lambda x: metric(x)[0].item(),
    ):
        found = activation_patching(ours, CLEAN, CORRUPTED, single, batch=3)
        assert (found.values - expected).abs().max() < 1e-12
    with pytest.raises(ValueError, match="one number for each row, such as logits"):
        activation_patching(ours, CLEAN, CORRUPTED, lambda logits: logits[:, -1])


def test_a_site_that_is_not_patched_is_refused(ours: GPT2) -> None:
    with pytest.raises(ValueError, match="site is 'pattern'; it can be 'resid_pre', "):
        activation_patching(ours, CLEAN, CORRUPTED, metric, site="pattern")  # pyright: ignore[reportArgumentType]


def test_one_prompt_is_ablated_in_any_form(ours: GPT2) -> None:
    def loss(logits: Tensor) -> Tensor:
        return -metric(logits).mean()

    expected = ablation(ours, CLEAN, loss, kind="zero").values
    for given in (CLEAN[0], CLEAN[0].tolist()):
        assert torch.equal(ablation(ours, given, loss, kind="zero").values, expected)
    assert torch.equal(ablation(ours, CLEAN, lambda logits: loss(logits).item(), kind="zero").values, expected)
    with pytest.raises(ValueError, match="it must be one number: take its mean"):
        ablation(ours, torch.cat([CLEAN, CORRUPTED]), metric)
