"""What constructors ask for: sizes, configurations, other layers."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from gptladder.assembly.config import GPT2Config
from gptladder.ladder import climb
from gptladder.ladder.candidate.building import Builder
from gptladder.ladder.candidate.configuration import Refused, Sizes
from gptladder.ladder.candidate.finder import find_layers
from gptladder.ladder.candidate.parameters import read
from gptladder.ladder.candidate.source import load
from gptladder.ladder.cases import as_gpt2, drawing, with_other_tables
from gptladder.ladder.sandbox.worker import Start, read_sources

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


class ReadsWhatItDoesNotUse(nn.Module):
    """Its matrices are [d_model d_model], whatever d_head is; its position table may have as many rows as columns."""

    def __init__(self, config: Any = None, **kwargs: Any) -> None:
        super().__init__()
        self.n_head, self.words = config.n_head, f"d_k = {config.d_k}"
        self.qkv, self.proj = nn.Linear(config.n_embd, 3 * config.n_embd), nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(z.transpose(1, 2).flatten(2))


def test_a_size_that_no_matrix_follows_does_not_vary_and_is_not_mentioned() -> None:
    result = climb(attention=ReadsWhatItDoesNotUse, cases=3)
    assert result.passed, str(result)
    assert result.rungs[0].note == ""


def test_tables_are_different_also_where_the_heads_fill_the_model() -> None:
    draw = drawing(frozenset({"d_model", "n_heads", "d_head", "n_ctx", "d_vocab", "d_mlp"}), frozenset())
    source = random.Random(0)
    for case in (with_other_tables(as_gpt2(draw(source), frozenset())) for _ in range(200)):
        config = case.config
        tables = {config.n_ctx, config.d_model, 3 * config.d_model, config.d_vocab}
        assert len(tables) == 4, case
        assert case.seq <= config.n_ctx, case


class Model(nn.Module):
    def __init__(self, d_model: int, d_vocab: int, n_ctx: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        block = nn.ModuleDict({"ln_1": nn.LayerNorm(d_model), "ln_2": nn.LayerNorm(d_model)})
        block.update({"qkv": nn.Linear(d_model, 3 * d_model), "proj": nn.Linear(d_model, d_model)})
        block.update({"fc1": nn.Linear(d_model, 72), "fc2": nn.Linear(72, d_model)})
        self.h = nn.ModuleList([block])
        self.ln_f, self.lm_head = nn.LayerNorm(d_model), nn.Linear(d_model, d_vocab, bias=False)


def test_a_vector_as_long_as_the_context_is_no_table_of_positions() -> None:
    config = replace(CONFIG, n_ctx=18, n_layers=1)
    assert "wpe is W_pos" in read(Model(18, 41, 18), "model", config)[0].label


class Rows(nn.Embedding):
    """The name alone tells whether its rows are tokens or positions."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.arange(input.shape[-1]).expand(input.shape))


def test_rows_of_a_class_without_a_constructor_are_what_its_name_tells(tmp_path: Path) -> None:
    assert climb(pos_embed=Rows, cases=1).passed
    file = tmp_path / "rows.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n\nclass PositionEmbedding(nn.Embedding):\n    def forward(self, x):\n"
        "        return super().forward(torch.arange(x.shape[-1]).expand(x.shape))\n"
    )
    assert find_layers(load(file), {}) == {"pos-embed": ["PositionEmbedding"]}
    layers, _ = read_sources(Start({"": f"{file}:PositionEmbedding"}, {}, "pos-embed", "", 1.0, 1.0))
    assert list(layers) == ["pos-embed"], "a class and a rung are named"


class MultiHeadAttention(nn.Module):
    def __init__(self, n_embd: int, log_attention_weights: bool, attention_of: Any) -> None:
        super().__init__()
        self.log = log_attention_weights


def test_a_class_is_not_built_to_build_itself() -> None:
    with pytest.raises(Refused, match="asks for attention_of"):
        build(MultiHeadAttention, "attention", MultiHeadAttention=MultiHeadAttention)
    with pytest.raises(Refused, match="asks for attention, which is another layer"):
        build(OfAttention, MultiHeadAttention=MultiHeadAttention)


class OfAttention(nn.Module):
    def __init__(self, n_embd: int, attention: nn.Module) -> None:
        super().__init__()


LEFT = (
    WRAPPED
    + """

class Helper(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.a, self.b = nn.Linear(dim, 7), nn.Linear(7, 5)


class Inside(Helper):
    pass


class MLP(FeedForward):
    def __init__(self, dim):
        super().__init__(dim, 4)
        self.hooks = [Inside for _ in range(2)]
"""
)


def test_a_class_that_nothing_tells_the_rung_of_is_mentioned(tmp_path: Path) -> None:
    file = tmp_path / "left.py"
    file.write_text(LEFT.replace("class Inside(Helper)", "class Inside(nn.Module)"))
    loaded = load(file)
    find_layers(loaded, {})
    assert loaded.notes[-1] == "not tried, as neither name nor parameters tell which layer it is: Helper"


class Hidden(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.n_head, self.qkv, self.proj = heads, nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)


class HiddenOfWidth(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)


def test_hidden_is_the_models_width_if_there_is_no_other() -> None:
    sizes = Sizes(CONFIG, {}, set())
    assert Builder(Hidden, "attention", {}).build(sizes).qkv.in_features == CONFIG.d_model
    assert Builder(HiddenOfWidth, "mlp", {}).build(sizes).lin1.out_features == CONFIG.d_mlp


class NanoConfig:
    attribute_map: ClassVar = {"num_heads": "n_head"}

    def __init__(self, n_embd: int = 64, n_head: int = 4, layer_norm_eps: float = 1e-5) -> None:
        self.n_embd, self.n_head, self.layer_norm_eps = n_embd, n_head, layer_norm_eps
        self.twice = 2 * n_embd


class TakesItsOwn(nn.Module):
    config_class = NanoConfig

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        assert isinstance(config, NanoConfig)
        self.read = (config.n_embd, config.twice, config.num_heads)  # type: ignore[attr-defined]


def test_a_model_that_names_its_configurations_class_gets_one_of_it() -> None:
    sizes = Sizes(CONFIG, {}, set())
    assert Builder(TakesItsOwn, "model", {}).build(sizes).read == (18, 36, 3)
    assert sizes.asked == {"config", "d_model", "n_heads"}, "what it did not read makes no difference to it"
