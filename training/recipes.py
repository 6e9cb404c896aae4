"""A recipe for a text of the user's own: every value of a training run, chosen from the text.

The values were found by short trainings (benchmarks/recipes.py; benchmarks/results/cpu/recipes.json): byte pairs learnt
from the text need fewer bits per byte than characters at equal time, from 20 kB on; Muon needs about half the steps of
AdamW; and a small text needs a small model, more passes and more dropout.
"""

from dataclasses import dataclass

from ..assembly.config import GPT2Config
from .data.config import DataConfig
from .data.survey import MANY_CHARACTERS, TextSurvey, prompt_from
from .presets import OptimConfig, RunConfig, TrainConfig

__all__ = ["LEAST_CHARACTERS", "recipe_for_text"]

LEAST_CHARACTERS = 200
"""Length of the shortest text that there is a recipe for."""


@dataclass(frozen=True)
class _Sizes:
    """The values for texts up to a length in characters."""

    up_to: float
    vocab_size: int | None
    """Of byte pairs; None stands for characters."""
    d_model: int
    n_layers: int
    n_ctx: int
    dropout: float
    passes: float
    """Times through the training part."""
    most_steps: int


_SIZES = [
    _Sizes(5e3, None, 32, 2, 32, 0.2, 60, 200),
    _Sizes(50e3, 1024, 64, 2, 64, 0.2, 14, 400),
    _Sizes(300e3, 1024, 96, 3, 64, 0.2, 12, 1000),
    _Sizes(3e6, 2048, 128, 4, 128, 0.1, 9, 1800),
    _Sizes(30e6, 4096, 192, 4, 128, 0.0, 4, 2000),
    _Sizes(float("inf"), 4096, 256, 4, 128, 0.0, 4, 2000),
]
_BATCH = 16
_EVALUATIONS = 10
_PATIENCE = 4

# Byte pairs are joined within words. A text with fewer blanks than this (Chinese, DNA, Base64) has words of any length,
# which would become tokens whole; it is read by characters, unless it has too many different ones for that.
_BLANKS_BETWEEN_WORDS = 1 / 20
# An estimate for byte pairs, before there is a tokenizer.
_CHARACTERS_PER_TOKEN = 2.5

# Validation on more windows than this takes a notable part of the time.
_MOST_VALIDATION_WINDOWS = 2000


def recipe_for_text(survey: TextSurvey) -> TrainConfig:
    """Return the values to train with on a text, which a caller then completes with the text's name.

    Raises:
        ValueError: the text is shorter than `LEAST_CHARACTERS`.
    """
    length = survey.length
    if length < LEAST_CHARACTERS:
        raise ValueError(f"the text has {length} characters, too few to train on: give at least {LEAST_CHARACTERS}")

    # The vocabulary: characters, or byte pairs if there are many different ones, or if the text is long and has words.
    sizes = next(sizes for sizes in _SIZES if length <= sizes.up_to)
    has_words = survey.blanks >= _BLANKS_BETWEEN_WORDS * length
    byte_pairs = survey.characters >= MANY_CHARACTERS or (sizes.vocab_size is not None and has_words)
    tokens = length / _CHARACTERS_PER_TOKEN if byte_pairs and has_words else length
    vocab_size = sizes.vocab_size or DataConfig.vocab_size
    if not has_words:  # with so many different characters, the frequent ones should be tokens
        vocab_size = 4096

    # The context. The tenth for validation must hold a window and the target of its last token, even if tokens are
    # twice as long.
    longest = max(8, int(tokens) // 20 - 2)
    n_ctx = min(sizes.n_ctx, 1 << (longest.bit_length() - 1))

    # The number of updates, and how often the model is evaluated.
    steps = round(sizes.passes * 0.9 * tokens / (_BATCH * n_ctx))
    steps = max(100, min(sizes.most_steps, steps))
    every = steps // _EVALUATIONS
    windows = tokens / 10 / n_ctx
    return TrainConfig(
        data=DataConfig(tokenizer="bpe" if byte_pairs else "char", vocab_size=vocab_size),
        model=GPT2Config(d_model=sizes.d_model, n_layers=sizes.n_layers, n_heads=sizes.d_model // 32, n_ctx=n_ctx),
        dropout=sizes.dropout,
        optim=OptimConfig(
            batch=_BATCH,
            order="random",
            max_steps=steps,
            patience=_PATIENCE,
            optimizer="muon",
            muon_lr=0.03,
            lr=5e-3,
            min_lr=0.0,
            decay="linear",
            warmup_steps=steps // 20,
            beta2=0.99,
            weight_decay=0.1,
            precision="auto",
        ),
        run=RunConfig(
            eval_every=every,
            eval_batches=_MOST_VALIDATION_WINDOWS // _BATCH if windows > _MOST_VALIDATION_WINDOWS else None,
            snapshot_every=every,
            prompt=prompt_from(survey.opening),
        ),
    )
