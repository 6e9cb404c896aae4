"""The rungs: what they draw, and that a difference anywhere is seen."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gptladder import GPT2Config
from gptladder.ladder.answers import difference, randomize
from gptladder.ladder.rungs import RANGES, RUNGS, Rung, altered, cases, check, compare, draw_case, make_trial, rung

EVERY = pytest.mark.parametrize("each", RUNGS, ids=lambda each: each.name)


@given(source=st.randoms(use_true_random=False))
def test_the_sizes_of_a_case_are_all_different_and_within_their_ranges(source: random.Random) -> None:
    case = draw_case(source)
    sizes = {"batch": case.batch, "seq": case.seq}
    sizes |= {name: getattr(case.config, name) for name in RANGES if name not in sizes}
    assert len(set(sizes.values())) == len(sizes) == len(RANGES)
    assert all(RANGES[name][0] <= size <= RANGES[name][1] for name, size in sizes.items())
    assert case.config.n_ctx >= case.seq


def test_the_cases_have_heads_that_do_not_fill_the_model_and_all_choices() -> None:
    drawn = list(cases(0, 60))
    assert any(case.config.n_heads * case.config.d_head != case.config.d_model for case in drawn)
    assert {case.config.act_fn for case in drawn} == {"gelu_new", "gelu", "relu"}
    assert {case.config.scale_attn_weights for case in drawn} == {True, False}
    assert {case.config.n_ctx == case.seq for case in drawn} == {True, False}


def test_the_same_seed_draws_the_same_cases() -> None:
    assert list(cases(3, 5)) == list(cases(3, 5)) != list(cases(4, 5))


@EVERY
def test_each_rung_has_both_references(each: Rung) -> None:
    assert [reference.library for reference in each.references] == ["TransformerLens", "transformers"]


@EVERY
def test_one_weight_off_by_a_billionth_is_seen_in_output_and_gradient(each: Rung) -> None:
    """For every parameter of the layer: none is left out of the comparison."""
    case = draw_case(random.Random(5))
    reference = each.references[0]
    names = [name for name, _ in each.build(reference.adapt(case.config), torch.float64).named_parameters()]
    for name in names:

        def build(config: GPT2Config, dtype: torch.dtype, name: str = name) -> nn.Module:
            layer = each.build(config, dtype)
            layer.register_load_state_dict_post_hook(lambda module, _: nudge(dict(module.named_parameters())[name]))
            return layer

        def nudge(parameter: nn.Parameter) -> None:
            with torch.no_grad():
                # Not the same for every entry: a layer norm takes out what moves a whole residual stream alike.
                parameter.add_(torch.linspace(1e-9, 2e-9, parameter.numel(), dtype=torch.float64).view_as(parameter))

        output, gradient = compare(each, reference, case, torch.float64, build)
        # The keys' bias moves all of a query's scores alike, and the softmax takes that out again: no output shows it.
        assert output > 1e-12 or gradient > 1e-12, name
        with pytest.raises(AssertionError, match=rf"{each.name} differs from TransformerLens's"):
            check(each, reference, case, torch.float64, build)


@EVERY
def test_a_layer_that_leaves_a_gradient_out_fails(each: Rung) -> None:
    case = draw_case(random.Random(5))

    def build(config: GPT2Config, dtype: torch.dtype) -> nn.Module:
        layer = each.build(config, dtype)
        next(layer.parameters()).requires_grad_(False)
        return layer

    assert compare(each, each.references[0], case, torch.float64, build)[1] == math.inf


def test_an_unknown_rung_is_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match="'atention'; there are embed, pos-embed, layer-norm, attention"):
        rung("atention")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (None, torch.zeros(2)),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([0.0, math.nan]), torch.zeros(2)),
        (torch.tensor([math.inf]), torch.zeros(1)),
    ],
)
def test_what_cannot_be_compared_is_infinitely_far(a: Tensor | None, b: Tensor | None) -> None:
    assert difference(a, b) == math.inf


def test_the_largest_difference_counts_not_the_mean() -> None:
    assert difference(torch.tensor([0.0, 0.0, -3.0]), torch.tensor([0.0, 0.0, 1.0])) == 4.0


def test_every_parameter_is_drawn_at_a_size_that_matters() -> None:
    block = rung("block").build(draw_case(random.Random(0)).config, torch.float64)
    randomize(block, torch.Generator().manual_seed(0))
    for name, parameter in block.named_parameters():
        centre = 1.0 if name.endswith(".w") else 0.0
        assert (parameter - centre).abs().max() > 0.1, name
        assert parameter.abs().max() < 6, name
    linear = nn.Linear(64, 64)
    randomize(linear, torch.Generator().manual_seed(0))
    assert linear.weight.std().item() == pytest.approx(1 / 8, rel=0.05)


@EVERY
def test_a_trial_without_gradients_has_the_same_numbers_and_output(each: Rung) -> None:
    case = draw_case(random.Random(5))
    whole, bare = (make_trial(each, each.own, case, torch.float64, gradients=wanted) for wanted in (True, False))
    assert whole.expected.gradients.keys() >= whole.parameters.keys()
    assert not bare.expected.gradients
    assert not altered(bare, given=bare.given).expected.gradients
    assert torch.equal(bare.cotangent, whole.cotangent)
    assert difference(bare.expected.output, whole.expected.output) <= 1e-14
