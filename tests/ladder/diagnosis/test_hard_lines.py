"""Location where it is hard: loops over heads, slices off by one, single numbers, derivatives written by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.results import Tried


class Loop(nn.Module):
    """Right attention, one head after another; each adds its output to the sum."""

    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.W = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(n_heads, d_model, d_head)) for name in ("W_Q", "W_K", "W_V")}
        )
        self.W_O = nn.Parameter(torch.zeros(n_heads, d_head, d_model))
        self.b = nn.ParameterDict({name: nn.Parameter(torch.zeros(n_heads, d_head)) for name in ("b_Q", "b_K", "b_V")})
        self.b_O = nn.Parameter(torch.zeros(d_model))
        self.n_heads = n_heads

    def heads(self) -> list[int]:
        return list(range(self.n_heads))

    def values(self, x: Tensor, head: int) -> Tensor:
        return x @ self.W["W_V"][head] + self.b["b_V"][head]

    def pattern(self, scores: Tensor) -> Tensor:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1)

    def added(self, x: Tensor, out: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        out = self.b_O.expand_as(x)
        for head in self.heads():
            q = x @ self.W["W_Q"][head] + self.b["b_Q"][head]
            k = x @ self.W["W_K"][head] + self.b["b_K"][head]
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            out = out + self.pattern(scores) @ self.values(x, head) @ self.W_O[head]
            x = self.added(x, out)
        return out


class OneBias(Loop):
    def values(self, x: Tensor, head: int) -> Tensor:
        values = x @ self.W["W_V"][head]
        return values + self.b["b_V"][0]  # here: OneBias


class CarriedOver(Loop):
    def added(self, x: Tensor, out: Tensor) -> Tensor:
        return x + out  # here: CarriedOver


class LastLeftOut(Loop):
    def heads(self) -> list[int]:
        return super().heads()[:-1]


class LastAlone(Loop):
    def forward(self, x: Tensor) -> Tensor:
        out = x
        for head in self.heads():
            q = x @ self.W["W_Q"][head] + self.b["b_Q"][head]
            k = x @ self.W["W_K"][head] + self.b["b_K"][head]
            z = self.pattern(q @ k.mT / math.sqrt(q.shape[-1])) @ self.values(x, head)
            out = self.b_O + z @ self.W_O[head]  # here: LastAlone
        return out


class ValuesOffByOne(nn.Module):
    """One matrix for all; each head's queries, keys and values lie side by side."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        q, k = qkv[..., : self.d_head], qkv[..., self.d_head : 2 * self.d_head]
        v = qkv[..., 2 * self.d_head - 1 : -1]  # here: ValuesOffByOne
        scores = q @ k.mT / math.sqrt(self.d_head)
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        z = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        return self.out(z.transpose(1, 2).flatten(2))


class OverAll(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def mean(self, x: Tensor) -> Tensor:
        return x.mean()  # here: OverAll

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        centred = x - mean
        return centred / (centred.pow(2).mean() + 1e-5).sqrt() * self.w + self.b


class OverTheSequence(OverAll):
    def mean(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1), keepdim=True)  # here: OverTheSequence


class InChunks(nn.Module):
    """A right MLP, a part of the hidden layer after another."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)

    def part(self, x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
        return nn.functional.gelu(x @ w.T + b, approximate="tanh") @ v.T

    def parts(self, x: Tensor) -> list[Tensor]:
        chunks = (self.first.weight.chunk(3), self.first.bias.chunk(3), self.second.weight.chunk(3, 1))
        return [self.part(x, w, b, v) for w, b, v in zip(*chunks, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.parts(x)).sum(0) + self.second.bias


class BiasOfEach(InChunks):
    def part(self, x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
        hidden = nn.functional.gelu(x @ w.T + b, approximate="tanh")
        return hidden @ v.T + self.second.bias  # here: BiasOfEach

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for part in self.parts(x):
            out = out + part
        return out


class HalfLeftOut(InChunks):
    def forward(self, x: Tensor) -> Tensor:
        one, other, *_ = self.parts(x)
        return one + other + self.second.bias


class HandWritten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        root = math.sqrt(2 / math.pi)
        t = torch.tanh(root * (x + 0.044715 * x**3))
        inner = 1 + 0.044715 * x * x
        return gradients[0] * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * inner)  # here: ByHand


class ByHand(nn.Module):
    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(HandWritten.apply(self.first(x)))


class OneCutOfTwo(OverAll):
    """One cut changes nothing: a factor that is 1. The other one does."""

    def forward(self, x: Tensor) -> Tensor:
        one = (x / x.detach()).detach() ** 0
        mean = x.mean(-1, keepdim=True)
        centred = x - mean.detach()  # here: OneCutOfTwo
        return centred * one / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * self.w + self.b


class Sinusoids(nn.Module):
    table: Tensor

    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        angles = torch.arange(n_ctx)[:, None] * torch.exp(-torch.arange(d_model) / d_model)
        self.register_buffer("table", angles.sin())  # here: Sinusoids

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[: tokens.shape[1]].to(torch.get_default_dtype()).expand(*tokens.shape, -1)


class Whole(nn.Module):
    """A right model, as far as its positions are."""

    def __init__(
        self, d_vocab: int, d_model: int, n_heads: int, d_head: int, d_mlp: int, n_ctx: int, n_layers: int
    ) -> None:
        super().__init__()
        self.tokens, self.table = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.blocks = nn.ModuleList([WholeBlock(d_model, n_heads, d_head, d_mlp) for _ in range(n_layers)])
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, d_vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        every = torch.ones_like(tokens).cumsum(-1)
        positions = every - 1
        x = self.tokens(tokens) + self.table(self.changed(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def changed(self, positions: Tensor) -> Tensor:
        return positions


class WholeBlock(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_head: int, d_mlp: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attn, self.mlp = Loop(d_model, n_heads, d_head), InChunks(d_model, d_mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Capped(Whole):
    def changed(self, positions: Tensor) -> Tensor:
        return positions.clamp(max=2)  # here: Capped


class FromOne(nn.Module):
    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_ctx, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(self.table.num_embeddings)
        positions = positions[1 : tokens.shape[1] + 1]  # here: FromOne
        return self.table(positions.expand(tokens.shape))


class RowsFromOne(nn.Module):
    """For as many positions as the table has rows, it gives one row too few."""

    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(n_ctx, d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.table[1 : tokens.shape[1] + 1]  # here: RowsFromOne
        return rows.expand(tokens.shape[0], *rows.shape)


def tried(**layer: Any) -> Tried:
    return climb(**layer, cases=3).rungs[-1]


def line_of(layer: type[nn.Module]) -> str:
    lines = Path(__file__).read_text().splitlines()
    return str(next(i for i, line in enumerate(lines, 1) if line.endswith(f"# here: {layer.__name__}")))


def test_the_loop_that_the_mistakes_are_made_in_is_right() -> None:
    assert climb(attention=Loop, mlp=InChunks, cases=3).passed


@pytest.mark.parametrize(
    ("rung", "layer"),
    [
        ("attention", OneBias),
        ("attention", CarriedOver),
        ("attention", ValuesOffByOne),
        ("attention", LastAlone),
        ("layer_norm", OverAll),
        ("layer_norm", OverTheSequence),
        ("layer_norm", OneCutOfTwo),
        ("mlp", ByHand),
        ("mlp", BiasOfEach),
        ("pos_embed", Sinusoids),
        ("model", Capped),
    ],
)
def test_a_mistake_is_located_where_it_is_made(rung: str, layer: type[nn.Module]) -> None:
    found = tried(**{rung: layer})
    assert found.status == "failed", found.text()
    assert found.at is not None, found.text()
    assert found.at.rpartition(":")[2] == line_of(layer), found.text()


def test_a_wrong_step_in_a_loop_is_reported_with_what_it_is_made_of() -> None:
    text = tried(attention=OneBias).text()
    assert "GPT-2 has the values next" in text
    assert "takes a part of the values without their bias (line" in text


def test_heads_that_a_sum_lacks_are_reported() -> None:
    found = tried(attention=LastLeftOut)
    assert "First wrong: the output: it is the " in found.text()
    assert ", with b_O. GPT-2 adds all of them, and the bias once." in found.text().replace("\n", " ")
    assert "First wrong: the output: it is the sum over " in tried(mlp=HalfLeftOut).text()


def test_a_sum_that_begins_anew_for_each_head_is_reported() -> None:
    assert "times there, and does not take what it gave before." in tried(attention=LastAlone).text()


def test_a_slice_with_numbers_of_two_is_reported_with_its_shares() -> None:
    text = tried(attention=ValuesOffByOne).text()
    assert " are of the keys and " in text
    assert " are of the values." in text


def test_a_derivative_that_is_right_is_not_blamed() -> None:
    class Right(HandWritten):
        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                found = torch.autograd.grad(nn.functional.gelu(x, approximate="tanh").sum(), x)
            return gradients[0] * found[0]

    class Cut(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            hidden = Right.apply(self.first(x))
            return nn.functional.linear(hidden, self.second.weight.detach(), self.second.bias)  # here: Cut

    class Whole(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(Right.apply(self.first(x)))

    assert climb(mlp=Whole, cases=3).passed
    found = tried(mlp=Cut)
    assert found.at is not None
    assert found.at.rpartition(":")[2] == line_of(Cut), found.text()
    assert "backward" not in found.text()


class Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        x, w, b = given
        ctx.save_for_backward(x, w)
        return x * w + b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        w = ctx.saved_tensors[1]
        dx = gradients[0] * w
        dw = (gradients[0] * w).sum((0, 1))  # here: OneDerivative
        db = gradients[0].sum((0, 1))
        return dx, dw, db


class OneDerivative(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return Affine.apply(nn.functional.layer_norm(x, x.shape[-1:]), self.w, self.b)


def test_the_one_wrong_derivative_of_several_is_located() -> None:
    found = tried(layer_norm=OneDerivative)
    assert str(found.at).rpartition(":")[2] == line_of(OneDerivative), found.text()


class OfNumbers(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.first(x), approximate="tanh")
        hidden = torch.tensor(hidden.tolist(), dtype=x.dtype)  # here: OfNumbers
        return self.second(hidden)


def test_a_tensor_made_of_a_list_cuts_the_gradient_at_its_line() -> None:
    found = tried(mlp=OfNumbers)
    assert found.at is not None
    assert found.at.rpartition(":")[2] == line_of(OfNumbers), found.text()
    assert "makes a new tensor of the numbers that line" in found.text()


def test_positions_that_are_computed_are_wrong_and_not_refused() -> None:
    found = tried(pos_embed=Sinusoids)
    assert found.fault is not None
    assert found.fault.message.startswith("it has no parameters; GPT-2's positions are a table that is learned")


@pytest.mark.parametrize(("layer", "kind"), [(FromOne, "raises"), (RowsFromOne, "shape")])
def test_a_mistake_without_an_answer_at_some_sizes_is_named_by_others(layer: type[nn.Module], kind: str) -> None:
    found = climb(pos_embed=layer, cases=10).rungs[-1]
    assert found.fault is not None
    assert found.fault.kind == kind
    assert "for some other sizes its answer is wrong" in found.fault.message
    assert found.mistakes == ("positions from one",)
    assert found.at is not None
    assert found.at.endswith(f":{line_of(layer)}")


class Squeezes(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.gelu(self.first(x), approximate="tanh")).squeeze(0)


def test_an_axis_that_is_lost_only_where_it_is_one_is_named() -> None:
    found = climb(mlp=Squeezes, cases=10).rungs[-1]
    assert found.fault is not None
    assert (
        found.fault.message == "for a batch of one, forward returns [seq d_model]; it must return [batch seq d_model]"
    )
