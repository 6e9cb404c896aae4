"""Initial weights: GPT-2's standard deviations, and a first loss that is that of guessing."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from gptladder import GPT2, GPT2Config
from gptladder.assembly.init import limit_first_logits
from gptladder.training.models import fresh_model
from gptladder.training.presets import PRESETS

CONFIG = GPT2Config(d_model=96, n_layers=8, n_heads=4, d_vocab=800, n_ctx=64, init_range=0.05)


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(CONFIG)


def test_standard_deviations_are_the_configurations_or_scaled_by_depth(model: GPT2) -> None:
    seen = set()
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        seen.add(last)
        if last == "w":
            assert (parameter == 1).all(), name
        elif last.startswith("b"):
            assert (parameter == 0).all(), name
        else:
            expected = 0.05 / 4 if last in ("W_O", "W_out") else 0.05
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 4 * expected / math.sqrt(parameter.numel()), name
    assert seen == {"W_E", "W_pos", "W_QKV", "b_QKV", "W_O", "b_O", "W_in", "b_in", "W_out", "b_out", "w", "b"}


@pytest.mark.parametrize("d_vocab", [65, 800, 50257])
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_that_of_guessing(d_vocab: int, tied: bool) -> None:
    torch.manual_seed(1)
    model = GPT2(GPT2Config(d_model=96, n_layers=3, n_heads=4, d_vocab=d_vocab, n_ctx=64, tie_word_embeddings=tied))
    tokens = torch.randint(d_vocab, (8, 65))
    logits = model(tokens[:, :-1])
    assert F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item() == pytest.approx(
        math.log(d_vocab), abs=0.1
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_the_first_loss_of_every_preset_is_that_of_guessing(preset: str) -> None:
    # GPT-2 small has the widths and the vocabulary that count; two of its blocks are enough here.
    config = PRESETS[preset].replace(n_layers=min(2, PRESETS[preset].model.n_layers))
    model = fresh_model(config, torch.device("cpu")).eval()
    random = torch.Generator().manual_seed(0)
    seq = min(config.model.n_ctx, 64)
    tokens = torch.randint(config.model.d_vocab, (1024 // seq, seq + 1), generator=random)
    with torch.no_grad():
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert loss == pytest.approx(math.log(config.model.d_vocab), abs=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_limiting_first_logits_changes_the_projection_alone(tied: bool) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = GPT2(config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    limit_first_logits(model.unembed.W_U, config.init_range)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"embed.W_E" if tied else "unembed.W_U"}
    assert model.unembed.W_U.std().item() * math.sqrt(96) == pytest.approx(0.3, rel=0.03)
    limited = model.unembed.W_U.clone()
    limit_first_logits(model.unembed.W_U, 0.02)  # small enough
    assert torch.equal(model.unembed.W_U, limited)


def test_parameters_are_drawn_anew_as_a_new_models() -> None:
    torch.manual_seed(3)
    expected = GPT2(CONFIG)
    with torch.device("meta"):
        model = GPT2(CONFIG)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    model.reset_parameters()
    for (name, found), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted), name


def test_a_model_on_meta_imports_no_sympy() -> None:
    code = "import sys, gptladder as g; g.GPT2(g.GPT2Config(), device='meta'); print('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_same_seed_gives_the_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(1337)
        models.append(GPT2(CONFIG))
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
