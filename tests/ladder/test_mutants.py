"""Wrong layers: the rung fails each of them, and the right ones beside them hold."""

import pytest
import torch

from gptladder.ladder.climb import judge
from gptladder.ladder.mutants import MUTANTS
from gptladder.ladder.rungs import cases, compare, rung


@pytest.mark.parametrize("library", [0, 1], ids=["TransformerLens", "transformers"])
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mistake)
def test_its_rung_fails_it(mutant, library):
    judged = rung(mutant.rung)
    verdict = judge(judged, judged.references[library], number=8, build=mutant.build)
    assert not verdict.passed
    # Not by a hair: in float32 as well, where a student may look first.
    assert verdict.float32 > verdict.tolerance32


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mistake)
def test_it_takes_the_weights_and_gives_the_shape_so_that_only_the_numbers_tell(mutant):
    judged = rung(mutant.rung)
    for case in cases(1, 5):
        found = compare(judged, judged.references[0], case, torch.float64, mutant.build)
        assert found.output != float("inf")


def test_the_list_names_each_mistake_once():
    assert len({mutant.mistake for mutant in MUTANTS}) == len(MUTANTS) >= 15
