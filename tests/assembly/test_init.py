"""Fresh weights: GPT-2's standard deviations, and a first loss that knows nothing."""

import math

import pytest
import torch
import torch.nn.functional as F

from gptladder import GPT2, GPT2Config

CONFIG = GPT2Config(d_model=96, n_layers=8, n_heads=4, d_vocab=800, n_ctx=64, init_range=0.05)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT2(CONFIG)


def test_matrices_have_the_standard_deviation_of_the_configuration_scaled_where_they_write_to_the_stream(model):
    seen = set()
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        seen.add(last)
        if last == "w":
            assert (parameter == 1).all(), name
        elif last.startswith("b"):
            assert (parameter == 0).all(), name
        else:
            expected = {"W_O": 0.05 / 4, "W_out": 0.05 / 4, "W_E": 0.3 / math.sqrt(96)}.get(last, 0.05)
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 4 * expected / math.sqrt(parameter.numel()), name
    assert seen == {"W_E", "W_pos", "W_QKV", "b_QKV", "W_O", "b_O", "W_in", "b_in", "W_out", "b_out", "w", "b"}


@pytest.mark.parametrize("d_vocab", [65, 800, 50257])
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_that_of_guessing(d_vocab, tied):
    torch.manual_seed(1)
    model = GPT2(GPT2Config(d_model=96, n_layers=3, n_heads=4, d_vocab=d_vocab, n_ctx=64, tie_word_embeddings=tied))
    tokens = torch.randint(d_vocab, (8, 65))
    logits = model(tokens[:, :-1])
    assert F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item() == pytest.approx(
        math.log(d_vocab), abs=0.1
    )


def test_the_same_seed_gives_the_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(1337)
        models.append(GPT2(CONFIG))
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
