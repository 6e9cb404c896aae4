"""The recipe for a text fits the text: its windows fit the validation part, and small texts get small models."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptladder.assembly import GPT2
from gptladder.tokenizer import BPETokenizer, CharTokenizer
from gptladder.training.data.survey import TextSurvey
from gptladder.training.presets import TrainConfig
from gptladder.training.recipes import LEAST_CHARACTERS, recipe_for_text

ENGLISH = "It was the height of his glory, and she could not tell whether he knew: number {} of the things she saw.\n"
CHINESE = "".join(chr(0x4E00 + 37 * i % 900) for i in range(13)) + "。"


def survey_of(text: str) -> TextSurvey:
    blanks = text.count(" ") + text.count("\n")
    return TextSurvey(len(text.encode()), 1, min(1000, len(set(text))), text[:200], len(text), blanks)


def english(length: int, opening: str = "A text") -> TextSurvey:
    return TextSurvey(length, 1, 80, opening, length, length // 6)


def parameters(config: TrainConfig) -> int:
    d_vocab = 80 if config.data.tokenizer == "char" else config.data.vocab_size
    return GPT2(config.replace(d_vocab=d_vocab).model, device="meta").num_parameters()


@given(st.integers(LEAST_CHARACTERS, 10**10), st.integers(1, 1000), st.integers(1, 3), st.floats(0, 1))
def test_every_text_has_a_recipe(length: int, characters: int, width: int, blank: float) -> None:
    config = recipe_for_text(TextSurvey(width * length, 1, characters, "A text", length, int(blank * length)))
    optim = config.optim
    assert optim.max_steps is not None
    assert 100 <= optim.max_steps <= 2000
    assert optim.warmup_steps < optim.max_steps
    assert config.run.eval_every == config.run.snapshot_every == optim.max_steps // 10
    assert config.data.vocab_size <= 4096
    assert config.data.fraction == 1.0


@pytest.mark.parametrize("line", [ENGLISH, CHINESE], ids=["english", "chinese"])
@pytest.mark.parametrize("length", [200, 500, 4_999, 5_001, 20_000])
def test_the_validation_tenth_holds_a_window(line: str, length: int) -> None:
    # The Chinese lines differ too: each begins at another character.
    lines = (line.format(i) if line != CHINESE else "".join(chr(ord(c) + i % 300) for c in line) for i in range(length))
    text = "".join(islice(lines, length // len(line) + 1))[:length]
    config = recipe_for_text(survey_of(text))
    if config.data.tokenizer == "char":
        tokens = CharTokenizer.from_text([text]).encode(text)
    else:
        tokens = BPETokenizer.train(text, config.data.vocab_size).encode(text)
    assert len(tokens) // 10 > config.seq


def test_longer_texts_get_larger_models_and_fewer_passes() -> None:
    recipes = [recipe_for_text(english(n)) for n in (1_000, 20_000, 100_000, 10**6, 10**7, 10**8)]
    sizes = [parameters(config) for config in recipes]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)
    dropouts = [config.dropout or 0 for config in recipes]
    assert dropouts == sorted(dropouts, reverse=True)


def test_characters_for_the_smallest_and_byte_pairs_for_others() -> None:
    kinds = [recipe_for_text(english(n)).data.tokenizer for n in (200, 5_000, 5_001, 10**6)]
    assert kinds == ["char", "char", "bpe", "bpe"]


@pytest.mark.parametrize(("characters", "tokenizer"), [(5, "char"), (80, "char"), (999, "char"), (1000, "bpe")])
def test_a_text_without_words_is_read_by_characters(characters: int, tokenizer: str) -> None:
    config = recipe_for_text(TextSurvey(3 * 10**6, 1, characters, "A text", 10**6, 10**4))
    assert config.data.tokenizer == tokenizer
    assert config.data.vocab_size == 4096


def test_long_validation_is_cut_and_short_is_whole() -> None:
    assert recipe_for_text(english(10**6)).run.eval_batches is None
    assert recipe_for_text(english(10**8)).run.eval_batches == 125


def test_samples_begin_as_the_text_does() -> None:
    assert recipe_for_text(english(10**6, "Call me Ishmael. Some years ago")).run.prompt == ("Call me Ishmael. Some")


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="the text has 199 characters, too few to train on: give at least 200"):
        recipe_for_text(english(199))
