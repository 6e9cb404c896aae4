"""A first look at a text, and the prompt that is taken from it."""

from pathlib import Path

import pytest

from gptladder.training.data.corpus import TextFiles
from gptladder.training.data.survey import MANY_CHARACTERS, TextSurvey, prompt_from, survey


def test_a_survey_counts_bytes_documents_and_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n  Füchse. 🙂")
    (tmp_path / "b.txt").write_text("One.<|endoftext|>Two.")
    result = survey(TextFiles(tmp_path))
    assert result == TextSurvey(
        size_bytes=17 + 8, documents=3, characters=15, opening="Füchse. 🙂One.Two.", length=13 + 8, blanks=5
    )
    assert result.kinds == "15"


def test_the_opening_is_short_and_characters_are_counted_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 5000))))
    result = survey(TextFiles(tmp_path / "a.txt"))
    assert (len(result.opening), result.characters, result.length) == (200, MANY_CHARACTERS, 5000)
    assert result.kinds == "1,000 or more"


@pytest.mark.parametrize(
    ("opening", "prompt"),
    [
        ("Call me Ishmael. Some years ago, never mind how long", "Call me Ishmael. Some"),
        ("First Citizen:\nBefore we proceed", "First Citizen:"),
        ("\n  Short", "Short"),
        ("ACGT" * 50, "ACGT" * 6),
        ("狐狸和鹅在睡觉。" * 20, "狐狸和鹅在睡觉。" * 3),
        ("Twenty-four characters a b", "Twenty-four characters a"),
    ],
)
def test_a_prompt_is_the_beginning_of_the_first_line(opening: str, prompt: str) -> None:
    assert prompt_from(opening) == prompt
