"""A classifier made of our layers: what it is shown is right, and it learns it."""

from types import ModuleType

import pytest
import torch

DEMO = "layers_in_a_classifier"


def test_half_of_the_strings_are_balanced_and_the_answers_are_right(demo: ModuleType) -> None:
    brackets, answers = demo.draw(200, torch.Generator().manual_seed(0))
    assert brackets.shape == (200, demo.LENGTH)
    assert answers.sum() == 100
    for string, answer in zip(brackets.tolist(), answers.tolist(), strict=True):
        text = "".join("()"[bracket] for bracket in string)
        assert text.count("(") == text.count(")")
        while "()" in text:
            text = text.replace("()", "")
        assert (text == "") == bool(answer)


def test_every_parameter_gets_a_gradient(demo: ModuleType) -> None:
    model = demo.Classifier()
    brackets, answers = demo.draw(8, torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(model(brackets), answers).backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_it_learns_in_seconds(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(["--steps", "100"])
    before, after = capsys.readouterr().out.splitlines()
    assert before == "before training: 50% right"
    assert float(after.split()[3].rstrip("%")) > 95
