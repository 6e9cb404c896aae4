"""A layer that has a size of its own, by its file or by the user's choice, is judged with that size."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.assembly.config import GPT2Config
from gptladder.ladder import climb
from gptladder.ladder.candidate.building import Builder
from gptladder.ladder.candidate.configuration import Refused, Sizes
from gptladder.ladder.candidate.finder import rungs_of
from gptladder.ladder.candidate.fixed_sizes import fixed_sizes

CONFIG = GPT2Config(d_model=18, n_heads=3, d_head=6, d_mlp=72, d_vocab=41, n_ctx=97, n_layers=2)


class Narrow(nn.Module):
    """An MLP of 50, whatever the width of the model."""

    factor = 1.0

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.fc, self.proj = nn.Linear(n_embd, 50), nn.Linear(50, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(nn.functional.gelu(self.factor * self.fc(x), approximate="tanh"))


class NarrowAndWrong(Narrow):
    factor = 2.0


class Twice(Narrow):
    """An MLP of a width that follows the model's."""

    def __init__(self, n_embd: int) -> None:
        super().__init__(n_embd)
        self.fc, self.proj = nn.Linear(n_embd, 2 * n_embd), nn.Linear(2 * n_embd, n_embd)


class Short(nn.Module):
    """A table of ten positions."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.wpe = nn.Embedding(10, n_embd)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.wpe(torch.arange(tokens.shape[1])).expand(*tokens.shape, -1)


class Words(nn.Module):
    def __init__(self, colours: int, n_embd: int) -> None:
        super().__init__()
        self.table = nn.Embedding(colours, n_embd)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


def test_a_size_of_the_layers_own_is_the_size_that_it_is_judged_with() -> None:
    narrow = climb(mlp=Narrow, cases=6).rungs[0]
    assert narrow.passed, narrow.text()
    assert narrow.note == "It has d_mlp=50 whatever it is built for, and was judged with that."
    assert climb(mlp=NarrowAndWrong, cases=2).rungs[0].status == "failed"
    short = climb(pos_embed=Short, cases=6).rungs[0]
    assert short.passed, short.text()
    words = climb(embed=Words, chosen={"colours": 33}, cases=2).rungs[0]
    assert words.passed, words.text()
    assert "d_vocab=33" in words.note


class IgnoresItsConfiguration(Narrow):
    def __init__(self, config: Any) -> None:
        super().__init__(config.n_embd)


class IgnoresItsArgument(Narrow):
    def __init__(self, n_embd: int, d_mlp: int) -> None:
        super().__init__(n_embd)


@pytest.mark.parametrize("layer", [IgnoresItsConfiguration, IgnoresItsArgument])
def test_a_layer_that_was_told_a_size_and_has_another_is_not_passed(layer: type[nn.Module]) -> None:
    assert climb(mlp=layer, cases=1).rungs[0].status == "refused"


def test_a_size_that_follows_another_is_no_size_of_its_own() -> None:
    refused = climb(mlp=Twice, cases=6).rungs[0]
    assert refused.status == "refused"
    assert refused.fault is not None
    assert "its d_mlp is 2*d_model (" in refused.fault.message
    assert "whatever it is built for" not in refused.note


def test_sizes_of_a_model_are_told_apart_by_number_and_name() -> None:
    layer = nn.ModuleDict({"wte": nn.Embedding(33, 18), "wpe": nn.Embedding(10, 18), "head": nn.Linear(18, 33)})
    layer["h"] = nn.ModuleList(nn.ModuleList([nn.Linear(18, 50), nn.Linear(50, 18)]) for _ in range(2))
    assert fixed_sizes(layer, "model", CONFIG) == {"d_mlp": 50, "n_ctx": 10, "d_vocab": 33}
    assert fixed_sizes(nn.Linear(18, 54), "mlp", CONFIG) == {}, "three times the width is not an MLP's"


class MLPBlock(Narrow):
    def __init__(self, dim1: int, dim2: int) -> None:
        super().__init__(dim1)
        self.fc, self.proj = nn.Linear(dim1, dim2), nn.Linear(dim2, dim1)


class Hidden(nn.Module):
    def __init__(self, hidden: int, feed_forward_hidden: int) -> None:
        super().__init__()
        self.sizes = (hidden, feed_forward_hidden)


class Asks(nn.Module):
    def __init__(self, n_embd: int, colour: str, config: object, shade: int) -> None:
        super().__init__()


class Reads(nn.Module):
    def __init__(self, config: object) -> None:
        super().__init__()
        self.colour = config.colour  # pyright: ignore[reportAttributeAccessIssue]
        self.shade = config["shade"]  # pyright: ignore[reportIndexIssue]


def test_parameters_decide_what_a_layer_called_a_block_is() -> None:
    assert rungs_of(MLPBlock, "MLPBlock", {}, {})[0] == "mlp"
    assert climb(mlp=MLPBlock, cases=2).passed


def test_of_two_widths_of_an_mlp_the_general_one_is_the_models() -> None:
    assert Builder(Hidden, "block", {}).build(Sizes(CONFIG, {}, set())).sizes == (18, 72)


def test_everything_that_is_not_known_is_asked_for_at_once() -> None:
    wanted = "asks for colour and shade, which are not known: give them with --set colour=VALUE --set shade=VALUE"
    with pytest.raises(Refused, match=wanted):
        Builder(Asks, "block", {}).build(Sizes(CONFIG, {}, set()))
    has_not = "the configuration has no 'colour', 'shade': give them with --set colour=VALUE --set shade=VALUE"
    with pytest.raises(AttributeError, match=has_not):
        Builder(Reads, "block", {}).build(Sizes(CONFIG, {}, set()))


class FourBlocks(nn.Module):
    """Its blocks are written out, as in early videos."""

    def __init__(self, d_model: int, n_heads: int, d_vocab: int, n_ctx: int, blocks: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        layers = [
            nn.TransformerEncoderLayer(
                *(d_model, n_heads, 4 * d_model, 0.0),
                activation=lambda x: nn.functional.gelu(x, approximate="tanh"),
                batch_first=True,
                norm_first=True,
            )
            for _ in range(blocks)
        ]
        self.blocks = nn.Sequential(*layers, nn.LayerNorm(d_model))
        self.head = nn.Linear(d_model, d_vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=x.dtype)
        for part in self.blocks:
            x = part(x, mask) if isinstance(part, nn.TransformerEncoderLayer) else part(x)
        return self.head(x)


class AsManyBlocksAsHeads(FourBlocks):
    def __init__(self, d_model: int, n_heads: int, d_vocab: int, n_ctx: int) -> None:
        super().__init__(d_model, n_heads, d_vocab, n_ctx, blocks=n_heads)


def test_a_model_whose_blocks_are_written_out_is_judged_with_as_many() -> None:
    result = climb(model=FourBlocks, cases=3)
    assert result.passed, str(result)
    assert "It has n_layers=4 whatever it is built for, and was judged with that" in result.rungs[0].note


def test_a_number_of_blocks_that_follows_the_heads_is_a_mistake() -> None:
    tried = climb(model=AsManyBlocksAsHeads, cases=3).rungs[0]
    assert not tried.passed
    assert "blocks.N where n_layers is" in tried.text()
