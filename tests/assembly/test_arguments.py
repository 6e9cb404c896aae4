"""The check of what a caller passes as a model: the message names it and what to pass instead."""

import pytest
import torch
from torch import nn

from gptladder import GPT2, GPT2Config
from gptladder.assembly.arguments import check_model


def test_a_model_of_ours_passes_compiled_or_not() -> None:
    model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=4))
    for passed in (model, torch.compile(model, backend="eager")):
        assert check_model(passed) is None


def test_another_module_is_named_and_what_converts_it() -> None:
    with pytest.raises(ValueError, match=r"^draft must be a model, not a Linear: gptladder\.weights converts"):
        check_model(nn.Linear(2, 2), "draft", "a model")


def test_what_is_no_module_is_shown_in_60_characters() -> None:
    class Other:
        final_residual = unembed = new_cache = None

    with pytest.raises(ValueError, match=r"^model must be a GPT2, not 'x{59}: GPT2\.from_pretrained loads one"):
        check_model("x" * 100)
    with pytest.raises(ValueError, match="must be a GPT2"):
        check_model(Other())
