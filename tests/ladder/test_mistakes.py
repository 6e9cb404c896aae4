"""Wrong layers: the rung fails each of them, and the plain layers that they are made from hold."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn

from gptladder.ladder.answers import same
from gptladder.ladder.mistakes import INSIDE, MISTAKES, Mistake
from gptladder.ladder.mistakes.embeddings import EMBED, UNEMBED, PlainEmbed, PlainUnembed
from gptladder.ladder.mistakes.mistake import with_steps
from gptladder.ladder.mistakes.model import PlainModel
from gptladder.ladder.rungs import FLOAT64_TOLERANCE, Build, answer, cases, compare, make_trial, rung

SPELLED = [(mistake, build) for mistake in MISTAKES for build in mistake.builds]
NAMES = [f"{mistake.rung}: {mistake.name}" for mistake, _ in SPELLED]
BASES = list(dict.fromkeys((mistake.rung, mistake.base) for mistake in MISTAKES))

# transformers' GPT-2 ties its weights and has no b_U: there these are right.
RIGHT_IN_TRANSFORMERS = {
    "b_U not added",
    "b_U twice",
    "logits from W_E",
    "logits from W_E, without b_U",
}


AGAINST = [
    pytest.param(mistake, build, library, id=f"{name}-{['TransformerLens', 'transformers'][library]}")
    for (mistake, build), name in zip(SPELLED, NAMES, strict=True)
    for library in (0, 1)
    if not (library == 1 and mistake.name in RIGHT_IN_TRANSFORMERS)
]


def caught(mistake: Mistake, build: Build, library: int, seed: int) -> bool:
    """Not by a hair: by a hundred times what rounding may do."""
    judged = rung(mistake.rung)
    found = (compare(judged, judged.references[library], case, torch.float64, build) for case in cases(seed, 25))
    return any(max(each) > 100 * FLOAT64_TOLERANCE for each in found)


@pytest.mark.parametrize(("mistake", "build", "library"), AGAINST)
def test_its_rung_fails_it(mistake: Mistake, build: Build, library: int) -> None:
    assert caught(mistake, build, library, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 20))
def test_its_rung_fails_it_whatever_the_seed(seed: int) -> None:
    for each in AGAINST:
        assert caught(*cast(tuple[Mistake, Build, int], each.values), seed), each.id


@pytest.mark.parametrize(("mistake", "build"), SPELLED, ids=NAMES)
def test_it_takes_the_weights_and_gives_the_right_shape(mistake: Mistake, build: Build) -> None:
    judged = rung(mistake.rung)
    for case in cases(1, 2):
        config = judged.references[0].adapt(case.config)
        layer = build(config, torch.float64)
        given = judged.input(case, torch.float64, torch.Generator().manual_seed(0))
        right = judged.build(config, torch.float64)
        assert layer(given).shape == right(given).shape


@pytest.mark.parametrize(("name", "base"), BASES, ids=[name for name, _ in BASES])
def test_with_no_step_replaced_the_layer_is_right(name: str, base: type[nn.Module]) -> None:
    """So each mistake is wrong by its mistake alone."""
    judged = rung(name)
    for case in cases(2, 6):
        for reference in judged.references:
            found = compare(judged, reference, case, torch.float64, base)
            assert max(found) <= FLOAT64_TOLERANCE, (reference.library, case)


@pytest.mark.parametrize("bias", [True, False])
def test_mistakes_inside_a_tied_model_stay_tied(bias: bool) -> None:
    """A wrong embedding's table is the output projection's, and the one gradient of both is there."""
    case = next(case for case in cases(3, 50) if case.config.n_layers == 1)
    case = replace(case, config=replace(case.config, tie_word_embeddings=True, unembed_bias=bias))
    trial = make_trial(rung("model"), rung("model").own, case, torch.float64)
    tables = {mistake.name for mistake in (*EMBED, *UNEMBED)}
    for mistake in INSIDE["model"]:
        if mistake.name in tables or mistake.name.startswith("ln_final"):
            found = answer(mistake.build(case.config, torch.float64), trial)
            assert found.gradients.keys() <= trial.expected.gradients.keys(), mistake.name
            assert "embed.W_E" in found.gradients, mistake.name
    parts = {"embed": PlainEmbed, "unembed": PlainUnembed}
    plain = with_steps(PlainModel, {"parts": lambda layer, config: parts})
    assert same(answer(plain(case.config, torch.float64), trial), trial.expected)


def test_a_wrong_step_takes_the_place_of_a_right_one() -> None:
    for mistake in (*MISTAKES, *INSIDE["block"], *INSIDE["model"]):
        for steps in mistake.spellings:
            assert [name for name in steps if not hasattr(mistake.base, name)] == [], mistake.name


def test_the_catalogue_names_each_mistake_once_on_each_rung() -> None:
    assert {mistake.rung for mistake in MISTAKES} == {
        "embed",
        "pos-embed",
        "layer-norm",
        "attention",
        "mlp",
        "block",
        "unembed",
        "model",
    }
    assert len({(mistake.rung, mistake.name) for mistake in MISTAKES}) == len(MISTAKES) >= 140
    for name, mistakes in INSIDE.items():
        assert len({mistake.name for mistake in mistakes}) == len(mistakes)
        assert all(mistake.rung == name for mistake in mistakes)


def test_every_hint_is_a_whole_sentence() -> None:
    for mistake in MISTAKES:
        assert mistake.hint.endswith((".", "…")), mistake.name
        assert len(mistake.hint.split()) >= 7, mistake.name
