"""A recipe for a text of the user's own: every value of a training run, chosen from the text."""

from ..assembly.config import GPT2Config
from .data.config import DataConfig
from .data.survey import TextSurvey, prompt_from
from .presets import OptimConfig, RunConfig, TrainConfig

__all__ = ["LEAST_CHARACTERS", "recipe_for_text"]

LEAST_CHARACTERS = 200
"""Length of the shortest text that there is a recipe for."""


def recipe_for_text(survey: TextSurvey) -> TrainConfig:
    """Return the values to train with on a text, which a caller then completes with the text's name.

    Raises:
        ValueError: the text is shorter than `LEAST_CHARACTERS`.
    """
    if survey.length < LEAST_CHARACTERS:
        raise ValueError(
            f"the text has {survey.length} characters, too few to train on: give at least {LEAST_CHARACTERS}"
        )
    alphabet = survey.characters <= 200
    tokens = survey.length if alphabet else survey.size_bytes // 4
    # The tenth that is held back must hold a window and the target of its last token.
    longest = max(8, tokens // 10 - 2)
    n_ctx = next(size for size in (128, 64, 32, 16, 8) if size <= longest)
    if tokens < 50_000:
        d_model, n_layers, n_heads, passes = 64, 2, 4, 20.0
    elif tokens < 500_000:
        d_model, n_layers, n_heads, passes = 96, 3, 4, 12.0
    else:
        d_model, n_layers, n_heads, passes = 128, 4, 4, 4.0
    batch = 16
    steps = round(min(4000, max(200, passes * tokens * 0.9 / (batch * n_ctx))))
    every = max(10, steps // 10)
    return TrainConfig(
        data=DataConfig(tokenizer="char" if alphabet else "bpe", vocab_size=min(4096, max(320, tokens // 100))),
        model=GPT2Config(d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_ctx=n_ctx),
        dropout=0.1,
        optim=OptimConfig(
            batch=batch,
            max_steps=steps,
            lr=2e-3,
            min_lr=1e-4,
            warmup_steps=min(100, steps // 10),
            beta2=0.99,
            weight_decay=0.1,
            precision="auto",
        ),
        run=RunConfig(
            eval_every=every,
            eval_batches=64,
            snapshot_every=every,
            prompt=prompt_from(survey.opening),
        ),
    )
