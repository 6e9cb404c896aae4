"""Samples: how a model continues the run's prompt, before, during and after its training."""

from typing import Protocol

import torch

from ..assembly.model import GPT2
from ..tokenizer import Tokenizer
from .parallel import rng_state, set_rng_state
from .presets import RunConfig

SAMPLING_SEED = 42


class Sampler(Protocol):
    """A function that continues a prompt. The caller passes one to training, which does not import sampling."""

    def __call__(self, model: GPT2, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int, seed: int) -> str:
        """Return the prompt and its continuation."""
        ...


def draw_samples(
    sample: Sampler, model: GPT2, tokenizer: Tokenizer, run: RunConfig, *, count: int, device: torch.device
) -> list[str]:
    """Return continuations of the run's prompt, each with its own seed.

    The random state of training and the model's mode are restored, even if an interruption ends the work.

    Args:
        sample: Continues a prompt.
        run: The prompt, and the number of tokens.
        count: Number of samples.
        device: Where the model is.
    """
    before, training = rng_state(device), model.training
    model.eval()
    try:
        return [
            sample(model, tokenizer, run.prompt, max_new_tokens=run.sample_tokens, seed=SAMPLING_SEED + i)
            for i in range(count)
        ]
    finally:
        model.train(training)
        set_rng_state(before, device)
