"""Block: against the reference layers, and what the references do not show."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import Block, TypeCheckError
from gptladder.ladder.answers import Reference, randomize
from gptladder.ladder.rungs import check, draw_case, rung

RUNG = rung("block")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reference", RUNG.references, ids=lambda reference: reference.library)
@given(source=st.randoms(use_true_random=False))
def test_equals_the_reference(reference: Reference, dtype: torch.dtype, source: random.Random) -> None:
    check(RUNG, reference, draw_case(source), dtype)


def test_post_norm_equals_pytorchs_encoder_layer() -> None:
    d_model, n_heads, d_mlp = 12, 3, 20
    block = Block(d_model=d_model, n_heads=n_heads, d_mlp=d_mlp, norm="post", act_fn="gelu", dtype=torch.float64)
    randomize(block, torch.Generator().manual_seed(0))
    theirs = torch.nn.TransformerEncoderLayer(
        d_model, n_heads, d_mlp, dropout=0.0, activation="gelu", batch_first=True, norm_first=False, dtype=torch.float64
    )
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": block.attn.W_QKV.flatten(1).T,
            "self_attn.in_proj_bias": block.attn.b_QKV.flatten(),
            "self_attn.out_proj.weight": block.attn.W_O.flatten(0, 1).T,
            "self_attn.out_proj.bias": block.attn.b_O,
            "linear1.weight": block.mlp.W_in.T,
            "linear1.bias": block.mlp.b_in,
            "linear2.weight": block.mlp.W_out.T,
            "linear2.bias": block.mlp.b_out,
            "norm1.weight": block.ln1.w,
            "norm1.bias": block.ln1.b,
            "norm2.weight": block.ln2.w,
            "norm2.bias": block.ln2.b,
        }
    )
    x = torch.randn(2, 7, d_model, dtype=torch.float64)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
    assert (block(x) - theirs(x, src_mask=mask, is_causal=True)).abs().max() < 1e-12


@pytest.mark.parametrize("where", ["attn_dropout", "resid_dropout"])
def test_dropout_acts_in_training_alone(where: str) -> None:
    torch.manual_seed(0)
    dropout: dict[str, Any] = {where: 0.3}
    block = Block(d_model=12, n_heads=3, **dropout)
    plain = Block(d_model=12, n_heads=3)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(2, 7, 12)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), plain(x))
    assert torch.equal(plain.train()(x), plain.eval()(x))


@pytest.mark.parametrize("silenced", ["attn", "mlp"])
def test_resid_dropout_keeps_the_mean_of_what_each_layer_adds(silenced: str) -> None:
    torch.manual_seed(0)
    block = Block(d_model=12, n_heads=3, resid_dropout=0.5, init_range=0.3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in getattr(block, silenced).parameters():
            parameter.zero_()  # one layer alone adds to the stream, so the output is linear in its dropped entries
    x = torch.randn(4000, 1, 12, dtype=torch.float64)[:1].expand(4000, 3, 12)
    expected = block.eval()(x[:1])
    added = block.train()(x) - x
    without = expected - x[:1]
    assert without.abs().max() > 0.05
    kept = (added / (2 * without)).round()  # each entry is dropped, or twice as large
    assert torch.allclose(added, kept * 2 * without, atol=1e-12)
    assert ((kept == 0) | (kept == 1)).all()
    assert (added.mean(0) - without[0]).abs().max() < 5 * without.abs().max() / 4000**0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": "middle"}, "'pre' or 'post'"),
        ({"resid_dropout": 1.0}, r"\[0, 1\)"),
        ({"resid_dropout": -0.1}, r"\[0, 1\)"),
    ],
)
def test_wrong_choices_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Block(d_model=12, n_heads=3, **wrong)


def test_another_width_is_refused_at_the_blocks_door() -> None:
    with pytest.raises(TypeCheckError, match=r"(?s)resid_pre.*d_model.*This Block has d_model=12"):
        Block(d_model=12, n_heads=3)(torch.zeros(2, 3, 13))
