"""The settings of sampling as plain numbers, and the order in which they act."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real

from .transforms import (
    AllowedTokens,
    BadWords,
    Chain,
    Epsilon,
    Eta,
    FrequencyPenalty,
    LogitBias,
    LogitsTransform,
    MinNewTokens,
    MinP,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from .transforms.base import token_ids, whole

__all__ = ["SamplingParams"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen from the logits (default: sampled from the model's own distribution).

    The fields are in the order in which they are applied, which is that of transformers
    (``GenerationMixin._get_logits_processor``): first the settings on single tokens, then the caller's own transforms,
    then the settings on the whole distribution. The frequency and presence penalties, which transformers does not have,
    follow the repetition penalty, as in vLLM.

    ``temperature=0`` is greedy decoding: the settings from ``temperature`` on are checked, but have no effect.

    >>> params = SamplingParams(temperature=0.8, top_k=50)
    >>> params.chain(prompt_width=4)
    Chain(transforms=(Temperature(temperature=0.8), TopK(k=50)))
    >>> SamplingParams(temperature=0).greedy
    True

    Raises:
        ValueError: a value is out of range.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these tokens; -inf bans one."""
    repetition_penalty: float = 1.0
    """Divides positive logits of the tokens in prompt and text, multiplies negative ones."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that a token has been generated."""
    presence_penalty: float = 0.0
    """Subtracted from every token that has been generated."""
    no_repeat_ngram_size: int | None = None
    """No sequence of this many tokens occurs twice in prompt and text."""
    bad_words_ids: Sequence[Sequence[int]] = ()
    """Sequences of tokens that are never completed."""
    min_new_tokens: int = 0
    """Smallest number of tokens before an end token."""
    allowed_token_ids: Sequence[int] | None = None
    """The only tokens to choose from."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy decoding."""
    top_k: int | None = None
    """Keeps the k most probable tokens; None or 0 keeps all."""
    top_p: float = 1.0
    """Keeps the smallest set of most probable tokens whose probabilities sum to at least this."""
    min_p: float = 0.0
    """Keeps tokens at least this many times as probable as the most probable one."""
    typical_p: float = 1.0
    """Keeps the smallest set of most typical tokens whose probabilities sum to at least this."""
    epsilon_cutoff: float = 0.0
    """Keeps tokens of at least this probability."""
    eta_cutoff: float = 0.0
    """Keeps tokens of at least this probability, or of a lower one if the entropy is high (see `Eta`)."""

    def __post_init__(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias must be a dict of token ids and numbers, not {self.logit_bias!r}")
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        if not isinstance(self.bad_words_ids, Iterable):
            raise ValueError(f"bad_words_ids must be a list of lists of token ids, not {self.bad_words_ids!r}")
        object.__setattr__(
            self, "bad_words_ids", tuple(token_ids("bad_words_ids", word) for word in self.bad_words_ids)
        )
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", token_ids("allowed_token_ids", self.allowed_token_ids))
        if not self.greedy:
            Temperature(self.temperature)
        whole("min_new_tokens", self.min_new_tokens, least=0)
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole("top_k", self.top_k, least=0))
        # Each transform checks its own numbers when it is built.
        list(self._on_tokens(prompt_width=0, eos_token_ids=(0,)))
        list(self._on_distribution())
        for setting in fields(self):  # True equals 1, which changes nothing in some of them
            if isinstance(getattr(self, setting.name), bool):
                raise ValueError(f"{setting.name} must be a number, not {getattr(self, setting.name)}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always chosen, and none is drawn."""
        return isinstance(self.temperature, Real) and not isinstance(self.temperature, bool) and self.temperature == 0

    def chain(
        self, *, prompt_width: int, eos_token_ids: Sequence[int] = (), custom: Sequence[LogitsTransform] = ()
    ) -> Chain:
        """Build the transforms for one call of the decoder.

        Args:
            prompt_width: Number of columns of ``history`` that belong to the prompts, with padding (see `transforms`).
            eos_token_ids: Tokens that ``min_new_tokens`` bans (default: none, then that setting has no effect).
            custom: The caller's own transforms. They are applied before the temperature, where transformers applies its
                argument ``logits_processor``.
        """
        on_distribution = () if self.greedy else self._on_distribution()
        return Chain((*self._on_tokens(prompt_width, eos_token_ids), *custom, *on_distribution))

    def _on_tokens(self, prompt_width: int, eos_token_ids: Sequence[int]) -> Iterator[LogitsTransform]:
        if self.logit_bias:
            yield LogitBias(self.logit_bias)
        if self.repetition_penalty != 1:
            yield RepetitionPenalty(self.repetition_penalty)
        if self.frequency_penalty != 0:
            yield FrequencyPenalty(self.frequency_penalty, prompt_width)
        if self.presence_penalty != 0:
            yield PresencePenalty(self.presence_penalty, prompt_width)
        if self.no_repeat_ngram_size is not None:
            yield NoRepeatNGram(self.no_repeat_ngram_size)
        if self.bad_words_ids:
            yield BadWords(self.bad_words_ids)
        if self.min_new_tokens != 0 and eos_token_ids:
            yield MinNewTokens(self.min_new_tokens, eos_token_ids, prompt_width)
        if self.allowed_token_ids is not None:
            yield AllowedTokens(self.allowed_token_ids)

    def _on_distribution(self) -> Iterator[LogitsTransform]:
        if not self.greedy and self.temperature != 1:
            yield Temperature(self.temperature)
        if self.top_k:
            yield TopK(self.top_k)
        if self.top_p != 1:
            yield TopP(self.top_p)
        if self.min_p != 0:
            yield MinP(self.min_p)
        if self.typical_p != 1:
            yield Typical(self.typical_p)
        if self.epsilon_cutoff != 0:
            yield Epsilon(self.epsilon_cutoff)
        if self.eta_cutoff != 0:
            yield Eta(self.eta_cutoff)
