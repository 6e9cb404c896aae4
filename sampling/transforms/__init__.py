"""Transforms of logits: composable functions that change which tokens can be sampled, and how probable they are.

A transform is any callable ``(history, logits) -> logits``. The transforms of this package are frozen dataclasses
without state. They do not change their arguments, they compute every row of the batch independently, and they ban a
token by giving it the logit -inf. `Chain` applies several in order, and accepts your own functions too:

>>> import torch
>>> chain = Chain((Temperature(0.5), TopK(2), lambda history, logits: logits - logits.amax(-1, keepdim=True)))
>>> chain(torch.tensor([[4, 2]]), torch.tensor([[1.0, 3.0, 2.0]]))
tensor([[-inf,  0., -2.]])

``history`` holds the tokens so far, one row per sequence, with the prompt first. Two rules make sure that a batch of
prompts of different lengths gives the same result as each row alone:

* Rows are padded on the left with `PADDING` (-1), which is not a token: it causes no penalty, and is never part of an
  n-gram or a bad word. (The model itself reads another tensor.)
* Because of the padding on the left, all prompts end at the same column. Transforms that count only generated tokens
  take that column as ``prompt_width``: the number of columns of ``history`` that belong to the prompts and padding.

If transformers has a processor of the same kind, the values are the same, and the docstring names it. The module
`tokens` holds transforms of single tokens, and `distribution` those of the whole distribution.
"""

from .base import PADDING, Chain, LogitsTransform
from .distribution import Epsilon, Eta, MinP, Temperature, TopK, TopP, Typical
from .tokens import (
    AllowedTokens,
    BadWords,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
)

__all__ = [
    "PADDING",
    "AllowedTokens",
    "BadWords",
    "Chain",
    "Epsilon",
    "Eta",
    "FrequencyPenalty",
    "LogitBias",
    "LogitsTransform",
    "MinNewTokens",
    "MinP",
    "NoRepeatNGram",
    "PresencePenalty",
    "RepetitionPenalty",
    "Temperature",
    "TopK",
    "TopP",
    "Typical",
]
