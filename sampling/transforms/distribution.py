"""Transforms of the whole distribution. All of them keep the most probable token, except `Typical`."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Transform, number, whole

__all__ = ["Epsilon", "Eta", "MinP", "Temperature", "TopK", "TopP", "Typical"]


@dataclass(frozen=True)
class Temperature(Transform):
    """Divide the logits: under 1 sharpens the distribution, above 1 flattens it.

    transformers' ``TemperatureLogitsWarper``. A temperature of 0 is not a transform: it means `draw.greedy`.

    >>> Temperature(0.5)(torch.tensor([[0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[2., 4., 6.]])

    Raises:
        ValueError: the temperature is not above 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        number("temperature", self.temperature, 1e-6, 1e6, meaning=" (0 is no transform but greedy decoding)")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        return logits / self.temperature


@dataclass(frozen=True)
class TopK(Transform):
    """Keep the ``k`` most probable tokens, and those equal to the last of them (all, if ``k`` exceeds ``d_vocab``).

    Fan et al. 2018, arXiv:1805.04833; transformers' ``TopKLogitsWarper``.

    >>> TopK(2)(torch.tensor([[0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-inf, 2., 3.]])

    Raises:
        ValueError: ``k`` is not a whole number of at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        whole("top_k", self.k, least=1)

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        kth = logits.topk(min(self.k, logits.shape[1])).values[:, -1:]
        return logits.masked_fill(logits < kth, -torch.inf)


@dataclass(frozen=True)
class TopP(Transform):
    """Keep the smallest set of most probable tokens whose probabilities sum to at least ``p``.

    If several tokens are equally probable at the end of the set, it is not defined which of them are kept.

    Holtzman et al. 2020, arXiv:1904.09751, section 3.1; transformers' ``TopPLogitsWarper``.

    >>> TopP(0.7)(torch.tensor([[0]]), torch.tensor([[0.0, 2.0, 2.5]]))
    tensor([[  -inf, 2.0000, 2.5000]])

    Raises:
        ValueError: ``p`` is not above 0 and at most 1.
    """

    p: float

    def __post_init__(self) -> None:
        number("top_p", self.p, 0, 1, ends="high", meaning=" (which keeps all)")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        if self.p == 1:  # because of rounding, the sum may reach 1 before the last token
            return logits
        ids, needed = _fewest_with_mass(self.p, ranking=logits, log_probs=logits.log_softmax(-1))
        kept = logits.gather(1, ids).masked_fill(~needed, -torch.inf)
        return torch.full_like(logits, -torch.inf).scatter_(1, ids, kept)


@dataclass(frozen=True)
class MinP(Transform):
    """Keep the tokens at least ``p`` times as probable as the most probable one.

    Nguyen et al. 2024, arXiv:2407.01082; transformers' ``MinPLogitsWarper``.

    >>> MinP(0.5)(torch.tensor([[0]]), torch.tensor([[0.0, 2.0, 2.5]]))
    tensor([[  -inf, 2.0000, 2.5000]])

    Raises:
        ValueError: ``p`` is not from 0 to 1.
    """

    p: float

    def __post_init__(self) -> None:
        number("min_p", self.p, 0, 1, meaning=" (0 keeps all)")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        if self.p == 0:
            return logits
        # A ratio of probabilities is a difference of logits: no softmax is needed.
        return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(self.p), -torch.inf)


@dataclass(frozen=True)
class Typical(Transform):
    """Keep the smallest set of most typical tokens whose probabilities sum to at least ``mass``.

    The most typical token is the one whose surprise, -log(probability), is nearest to the entropy. Tokens that are as
    typical as the last of the set are kept too. The most probable token may be banned.

    Meister et al. 2023, arXiv:2202.00666; transformers' ``TypicalLogitsWarper``.

    >>> Typical(0.5)(torch.tensor([[0]]), torch.tensor([[0.0, 2.0, 2.5]]))
    tensor([[  -inf, 2.0000, 2.5000]])

    Raises:
        ValueError: ``mass`` is not between 0 and 1.
    """

    mass: float

    def __post_init__(self) -> None:
        number("typical_p", self.mass, 0, 1, ends="none", meaning=" (1 keeps all)")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        distance = (log_probs + _entropy(log_probs)).abs()
        ids, needed = _fewest_with_mass(self.mass, ranking=-distance, log_probs=log_probs)
        last = (needed.sum(-1, keepdim=True) - 1).clamp(min=0)  # if all tokens are banned, none is needed
        return logits.masked_fill(distance > distance.gather(1, ids.gather(1, last)), -torch.inf)


@dataclass(frozen=True)
class Epsilon(Transform):
    """Keep the tokens of probability at least ``epsilon``, and always the most probable one.

    Hewitt et al. 2022, arXiv:2210.15191; transformers' ``EpsilonLogitsWarper``.

    >>> Epsilon(0.1)(torch.tensor([[0]]), torch.tensor([[0.0, 2.0, 2.5]]))
    tensor([[  -inf, 2.0000, 2.5000]])

    Raises:
        ValueError: ``epsilon`` is not between 0 and 1.
    """

    epsilon: float

    def __post_init__(self) -> None:
        number("epsilon_cutoff", self.epsilon, 0, 1, ends="none", meaning=" (0 keeps all)")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        return _cut_improbable(logits, logits.log_softmax(-1), math.log(self.epsilon))


@dataclass(frozen=True)
class Eta(Transform):
    """Keep the tokens of probability at least min(epsilon, sqrt(epsilon) · exp(-entropy)), and the most probable one.

    Hewitt et al. 2022, arXiv:2210.15191; transformers' ``EtaLogitsWarper``.

    >>> Eta(0.1)(torch.tensor([[0]]), torch.tensor([[0.0, 2.0, 2.5]]))
    tensor([[  -inf, 2.0000, 2.5000]])

    Raises:
        ValueError: ``epsilon`` is not between 0 and 1.
    """

    epsilon: float

    def __post_init__(self) -> None:
        number("eta_cutoff", self.epsilon, 0, 1, ends="none", meaning=" (0 keeps all)")

    def _apply(self, history: Tensor, logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        log_epsilon = math.log(self.epsilon)
        return _cut_improbable(logits, log_probs, (log_epsilon / 2 - _entropy(log_probs)).clamp(max=log_epsilon))


def _fewest_with_mass(mass: float, ranking: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids of the best-ranked tokens in order, [batch k], and whether each is needed, Bool[batch k].

    Sorting 50,257 logits takes milliseconds on a CPU, and the first few hundred tokens nearly always have enough mass.
    So only the first 256 are ranked at first, then 16 times as many, and so on.
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
    """Return the entropy in nats, Float[batch 1]."""
    return -(log_probs.exp() * log_probs).nansum(-1, keepdim=True)  # a banned token's term is 0 · -inf


def _cut_improbable(logits: Tensor, log_probs: Tensor, log_cutoff: Tensor | float) -> Tensor:
    likeliest = logits == logits.amax(-1, keepdim=True)
    return logits.masked_fill((log_probs < log_cutoff) & ~likeliest, -torch.inf)
