"""Beam search: an approximate search for the most probable text, with a limited number of candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..assembly import GPT2
from ..components.kv_cache import KVCache
from ..tokenizer import Tokenizer, TokenizerSource
from .params import SamplingParams
from .rows import FinishReason, check_fits, check_lengths
from .stream import check_memory, logits_after
from .text import Prompt, TextStream, as_tokenizer, end_tokens, only_text, prompt_tokens, vocabulary
from .transforms import LogitsTransform
from .transforms.base import number, whole

__all__ = ["Beam", "EarlyStopping", "beam_search"]

EarlyStopping = Literal[True, False, "never"]
"""When to end, once as many texts are finished as there are beams: at once (True); when the best unfinished text,
scored at its present length, is worse than all of them (False); when it would be worse at any length ("never")."""


_MOST_PENALTY = 20.0  # the length of a text to this power is still a number


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
    """The log-probability of all tokens together, divided by their number to the power of the length penalty."""
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

    At each step, every unfinished text is continued by every token, and the ``num_beams`` most probable continuations
    that have not ended go on. A continuation that ends and is among the ``num_beams`` most probable is a result.

    Reference: Wu et al. 2016, arXiv:1609.08144, section 7 (with the penalty ``length ** length_penalty``);
    ``GenerationMixin._beam_search``.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> best, second = beam_search(model, [1, 2], num_beams=3, num_return=2, max_new_tokens=4)
    >>> len(best.tokens), best.score >= second.score
    (4, True)

    Args:
        params: With ``temperature=0``, the default; the other settings on single tokens
            (``no_repeat_ngram_size``, ``repetition_penalty``, …) change log-probabilities here, not logits.
        num_beams: Number of texts that are followed at a time.
        num_return: Number of results to return.
        length_penalty: Above 0 favours long texts, below 0 short ones.
        early_stopping: see `EarlyStopping`.
        max_new_tokens: A text ends at this length or at ``n_ctx``, whichever comes first.
        eos_token_ids, tokenizer, transforms: as for `gptladder.sampling.stream.stream`.

    Returns:
        The best first; fewer than ``num_return`` if so few texts are not banned.

    Raises:
        ValueError: what `stream` refuses in a prompt; a number out of range; no token left.
    """
    params = SamplingParams(temperature=0) if params is None else params
    tokenizer = as_tokenizer(tokenizer)
    if not params.greedy:
        raise ValueError(f"beam search draws nothing: give temperature=0, not {params.temperature}, or use stream()")
    whole("num_beams", num_beams, least=1)
    if whole("num_return", num_return, least=1) > num_beams:
        raise ValueError(f"num_return is {num_return}, and num_beams={num_beams} texts are all that can be returned")
    number("length_penalty", length_penalty, -_MOST_PENALTY, _MOST_PENALTY)
    if not (early_stopping is True or early_stopping is False or early_stopping == "never"):
        raise ValueError(f"early_stopping is {early_stopping!r}; it can be True, False or 'never'")
    check_lengths(params, max_new_tokens)
    tokens = prompt_tokens(prompt, model, tokenizer)
    n_ctx = model.config.n_ctx
    check_fits(tokens, n_ctx)
    eos_token_ids = end_tokens(eos_token_ids, model, tokenizer)
    custom = only_text(transforms, model, tokenizer)
    chain = params.chain(prompt_width=len(tokens), eos_token_ids=eos_token_ids, custom=custom)
    n_vocab = vocabulary(model, tokenizer)
    longest = min(max_new_tokens, n_ctx + 1 - len(tokens))
    check_memory(model, rows=num_beams, positions=len(tokens) + longest - 1, name="num_beams")

    device = model.embed.W_E.device
    eos = torch.tensor(eos_token_ids, dtype=torch.int64, device=device)
    texts = torch.tensor([tokens], device=device)  # [beams seq]; there is one beam at first
    scores = torch.zeros(1, dtype=torch.float64, device=device)
    cache = model.new_cache(1, capacity=len(tokens) + longest - 1)
    logits = logits_after(model, texts, cache=cache)[:, -1]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, longest + 1):
        log_probs = chain(texts, logits.log_softmax(-1))[:, :n_vocab]
        candidates = (scores[:, None] + log_probs).flatten()
        # As many candidates as it takes for num_beams to go on even if each of the most probable ones ends.
        best = candidates.topk(min((1 + max(1, len(eos))) * num_beams, len(candidates)))
        possible = best.values > -torch.inf
        if not possible.any():
            break
        scores = best.values[possible]
        parents, chosen = (best.indices // n_vocab)[possible], (best.indices % n_vocab)[possible]
        texts = torch.cat([texts[parents], chosen[:, None]], dim=1)
        ended = torch.isin(chosen, eos) if length < longest else torch.ones_like(chosen, dtype=torch.bool)

        for beam in ended[:num_beams].nonzero()[:, 0].tolist():
            finished.append((float(scores[beam]) / length**length_penalty, texts[beam, len(tokens) :].tolist()))
        finished = sorted(finished, key=lambda result: result[0], reverse=True)[:num_beams]

        running = (~ended).nonzero()[:num_beams, 0]
        if not len(running):
            break
        texts, scores = texts[running], scores[running]
        if len(finished) == num_beams:
            reach = longest if early_stopping == "never" and length_penalty > 0 else length
            if early_stopping is True or float(scores[0]) / reach**length_penalty <= finished[-1][0]:
                break
        _follow(cache, parents[running])
        logits = logits_after(model, texts[:, -1:], cache=cache)[:, -1]
    if not finished:
        raise ValueError(
            "no text could be brought to an end: all tokens are banned; loosen no_repeat_ngram_size, bad_words_ids, "
            "allowed_token_ids or logit_bias, or a transform of your own"
        )
    return [
        Beam(
            text=_text(found, tokenizer, eos_token_ids),
            tokens=found,
            score=score,
            finish_reason="eos" if found[-1] in eos_token_ids else "length" if longest == max_new_tokens else "context",
        )
        for score, found in finished[:num_return]
    ]


def _follow(cache: KVCache, parents: Tensor) -> None:
    """Reorder the cache so that each row belongs to the text that it continues."""
    if parents.tolist() != list(range(cache.batch)):
        cache.reorder(parents)


def _text(tokens: list[int], tokenizer: Tokenizer | None, eos_token_ids: Sequence[int]) -> str:
    if tokenizer is None:
        return ""
    text = TextStream(tokenizer)
    return "".join(text.push(token)[0] for token in tokens if token not in eos_token_ids) + text.finish()
