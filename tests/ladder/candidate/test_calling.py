"""Layers are called as their forward takes its arguments, and an error of the call itself is no mistake of theirs."""

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.candidate.calling import call


class Attention(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv, self.proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(z.transpose(1, 2).flatten(2))


class ByKeyword(Attention):
    def forward(self, *, x: Tensor) -> Tensor:
        return self.attend(x)


class ThriceByKeyword(Attention):
    def forward(self, *, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert query is key is value
        return self.attend(query)


@pytest.mark.parametrize("layer", [ByKeyword, ThriceByKeyword])
def test_inputs_that_are_taken_by_keyword_are_given_so(layer: type[nn.Module]) -> None:
    result = climb(attention=layer, cases=1)
    assert result.passed, str(result)


class Decorated(Attention):
    """Its signature does not tell what it takes."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attend(x) + y

    forward.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", "x")]
    )


def test_a_layer_that_cannot_be_called_is_refused_and_not_wrong() -> None:
    tried = climb(attention=Decorated, cases=1).rungs[0]
    assert tried.status == "refused"
    assert "forward cannot be called: TypeError: Decorated.forward() missing 1 required" in tried.text()


class Embeddings(nn.Module):
    """The start of a model, all whose layers but these are the identity."""

    def __init__(self, vocab_size: int, n_embd: int, n_ctx: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(n_ctx, n_embd)


class OfIndices(Embeddings):
    def forward(self, idx: Tensor, pos: Tensor) -> Tensor:
        assert pos.tolist() == [[0, 1, 2]]
        return self.wte(idx) + self.wpe(pos)


class OfUntypedIndices(Embeddings):
    def forward(self, idx: Tensor, position_ids: Tensor) -> Tensor:
        return OfIndices.forward(self, idx, position_ids)  # pyright: ignore[reportArgumentType]

    del forward.__annotations__["position_ids"]


class OfAStart(Embeddings):
    def forward(self, idx: Tensor, pos: int) -> Tensor:
        assert pos == 0
        return self.wte(idx)


@pytest.mark.parametrize("layer", [OfIndices, OfUntypedIndices, OfAStart])
def test_positions_beside_tokens_are_given_as_their_type_asks(layer: type[nn.Module]) -> None:
    extras: set[str] = set()
    call(layer(41, 18, 97), torch.tensor([[1, 2, 3]]), "", extras)
    assert len(extras) == 1


class PatternFirst(Attention):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(len(x), self.n_head, x.shape[1], x.shape[1]), self.attend(x)


class LossFirst(nn.Module):
    def __init__(self, n_embd: int, vocab_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(n_embd, vocab_size)

    def forward(self, x: Tensor) -> tuple[None, Tensor]:
        return None, self.head(x)


@dataclass
class Output:
    caches: list[Tensor]
    result: Tensor


class InADataclass(Attention):
    def forward(self, x: Tensor) -> Output:
        return Output([x], self.attend(x))


@pytest.mark.parametrize("layer", [PatternFirst, LossFirst, InADataclass])
def test_of_several_outputs_the_one_of_a_layers_shape_is_judged(layer: type[nn.Module]) -> None:
    result = climb(unembed=layer, cases=2) if layer is LossFirst else climb(attention=layer, cases=2)
    assert result.passed, str(result)
    assert "Forward returns 2 things; number 2 was judged" in result.rungs[0].note


class AsksLater(Attention):
    """Its forward reads a field of its configuration that is not known."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.n_embd, config.n_head)
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x) * self.config.secret_factor


def test_a_field_that_forward_asks_for_is_no_mistake_of_the_layer() -> None:
    tried = climb(attention=AsksLater, cases=1).rungs[0]
    assert tried.status == "refused"
    assert "give it with --set secret_factor=VALUE" in tried.text()
    assert climb(attention=AsksLater, cases=2, chosen={"secret_factor": 1}).passed
