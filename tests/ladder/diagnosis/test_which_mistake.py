"""The search for mistakes: pairs, mistakes inside parts, layers that raise, and masks that large scores show."""

import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.answers import close
from gptladder.ladder.candidate.requests import Reply, Request
from gptladder.ladder.diagnosis.diagnose import diagnose
from gptladder.ladder.mistakes import FINITE_MASKS, INSIDE, MISTAKES, Mistake
from gptladder.ladder.mistakes.fast_outputs import FastOutputs
from gptladder.ladder.mistakes.mistake import together, with_steps
from gptladder.ladder.rungs import Build, Trial, answer, draw_case, make_trial, rung
from gptladder.ladder.under_test import UnderTest

sys.path.insert(0, str(Path(__file__).parent))
from layers import Split


def entry(name: str, mistake: str) -> Mistake:
    return next(each for each in MISTAKES if (each.rung, each.name) == (name, mistake))


def built(name: str, build: Build) -> UnderTest:
    def ask(requests: Iterable[Request]) -> Iterator[Reply]:
        for request in requests:
            yield Reply(answer=answer(build(request.trial.config, request.trial.dtype), request.trial))

    return UnderTest(rung(name), ask)


def trial_of(name: str, tied: bool = False) -> Trial:
    source = random.Random(1)
    case = next(case for case in iter(lambda: draw_case(source), None) if case.batch > 2 and case.seq > 3)
    config = replace(case.config, tie_word_embeddings=tied, unembed_bias=True, n_layers=2)
    return make_trial(rung(name), rung(name).own, replace(case, config=config), torch.float64, gradients=False)


@pytest.mark.parametrize(
    ("name", "tied"),
    [("layer-norm", False), ("attention", False), ("mlp", False), ("block", False), ("model", False), ("model", True)],
)
def test_fast_outputs_are_those_of_layers_that_are_built(name: str, tied: bool) -> None:
    """In any order, and with what was remembered of other mistakes, and put in places of a larger layer."""
    trial = trial_of(name, tied)
    fast = FastOutputs(trial, trial.expected.output)
    own = [each for each in MISTAKES if each.rung == name]
    inside = INSIDE.get(name, ())
    wrong = [(each.base, each.spellings[0]) for each in random.Random(0).sample(inside, min(60, len(inside)))]
    wrong += [(each.base, steps) for each in own for steps in each.spellings]
    one, other = random.Random(0).sample(own, 2)
    both = together(one.spellings[0], other.spellings[0])
    wrong += [(one.base, both)] if both else []
    random.Random(0).shuffle(wrong)
    for base, steps in wrong:
        right = answer(with_steps(base, steps)(trial.config, trial.dtype), trial, gradients=False).output
        assert close(fast.of(base, steps), right)
        assert fast.gives(base, steps) == close(right, trial.expected.output)
    assert fast.gives(own[0].base, {})


def test_a_wrong_part_is_taken_out_again_and_logits_stay_tied() -> None:
    trial = trial_of("model", tied=True)
    fast = FastOutputs(trial, trial.expected.output)
    base = entry("model", "positions not added").base
    for part in ("embed", "unembed"):
        builds = {part: next(each for each in MISTAKES if each.rung == part).build}
        assert not fast.gives(base, {"parts": lambda layer, config, builds=builds: builds})
        assert fast.gives(base, {})


@pytest.mark.parametrize(
    ("name", "mistakes"),
    [
        ("block", ("ln2 not applied", "residual added once")),
        ("block", ("post-norm after attention", "ln2 not applied")),
        ("mlp", ("2/pi for sqrt(2/pi) in GELU", "0.5 missing in GELU")),
        ("layer-norm", ("eps is always 1e-3", "bias not added")),
        ("attention", ("no causal mask", "output projection not applied")),
        ("attention", ("keys from W_V", "b_O not added")),
    ],
)
def test_both_of_two_mistakes_are_named(name: str, mistakes: tuple[str, str]) -> None:
    one, other = (entry(name, each) for each in mistakes)
    steps = together(one.spellings[0], other.spellings[0])
    assert steps is not None
    found = diagnose(built(name, with_steps(one.base, steps)))
    assert found is not None
    assert found.mistakes == mistakes


class TwiceWrong(Split):
    """No scale, and the heads laid side by side without a transpose: an error unless there are as many as positions."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        z = self.gathered(self.pattern(q @ k.mT), v)
        return self.out(z.reshape(*z.shape[:2], x.shape[-1]))


class Across(Split):
    """Heads and positions never change places, and the mask is one for positions."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.n_heads, self.d_head)) for each in self.parts(x))
        scores = q @ k.mT / self.d_head**0.5
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.out((scores.masked_fill(later, -torch.inf).softmax(-1) @ v).flatten(2))


@pytest.mark.parametrize(
    ("layer", "mistakes"),
    [
        (TwiceWrong, ("no 1/sqrt(d_head)", "z flattened without a transpose")),
        (Across, ("attention between heads at one position",)),
    ],
)
def test_a_layer_that_raises_is_tried_with_as_many_heads(layer: type[nn.Module], mistakes: tuple[str, ...]) -> None:
    found = climb(attention=layer, cases=3).rungs[-1]
    assert found.fault is not None
    assert found.fault.kind == "raises"
    assert found.mistakes == mistakes


class Hides(Split):
    fill = -30.0

    def pattern(self, scores: Tensor) -> Tensor:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, self.fill).softmax(-1)


class HidesMore(Hides):
    fill = -50.0


@pytest.mark.parametrize("layer", [Hides, HidesMore])
def test_a_mask_that_only_large_scores_show_is_named(layer: type[Hides]) -> None:
    found = climb(attention=layer, cases=3).rungs[-1]
    assert found.fault is not None
    assert "scores are in the hundreds" in found.fault.message
    assert found.mistakes == ("mask fills a number that large scores reach",)


def test_masks_for_large_scores_have_names_of_their_own() -> None:
    for name, mistakes in FINITE_MASKS.items():
        assert len({each.name for each in mistakes}) == len(mistakes)
        assert {each.rung for each in mistakes} == {name}


class InOneTensor(nn.Module):
    """Its biases are one parameter: what never reads b_O has a gradient of zeros for it."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.heads = cfg.n_heads
        self.W = nn.Parameter(torch.empty(4, cfg.d_model, cfg.d_model))
        self.b = nn.Parameter(torch.empty(4, cfg.d_model))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = ((x @ self.W[i] + self.b[i]).unflatten(-1, (self.heads, -1)).transpose(1, 2) for i in range(3))
        scores = q @ k.mT / k.shape[-1] ** 0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        z = scores.masked_fill(later, -torch.inf).softmax(-2) @ v
        return z.transpose(1, 2).flatten(2) @ self.W[3]


def test_a_part_of_a_parameter_that_is_never_read_is_one_of_two_mistakes() -> None:
    found = climb(attention=InOneTensor, cases=3).rungs[-1]
    assert found.mistakes == ("softmax over the queries", "b_O not added")
