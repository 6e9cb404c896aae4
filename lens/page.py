"""One page that shows what a model does with a text: ``gptladder look``."""

import base64
import json
import math
import os
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from ..assembly.model import GPT2
from ..components.caching import ActivationCache
from ..files import user_path, write_whole
from .labelled import framed
from .observing import observing
from .prompt import Prompt, Text, as_tokenizer, read_prompt, token_label
from .residual import attribution, stages

_TOP = 10
_TEMPLATE = "look.html"

# 512 tokens of the smallest published GPT-2 are 25 MB, which a browser opens in a few seconds.
_LARGEST_PAGE = 32_000_000  # bytes of attention patterns


@dataclass(frozen=True)
class Look:
    """What a model does with one text, as a page: surprise, next tokens, attention, logit lens, attribution.

    In a notebook it shows itself in a frame that fetches nothing.

    Args:
        prompt: the text as the model reads it.
        data: the numbers of the page, as plain values that JSON can hold.

    Example: see `look`.
    """

    prompt: Prompt
    data: dict[str, Any]

    def __repr__(self) -> str:
        surprise = self.data["surprise"][1:]
        mean = f", mean surprise {sum(surprise) / len(surprise):.2f} nats" if surprise else ""
        return f"Look({len(self.prompt.labels)} tokens by {self.data['model']}{mean}; .html(path) writes the page)"

    def html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the page, and write it to ``path`` if that is given."""
        # A token may be "</script>", or a line separator that older browsers take for the end of a string.
        data = json.dumps(self.data, allow_nan=False).replace("<", "\\u003c")
        template = files(__package__ or "gptladder.lens").joinpath(_TEMPLATE).read_text(encoding="utf-8")
        page = template.replace("__DATA__", data)
        if path is not None:
            write_whole(user_path(path), page)
        return page

    def _repr_html_(self) -> str:
        return framed(self.html(), height=900, scripts=True)


@observing
def look(model: GPT2, text: Text, *, tokenizer: Any = None, name: str = "this model", large: bool = False) -> Look:
    """Return a page about what a model does with a text.

    The page shows the surprise of each token, the most likely next tokens at each position, the attention pattern of
    every head, what the model would predict after each layer (logit lens), and what each head and MLP adds to the logit
    of the token that comes next, compared with the mean logit of the vocabulary.

    Args:
        model: with pre-norm blocks, in any mode: dropout is off.
        text: the text, or its token ids.
        tokenizer: reads the text and gives the labels; see `read_prompt`.
        name: of the model, for the page's title.
        large: allow a page with more than 32 MB of attention patterns.

    Raises:
        ValueError: the text cannot be read (see `read_prompt`), or is so long that the page would be large; or the
            model's numbers are not finite.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> page = look(model, [3, 1, 4]).html()
        >>> page.startswith("<!DOCTYPE html>")
        True
    """
    prompt, tokenizer = read_prompt(model, text, tokenizer), as_tokenizer(model, tokenizer)
    if not large:
        _check_size(model, len(prompt.labels))
    logits, cache = model.run_with_cache(prompt.tokens)
    log_probs = logits[0].double().log_softmax(-1)
    if not log_probs.isfinite().all():
        raise ValueError("the model's predictions are not finite: its weights are damaged, or its training diverged")
    tokens = prompt.tokens[0]

    def label(token: int) -> str:
        return str(token) if tokenizer is None else token_label(tokenizer, token)

    following = torch.cat([tokens[1:], log_probs[-1].argmax()[None]])
    next_probs = log_probs[:-1].gather(-1, tokens[1:, None])[:, 0]
    top = log_probs.topk(min(_TOP, model.d_vocab))
    data = {
        "model": name,
        "ids": tokenizer is None,
        "tokens": prompt.labels,
        "following": [label(token) for token in following.tolist()],
        "surprise": [None, *[round(-value, 4) for value in next_probs.tolist()]],
        "followingProb": [round(p, 6) for p in log_probs.gather(-1, following[:, None])[:, 0].exp().tolist()],
        "top": [
            [[label(token), round(math.exp(value), 6)] for token, value in zip(ids, values, strict=True)]
            for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
        "lens": _lens_rows(model, cache, following, label),
        "layers": model.config.n_layers,
        "heads": model.config.n_heads,
        "patterns": _packed_patterns(model, cache),
        "parts": _parts(model, cache, following),
    }
    return Look(prompt, data)


def _lens_rows(model: GPT2, cache: ActivationCache, following: Tensor, label: Any) -> list[dict[str, Any]]:
    """For each stage of the residual stream: the most likely token at each position, and the right one's share."""
    rows = []
    for stage, name in stages(model).items():  # one stage at a time: all logits together may be gigabytes
        probs = model.unembed(model.ln_final(cache[name]))[0].double().softmax(-1)
        best = probs.max(-1)
        rows.append(
            {
                "stage": stage,
                "token": [label(token) for token in best.indices.tolist()],
                "prob": [round(p, 4) for p in best.values.tolist()],
                "right": [round(p, 4) for p in probs.gather(-1, following[:, None])[:, 0].tolist()],
            }
        )
    return rows


def _check_size(model: GPT2, seq: int) -> None:
    """Raise ValueError if the patterns of a text would make the page slow to open."""
    layers, heads = model.config.n_layers, model.config.n_heads
    if (size := _bytes_of_patterns(layers * heads, seq)) > _LARGEST_PAGE:
        fitting = max(n for n in range(seq) if _bytes_of_patterns(layers * heads, n) <= _LARGEST_PAGE)
        raise ValueError(
            f"the attention patterns of {seq:,} tokens in {layers} layers of {heads} heads would make a page of "
            f"{size / 1e6:,.0f} MB, slow to open: give at most {fitting:,} tokens, or allow it by large=True (--large)"
        )


def _bytes_of_patterns(heads: int, seq: int) -> int:
    return heads * seq * (seq + 1) // 2 * 4 // 3  # in base64


def _packed_patterns(model: GPT2, cache: ActivationCache) -> str:
    """All patterns as base64: for each head the lower triangle, row by row, a byte for the square root of a weight.

    With the square root, a byte tells a weight of 0.02 from one of 0.018.
    """
    seq = cache["pattern", 0].shape[-1]
    query, key = torch.tril_indices(seq, seq)
    patterns = torch.stack([cache["pattern", layer][0] for layer in range(model.config.n_layers)]).flatten(0, 1)
    levels = (patterns[:, query, key].float().clamp(0, 1).sqrt() * 255).round().to(torch.uint8)
    return base64.b64encode(levels.cpu().numpy().tobytes()).decode()


def _parts(model: GPT2, cache: ActivationCache, following: Tensor) -> dict[str, list[float]]:
    """What each part adds to the logit of what comes next, compared with the vocabulary's mean logit."""
    W_U = model.unembed.W_U
    direction = W_U[:, following].T - W_U.mean(1)
    parts = attribution(model, cache, direction)
    if model.unembed.b_U is not None:
        parts["bias"] = parts["bias"] + model.unembed.b_U[following] - model.unembed.b_U.mean()
    return {name: [round(value, 3) for value in part.double().tolist()] for name, part in parts.items()}
