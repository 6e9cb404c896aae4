"""Models packed for decoding: the same tokens where nothing is rounded, nearly the same logits where it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptladder import GPT2, GPT2Config
from gptladder.sampling import SamplingParams, generate, pack

# Far wider differences than rounding makes are let pass by none of these: a matrix packed transposed, or without its
# bias, is off by the size of the logits themselves, about 1.
CLOSE = {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.12}


def random_model(seed=0, **changes):
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
def test_logits_of_a_prompt_and_of_the_tokens_after_it(weights, seed, n_heads, d_head, tied, bias, act_fn, batch):
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
def test_float32_decodes_the_same_tokens(batch):
    model = random_model()
    prompts = torch.randint(71, (batch, 6), generator=torch.Generator().manual_seed(3))
    texts = [
        [row.tokens for row in generate(each, prompts, SamplingParams(temperature=0), max_new_tokens=30)]
        for each in (model, pack(model, "float32", rows=batch))
    ]
    assert texts[0] == texts[1]


def test_prompts_of_different_lengths_and_hooks_take_the_ordinary_way():
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


def test_the_model_stays_as_it_is_and_its_matrices_are_not_kept_twice():
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


def test_other_weights_and_devices_are_refused():
    with pytest.raises(ValueError, match="weights are 'int4'; they can be float32, bfloat16, int8"):
        pack(random_model(), "int4")
    with pytest.raises(ValueError, match="packed weights are for a CPU, and the model is on meta"):
        pack(random_model().to("meta"), "int8")


def test_saving_a_packed_model_says_why_not(tmp_path):
    with pytest.raises(ValueError, match="packed"):
        pack(random_model(d_head=16), "float32").save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
