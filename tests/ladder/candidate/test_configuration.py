"""What constructors ask for: sizes, configurations, other layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from gptladder.assembly.config import GPT2Config
from gptladder.ladder.candidate.configuration import Builder, Refused, Sizes
from gptladder.ladder.candidate.finder import find_layers
from gptladder.ladder.candidate.source import load

CONFIG = GPT2Config(d_model=18, n_heads=3, d_head=6, d_mlp=72, d_vocab=41, n_ctx=97, n_layers=2)


class Norm(nn.Module):
    """A layer norm that makes room for what its subclasses wrap."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)


class ByName(Norm):
    def __init__(self, dim: int, fn: Any) -> None:
        super().__init__(dim)
        self.fn = fn


class ByType(Norm):
    def __init__(self, dim: int, wrapping: nn.Module) -> None:
        super().__init__(dim)
        self.wrapping = wrapping


class ByWrittenType(Norm):
    def __init__(self, dim: int, wrapping: "nn.Module") -> None:
        super().__init__(dim)
        self.wrapping = wrapping


class ByCall(Norm):
    def __init__(self, dim: int, wrapping: Callable[[Tensor], Tensor]) -> None:
        super().__init__(dim)
        self.wrapping = wrapping


@pytest.mark.parametrize("layer", [ByName, ByType, ByWrittenType, ByCall])
def test_a_layer_that_a_constructor_asks_for_is_no_size(layer: type[nn.Module]) -> None:
    with pytest.raises(Refused, match=r"^asks for (fn|wrapping), which is another layer$"):
        Builder(layer, "layer-norm", {}).build(Sizes(CONFIG, {}, set()))


WRAPPED = """
from torch import nn
import torch.nn.functional as F


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return self.fn(self.norm(x))


class AddNorm(nn.Module):
    def __init__(self, norm_shape):
        super().__init__()
        self.ln = nn.LayerNorm(norm_shape)

    def forward(self, x, y):
        return self.ln(x + y)


class FeedForward(nn.Module):
    def __init__(self, dim, scaling: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, scaling * dim), nn.GELU("tanh"), nn.Linear(scaling * dim, dim))

    def forward(self, x):
        return self.net(x)
"""


def test_wrappers_of_other_layers_do_not_stop_the_climb(tmp_path: Path) -> None:
    file = tmp_path / "wrapped.py"
    file.write_text(WRAPPED)
    loaded = load(file)
    assert find_layers(loaded, {}) == {"mlp": ["FeedForward"]}
    assert loaded.notes == [
        "PreNorm could not be tried as layer-norm: it asks for fn, which is another layer",
        "AddNorm could not be tried as layer-norm: its forward asks for y beside its input",
    ]


class FeedForward(nn.Module):
    def __init__(self, dim: int, colour: str) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 4 * dim)


class OfAWidth(nn.Module):
    def __init__(self, n_embd: int, feed_forward_scaling: int) -> None:
        super().__init__()
        self.width = n_embd * feed_forward_scaling


class OfAPart(nn.Module):
    def __init__(self, n_embd: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.mlp = feed_forward


class OfANumber(nn.Module):
    def __init__(self, n_embd: int, ffn_kind: int) -> None:
        super().__init__()


def build(layer: type[nn.Module], rung: str = "block", **namespace: Any) -> Any:
    return Builder(layer, rung, {"FeedForward": FeedForward, **namespace}).build(Sizes(CONFIG, {}, set()))


def test_a_name_that_begins_as_a_layers_may_mean_a_number() -> None:
    assert build(OfAWidth).width == 72
    with pytest.raises(Refused, match=r"^asks for ffn_kind, which is not known: give it with --set ffn_kind=VALUE$"):
        build(OfANumber)


def test_a_refusal_names_the_argument_of_the_class_itself() -> None:
    with pytest.raises(Refused, match=r"^asks for feed_forward, which is another layer$"):
        build(OfAPart)


class GPT(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)


class LMHead(nn.Module):
    def __init__(self, gpt: Any) -> None:
        super().__init__()
        self.decoder = gpt.wte


def test_an_argument_of_a_classs_name_is_that_class_and_no_configuration() -> None:
    assert build(LMHead, "model", TransformerDecoder=Norm, GPT=GPT).decoder.weight.shape == (41, 18)
