"""The rows that are generated together: their tokens, the KV cache, and the logits of their next tokens."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..assembly import GPT2
from ..components.kv_cache import KVCache
from ..components.shapes import typecheck
from .logits import logits_after
from .rows import Row
from .transforms import PADDING

__all__ = ["RowBatch"]

_COLUMNS = 256  # number of new tokens for which memory is reserved at the start


class RowBatch:
    """The rows that have not ended, their tokens so far, and the KV cache.

    The rows are in two groups. The first are those whose tokens fit into ``n_ctx``: the cache holds their keys and
    values, in the same order. The others slide: for each new token, the model reads their last ``n_ctx`` tokens again.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16)).eval()
    >>> row = Row(0, 2, seed=1, text=None, eos_token_ids=[], max_new_tokens=3, n_ctx=16)
    >>> batch = RowBatch(model, [[1, 2]], [row], n=1, max_new_tokens=3, n_vocab=5)
    >>> batch.logits().shape
    torch.Size([1, 5])

    Args:
        model: the model.
        prompts: the tokens of each prompt, which ``n`` rows continue.
        rows: ``n`` rows for each prompt, in the order of the prompts.
        n: number of rows for each prompt.
        max_new_tokens: largest number of new tokens of a row.
        n_vocab: number of tokens that can be generated, the first of the model's vocabulary.
    """

    def __init__(
        self, model: GPT2, prompts: list[list[int]], rows: list[Row], *, n: int, max_new_tokens: int, n_vocab: int
    ) -> None:
        self._model, self._n, self._max_new_tokens, self._n_vocab = model, n, max_new_tokens, n_vocab
        self._n_ctx = model.config.n_ctx
        self._end = max(map(len, prompts))
        # More columns are added as the texts grow, because `max_new_tokens` may be huge and mean "until the text ends".
        tokens = torch.full((len(rows), self._end + min(max_new_tokens, _COLUMNS)), PADDING)
        for row in rows:
            prompt = prompts[row.index // n]
            tokens[row.index, self._end - len(prompt) : self._end] = torch.tensor(prompt)
        self._tokens = tokens.to(model.embed.W_E.device)
        self.rows = rows
        self._cached = len(rows)
        self._cache: KVCache | None = None
        self._shapes: set[torch.Size] = set()
        self._regroup()

    @property
    def history(self) -> Tensor:
        """The tokens of each row so far, Int64[rows seq], padded on the left."""
        return self._tokens[:, : self._end]

    def logits(self) -> Tensor:
        """Return the logits of each row's next token, Float[rows n_vocab], in float32 or float64."""
        parts = []
        # The rows in the cache: at first the prompts, then one token for each row.
        if self._cached and self._cache is None:
            parts.append(self._read_prompts())
        elif self._cached:
            parts.append(self._read(self._tokens[: self._cached, self._end - 1 : self._end], cache=self._cache))
        # The rows that slide. They have at least n_ctx tokens, so their window has no padding.
        if self._cached < len(self.rows):
            parts.append(self._read(self._tokens[self._cached :, self._end - self._n_ctx : self._end]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def append(self, chosen: Tensor) -> None:
        """Append a token to each row, and remove the rows that have ended."""
        if self._end == self._tokens.shape[1]:
            self._tokens = F.pad(self._tokens, (0, self._end), value=PADDING)
        self._tokens[:, self._end] = chosen
        self._end += 1
        self._regroup()

    def _regroup(self) -> None:
        """Remove the rows that have ended, and sort the others: first those that fit into ``n_ctx``."""
        unfinished = [i for i, row in enumerate(self.rows) if not row.finished]
        fitting = [i for i in unfinished if i < self._cached and self.rows[i].length <= self._n_ctx]
        order = fitting + [i for i in unfinished if i not in fitting]
        if self._cache is not None and len(fitting) < self._cached:
            self._cache.reorder(torch.tensor(fitting, dtype=torch.int64, device=self._tokens.device))
        self._cached = len(fitting)
        if order != list(range(len(self.rows))):
            self.rows = [self.rows[i] for i in order]
            self._tokens = self._tokens[order]

    def _read_prompts(self) -> Tensor:
        """Read each prompt once, and copy its keys and values for all of its rows."""
        lengths = [row.length for row in self.rows[: self._cached]]
        tokens = self._tokens[: self._cached : self._n, self._end - max(lengths) : self._end]
        is_token = tokens != PADDING
        # Padding stays in the cache, and the shortest prompt has the most padding and may get the most new tokens.
        new = min(self._max_new_tokens - 1, self._n_ctx - min(lengths))
        self._cache = self._model.new_cache(len(tokens), capacity=max(lengths) + new)
        logits = self._read(
            tokens.clamp(min=0), padding_mask=None if bool(is_token.all()) else is_token, cache=self._cache
        )
        if self._n > 1:
            self._cache = self._cache.fork(self._n)
        return logits.repeat_interleave(self._n, dim=0)

    def _read(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        # Check shapes only once for each shape of tokens: later calls differ only in the number of key positions.
        known = tokens.shape in self._shapes
        self._shapes.add(tokens.shape)
        with typecheck(False) if known else nullcontext():
            return logits_after(self._model, tokens, **kwargs)[:, -1, : self._n_vocab]
