"""Models packed for decoding: the same tokens where nothing is rounded, nearly the same logits where it is."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.components import Embed
from gptladder.sampling import PackedWeights, SamplingParams, generate, pack

# Far wider differences than rounding makes are let pass by none of these: a matrix packed transposed, or without its
# bias, is off by the size of the logits themselves, about 1.
CLOSE = {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.12}


def random_model(seed: int = 0, **changes: Any) -> GPT2:
    torch.manual_seed(seed)
    sizes = {"d_model": 48, "n_layers": 2, "n_heads": 3, "d_head": 10, "d_vocab": 71, "n_ctx": 40, **changes}
    model = GPT2(GPT2Config(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15 if parameter.dim() > 1 else 0.5)
    return model


@pytest.mark.parametrize("weights", CLOSE)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 999),
    n_heads=st.integers(1, 4),
    d_head=st.integers(1, 12),
    tied=st.booleans(),
    bias=st.booleans(),
    act_fn=st.sampled_from(["gelu_new", "gelu", "relu"]),
    batch=st.integers(1, 3),
)
def test_logits_of_a_prompt_and_of_the_tokens_after_it(
    weights: PackedWeights, seed: int, n_heads: int, d_head: int, tied: bool, bias: bool, act_fn: str, batch: int
) -> None:
    model = random_model(
        seed, n_heads=n_heads, d_head=d_head, tie_word_embeddings=tied, unembed_bias=bias, act_fn=act_fn
    )
    packed = pack(model, weights, rows=batch)
    tokens = torch.randint(71, (batch, 9), generator=torch.Generator().manual_seed(seed))
    cache = packed.new_cache(batch)
    with torch.no_grad():
        right = model(tokens)
        found = [packed(tokens[:, :5], cache=cache), *(packed(tokens[:, i : i + 1], cache=cache) for i in range(5, 9))]
    assert cache.length == 9
    error = (torch.cat(found, dim=1).float() - right).abs().max() / right.std()
    assert error < CLOSE[weights] * (1 if weights == "float32" else 3)


@pytest.mark.parametrize("batch", [1, 3])
def test_float32_decodes_the_same_tokens(batch: int) -> None:
    model = random_model()
    prompts = torch.randint(71, (batch, 6), generator=torch.Generator().manual_seed(3))
    texts = [
        [row.tokens for row in generate(each, prompts, SamplingParams(temperature=0), max_new_tokens=30)]
        for each in (model, pack(model, "float32", rows=batch))
    ]
    assert texts[0] == texts[1]


def test_prompts_of_different_lengths_and_hooks_take_the_ordinary_way() -> None:
    model = random_model()
    packed = pack(model, "float32")
    prompts = [[1, 2, 3, 4], [5, 6]]
    params = SamplingParams(temperature=0)
    assert [row.tokens for row in generate(packed, prompts, params, max_new_tokens=9)] == [
        row.tokens for row in generate(model, prompts, params, max_new_tokens=9)
    ]
    tokens, cache, seen = torch.tensor([[7, 8, 9]]), packed.new_cache(1), []
    with torch.no_grad(), packed.hooks([("blocks.1.attn.hook_pattern", lambda x, hook: seen.append(x.shape))]):
        packed(tokens, cache=cache)
        packed(tokens[:, :1], cache=cache)
    assert seen == [(1, 3, 3, 3), (1, 3, 1, 4)]


def test_the_model_stays_as_it_is_and_its_matrices_are_not_kept_twice() -> None:
    model = random_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = pack(model, "int8")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    left = {name for name, _ in model.named_parameters()} - {name for name, _ in packed.named_parameters()}
    assert left == {
        name
        for name, _ in model.named_parameters()
        if name.endswith(("W_QKV", "b_QKV", "W_O", "b_O", "W_in", "b_in", "W_out", "b_out"))
    }
    assert packed.num_parameters() == model.num_parameters()
    assert packed.unembed.tied  # and the embedding, which is read by rows, is there
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_other_weights_and_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="weights are 'int4'; they can be float32, bfloat16, int8"):
        pack(random_model(), "int4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="packed weights are for a CPU, and the model is on meta"):
        pack(random_model().to("meta"), "int8")


def test_saving_a_packed_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="packed"):
        pack(random_model(d_head=16), "float32").save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def decoded(model: GPT2, tokens: Tensor) -> Tensor:
    """Return the logits of tokens that are read one by one, after a prompt of two."""
    cache = model.new_cache(len(tokens))
    with torch.no_grad():
        parts = [model(tokens[:, :2], cache=cache)]
        parts += [model(tokens[:, i : i + 1], cache=cache) for i in range(2, tokens.shape[1])]
    return torch.cat(parts, dim=1)


TOKENS = torch.randint(71, (2, 7), generator=torch.Generator().manual_seed(5))
EACH_WEIGHTS = pytest.mark.parametrize("weights", CLOSE)


@EACH_WEIGHTS
def test_loading_or_reading_weights_is_refused_and_changes_nothing(weights: PackedWeights) -> None:
    packed, other = pack(random_model(), weights), random_model(seed=1)
    before = decoded(packed, TOKENS)
    parts = {name: part for name, part in packed.named_modules() if name in ("", "embed", "blocks.1", "ln_final")}
    for name, part in parts.items():
        with pytest.raises(ValueError, match="packed"):
            part.load_state_dict(other.get_submodule(name).state_dict())
    for part in (packed, packed.blocks[0], packed.blocks[0].attn):
        with pytest.raises(ValueError, match="cannot be saved or loaded"):
            part.state_dict()
    holder = torch.nn.ModuleDict({"model": packed})
    with pytest.raises(ValueError, match="packed"):
        holder.load_state_dict(torch.nn.ModuleDict({"model": other}).state_dict())
    with pytest.raises(ValueError, match="packed"):
        packed.reset_parameters()
    for part, name in ((packed.blocks[0].attn, "W_Q"), (packed.blocks[0].mlp, "W_in"), (packed.unembed, "W_U")):
        with pytest.raises(AttributeError, match=f"{name} is packed"):
            getattr(part, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = packed.unembed.nothing
    assert torch.equal(decoded(packed, TOKENS), before)


@EACH_WEIGHTS
def test_moving_or_converting_is_refused_unless_it_changes_nothing(weights: PackedWeights) -> None:
    packed = pack(random_model(), weights)
    before, dtype = decoded(packed, TOKENS), packed.embed.W_E.dtype
    for change in (lambda m: m.half(), lambda m: m.double(), lambda m: m.to("meta"), lambda m: m.blocks[0].half()):
        with pytest.raises(ValueError, match="a packed model cannot become"):
            change(packed)
    assert packed.to("cpu", dtype) is packed
    assert packed.cpu().eval() is packed
    assert torch.equal(decoded(packed, TOKENS), before)


@EACH_WEIGHTS
def test_a_deep_copy_decodes_the_same_and_a_pickle_is_refused(weights: PackedWeights) -> None:
    packed = pack(random_model(), weights)
    twin = copy.deepcopy(packed)
    assert torch.equal(decoded(twin, TOKENS), decoded(packed, TOKENS))
    with torch.no_grad():
        twin.blocks[0].ln1.w.zero_()
    assert not torch.equal(decoded(twin, TOKENS), decoded(packed, TOKENS))
    with pytest.raises(ValueError, match="a packed model cannot be pickled"):
        pickle.dumps(packed)


REPLACED: dict[str, Callable[[GPT2], object]] = {
    "mlp": lambda m: setattr(m.blocks[1], "mlp", Constant()),
    "attention": lambda m: setattr(m.blocks[0], "attn", Constant()),
    "layer norm": lambda m: setattr(m.blocks[1], "ln2", Constant()),
    "block": lambda m: m.blocks.__setitem__(0, Constant()),
    "tap": lambda m: setattr(m.blocks[0].attn, "hook_z", Constant()),
    "forward": lambda m: setattr(m.blocks[0].mlp, "forward", lambda x: x * 0),
    "hook": lambda m: m.blocks[0].mlp.register_forward_hook(zeros),
    "pre-hook": lambda m: m.blocks[1].attn.register_forward_pre_hook(lambda module, args: (args[0] * 0,)),
    "hook on a tap": lambda m: m.blocks[1].attn.hook_v.register_forward_hook(zeros),
    "hook on a block": lambda m: m.blocks[1].register_forward_hook(zeros),
    "added hook": lambda m: m.add_hook("blocks.0.mlp.hook_post", lambda post, hook: post * 0),
    "gain": lambda m: m.blocks[0].ln1.w.data.zero_(),
    "gain replaced": lambda m: setattr(m.blocks[0].ln2, "w", torch.nn.Parameter(torch.zeros(48))),
    "formula": lambda m: setattr(m, "fused", False),
}


def zeros(module: torch.nn.Module, args: Any, output: Any) -> Any:
    """A hook that replaces an output by zeros."""
    return torch.zeros_like(output)


class Constant(torch.nn.Module):
    """Stands in for a layer."""

    def forward(self, x: Tensor, **given: object) -> Tensor:
        return torch.full_like(x, 0.5)


@pytest.mark.parametrize("change", REPLACED)
def test_what_is_replaced_or_hooked_acts_on_decoded_tokens_as_on_prompts(change: str) -> None:
    model = random_model()
    packed = pack(model, "float32")
    before = decoded(packed, TOKENS)
    for each in (model, packed):
        REPLACED[change](each)
    found = decoded(packed, TOKENS)
    with torch.no_grad():
        assert (found - model(TOKENS)).abs().max() < 3e-4
    if change == "formula":
        assert torch.equal(found, packed.run_with_cache(TOKENS)[0]) or (found - before).abs().max() < 1e-4
    else:
        assert (found - before).abs().max() > 0.01


def test_hooks_on_the_model_are_in_what_is_packed() -> None:
    model = random_model()
    model.blocks[0].mlp.register_forward_hook(zeros)
    model.add_hook("blocks.1.attn.hook_z", lambda z, hook: z * 0)
    with torch.no_grad():
        assert (decoded(pack(model, "float32"), TOKENS) - model(TOKENS)).abs().max() < 3e-4


def test_a_global_hook_acts_on_decoded_tokens() -> None:
    packed = pack(random_model(), "float32")
    seen: list[str] = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module).__name__)
    )
    try:
        decoded(packed, TOKENS)
    finally:
        handle.remove()
    assert seen.count("PackedMLP") == 2 * (TOKENS.shape[1] - 1)


@pytest.mark.parametrize("tied", [True, False])
def test_replacing_a_packed_models_embedding(tied: bool) -> None:
    packed = pack(random_model(tie_word_embeddings=tied), "float32")
    if tied:
        with pytest.raises(ValueError, match="embedding cannot be replaced"):
            packed.embed = Embed(d_vocab=71, d_model=48)
    else:
        packed.embed = Embed(d_vocab=71, d_model=48)
    assert decoded(packed, TOKENS).isfinite().all()


def test_what_cannot_be_packed_is_refused_or_left_as_it_is() -> None:
    model: Any = random_model()
    with pytest.raises(ValueError, match="packed already"):
        pack(pack(model, "float32"), "float32")

    class Other(GPT2):
        pass

    with pytest.raises(ValueError, match="not a Other"):
        pack(Other(model.config), "float32")
    model.blocks[0].mlp, model.blocks[1].attn = Constant(), Constant()
    with torch.no_grad():
        assert (decoded(pack(model, "float32"), TOKENS) - model(TOKENS)).abs().max() < 3e-4


def test_a_packed_model_in_training_mode_drops_as_the_model_does() -> None:
    packed = pack(random_model(resid_dropout=0.5), "float32")
    assert torch.equal(decoded(packed, TOKENS), decoded(packed, TOKENS))
    packed.train()
    assert not torch.equal(decoded(packed, TOKENS)[:, 2:], decoded(packed, TOKENS)[:, 2:])


def test_a_post_norm_model_is_packed_too() -> None:
    model = random_model(norm="post")
    assert (decoded(pack(model, "float32"), TOKENS) - decoded(model, TOKENS)).abs().max() < 3e-4


def test_what_a_packed_model_cannot_form_is_refused() -> None:
    model = GPT2(GPT2Config(d_model=16, n_layers=2, n_heads=2, d_vocab=20, n_ctx=8)).eval()
    packed, tokens = pack(model, "int8"), torch.tensor([[3, 1, 4]])
    assert "hook_result" not in "".join(packed.run_with_cache(tokens)[1])
    with pytest.raises(ValueError, match="forms no hook_result"):
        packed.run_with_cache(tokens, names_filter="blocks.0.attn.hook_result")
    with pytest.raises(AttributeError, match="W_Q is packed"):
        packed.run_with_cache(tokens, names_filter="blocks.0.hook_q_input")
