"""Transforms of single tokens: most of them change the logits of tokens that the text already contains."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import PADDING, Transform, check_in_vocabulary, number, token_ids, whole

__all__ = [
    "AllowedTokens",
    "BadWords",
    "FrequencyPenalty",
    "LogitBias",
    "MinNewTokens",
    "NoRepeatNGram",
    "PresencePenalty",
    "RepetitionPenalty",
]

_MOST = 1e6  # largest penalty: with a larger one, the differences between logits would be lost to float32 rounding
_MOST_BIAS = 1e9


@dataclass(frozen=True)
class LogitBias(Transform):
    """Add to the logits of chosen tokens; -inf bans one. (OpenAI's ``logit_bias``; transformers' ``SequenceBias``.)

    >>> LogitBias({0: -torch.inf, 2: 1.0})(torch.tensor([[0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-inf, 2., 4.]])

    Raises:
        ValueError: There is no token, an id is negative, or a bias is NaN or +inf. When called: an id is outside the
            vocabulary.
    """

    biases: Mapping[int, float] = field(hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.biases, Mapping):
            raise ValueError(f"logit_bias must be a dict of token ids and numbers, not {self.biases!r}")
        object.__setattr__(self, "biases", dict(self.biases))
        token_ids("logit_bias", self.biases)
        for token, bias in self.biases.items():
            if bias != -math.inf:
                number(f"logit_bias of token {token}", bias, -_MOST_BIAS, _MOST_BIAS, meaning=" (or -inf: never)")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        ids, biases = self._tensors
        check_in_vocabulary("logit_bias", ids, logits)
        return logits.index_add(1, ids.to(logits.device), biases.to(logits).expand(len(logits), -1))

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(list(self.biases)), torch.tensor(list(self.biases.values()), dtype=torch.float64)


@dataclass(frozen=True)
class RepetitionPenalty(Transform):
    """Divide the positive logits of tokens in the text, prompt included, by ``penalty``; multiply the negative ones.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1; transformers' ``RepetitionPenaltyLogitsProcessor``. A penalty
    under 1 rewards repetition.

    >>> RepetitionPenalty(2.0)(torch.tensor([[0, 1]]), torch.tensor([[1.0, -2.0, 3.0]]))
    tensor([[ 0.5000, -4.0000,  3.0000]])

    Raises:
        ValueError: the penalty is not above 0.
    """

    penalty: float

    def __post_init__(self) -> None:
        number("repetition_penalty", self.penalty, 1 / _MOST, _MOST, meaning=" (1 changes nothing)")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        return _change(logits, history, lambda seen: torch.where(seen < 0, seen * self.penalty, seen / self.penalty))


@dataclass(frozen=True)
class FrequencyPenalty(Transform):
    """Subtract ``penalty`` from a token's logit for each time it has been generated. The prompt does not count.

    From the OpenAI API reference, "Frequency and presence penalties": ``mu[j] - c[j] * alpha_frequency``. A negative
    penalty rewards repetition.

    >>> FrequencyPenalty(0.5, prompt_width=1)(torch.tensor([[0, 1, 1]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 1., 3.]])

    Raises:
        ValueError: the penalty is not finite, or ``prompt_width`` is negative.
    """

    penalty: float
    prompt_width: int

    def __post_init__(self) -> None:
        number("frequency_penalty", self.penalty, -_MOST, _MOST)
        whole("prompt_width", self.prompt_width, least=0)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        columns = _columns(history[:, self.prompt_width :])
        counts = logits.new_zeros(len(logits), 1 + logits.shape[1])
        counts.scatter_add_(1, columns, counts.new_ones(()).expand_as(columns))
        return torch.sub(logits, counts[:, 1:], alpha=self.penalty)


@dataclass(frozen=True)
class PresencePenalty(Transform):
    """Subtract ``penalty`` from a token's logit once it has been generated. The prompt does not count.

    From the OpenAI API reference, "Frequency and presence penalties": ``mu[j] - (c[j] > 0) * alpha_presence``. A
    negative penalty rewards repetition.

    >>> PresencePenalty(0.5, prompt_width=1)(torch.tensor([[0, 1, 1]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1.0000, 1.5000, 3.0000]])

    Raises:
        ValueError: the penalty is not finite, or ``prompt_width`` is negative.
    """

    penalty: float
    prompt_width: int

    def __post_init__(self) -> None:
        number("presence_penalty", self.penalty, -_MOST, _MOST)
        whole("prompt_width", self.prompt_width, least=0)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        return _change(logits, history[:, self.prompt_width :], lambda seen: seen - self.penalty)


@dataclass(frozen=True)
class NoRepeatNGram(Transform):
    """Ban every token that would complete an n-gram that occurs already in the text or its prompt.

    Paulus et al. 2017, arXiv:1705.04304, section 2.5; transformers' ``NoRepeatNGramLogitsProcessor``.

    >>> NoRepeatNGram(2)(torch.tensor([[0, 1, 0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., -inf, 3.]])

    Raises:
        ValueError: ``n`` is not a whole number of at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        whole("no_repeat_ngram_size", self.n, least=1)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        if history.shape[1] < self.n:
            return logits
        ngrams = history.unfold(1, self.n, 1)  # [batch, places, n]
        begun = history[:, history.shape[1] - (self.n - 1) :].unsqueeze(1)
        # Padding bans no token: the first token of a row is the only one that follows padding.
        banned = torch.where((ngrams[..., :-1] == begun).all(-1), ngrams[..., -1], PADDING)
        return _change(logits, banned, lambda logit: torch.full_like(logit, -torch.inf))


@dataclass(frozen=True)
class BadWords(Transform):
    """Ban sequences of tokens: ban the last token of a sequence if the text ends with the tokens before it.

    transformers' ``NoBadWordsLogitsProcessor``, except that an end token in this list is banned like any other token.

    >>> BadWords([[2], [0, 1]])(torch.tensor([[0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., -inf, -inf]])

    Raises:
        ValueError: There is no word, a word is empty, or an id is negative. When called: an id is outside the
            vocabulary.
    """

    words: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not isinstance(self.words, Iterable):
            raise ValueError(f"bad_words_ids must be a list of lists of token ids, not {self.words!r}")
        object.__setattr__(self, "words", tuple(token_ids("bad_words_ids", word) for word in self.words))
        if not self.words:
            raise ValueError("bad_words_ids must list at least one word")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        seq = history.shape[1]
        banned = []
        for words in self._by_length:  # [words, length]
            check_in_vocabulary("bad_words_ids", words, logits)
            words = words.to(logits.device)
            start = seq - (words.shape[1] - 1)  # where a word begins that the next token would complete
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
class MinNewTokens(Transform):
    """Ban the end tokens until ``least`` tokens have been generated.

    transformers' ``MinNewTokensLengthLogitsProcessor``.

    >>> MinNewTokens(2, [0], prompt_width=1)(torch.tensor([[1, 1]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-inf, 2., 3.]])

    Raises:
        ValueError: ``least`` or ``prompt_width`` is not a whole number of at least 0, there is no end token, or an id
            is negative. When called: an id is outside the vocabulary.
    """

    least: int
    eos_token_ids: Sequence[int]
    prompt_width: int

    def __post_init__(self) -> None:
        whole("min_new_tokens", self.least, least=0)
        object.__setattr__(self, "eos_token_ids", token_ids("eos_token_ids", self.eos_token_ids))
        whole("prompt_width", self.prompt_width, least=0)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        if history.shape[1] - self.prompt_width >= self.least:
            return logits
        ids = torch.tensor(self.eos_token_ids)
        check_in_vocabulary("eos_token_ids", ids, logits)
        return logits.index_fill(1, ids.to(logits.device), -torch.inf)


@dataclass(frozen=True)
class AllowedTokens(Transform):
    """Ban all tokens except these.

    transformers' ``PrefixConstrainedLogitsProcessor`` with one list for all prefixes. One difference: tokens that were
    banned before stay banned, even if no other token is left; drawing then raises an error.

    >>> AllowedTokens([0, 2])(torch.tensor([[1]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., -inf, 3.]])

    Raises:
        ValueError: There is no token, or an id is negative. When called: an id is outside the vocabulary.
    """

    ids: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", token_ids("allowed_token_ids", self.ids))

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        check_in_vocabulary("allowed_token_ids", self._index, logits)
        ids = self._index.to(logits.device)
        return torch.full_like(logits, -torch.inf).index_copy_(1, ids, logits.index_select(1, ids))

    @cached_property
    def _index(self) -> Tensor:
        return torch.tensor(self.ids)


def _columns(tokens: Tensor) -> Tensor:
    """Return the column of each token in a table [batch 1+d_vocab], whose column 0 is for padding."""
    return tokens.long() - PADDING


def _change(logits: Tensor, tokens: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the logits of the tokens of each row, each token once even if it occurs several times."""
    columns = _columns(tokens)
    # The prompt may hold ids that cannot be generated: they have no column.
    columns = columns.masked_fill(columns > logits.shape[1], 0)
    table = F.pad(logits, (1, 0))
    return table.scatter_(1, columns, change(table.gather(1, columns)))[:, 1:]
