"""Logits in, logits out: the pieces of which every way of sampling is put together.

A transform is any callable ``(history, logits) -> logits``. Those here are frozen dataclasses without state: they leave
their arguments alone, treat every row of the batch by itself, and ban a token by giving it the logit -inf. `Chain`
runs several in order, a function of your own among them:

    chain = Chain((Temperature(0.8), TopK(50), lambda history, logits: logits - logits.mean(-1, keepdim=True)))

``history`` holds the text so far, prompt first, one row for each sequence. Two rules make batches of prompts of
different lengths behave as if every row were alone:

* Rows are padded on the left with `PADDING` (-1), which is no token: nothing is penalised because of it, and no n-gram
  and no bad word is formed with it. (What the model reads in those places is another tensor and another matter.)
* With the padding on the left all prompts end at the same column. Transforms that count generated tokens only take it
  as ``prompt_width``: the columns of ``history`` that belong to the prompts, padding included.

Where transformers has a processor of the same kind, the values are the same; each class names it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..components.shapes import shape_checked

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

PADDING = -1
"""What stands in ``history`` to the left of a prompt that is shorter than its batch's longest."""


class LogitsTransform(Protocol):
    """What a chain is made of: any function of history and logits that gives the new logits."""

    def __call__(self, history: Tensor, logits: Tensor, /) -> Tensor:
        """Give new logits, or the same tensor where there is nothing to change."""
        ...


class _Transform(ABC):
    """What the transforms below have in common: the check of shapes."""

    @shape_checked
    def __call__(
        self, history: Int[Tensor, "batch seq"], logits: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Give new logits, or the same tensor where there is nothing to change.

        Args:
            history: the tokens so far of each row, padded on the left with `PADDING`.
            logits: of the next token, float32 or float64.

        Raises:
            TypeCheckError: a wrong shape or dtype.
        """
        return self._apply(history, logits)

    @abstractmethod
    def _apply(self, history: Tensor, logits: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Chain(_Transform):
    """Transforms one after another; itself a transform.

    Raises:
        ValueError: a step is not callable.
    """

    transforms: Sequence[LogitsTransform] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for transform in self.transforms:
            if not callable(transform):
                raise ValueError(
                    f"a step of the chain must be a callable (history, logits) -> logits, not {transform!r}"
                )

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        for transform in self.transforms:
            logits = transform(history, logits)
        return logits


# Changes to single tokens, most of them by what the text holds already.


@dataclass(frozen=True)
class LogitBias(_Transform):
    """Add to the logits of chosen tokens; -inf bans one. (OpenAI's ``logit_bias``; transformers' ``SequenceBias``.)

    Raises:
        ValueError: no token, a negative id, a bias that is NaN or +inf; when called, an id outside the vocabulary.
    """

    biases: Mapping[int, float] = field(hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "biases", dict(self.biases))
        _token_ids("logit_bias", self.biases)
        for token, bias in self.biases.items():
            if math.isnan(bias) or bias == math.inf:
                raise ValueError(f"logit_bias must be a number or -inf, not {bias} (token {token})")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        ids, biases = self._tensors
        _check_in_vocabulary("logit_bias", ids, logits)
        return logits.index_add(1, ids.to(logits.device), biases.to(logits).expand(len(logits), -1))

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(list(self.biases)), torch.tensor(list(self.biases.values()), dtype=torch.float64)


@dataclass(frozen=True)
class RepetitionPenalty(_Transform):
    """Divide the positive logits of tokens in the text, prompt included, by ``penalty``; multiply the negative ones.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1; transformers' ``RepetitionPenaltyLogitsProcessor``. A penalty
    under 1 rewards repetition.

    Raises:
        ValueError: the penalty is not above 0.
    """

    penalty: float

    def __post_init__(self) -> None:
        if not 0 < self.penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0 (1 changes nothing), not {self.penalty}")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        return _change(logits, history, lambda seen: torch.where(seen < 0, seen * self.penalty, seen / self.penalty))


@dataclass(frozen=True)
class FrequencyPenalty(_Transform):
    """Subtract ``penalty`` from a token's logit for each time it has been generated. The prompt does not count.

    From the OpenAI API reference, "Frequency and presence penalties": ``mu[j] - c[j] * alpha_frequency``. A negative
    penalty rewards repetition.

    Raises:
        ValueError: the penalty is not finite, or ``prompt_width`` is negative.
    """

    penalty: float
    prompt_width: int

    def __post_init__(self) -> None:
        _check_finite("frequency_penalty", self.penalty)
        _check_whole("prompt_width", self.prompt_width, least=0)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        columns = _columns(history[:, self.prompt_width :])
        counts = logits.new_zeros(len(logits), 1 + logits.shape[1])
        counts.scatter_add_(1, columns, counts.new_ones(()).expand_as(columns))
        return torch.sub(logits, counts[:, 1:], alpha=self.penalty)


@dataclass(frozen=True)
class PresencePenalty(_Transform):
    """Subtract ``penalty`` from a token's logit once it has been generated. The prompt does not count.

    From the OpenAI API reference, "Frequency and presence penalties": ``mu[j] - (c[j] > 0) * alpha_presence``. A
    negative penalty rewards repetition.

    Raises:
        ValueError: the penalty is not finite, or ``prompt_width`` is negative.
    """

    penalty: float
    prompt_width: int

    def __post_init__(self) -> None:
        _check_finite("presence_penalty", self.penalty)
        _check_whole("prompt_width", self.prompt_width, least=0)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        return _change(logits, history[:, self.prompt_width :], lambda seen: seen - self.penalty)


@dataclass(frozen=True)
class NoRepeatNGram(_Transform):
    """Ban every token that would complete an n-gram the text, prompt included, already holds.

    Paulus et al. 2017, arXiv:1705.04304, section 2.5; transformers' ``NoRepeatNGramLogitsProcessor``.

    Raises:
        ValueError: ``n`` is not a whole number of at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        _check_whole("no_repeat_ngram_size", self.n, least=1)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        if history.shape[1] < self.n:
            return logits
        ngrams = history.unfold(1, self.n, 1)  # [batch, places, n]
        begun = history[:, history.shape[1] - (self.n - 1) :].unsqueeze(1)
        # Padding bans nothing: what follows it in a row, the first token, follows it only once.
        banned = torch.where((ngrams[..., :-1] == begun).all(-1), ngrams[..., -1], PADDING)
        return _change(logits, banned, lambda logit: torch.full_like(logit, -torch.inf))


@dataclass(frozen=True)
class BadWords(_Transform):
    """Ban the last token of each word, a sequence of ids, wherever the text, prompt included, ends in the rest of it.

    transformers' ``NoBadWordsLogitsProcessor``, except that an end token listed here is banned like any other.

    Raises:
        ValueError: no word, an empty word, a negative id; when called, an id outside the vocabulary.
    """

    words: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(_token_ids("bad_words_ids", word) for word in self.words))
        if not self.words:
            raise ValueError("bad_words_ids must list at least one word")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        seq = history.shape[1]
        banned = []
        for words in self._by_length:  # [words, length]
            _check_in_vocabulary("bad_words_ids", words, logits)
            words = words.to(logits.device)
            start = seq - (words.shape[1] - 1)  # where a word must have begun for the next token to end it
            if start >= 0:
                begun = (history[:, None, start:] == words[:, :-1]).all(-1)  # [batch, words]
                banned.append(torch.where(begun, words[:, -1], PADDING))
        if not banned:
            return logits
        return _change(logits, torch.cat(banned, dim=1), lambda logit: torch.full_like(logit, -torch.inf))

    @cached_property
    def _by_length(self) -> list[Tensor]:
        lengths = sorted({len(word) for word in self.words})
        return [torch.tensor([word for word in self.words if len(word) == length]) for length in lengths]


@dataclass(frozen=True)
class MinNewTokens(_Transform):
    """Ban the end tokens until ``least`` tokens have been generated.

    transformers' ``MinNewTokensLengthLogitsProcessor``.

    Raises:
        ValueError: ``least`` or ``prompt_width`` is not a whole number of at least 0, no end token, a negative id; when
            called, an id outside the vocabulary.
    """

    least: int
    eos_token_ids: Sequence[int]
    prompt_width: int

    def __post_init__(self) -> None:
        _check_whole("min_new_tokens", self.least, least=0)
        object.__setattr__(self, "eos_token_ids", _token_ids("eos_token_ids", self.eos_token_ids))
        _check_whole("prompt_width", self.prompt_width, least=0)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        if history.shape[1] - self.prompt_width >= self.least:
            return logits
        ids = torch.tensor(self.eos_token_ids)
        _check_in_vocabulary("eos_token_ids", ids, logits)
        return logits.index_fill(1, ids.to(logits.device), -torch.inf)


@dataclass(frozen=True)
class AllowedTokens(_Transform):
    """Ban every token but these.

    transformers' ``PrefixConstrainedLogitsProcessor`` with one list for all prefixes, except that tokens banned before
    stay banned where no other is left; drawing then says so.

    Raises:
        ValueError: no token, a negative id; when called, an id outside the vocabulary.
    """

    ids: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _token_ids("allowed_token_ids", self.ids))

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        _check_in_vocabulary("allowed_token_ids", self._index, logits)
        ids = self._index.to(logits.device)
        return torch.full_like(logits, -torch.inf).index_copy_(1, ids, logits.index_select(1, ids))

    @cached_property
    def _index(self) -> Tensor:
        return torch.tensor(self.ids)


# Changes to the distribution as a whole. Each keeps the likeliest token, `Typical` excepted.


@dataclass(frozen=True)
class Temperature(_Transform):
    """Divide the logits: under 1 sharpens the distribution, above 1 flattens it.

    transformers' ``TemperatureLogitsWarper``. The limit 0 is not a transform but another way to draw: `draw.greedy`.

    Raises:
        ValueError: the temperature is not above 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 (or 0 in SamplingParams: greedy), not {self.temperature}")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        return logits / self.temperature


@dataclass(frozen=True)
class TopK(_Transform):
    """Keep the ``k`` likeliest tokens, and those that tie with the last of them (all, if ``k`` exceeds ``d_vocab``).

    Fan et al. 2018, arXiv:1805.04833; transformers' ``TopKLogitsWarper``.

    Raises:
        ValueError: ``k`` is not a whole number of at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        _check_whole("top_k", self.k, least=1)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        kth = logits.topk(min(self.k, logits.shape[1])).values[:, -1:]
        return logits.masked_fill(logits < kth, -torch.inf)


@dataclass(frozen=True)
class TopP(_Transform):
    """Keep the fewest tokens, likeliest first, whose probabilities sum to at least ``p``; which of tied ones is open.

    Holtzman et al. 2020, arXiv:1904.09751, section 3.1; transformers' ``TopPLogitsWarper``.

    Raises:
        ValueError: ``p`` is not above 0 and at most 1.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (which keeps all), not {self.p}")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        if self.p == 1:  # the sum of all may round to 1 before the last token
            return logits
        ids, needed = _fewest_with_mass(self.p, ranking=logits, log_probs=logits.log_softmax(-1))
        kept = logits.gather(1, ids).masked_fill(~needed, -torch.inf)
        return torch.full_like(logits, -torch.inf).scatter_(1, ids, kept)


@dataclass(frozen=True)
class MinP(_Transform):
    """Keep the tokens at least ``p`` times as probable as the likeliest.

    Nguyen et al. 2024, arXiv:2407.01082; transformers' ``MinPLogitsWarper``.

    Raises:
        ValueError: ``p`` is not from 0 to 1.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"min_p must be from 0 (which keeps all) to 1, not {self.p}")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        if self.p == 0:
            return logits
        # A ratio of probabilities is a difference of logits: no softmax is needed.
        return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(self.p), -torch.inf)


@dataclass(frozen=True)
class Typical(_Transform):
    """Keep the fewest tokens of probability at least ``mass``, those first whose surprise is nearest to the entropy.

    Meister et al. 2023, arXiv:2202.00666; transformers' ``TypicalLogitsWarper``. Tokens that tie with the
    last one are kept. The likeliest token may go.

    Raises:
        ValueError: ``mass`` is not between 0 and 1.
    """

    mass: float

    def __post_init__(self) -> None:
        if not 0 < self.mass < 1:
            raise ValueError(f"typical_p must be between 0 and 1 (or 1 in SamplingParams: off), not {self.mass}")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        distance = (log_probs + _entropy(log_probs)).abs()
        ids, needed = _fewest_with_mass(self.mass, ranking=-distance, log_probs=log_probs)
        last = (needed.sum(-1, keepdim=True) - 1).clamp(min=0)  # none is needed where all are banned
        return logits.masked_fill(distance > distance.gather(1, ids.gather(1, last)), -torch.inf)


@dataclass(frozen=True)
class Epsilon(_Transform):
    """Keep the tokens of probability at least ``epsilon``, and the likeliest in any case.

    Hewitt et al. 2022, arXiv:2210.15191; transformers' ``EpsilonLogitsWarper``.

    Raises:
        ValueError: ``epsilon`` is not between 0 and 1.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(
                f"epsilon_cutoff must be between 0 and 1 (or 0 in SamplingParams: off), not {self.epsilon}"
            )

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        return _cut_improbable(logits, logits.log_softmax(-1), math.log(self.epsilon))


@dataclass(frozen=True)
class Eta(_Transform):
    """Keep the tokens of probability at least min(epsilon, sqrt(epsilon) · exp(-entropy)), and the likeliest.

    Hewitt et al. 2022, arXiv:2210.15191; transformers' ``EtaLogitsWarper``.

    Raises:
        ValueError: ``epsilon`` is not between 0 and 1.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"eta_cutoff must be between 0 and 1 (or 0 in SamplingParams: off), not {self.epsilon}")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        log_epsilon = math.log(self.epsilon)
        return _cut_improbable(logits, log_probs, (log_epsilon / 2 - _entropy(log_probs)).clamp(max=log_epsilon))


def _columns(tokens: Tensor) -> Tensor:
    """Where each token stands in a table [batch 1+d_vocab], whose column 0 takes up the padding."""
    return tokens.long() - PADDING


def _change(logits: Tensor, tokens: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the logits of each row's own tokens, those that stand there twice only once."""
    columns = _columns(tokens)
    table = F.pad(logits, (1, 0))
    return table.scatter_(1, columns, change(table.gather(1, columns)))[:, 1:]


def _fewest_with_mass(mass: float, ranking: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """The best-ranked tokens in order, as ids [batch k], and whether the mass needs each of them, Bool[batch k].

    To sort 50,257 logits takes a CPU milliseconds, and the mass nearly always lies in the first few hundred: so more
    and more of them are looked at, and all only where it must be.
    """
    k, d_vocab = 256, ranking.shape[1]
    while True:
        ids = ranking.topk(min(k, d_vocab)).indices
        probs = log_probs.gather(1, ids).double().exp()
        reached = probs.cumsum(-1)
        if k >= d_vocab or bool((reached[:, -1] >= mass).all()):
            return ids, reached - probs < mass
        k *= 16


def _entropy(log_probs: Tensor) -> Tensor:
    """In nats, Float[batch 1]."""
    return -(log_probs.exp() * log_probs).nansum(-1, keepdim=True)  # a banned token's term is 0 · -inf


def _cut_improbable(logits: Tensor, log_probs: Tensor, log_cutoff: Tensor | float) -> Tensor:
    likeliest = logits == logits.amax(-1, keepdim=True)
    return logits.masked_fill((log_probs < log_cutoff) & ~likeliest, -torch.inf)


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")


def _token_ids(name: str, ids: Iterable[int]) -> tuple[int, ...]:
    ids = tuple(ids)
    if not ids:
        raise ValueError(f"{name} must name at least one token")
    for token in ids:
        if not isinstance(token, int) or token < 0:
            raise ValueError(f"{name} must hold token ids, whole numbers of at least 0, not {token!r}")
    return ids


def _check_in_vocabulary(name: str, ids: Tensor, logits: Tensor) -> None:
    largest, d_vocab = int(ids.max()), logits.shape[1]
    if largest >= d_vocab:
        raise ValueError(f"{name} names token {largest}, but the vocabulary ends at {d_vocab - 1}")
