"""Location: the line that makes a mistake, not the one that shows it; and what is right before an error."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.results import Tried


class Plain(nn.Module):
    """Right attention, one method for each step that a test changes."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def mask(self, seq: int) -> Tensor:
        return torch.ones(seq, seq, dtype=torch.bool).triu(1)

    def values(self, x: Tensor) -> Tensor:
        return self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return scores.masked_fill(self.mask(q.shape[-2]), -math.inf).softmax(-1) @ v

    def merge(self, z: Tensor) -> Tensor:
        return z.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.values(x))
        return self.out(self.merge(self.attend(q, k, v)))


class MaskOffByOne(Plain):
    def mask(self, seq: int) -> Tensor:
        later = torch.ones(seq, seq, dtype=torch.bool).triu(2)  # here: MaskOffByOne
        return later[None, None]


class MaskTransposed(Plain):
    def mask(self, seq: int) -> Tensor:
        later = torch.ones(seq, seq, dtype=torch.bool).triu(1)
        later = later.transpose(0, 1)  # here: MaskTransposed
        return later[None, None]


class MaskCompared(Plain):
    def mask(self, seq: int) -> Tensor:
        every = torch.arange(seq)
        later = every[None, :] >= every[:, None]  # here: MaskCompared
        return later


class MaskOfABuffer(Plain):
    lower: Tensor

    def __init__(self, d_model: int, n_heads: int, n_ctx: int) -> None:
        super().__init__(d_model, n_heads)
        self.register_buffer("lower", torch.ones(n_ctx, n_ctx).tril(1))  # here: MaskOfABuffer

    def mask(self, seq: int) -> Tensor:
        return self.lower[:seq, :seq] == 0


class MaskSlicedWrongly(MaskOfABuffer):
    def __init__(self, d_model: int, n_heads: int, n_ctx: int) -> None:
        super().__init__(d_model, n_heads, n_ctx)
        self.lower = self.lower.tril()

    def mask(self, seq: int) -> Tensor:
        lower = self.lower[-seq:, :seq]  # here: MaskSlicedWrongly
        return lower == 0


class MaskGivenToTorch(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu()  # here: MaskGivenToTorch
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class ValuesOfQueries(Plain):
    def values(self, x: Tensor) -> Tensor:
        return self.value(self.query(x))  # here: ValuesOfQueries


class NeverProjected(Plain):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        z = self.merge(self.attend(q, k, v))  # here: NeverProjected
        return z


class MergedWithoutTranspose(Plain):
    def merge(self, z: Tensor) -> Tensor:
        return z.flatten(2)


class RaisesAfterMerging(Plain):
    def merge(self, z: Tensor) -> Tensor:
        merged = z.flatten(2)
        raise RuntimeError(f"{merged.ndim} axes")


class HeadsNotTransposed(Plain):
    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1))  # here: HeadsNotTransposed

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return scores.masked_fill(torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1), -math.inf) @ v


class RowsAreKeys(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = k @ q.mT  # here: RowsAreKeys
        scores = scores / math.sqrt(q.shape[-1])
        later = self.mask(q.shape[-2])
        hidden = scores.masked_fill(later, -math.inf)
        return hidden.softmax(-1) @ v


class Detached(Plain):
    def values(self, x: Tensor) -> Tensor:
        return self.value(x).data  # here: Detached


class Rolled(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(q, k, v.roll(1, dims=-2))  # here: Rolled


class KeepsKeys(Plain):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.kept: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seq = q.shape[-2]
        if self.kept and self.kept[0].shape == k.shape:
            k = torch.cat([self.kept[0][:, :, :1], k[:, :, 1:]], dim=-2)
        self.kept = [k.detach()]  # here: KeepsKeys
        return super().attend(q, k[:, :, :seq], v)


class OneHeadForAll(Plain):
    def merge(self, z: Tensor) -> Tensor:
        heads = z.unbind(1)
        return torch.cat([heads[0] for _ in heads], dim=-1)  # here: OneHeadForAll


class ShortWindow(Plain):
    def mask(self, seq: int) -> Tensor:
        later = torch.ones(seq, seq, dtype=torch.bool)
        return later.triu(1) | later.tril(-40)  # here: ShortWindow


class ShortMask(Plain):
    def mask(self, seq: int) -> Tensor:
        later = torch.ones(seq, seq, dtype=torch.bool).triu(1)
        later[200:] = False  # here: ShortMask
        return later


def tried(layer: type[nn.Module]) -> Tried:
    return climb(attention=layer, cases=2).rungs[-1]


def line_of(layer: type[nn.Module]) -> str:
    lines = Path(__file__).read_text().splitlines()
    return str(next(i for i, line in enumerate(lines, 1) if line.endswith(f"# here: {layer.__name__}")))


def test_the_layer_that_the_mistakes_are_made_in_is_right() -> None:
    assert climb(attention=Plain, cases=2).passed


@pytest.mark.parametrize(
    "layer",
    [
        MaskOffByOne,
        MaskTransposed,
        MaskCompared,
        MaskOfABuffer,
        MaskSlicedWrongly,
        MaskGivenToTorch,
        ValuesOfQueries,
        NeverProjected,
        RowsAreKeys,
        Detached,
        Rolled,
        KeepsKeys,
        OneHeadForAll,
        ShortWindow,
        ShortMask,
    ],
)
def test_a_mistake_is_located_where_it_is_made(layer: type[nn.Module]) -> None:
    found = tried(layer)
    assert found.at is not None
    assert found.at.rpartition(":")[2] == line_of(layer), found.text()


def test_a_mask_that_torch_is_given_is_read_as_torch_reads_it() -> None:
    found = tried(MaskGivenToTorch).diagnosis
    assert found is not None
    assert found.finding is not None
    assert "which keys each query sees" in found.finding.wrong
    assert found.finding.detail == (
        "Query 0 sees key 1, a later position.",
        "Query 1 does not see key 0, an earlier position.",
    )


def test_before_an_error_what_is_right_and_its_axes_are_reported() -> None:
    found = tried(RaisesAfterMerging)
    assert found.fault is not None
    assert found.fault.kind == "raises"
    assert "Right up to there: " in found.text()
    assert "The gathered values z are [batch, n_heads, seq*d_head] there" in found.text()
    assert "First wrong" not in found.text()


def test_an_error_is_named_by_answers_with_as_many_heads_as_positions() -> None:
    text = tried(MergedWithoutTranspose).text()
    assert "forward raises RuntimeError" in text
    assert "The mistake: z flattened without a transpose." in text


def test_before_an_error_the_first_wrong_step_is_located() -> None:
    found = tried(HeadsNotTransposed)
    assert found.fault is not None
    assert found.fault.kind == "raises"
    finding = found.diagnosis.finding if found.diagnosis else None
    assert finding is not None
    assert finding.at is not None
    assert finding.at.endswith(f":{line_of(HeadsNotTransposed)}")
    assert "the queries as [batch, seq, n_heads, d_head]" in found.text()


def test_a_step_that_only_moves_numbers_is_not_called_mixing() -> None:
    text = tried(Rolled).text()
    assert "but `roll` puts them into another order" in text
    assert "mixes axes" not in text


def test_the_first_length_that_is_wrong_is_reported() -> None:
    assert "With n_ctx = 1024, a sequence of 201 positions is right, and one of 202 is not." in tried(ShortMask).text()


def test_one_head_in_the_place_of_all_is_named() -> None:
    assert "The mistake: the first head in the place of all." in tried(OneHeadForAll).text()


class Reversed(nn.Module):
    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_ctx, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
        return self.table(positions.flip(-1))  # here: Reversed


class Unbiased(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        squares = centred**2
        variance = squares.sum(-1, keepdim=True) / (x.shape[-1] - 1)  # here: Unbiased
        return centred / (variance + 1e-5).sqrt() * self.w + self.b


def test_rows_in_another_order_and_sums_divided_wrongly_are_located() -> None:
    found = climb(pos_embed=Reversed, layer_norm=Unbiased, cases=2).rungs[-1]
    assert found.at is not None
    assert found.at.endswith(line_of(Reversed))
    found = climb(layer_norm=Unbiased, cases=2).rungs[-1]
    assert found.at is not None
    assert found.at.endswith(line_of(Unbiased))


class HeadsSideBySide(nn.Module):
    """Each head's queries, keys and values lie side by side in one matrix, and the scores are not divided."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, head_mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        scores = q @ k.mT * math.sqrt(q.shape[-1])
        if attention_mask is None:
            attention_mask = torch.zeros_like(scores[0, 0]).masked_fill(
                torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf
            )
        pattern = (scores + attention_mask).softmax(-1)
        return self.out(((pattern if head_mask is None else pattern * head_mask) @ v).transpose(1, 2).flatten(2))


def test_the_way_to_read_a_wrong_layer_is_found_though_it_takes_masks() -> None:
    found = tried(HeadsSideBySide)
    assert found.mistakes == ("multiplied by sqrt(d_head)",)
    assert found.reading.startswith("qkv holds q, k, v as [(n c h) m]")


class OfOneTensor(Plain):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        del self.query, self.key, self.value

    def forward(self, x: Tensor) -> Any:
        k, q, v = self.qkv(x).chunk(3, dim=-1)  # here: OfOneTensor
        return self.out(self.merge(self.attend(self.split(q), self.split(k), self.split(v))))


def as_q_k_v(cfg: Any, parameters: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    weights = [parameters[f"W_{letter}"].transpose(1, 2).flatten(0, 1) for letter in "QKV"]
    biases = [parameters[f"b_{letter}"].flatten() for letter in "QKV"]
    state = {"qkv.weight": torch.cat(weights), "qkv.bias": torch.cat(biases), "out.bias": parameters["b_O"]}
    return OfOneTensor(cfg.d_model, cfg.n_heads), state | {"out.weight": parameters["W_O"].flatten(0, 1).T}


def test_parts_that_are_named_in_another_order_are_located() -> None:
    found = climb(attention=as_q_k_v, cases=3).rungs[0]
    assert found.mistakes == ("queries and keys exchanged",), found.text()
    assert found.at is not None
    assert found.at.rpartition(":")[2] == line_of(OfOneTensor), found.text()
    assert f"they lie as q, k, v, and line {line_of(OfOneTensor)} names them k, q, v." in found.text()
    assert "Right up to there" not in found.text()


class KeysOfValues(Plain):
    def forward(self, x: Tensor) -> Any:
        queries = self.query(x)
        keys = self.value(x)  # here: KeysOfValues
        values = self.key(x)
        return self.out(self.merge(self.attend(self.split(queries), self.split(keys), self.split(values))))


def test_keys_that_are_the_values_are_located_where_they_get_their_name() -> None:
    found = tried(KeysOfValues)
    line = line_of(KeysOfValues)
    assert found.mistakes == ("keys and values exchanged",)
    assert found.at is not None
    assert found.at.rpartition(":")[2] == line
    assert f"First wrong: `keys` on line {line}: it is the values." in found.text()
