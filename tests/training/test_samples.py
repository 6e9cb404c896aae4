"""Samples during training: each with a seed of its own, and training goes on as if none had been drawn."""

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.tokenizer import CharTokenizer, Tokenizer
from gptladder.training.presets import RunConfig
from gptladder.training.samples import SAMPLING_SEED, draw_samples

TOKENIZER = CharTokenizer("ab")
RUN = RunConfig(prompt="ab", sample_tokens=7)
CPU = torch.device("cpu")


def small() -> GPT2:
    return GPT2(GPT2Config(d_model=4, n_layers=1, n_heads=1, d_vocab=2, n_ctx=4))


def careless(model: GPT2, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    assert not model.training
    torch.manual_seed(seed)
    return f"{prompt} {max_new_tokens} {seed}"


def test_each_sample_continues_the_prompt_with_its_own_seed() -> None:
    texts = draw_samples(careless, small(), TOKENIZER, RUN, count=3, device=CPU)
    assert texts == [f"ab 7 {SAMPLING_SEED + i}" for i in range(3)]


@pytest.mark.parametrize("training", [True, False])
def test_random_state_and_mode_are_restored(training: bool) -> None:
    model = small().train(training)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    draw_samples(careless, model, TOKENIZER, RUN, count=2, device=CPU)
    assert torch.equal(torch.rand(4), expected)
    assert model.training is training


def test_an_interrupted_sample_restores_both_too() -> None:
    def interrupted(model: GPT2, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int, seed: int) -> str:
        torch.manual_seed(seed)
        raise KeyboardInterrupt

    model = small().train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        draw_samples(interrupted, model, TOKENIZER, RUN, count=1, device=CPU)
    assert torch.equal(torch.rand(4), expected)
    assert model.training
