"""The assembled model: against HookedTransformer and transformers, and as torch's tools handle it."""

import copy
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.assembly.blocks import Blocks
from gptladder.components import Embed, HookPoint, TypeCheckError, named_taps
from gptladder.components.block import Norm
from gptladder.ladder.answers import Reference, randomize
from gptladder.ladder.rungs import check, draw_case, rung

RUNG = rung("model")
CONFIG = GPT2Config(d_model=10, n_layers=2, n_heads=3, d_head=4, d_mlp=14, d_vocab=17, n_ctx=12)
PATHS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])


def made(*, fused: bool = True, dtype: torch.dtype = torch.float64, **changes: Any) -> GPT2:
    config = GPT2Config(**{**{name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}, **changes})
    model = GPT2(config, fused=fused, dtype=dtype)
    randomize(model, torch.Generator().manual_seed(0))
    return model.eval()


def tokens(batch: int = 2, seq: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(17, (batch, seq), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reference", RUNG.references, ids=lambda reference: reference.library)
@settings(max_examples=50)
@given(source=st.randoms(use_true_random=False))
def test_equals_the_reference(reference: Reference, dtype: torch.dtype, source: random.Random) -> None:
    check(RUNG, reference, draw_case(source), dtype)


@PATHS
@given(seq=st.integers(2, 9), data=st.data())
def test_logits_are_blind_to_later_tokens_to_the_bit(fused: bool, seq: int, data: st.DataObject) -> None:
    model = made(fused=fused)
    changed = data.draw(st.integers(1, seq - 1))
    ids = tokens(2, seq)
    other = ids.clone()
    other[:, changed] = (other[:, changed] + data.draw(st.integers(1, 16))) % 17
    assert torch.equal(model(ids)[:, :changed], model(other)[:, :changed])
    assert not torch.equal(model(ids)[:, changed], model(other)[:, changed])


def test_the_order_of_tokens_matters_through_their_positions() -> None:
    model = made()
    ids = torch.tensor([[3, 5, 3, 5]])
    assert not torch.allclose(model(ids)[0, 0], model(ids)[0, 2])
    shifted = model(ids, positions=torch.tensor([[4, 5, 6, 7]]))
    assert not torch.allclose(shifted, model(ids))


@given(padding=st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_left_padding_makes_no_difference_and_equals_transformers(padding: list[int]) -> None:
    from gptladder.weights import to_hf

    model = made(d_model=12, unembed_bias=False)
    ids = tokens(3, 6)
    mask = torch.arange(6) >= torch.tensor(padding)[:, None]
    logits = model(ids, padding_mask=mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    theirs = to_hf(model)(ids, attention_mask=mask.long(), position_ids=positions).logits
    assert (logits - theirs)[mask].abs().max() < 1e-12
    for row in range(3):
        assert (logits[row, mask[row]] - model(ids[row : row + 1, mask[row]])[0]).abs().max() < 1e-12


@pytest.mark.parametrize("where", ["embed_dropout", "attn_dropout", "resid_dropout"])
def test_dropout_acts_in_training_alone(where: str) -> None:
    dropout: dict[str, Any] = {where: 0.4}
    model, plain = made(**dropout), made()
    assert torch.equal(model(tokens()), plain(tokens()))
    model.train()
    assert not torch.equal(model(tokens()), model(tokens()))
    assert torch.equal(plain.train()(tokens()), plain.eval()(tokens()))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_post_norm_ends_without_a_final_norm(norm: Norm) -> None:
    model = made(norm=norm)
    assert ("ln_final.w" in model.state_dict()) == (norm == "pre")
    assert model(tokens()).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, "at least one token"),
        (torch.zeros(0, 3, dtype=torch.int64), ValueError, "at least one token"),
        (torch.zeros(1, 13, dtype=torch.int64), ValueError, "13 tokens from position 0 do not fit into n_ctx=12"),
        (torch.tensor([[3, 17]]), ValueError, "tokens run from 3 to 17, but the vocabulary has 17"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), TypeCheckError, "batch seq"),
        (torch.zeros(1, 3), TypeCheckError, "Int"),
    ],
)
def test_wrong_tokens_are_refused(wrong: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made()(wrong)


def test_a_mask_of_another_shape_is_refused_by_its_name() -> None:
    with pytest.raises(TypeCheckError, match=r"(?s)GPT2\.final_residual.*'padding_mask'"):
        made()(tokens(2, 7), padding_mask=torch.ones(2, 6, dtype=torch.bool))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "take",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: model.float().double(),
        lambda model: _through_state_dict(model),
    ],
    ids=["deepcopy", "pickle", "to", "state dict"],
)
def test_a_copy_computes_the_same_and_is_tied_as_the_first(take: Callable[[Any], Any], tied: bool) -> None:
    model = made(dtype=torch.float32, tie_word_embeddings=tied).double()
    expected, ids = model(tokens()), tokens()
    taken = take(model)
    assert torch.equal(taken(ids), expected)
    assert sum(p.numel() for p in taken.parameters()) == model.num_parameters()
    with torch.no_grad():
        taken.embed.W_E.zero_()
    assert (not taken.unembed.W_U.any()) == tied
    if taken is not model:
        assert torch.equal(model(ids), expected)


def _through_state_dict(model: GPT2) -> GPT2:
    other = GPT2(model.config, dtype=torch.float64).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_functional_call_swaps_a_tied_matrix_in_both_places() -> None:
    model = made()
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    expected = copy.deepcopy(model)
    expected.load_state_dict(other)
    assert torch.equal(torch.func.functional_call(model, other, (tokens(),)), expected(tokens()))


def test_hooked_transformers_state_dict_loads_as_it_is() -> None:
    transformer_lens = pytest.importorskip("transformer_lens")
    from gptladder.weights.formats.hooked_transformer import hooked_config_fields

    cfg = transformer_lens.HookedTransformerConfig(**hooked_config_fields(CONFIG), dtype=torch.float64, device="cpu")
    theirs = transformer_lens.HookedTransformer(cfg)
    randomize(theirs, torch.Generator().manual_seed(3))
    ours = made(tie_word_embeddings=False, unembed_bias=True)
    ours.load_state_dict(theirs.state_dict())
    assert (ours(tokens()) - theirs(tokens())).abs().max() < 1e-12


# torch's compiler looks at the inner tensors' .grad, and is warned by torch.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_without_a_graph_break_it_computes_the_same_gradients_too() -> None:
    torch.compiler.reset()
    model, plain = made(), made()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for ids in (tokens(), tokens(3, 5)):
        assert (compiled(ids) - plain(ids)).abs().max() < 1e-12
    compiled(tokens()).square().sum().backward()
    plain(tokens()).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).abs().max() < 1e-10, name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_twelve_blocks_compile_one_by_one() -> None:
    torch.compiler.reset()
    model, plain = made(n_layers=12), made(n_layers=12)
    for block in model.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    assert (model(tokens()) - plain(tokens())).abs().max() < 1e-12


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inductor_compiles_it_too() -> None:
    torch.compiler.reset()
    model = made(dtype=torch.float32)
    assert (torch.compile(model, fullgraph=True)(tokens()) - model(tokens())).abs().max() < 5e-5


def test_it_exports() -> None:
    model = made()
    exported = torch.export.export(model, (tokens(),))
    assert torch.equal(exported.module()(tokens()), model(tokens()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_sixteen_bits_it_stays_near_float32(dtype: torch.dtype) -> None:
    model = made(dtype=torch.float32)
    expected = model(tokens())
    scale = expected.abs().max()
    with torch.autocast("cpu", dtype=dtype):
        cast = model(tokens())
    half = copy.deepcopy(model).to(dtype)(tokens())
    assert half.dtype == dtype
    # A bfloat16 has 8 bits: each rounding is off by up to 0.4%; float16 by 0.05%.
    allowed = {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype] * scale
    assert (cast - expected).abs().max() < allowed
    assert (half - expected).abs().max() < allowed


# The projection is tied to the embedding: one storage, whatever happens to either.

AFTER_REPLACING = {
    "nothing": lambda model, folder: model,
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "to": lambda model, folder: model.float().double(),
    "load_state_dict": lambda model, folder: _through_state_dict(model),
    "save_pretrained": lambda model, folder: _through_a_folder(model, folder),
}


def _through_a_folder(model: GPT2, folder: Path) -> GPT2:
    model.save_pretrained(folder / "model")
    return GPT2.from_pretrained(folder / "model")


@pytest.mark.parametrize("how", AFTER_REPLACING)
def test_a_replaced_embedding_is_the_projection_too(how: str, tmp_path: Path) -> None:
    model = made(d_model=12)
    new = Embed(d_vocab=17, d_model=12, dtype=torch.float64)
    expected_table = new.W_E.detach().float().double()
    model.embed = new
    taken = AFTER_REPLACING[how](model, tmp_path)
    assert torch.allclose(taken.unembed.W_U, expected_table.T, atol=1e-6)
    assert taken.unembed.W_U.data_ptr() == taken.embed.W_E.data_ptr()
    assert "unembed.W_U" not in taken.state_dict()
    assert taken.num_parameters() == made(d_model=12).num_parameters()
    with torch.no_grad():
        taken.embed.W_E.zero_()
    assert not taken(tokens()).any()


def test_a_replaced_table_and_a_wrapper_keep_the_tie() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner(ids)

    model: Any = made()
    expected = model(tokens())
    table = model.embed.W_E
    model.embed = Wrapper(model.embed)
    assert torch.equal(model(tokens()), expected)
    assert model.unembed.W_U.data_ptr() == table.data_ptr()
    model.embed.inner.W_E = torch.nn.Parameter(2 * table.detach())
    assert torch.equal(model.unembed.W_U, 2 * table.T)


def test_an_unfit_embedding_for_a_tied_model_is_refused() -> None:
    model: Any = made()
    expected, embed = model(tokens()), model.embed
    with pytest.raises(ValueError, match="d_vocab=18"):
        model.embed = Embed(d_vocab=18, d_model=10)
    with pytest.raises(ValueError, match="Linear has none"):
        model.embed = torch.nn.Linear(3, 3)
    assert model.embed is embed
    assert torch.equal(model(tokens()), expected)
    untied = made(tie_word_embeddings=False)
    before = untied.unembed.W_U.clone()
    untied.embed = Embed(d_vocab=17, d_model=10, dtype=torch.float64)
    assert torch.equal(untied.unembed.W_U, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_without_fused_kernels_hooks_change_no_bit(dtype: torch.dtype, grad: bool) -> None:
    model = made(dtype=torch.float32, d_model=48, n_heads=3, d_head=16).to(dtype)
    ids = tokens(2, 11)
    with torch.set_grad_enabled(grad):
        fused = model(ids)
        assert model.fused
        model.fused = False
        assert not any(layer.fused for layer in (model.ln_final, model.blocks[0].attn, model.blocks[1].ln2))
        plain = model(ids)
        assert torch.equal(model.run_with_cache(ids)[0], plain)
        for name in (name for name, tap in named_taps(model).items() if tap.offered):
            assert torch.equal(model.run_with_hooks(ids, fwd_hooks=[(name, lambda x, hook: None)]), plain), name
        model.fused = True
        assert torch.equal(model(ids), fused)
        assert (plain - fused).abs().max() <= {torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype] * fused.abs().max()


def test_a_new_model_is_fused_and_holds_its_activations() -> None:
    model = GPT2(CONFIG)
    assert model.fused
    assert not model.checkpoint_blocks
    assert Blocks.from_config(CONFIG)[0].attn.fused


def test_what_the_first_block_reads_begins_at_position_0() -> None:
    model = made()
    assert torch.equal(model.embedded(tokens()), model.run_with_cache(tokens())[1]["resid_pre", 0])


def test_a_model_with_one_layer_unfused_is_not_fused() -> None:
    model = made()
    model.blocks[1].ln1.fused = False
    assert not model.fused


@PATHS
@pytest.mark.parametrize("fill", [1e30, float("inf"), float("nan")])
def test_what_stands_at_padding_reaches_no_token(fused: bool, fill: float) -> None:
    model = made(fused=fused)
    mask = torch.tensor([[False, False, True, True, True, True, True]] * 2)

    def spoil(x: torch.Tensor, hook: HookPoint) -> None:
        x[:, :2] = fill

    expected = model(tokens(), padding_mask=mask)
    for name in ("hook_embed", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_k", "blocks.1.attn.hook_v"):
        found = model.run_with_hooks(tokens(), padding_mask=mask, fwd_hooks=[(name, spoil)])
        assert (found - expected)[mask].abs().max() < 1e-12, name
        cache = model.new_cache(2)
        model.run_with_hooks(tokens()[:, :4], padding_mask=mask[:, :4], cache=cache, fwd_hooks=[(name, spoil)])
        assert (model(tokens()[:, 4:], cache=cache) - expected[:, 4:]).abs().max() < 1e-12, name


@pytest.mark.parametrize("name", ["from_tensorflow", "from_nanogpt", "from_hf", "from_hooked_transformer"])
def test_a_loader_that_moved_to_weights_names_the_import(name: str) -> None:
    assert not hasattr(GPT2, name)
    with pytest.raises(AttributeError, match=f"from gptladder.weights import {name}"):
        getattr(GPT2, name)


def test_another_configuration_than_ours_is_refused() -> None:
    other: Any
    for other in ("gpt2", None, {"n_layers": 2}):
        with pytest.raises(TypeError, match=r"made from a GPT2Config, not from .*; GPT2\.from_pretrained loads"):
            GPT2(other)
