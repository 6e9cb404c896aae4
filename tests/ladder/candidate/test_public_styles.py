"""Right layers as public code writes them: what forward takes, what constructors ask for, half precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.candidate.aliases import canonical


class Positions(nn.Module):
    def __init__(self, max_seqlen: int, emb_dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_seqlen, emb_dim)


class OfANumber(Positions):
    def forward(self, seq_len: Any) -> Tensor:
        return self.table(torch.arange(seq_len))


class OfAnAnnotatedNumber(Positions):
    def forward(self, k: int) -> Tensor:
        return self.table.weight[:k]


class OfIndices(Positions):
    def forward(self, position_ids: Tensor) -> Tensor:
        return self.table(position_ids)


class AddedToItsInput(Positions):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.size(1)))[None]


class OfItsInputsShape(Positions):
    def forward(self, inputs: Tensor) -> Tensor:
        batch, seq, _ = inputs.shape
        return self.table(torch.arange(seq).expand(batch, seq))


class OneTooFar(AddedToItsInput):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.size(1)).roll(-1))[None]


class ByToken(Positions):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.table.weight[tokens % len(self.table.weight)]


@pytest.mark.parametrize("layer", [OfANumber, OfAnAnnotatedNumber, OfIndices, AddedToItsInput, OfItsInputsShape])
def test_positions_are_asked_for_as_their_forward_takes_them(layer: type[nn.Module]) -> None:
    result = climb(pos_embed=layer, cases=3)
    assert result.passed, str(result)
    assert "Forward was given" in result.rungs[0].note, "what it was called with is reported"


@pytest.mark.parametrize(("layer", "message"), [(OneTooFar, "output is off"), (ByToken, "output is off")])
def test_wrong_positions_stay_wrong_in_every_way_to_call(layer: type[nn.Module], message: str) -> None:
    fault = climb(pos_embed=layer, cases=3).rungs[0].fault
    assert message in str(fault), fault


class Attention(nn.Module):
    """Right if its arguments say that it hides the future and does not rotate."""

    def fill(self, width: int, heads: int, causal: bool = True, rotates: bool = False) -> None:
        self.heads, self.causal, self.rotates = heads, causal, rotates
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        q = q.flip(-1) if self.rotates else q
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(z.transpose(1, 2).flatten(2))


class WithFlags(Attention):
    def __init__(self, n_embd: int, n_head: int, is_causal: bool, use_flash: bool, use_rope: bool) -> None:
        super().__init__()
        self.fill(n_embd, n_head, is_causal, use_rope)


class WithDefaults(Attention):
    def __init__(self, n_embd: int, n_head: int, causal: bool = False, use_rope: bool = True, pre: int = 1) -> None:
        super().__init__()
        self.fill(n_embd, n_head, causal, use_rope)


class ByConfigurationsFlags(Attention):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fill(config.n_embd, config.num_kv_heads, config.is_causal, config.use_rope)


class WithItsHeadsWidths(Attention):
    def __init__(self, d_model: int, d_k: int, d_v: int, nheads: int, maxlen: int) -> None:
        super().__init__()
        assert d_k == d_v
        self.fill(d_model, nheads)


@pytest.mark.parametrize("layer", [WithFlags, WithDefaults, ByConfigurationsFlags])
def test_flags_of_the_constructor_are_gpt2s_and_reported(layer: type[nn.Module]) -> None:
    result = climb(attention=layer, cases=2)
    assert result.passed, str(result)
    notes = str(result.rungs[0].notes)
    assert ("use_rope=False; the file's own default is True" in notes) == (layer is WithDefaults)
    assert ("causal=True; the file's own default is False" in notes) == (layer is WithDefaults)


class NeedsRotations(Attention):
    def __init__(self, n_embd: int, n_head: int, rope_theta: float) -> None:
        super().__init__()


def test_what_gpt2_does_not_have_is_refused_with_that_reason() -> None:
    result = climb(attention=NeedsRotations, cases=1)
    assert "asks for rope_theta, which GPT-2 does not have" in " ".join(str(result).split()), str(result)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        *((name, "n_ctx") for name in ["T_max", "max_T", "maxlen", "max_seqlen", "max_num_tokens", "input_length"]),
        *((name, "d_model") for name in ["d_embd", "n_dim", "num_hiddens", "hid_dim", "model_dimension", "n_features"]),
        *(
            (name, "d_mlp")
            for name in ["mlp_size", "inner_dim", "dim_ff", "feedforward_dim", "pf_dim", "ffn_hidden_size"]
        ),
        *((name, "n_heads") for name in ["nheads", "num_head", "n_attention_heads", "num_of_heads"]),
        *((name, "d_head") for name in ["dim_per_head", "attention_head_size", "dim_k", "head_dimension"]),
        *((name, "d_vocab") for name in ["vocab_len", "ntoken", "num_words", "vocabulary"]),
        *((name, "n_kv_heads") for name in ["num_kv_heads", "n_kv_head", "num_key_value_heads"]),
        *((name, "n_ctx") for name in ["num_ctx", "max_ctx"]),
        *((name, "d_vocab") for name in ["input_vocab_size", "output_vocab_size", "src_vocab"]),
        *((name, "ratio") for name in ["feed_forward_scaling", "ff_mult", "mlp_scale", "hidden_dim_multiplier"]),
        *((name, "dropout") for name in ["ff_dropout_rate", "hidden_dropout_rate"]),
        *((name, "bias") for name in ["add_bias", "attention_bias", "proj_bias"]),
        *((name, None) for name in ["relative_bias", "mask_bias", "rank", "window_size", "colour"]),
    ],
)
def test_usual_names_are_known(name: str, ours: str | None) -> None:
    assert canonical(name) == ours


class Masked(nn.Module):
    """Its mask has three axes, of which the first is the batch."""

    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dims, 3 * dims), nn.Linear(dims, dims)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, _, _ = mask.shape
        assert batch in (1, len(x))
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(mask[:, None] == 0, float("-inf"))
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class MasksOfThreeAxes(Masked):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.attend(x, mask)


def test_a_mask_may_have_three_axes() -> None:
    result = climb(attention=MasksOfThreeAxes, cases=2)
    assert result.passed, str(result)


class NoMaskFits(Masked):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        _, _, _, _, _ = mask.shape
        return self.attend(x, mask[0, 0])


def test_a_mask_that_cannot_be_guessed_is_refused_and_not_wrong() -> None:
    tried = climb(attention=NoMaskFits, cases=1).rungs[0]
    assert tried.status == "refused", tried
    assert "mask" in str(tried.fault), tried


class GoesOn(Masked):
    def forward(self, x: Tensor, kv_cache: Any, start_pos: int, use_cache: bool) -> Tensor:
        assert (kv_cache, start_pos, use_cache) == (None, 0, False)
        return self.attend(x, torch.ones(1, x.shape[1], x.shape[1]).tril())


class AsksForMore(Masked):
    def forward(self, x: Tensor, freqs_cis: Tensor) -> Tensor:
        return self.attend(x, freqs_cis)


def test_a_forward_that_goes_on_with_a_text_is_given_none() -> None:
    result = climb(attention=GoesOn, cases=2)
    assert result.passed, str(result)
    assert "Forward was given kv_cache=None." in result.rungs[0].notes


def test_a_forward_that_asks_for_the_unknown_is_refused_and_not_wrong() -> None:
    tried = climb(attention=AsksForMore, cases=1).rungs[0]
    assert tried.status == "refused", tried
    assert "forward asks for freqs_cis, and GPT-2 has no rotary positions" in str(tried.fault)


class TwoProjections(Attention):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.fill(n_embd, n_head)
        self.out_proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(super().forward(x))


def test_a_second_output_projection_is_refused() -> None:
    tried = climb(attention=TwoProjections, cases=1).rungs[0]
    assert tried.status == "refused", tried
    assert "are two output projections" in str(tried.fault)


class InHalf(nn.Module):
    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.fc, self.fc2 = nn.Linear(embed_dim, 4 * embed_dim).half(), nn.Linear(4 * embed_dim, embed_dim).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc(x.half()).float()).half()).float()

    def act(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x, approximate="tanh")


class InHalfAndWrong(InHalf):
    def act(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x)


def test_a_layer_that_computes_in_half_precision_is_judged_by_its_formula() -> None:
    right = climb(mlp=InHalf, cases=2).rungs[0]
    assert str(right.fault) == "it computes in float16; computed in float64 throughout, it would be right."
    wrong = climb(mlp=InHalfAndWrong, cases=2).rungs[0]
    assert "output is off" in str(wrong.fault), wrong.fault
    assert "computes in float16" in wrong.note


_FILE = """
import argparse
import math
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--d_model", type=int, default=384)
parser.add_argument("--dropout", type=float, default=0.2)
args = parser.parse_args()
run = start_of_the_run()


class Config:
    d_model = args.d_model
    dropout = args.dropout


def tanh_gelu():
    return nn.GELU(approximate="tanh")


ACT = {"relu": nn.ReLU, "gelu": tanh_gelu}


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.a, self.act = nn.Linear(cfg.n_embd, 4 * cfg.n_embd), ACT[cfg.afn]()
        self.b, self.drop = nn.Linear(4 * cfg.n_embd, cfg.n_embd), nn.Dropout(Config.dropout)

    def forward(self, x):
        return self.drop(self.b(self.act(self.a(x))))


class Head(nn.Module):
    def __init__(self, head_size):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(Config.d_model, Config.d_model) for _ in range(3))

    def forward(self, x):
        return self.value(x)


class LayerNorm(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))
        self.eps = run.eps * 2

    def forward(self, x):
        return x
"""


def test_a_file_configured_by_argparse_and_its_own_activations_climbs(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text(_FILE)
    result = climb(file, cases=2, copy_process=True)
    tried = {each.rung: each for each in result.rungs}
    assert tried["mlp"].passed, str(result)
    notes = " ".join(result.left_out)
    assert "Head could not be tried as attention: it has nothing that could be W_O" in notes
    assert "train.py:11 was not run: it is part of the script" in notes, "the statement that was left out is named"


_MODELS = """
from torch import nn


class WithValueHead(nn.Module):
    def __init__(self, base_model):
        super().__init__()
        self.base, self.head = base_model, nn.Linear(base_model.lm_head.in_features, 1)


class TransformerWithValueHead(WithValueHead):
    pass
"""


def test_an_argument_that_is_a_model_gets_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "value.py"
    file.write_text(_MODELS)
    with pytest.raises(ValueError, match="asks for base_model"):
        climb(file, cases=1, copy_process=True)


_TWO_KINDS = """
import torch
from torch import nn


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.a, self.b = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.b(nn.functional.gelu(self.a(x), approximate="tanh"))


class SparseMLP(MLP):
    def forward(self, x):
        return self.b(self.a(x).relu())
"""


def test_gpt2s_kind_is_taken_where_a_file_has_others_too(tmp_path: Path) -> None:
    file = tmp_path / "kinds.py"
    file.write_text(_TWO_KINDS)
    result = climb(file, cases=1, copy_process=True)
    assert result.passed, str(result)


_INNER = """
from torch import nn

CONFIG = {"emb_dim": 768, "hidden_dim": 3072, "n_heads": 12, "n_layers": 12}


class FeedForward(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"]), nn.Linear(cfg["hidden_dim"], cfg["emb_dim"])

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))
"""


def test_hidden_dim_beside_the_models_width_is_the_mlps(tmp_path: Path) -> None:
    file = tmp_path / "inner.py"
    file.write_text(_INNER)
    result = climb(file, cases=1, copy_process=True)
    assert result.passed, str(result)


_NOT_HERE = """
from torch import nn
from no_such_library import rearrange


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.a, self.b = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.b(nn.functional.gelu(self.a(rearrange(x, "b s d -> b s d")), approximate="tanh"))
"""


def test_a_layer_that_needs_a_missing_library_is_refused_and_not_wrong(tmp_path: Path) -> None:
    file = tmp_path / "missing.py"
    file.write_text(_NOT_HERE)
    tried = climb(file, cases=1, copy_process=True).rungs[0]
    assert tried.status == "refused", tried
    assert "forward cannot be run: rearrange is not available" in str(tried.fault)


class Project(Attention):
    """Its fused matrix has the name that others give to the output's."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.heads, self.project, self.out_linear = n_head, nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.project(x).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_linear(z.transpose(1, 2).flatten(2))


def test_a_matrix_as_wide_as_q_k_and_v_is_theirs_whatever_its_name() -> None:
    result = climb(attention=Project, cases=2)
    assert result.passed, str(result)


class Sines(nn.Module):
    """Its table is half sines and half cosines, and is learned from there."""

    def __init__(self, d_model: int, n_ctx: int) -> None:
        super().__init__()
        table, angles = torch.zeros(n_ctx, d_model), torch.arange(n_ctx)[:, None] * torch.rand((d_model + 1) // 2)
        table[:, ::2], table[:, 1::2] = angles.sin(), angles.cos()
        self.table = nn.Parameter(table)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[: tokens.shape[1]].expand(*tokens.shape, -1)


class SinesOfTheNext(Sines):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).roll(-1, 1)


class RaisesForSomeHeads(Attention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        assert heads != 3, "not three heads"
        self.fill(width, heads)


def test_a_layer_of_even_widths_only_is_judged_with_those() -> None:
    result = climb(pos_embed=Sines)
    assert result.passed, str(result)
    assert "It raises where d_model or d_head is odd, and was judged with even ones" in result.rungs[0].note
    assert "output is off" in str(climb(pos_embed=SinesOfTheNext).rungs[0].fault)


def test_a_layer_that_raises_for_some_even_widths_is_not_passed() -> None:
    assert "not three heads" in str(climb(attention=RaisesForSomeHeads).rungs[0].fault)
