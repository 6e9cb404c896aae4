"""Logits in, logits out: the pieces from which every way of sampling is composed.

A transform is any callable ``(history, logits) -> logits``. The transforms of this package are frozen dataclasses
without state: they do not change their arguments, they treat every row of the batch by itself, and they ban a token by
giving it the logit -inf. `Chain` runs several in order, and takes functions of your own:

>>> import torch
>>> chain = Chain((Temperature(0.5), TopK(2), lambda history, logits: logits - logits.amax(-1, keepdim=True)))
>>> chain(torch.tensor([[4, 2]]), torch.tensor([[1.0, 3.0, 2.0]]))
tensor([[-inf,  0., -2.]])

``history`` holds the text so far, prompt first, one row for each sequence. Two rules make a batch of prompts of
different lengths give the same result as each row alone:

* Rows are padded on the left with `PADDING` (-1), which is no token: nothing is penalised because of it, and it is
  part of no n-gram and no bad word. (What the model reads in those places is another tensor.)
* With the padding on the left, all prompts end at the same column. Transforms that count generated tokens only take
  that column as ``prompt_width``: the number of columns of ``history`` that belong to the prompts, padding included.

Where transformers has a processor of the same kind, the values are the same; each class names it. What changes single
tokens is in `tokens`, and what changes the distribution as a whole is in `distribution`.
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
