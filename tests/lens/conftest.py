"""One small model of all sizes distinct, ours and as TransformerLens's, in float64."""

from typing import Any

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.ladder.answers import randomize
from gptladder.tokenizer import BPETokenizer

CONFIG = GPT2Config(
    d_model=10,
    n_layers=3,
    n_heads=2,
    d_head=4,
    d_mlp=14,
    d_vocab=17,
    n_ctx=12,
    tie_word_embeddings=False,
    unembed_bias=True,
)


@pytest.fixture(scope="session")
def ours() -> GPT2:
    model = GPT2(CONFIG, dtype=torch.float64)
    randomize(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def theirs(ours: GPT2, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("transformer_lens")
    from gptladder.weights import to_hooked_transformer

    model = to_hooked_transformer(ours)
    monkeypatch.setattr(model, "to_tokens", lambda tokens: tokens)  # it has no tokenizer, and is given tokens
    return model


@pytest.fixture
def reader() -> BPETokenizer:
    """A token for each byte of ASCII text is too many for the small model; this one is for models of 257 tokens."""
    return BPETokenizer({bytes([byte]): byte for byte in range(256)}, {"<|endoftext|>": 256})


@pytest.fixture
def text_model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(GPT2Config(d_model=16, n_layers=2, n_heads=2, d_vocab=257, n_ctx=64)).eval()


@pytest.fixture
def in_float64() -> Any:
    """TransformerLens puts what it has found into tensors of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
