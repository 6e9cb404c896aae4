"""Unembed: against the reference layers, and what the references do not show."""

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.components import Embed, Unembed
from gptladder.ladder.answers import Reference
from gptladder.ladder.rungs import check, draw_case, rung

RUNG = rung("unembed")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reference", RUNG.references, ids=lambda reference: reference.library)
@given(source=st.randoms(use_true_random=False))
def test_equals_the_reference(reference: Reference, dtype: torch.dtype, source: random.Random) -> None:
    check(RUNG, reference, draw_case(source), dtype)


def tied() -> Any:
    embed = Embed(d_vocab=7, d_model=3)
    return torch.nn.ModuleDict({"embed": embed, "unembed": Unembed(d_model=3, d_vocab=7, bias=False, tied_to=embed)})


def test_tied_it_has_no_matrix_of_its_own() -> None:
    layers = tied()
    assert [name for name, _ in layers.named_parameters()] == ["embed.W_E"]
    assert layers["unembed"].W_U.data_ptr() == layers["embed"].W_E.data_ptr()
    residual = torch.randn(2, 4, 3)
    assert torch.allclose(layers["unembed"](residual), residual @ layers["embed"].W_E.T, atol=1e-6)


@pytest.mark.parametrize(
    "take",
    [copy.deepcopy, lambda layers: pickle.loads(pickle.dumps(layers)), lambda layers: layers.double()],
    ids=["deepcopy", "pickle", "to"],
)
def test_it_stays_tied(take: Callable[[Any], Any]) -> None:
    layers = take(tied())
    with torch.no_grad():
        layers["embed"].W_E.fill_(2.0)
    assert (layers["unembed"].W_U == 2.0).all()


def test_it_stays_tied_when_a_meta_model_is_given_memory() -> None:
    with torch.device("meta"):
        layers = tied()
    layers.to_empty(device="cpu")
    assert layers["unembed"].W_U.data_ptr() == layers["embed"].W_E.data_ptr()


def test_both_uses_of_a_tied_matrix_add_to_its_gradient() -> None:
    layers = tied().double()
    W_E = layers["embed"].W_E
    tokens = torch.tensor([[1, 2]])
    layers["unembed"](layers["embed"](tokens)).square().sum().backward()
    given = W_E.detach().clone().requires_grad_()
    (given[tokens] @ given.T).square().sum().backward()
    assert (W_E.grad - given.grad).abs().max() < 1e-14


def test_an_embedding_of_other_sizes_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"d_vocab=8, d_model=3 cannot be tied to an embedding of d_vocab=7, d_model=3"
    ):
        Unembed(d_model=3, d_vocab=8, tied_to=Embed(d_vocab=7, d_model=3))


def test_the_table_of_a_tied_projection_cannot_be_set_apart() -> None:
    unembed = tied()["unembed"]
    with pytest.raises(ValueError, match="W_U is the embedding's W_E"):
        unembed.W_U = torch.nn.Parameter(torch.zeros(3, 7))
    untied = Unembed(d_model=3, d_vocab=7)
    untied.W_U = torch.nn.Parameter(torch.zeros(3, 7))
    assert not untied.W_U.any()


def test_a_projection_of_its_own_cannot_be_tied_later() -> None:
    with pytest.raises(ValueError, match="this unembedding has its own W_U"):
        Unembed(d_model=3, d_vocab=7).tie_to(Embed(d_vocab=7, d_model=3))


def test_it_is_tied_to_the_embedding_that_a_module_shows_or_contains() -> None:
    layers, other = tied(), Embed(d_vocab=7, d_model=3)
    embed, unembed = layers["embed"], layers["unembed"]
    unembed.tie_to(torch.nn.Sequential(embed))  # a wrapper
    assert unembed.W_U.data_ptr() == embed.W_E.data_ptr()
    unembed.tie_to(other)
    assert unembed.W_U.data_ptr() == other.W_E.data_ptr()
    with pytest.raises(ValueError, match="Sequential has none"):
        unembed.tie_to(torch.nn.Sequential(embed))  # it is not tied to this one any more
    outer = torch.nn.Sequential(other)
    outer.W_E = torch.nn.Parameter(torch.ones(7, 3))
    unembed.tie_to(outer)  # a table of its own goes before what a module contains
    assert (unembed.W_U == 1).all()


def test_reset_parameters_leaves_a_tied_table_alone() -> None:
    layers = tied()
    before = layers["embed"].W_E.clone()
    layers["unembed"].reset_parameters()
    assert torch.equal(layers["embed"].W_E, before)
    own = Unembed(d_model=3, d_vocab=7)
    assert own.b_U is not None
    with torch.no_grad():
        own.b_U.fill_(1)
    before = own.W_U.clone()
    own.reset_parameters()
    assert not torch.equal(own.W_U, before)
    assert not own.b_U.any()


def test_its_repr_tells_whether_it_has_a_bias_and_is_tied() -> None:
    assert "d_model=3, d_vocab=7, bias=True, tied=False" in repr(Unembed(d_model=3, d_vocab=7))
    assert "d_model=3, d_vocab=7, bias=False, tied=True" in repr(tied()["unembed"])
