"""Beam search: an approximate search for the most probable text, with a limited number of candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..assembly import GPT2
from ..assembly.arguments import check_model
from ..tokenizer import Tokenizer, TokenizerSource
from .arguments import checked_params
from .logits import logits_after
from .memory import check_memory
from .params import SamplingParams
from .rows import FinishReason, check_fits, check_lengths
from .text import Prompt, TextStream, as_tokenizer, end_tokens, only_text, prompt_tokens, vocabulary
from .transforms import Chain, LogitsTransform
from .transforms.base import number, whole

__all__ = ["Beam", "EarlyStopping", "beam_search"]

EarlyStopping = Literal[True, False, "never"]
"""When the search ends, after as many texts have finished as there are beams: immediately (True); when the best
unfinished text has a lower score than all of them at its present length (False), or at any length ("never")."""


_MOST_PENALTY = 20.0  # the length of any text to this power is a finite float


@dataclass(frozen=True)
class Beam:
    """A continuation that beam search found, without the prompt.

    >>> Beam(text="ab", tokens=[0, 1], score=-0.5, finish_reason="length").score
    -0.5
    """

    text: str
    """Without the end token; empty without a tokenizer."""
    tokens: list[int]
    """With the end token."""
    score: float
    """The log-probability of all tokens together, divided by ``len(tokens) ** length_penalty``."""
    finish_reason: FinishReason


@torch.inference_mode()
def beam_search(
    model: GPT2,
    prompt: Prompt,
    params: SamplingParams | None = None,
    *,
    tokenizer: TokenizerSource | None = None,
    num_beams: int = 4,
    num_return: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    max_new_tokens: int = 128,
    eos_token_ids: Sequence[int] | None = None,
    transforms: Sequence[LogitsTransform] = (),
) -> list[Beam]:
    """Search for the continuation with the highest score, the same one as ``transformers.generate(num_beams=...)``.

    At each step, every unfinished text is continued by every token. The ``num_beams`` most probable continuations that
    do not end are the unfinished texts of the next step. A continuation that ends is a result if it is among the
    ``num_beams`` most probable ones.

    Reference: Wu et al. 2016, arXiv:1609.08144, section 7 (with the penalty ``length ** length_penalty``);
    ``GenerationMixin._beam_search``.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> best, second = beam_search(model, [1, 2], num_beams=3, num_return=2, max_new_tokens=4)
    >>> len(best.tokens), best.score >= second.score
    (4, True)

    Args:
        model: The model.
        prompt: The prompt: text, or the ids of tokens.
        params: Settings with ``temperature=0`` (default: only that). The settings on single tokens
            (``no_repeat_ngram_size``, ``repetition_penalty``, …) change log-probabilities here, not logits.
        num_beams: Number of unfinished texts at each step.
        num_return: Number of results to return.
        length_penalty: Above 0 favours long texts, below 0 short ones.
        early_stopping: When the search ends, see `EarlyStopping`.
        max_new_tokens: A text ends at this length or at ``n_ctx``, whichever comes first.
        eos_token_ids, tokenizer, transforms: as for `gptladder.sampling.stream`.

    Returns:
        The results, the best first. There are fewer than ``num_return`` if the other texts are banned.

    Raises:
        ValueError: `stream` would refuse the prompt; a number is out of range; all tokens are banned.
    """
    # Check the arguments.
    check_model(model)
    params = checked_params(params, SamplingParams(temperature=0))
    tokenizer = as_tokenizer(model, tokenizer)
    _check_options(params, num_beams, num_return, length_penalty, early_stopping)
    check_lengths(params, max_new_tokens)
    tokens = prompt_tokens(prompt, model, tokenizer)
    check_fits(tokens, model.config.n_ctx)
    eos_token_ids = end_tokens(eos_token_ids, model, tokenizer)
    longest = min(max_new_tokens, model.config.n_ctx + 1 - len(tokens))
    check_memory(model, rows=num_beams, positions=len(tokens) + longest - 1, name="num_beams")
    custom = only_text(transforms, model, tokenizer)
    chain = params.chain(prompt_width=len(tokens), eos_token_ids=eos_token_ids, custom=custom)

    # Continue all unfinished texts by a token at a time, until no better text can be found.
    beams = _Beams(model, tokens, chain, num_beams=num_beams, n_vocab=vocabulary(model, tokenizer), longest=longest)
    results = _Results(num_beams, length_penalty, early_stopping, longest)
    for length in range(1, longest + 1):
        beams.read()
        for total, text in beams.extend(eos_token_ids, all_end=length == longest):
            results.add(total, text)
        if not len(beams.scores) or results.are_final(best_unfinished=float(beams.scores[0]), length=length):
            break

    # Turn the best results into text.
    without_end: FinishReason = "length" if longest == max_new_tokens else "context"
    return [_beam(*found, tokenizer, eos_token_ids, without_end) for found in results.best(num_return)]


def _check_options(
    params: SamplingParams, num_beams: int, num_return: int, length_penalty: float, early_stopping: EarlyStopping
) -> None:
    if not params.greedy:
        raise ValueError(f"beam search draws nothing: give temperature=0, not {params.temperature}, or use stream()")
    whole("num_beams", num_beams, least=1)
    if whole("num_return", num_return, least=1) > num_beams:
        raise ValueError(f"num_return is {num_return}, and num_beams={num_beams} texts are all that can be returned")
    number("length_penalty", length_penalty, -_MOST_PENALTY, _MOST_PENALTY)
    if not (early_stopping is True or early_stopping is False or early_stopping == "never"):
        raise ValueError(f"early_stopping is {early_stopping!r}; it can be True, False or 'never'")


class _Beams:
    """The unfinished texts, the most probable first, and the model's cache of them.

    Attributes:
        scores: log-probability of each text, Float64[beams].
    """

    def __init__(
        self, model: GPT2, prompt: list[int], chain: Chain, *, num_beams: int, n_vocab: int, longest: int
    ) -> None:
        self._model, self._chain, self._num_beams, self._n_vocab = model, chain, num_beams, n_vocab
        self._prompt_length = len(prompt)
        device = model.embed.W_E.device
        self._texts = torch.tensor([prompt], device=device)  # [beams seq]; at first there is one beam
        self.scores = torch.zeros(1, dtype=torch.float64, device=device)
        self._cache = model.new_cache(1, capacity=len(prompt) + longest - 1)
        self._unread = self._texts
        self._logits = torch.empty(0)

    def read(self) -> None:
        """Compute the logits after each text."""
        self._logits = logits_after(self._model, self._unread, cache=self._cache)[:, -1]

    def extend(self, eos_token_ids: Sequence[int], *, all_end: bool) -> list[tuple[float, list[int]]]:
        """Replace the texts by their most probable continuations, and return those that end.

        Args:
            eos_token_ids: tokens that end a text.
            all_end: whether every continuation ends here, because it has the largest length.

        Returns:
            The log-probability and the new tokens of each continuation that ends, if it is among the ``num_beams`` most
            probable ones.
        """
        # Score every continuation. Take enough of them that num_beams go on, even if each of the most probable ends.
        log_probs = self._chain(self._texts, self._logits.log_softmax(-1))[:, : self._n_vocab]
        candidates = (self.scores[:, None] + log_probs).flatten()
        best = candidates.topk(min((1 + max(1, len(eos_token_ids))) * self._num_beams, len(candidates)))
        possible = best.values > -torch.inf
        scores = best.values[possible]
        parents, chosen = (best.indices // self._n_vocab)[possible], (best.indices % self._n_vocab)[possible]
        texts = torch.cat([self._texts[parents], chosen[:, None]], dim=1)
        # Divide them into those that end and those that go on.
        ends = torch.isin(chosen, torch.tensor(eos_token_ids, dtype=torch.int64, device=chosen.device)) | all_end
        results = [
            (float(scores[beam]), texts[beam, self._prompt_length :].tolist())
            for beam in ends[: self._num_beams].nonzero()[:, 0].tolist()
        ]
        unfinished = (~ends).nonzero()[: self._num_beams, 0]
        self._texts, self.scores = texts[unfinished], scores[unfinished]
        # Each row of the cache follows the text that it belongs to.
        parents = parents[unfinished]
        if len(parents) and parents.tolist() != list(range(self._cache.batch)):
            self._cache.reorder(parents)
        self._unread = self._texts[:, -1:]
        return results


class _Results:
    """The best finished texts.

    Attributes:
        found: score and tokens of each, the best first.
    """

    def __init__(self, num_beams: int, length_penalty: float, early_stopping: EarlyStopping, longest: int) -> None:
        self._num_beams, self._length_penalty, self._early_stopping = num_beams, length_penalty, early_stopping
        self._longest = longest
        self.found: list[tuple[float, list[int]]] = []

    def add(self, total: float, tokens: list[int]) -> None:
        """Add a finished text, unless there are enough better ones."""
        self.found.append((self._score(total, len(tokens)), tokens))
        self.found = sorted(self.found, key=lambda result: result[0], reverse=True)[: self._num_beams]

    def best(self, number: int) -> list[tuple[float, list[int]]]:
        """Return the best results, or raise ValueError if there is none."""
        if not self.found:
            raise ValueError(
                "no text could be brought to an end: all tokens are banned; loosen no_repeat_ngram_size, "
                "bad_words_ids, allowed_token_ids or logit_bias, or a transform of your own"
            )
        return self.found[:number]

    def are_final(self, *, best_unfinished: float, length: int) -> bool:
        """Return whether the search ends, given the log-probability of the best unfinished text and its length."""
        if len(self.found) < self._num_beams:
            return False
        if self._early_stopping is True:
            return True
        # With a penalty above 0, the score of a text can rise as it grows.
        reach = self._longest if self._early_stopping == "never" and self._length_penalty > 0 else length
        return self._score(best_unfinished, reach) <= self.found[-1][0]

    def _score(self, total: float, length: int) -> float:
        return total / length**self._length_penalty


def _beam(
    score: float,
    tokens: list[int],
    tokenizer: Tokenizer | None,
    eos_token_ids: Sequence[int],
    without_end: FinishReason,
) -> Beam:
    """Return a result with its text; ``without_end`` is why it ends if its last token does not end a text."""
    text = ""
    if tokenizer is not None:
        pieces = TextStream(tokenizer)
        text = "".join(pieces.push(token)[0] for token in tokens if token not in eos_token_ids) + pieces.finish()
    return Beam(text, tokens, score, "eos" if tokens[-1] in eos_token_ids else without_end)
