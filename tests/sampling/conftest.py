"""A small model with peaked distributions, a tokenizer that needs no network, transforms that force given tokens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.tokenizer import END_OF_TEXT, BPETokenizer


@pytest.fixture(scope="session")
def tiny() -> Callable[..., GPT2]:
    """Makes models with weights so large that distributions are peaked and attention matters."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object) -> GPT2:
        torch.manual_seed(seed)
        sizes = {"d_model": 24, "n_layers": 2, "n_heads": 3, "d_vocab": 31, "n_ctx": 24, "init_range": 0.25}
        return GPT2(GPT2Config(**{**sizes, **changes})).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def model(tiny: Callable[..., GPT2]) -> GPT2:
    return tiny()


@pytest.fixture(scope="session")
def byte_model(tiny: Callable[..., GPT2]) -> GPT2:
    """With the vocabulary of ``byte_tokenizer``."""
    return tiny(d_vocab=257, n_ctx=128)


@pytest.fixture(scope="session")
def byte_tokenizer() -> BPETokenizer:
    """A token for each byte, so that every character beyond ASCII takes several; 256 ends the text."""
    return BPETokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})


@pytest.fixture(scope="session")
def saying() -> Callable[..., Callable[[Tensor, Tensor], Tensor]]:
    """Makes transforms that leave no choice: row ``i`` gets the tokens of script ``i``."""

    def make(*scripts: list[int], prompt_width: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
        def transform(history: Tensor, logits: Tensor) -> Tensor:
            forced = torch.full_like(logits, -torch.inf)
            for row, script in enumerate(scripts):
                forced[row, script[history.shape[1] - prompt_width]] = 0.0
            return forced

        return transform

    return make
