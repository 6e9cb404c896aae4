"""Keys and values kept between calls, so that each token is projected once.

`LayerCache` serves one attention layer, wherever it is used; `KVCache` holds one for each block, and which positions
are padding. Both are for inference: gradients reach the keys and values of the call under way, and stop at those of
earlier calls.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .kernels import is_transformed


class LayerCache:
    """The keys and values of one attention layer.

    Args:
        batch, n_heads, d_head: the layer's sizes.
        capacity: positions that fit. Their memory is allocated here, once.
        growing: when the cache is full, double its memory instead of raising an error.

    Raises:
        ValueError: a capacity below 1.

    Example:
        >>> cache = LayerCache(batch=1, n_heads=2, d_head=3, capacity=8)
        >>> k = v = torch.ones(1, 5, 2, 3)  # batch seq n_heads d_head
        >>> keys, values = cache.append(k, v)
        >>> keys.shape, cache.length
        (torch.Size([1, 2, 5, 3]), 5)
    """

    kept: Float[Tensor, "2 batch n_heads capacity d_head"]
    """Keys, then values."""

    def __init__(
        self,
        *,
        batch: int,
        n_heads: int,
        d_head: int,
        capacity: int,
        growing: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; a cache holds at least 1 position")
        self.kept = torch.zeros(2, batch, n_heads, capacity, d_head, device=device, dtype=dtype)
        self.growing = growing
        self.length = 0

    @property
    def keys(self) -> Float[Tensor, "batch n_heads capacity d_head"]:
        """The keys (a view); those from ``length`` on are undefined."""
        return self.kept[0]

    @property
    def values(self) -> Float[Tensor, "batch n_heads capacity d_head"]:
        """The values (a view); those from ``length`` on are undefined."""
        return self.kept[1]

    def append(
        self, k: Float[Tensor, "batch seq n_heads d_head"], v: Float[Tensor, "batch seq n_heads d_head"]
    ) -> tuple[Float[Tensor, "batch n_heads key_pos d_head"], Float[Tensor, "batch n_heads key_pos d_head"]]:
        """Keep the keys and values of new positions, and return those of all positions.

        Returns:
            Keys and values: views of the cache; or, if the new ones need a gradient, tensors of their own through which
            it reaches the new ones.

        Raises:
            ValueError: another batch size, number or width of heads; or more positions than fit.
            RuntimeError: forward-mode differentiation or a transform of ``torch.func`` is under way. Its derivatives
                would get lost in the cache.
        """
        if not torch.compiler.is_compiling() and is_transformed():
            raise RuntimeError(
                "a cache keeps no derivatives of forward mode or torch.func: call without a cache, on all positions"
            )
        past = self.length
        new_k, new_v = self.extend(*k.shape).unbind(0)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        with torch.no_grad():
            new_k.copy_(k)
            new_v.copy_(v)
        keys, values = self.held()
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            return torch.cat([keys[:, :, :past], k], dim=2), torch.cat([values[:, :, :past], v], dim=2)
        return keys, values

    def extend(self, batch: int, seq: int, n_heads: int, d_head: int) -> Float[Tensor, "2 batch n_heads seq d_head"]:
        """Lengthen the cache by ``seq`` positions, and return their memory (a view), for keys and values to be put in.

        Raises:
            ValueError: another batch size, number or width of heads; or more positions than fit.
        """
        _, rows, its_heads, capacity, width = self.kept.shape
        if batch != rows:
            raise ValueError(f"the cache was made for a batch of {rows}, not {batch}")
        if (n_heads, d_head) != (its_heads, width):
            raise ValueError(
                f"the cache was made for n_heads={its_heads}, d_head={width}, and the layer has n_heads={n_heads}, "
                f"d_head={d_head}: make one for this model, by model.new_cache(batch)"
            )
        past, length = self.length, self.length + seq
        if length > capacity:
            if not self.growing:
                raise ValueError(
                    f"the cache holds {capacity} positions and {length} are needed: crop it, or make it growing"
                )
            larger = self.kept.new_zeros(2, rows, n_heads, max(length, 2 * capacity), d_head)
            larger[:, :, :, :past] = self.kept[:, :, :, :past]
            self.kept = larger
        self.length = length
        return self.kept[:, :, :, past:length]

    def held(
        self,
    ) -> tuple[Float[Tensor, "batch n_heads key_pos d_head"], Float[Tensor, "batch n_heads key_pos d_head"]]:
        """Return the keys and the values of all positions held (views)."""
        keys, values = self.kept[:, :, :, : self.length].unbind(0)
        return keys, values

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions.

        Raises:
            ValueError: a length above the present one, or below 0.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop {self.length} cached positions to {length}")
        self.length = length

    def select(self, rows: Int[Tensor, "new_batch"]) -> "LayerCache":
        """Return a cache with memory of its own whose row ``i`` is this one's row ``rows[i]``."""
        twin = object.__new__(LayerCache)
        twin.growing, twin.length = self.growing, self.length
        _, _, *sizes = self.kept.shape
        twin.kept = self.kept.new_zeros(2, len(rows), *sizes)
        twin.kept[:, :, :, : self.length] = self.kept[:, :, :, : self.length].index_select(1, rows)
        return twin

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Replace each row ``i`` by row ``rows[i]``. Rows may be repeated or dropped: the batch size follows."""
        if len(rows) != self.kept.shape[1]:
            self.kept = self.select(rows).kept
            return
        used = self.kept[:, :, :, : self.length]
        used.copy_(used.index_select(1, rows))


class KVCache:
    """The keys and values of every block, and which positions are padding.

    ``model.new_cache(batch)`` returns one of the right sizes. Calling the model with it appends; a call that raises
    an error leaves it as it was.

    Args:
        n_layers, batch, n_heads, d_head: the model's sizes.
        capacity: positions that fit: ``n_ctx``, or fewer if fewer will be needed.
        growing: take more memory as needed, instead of all of it at once.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=4)).eval()
        >>> cache = model.new_cache(batch=1)
        >>> _ = model(torch.tensor([[3, 1]]), cache=cache)
        >>> cache.length
        2
        >>> model(torch.tensor([[4]]), cache=cache).shape  # the logits after the third token
        torch.Size([1, 1, 5])
    """

    def __init__(
        self,
        *,
        n_layers: int,
        batch: int,
        n_heads: int,
        d_head: int,
        capacity: int,
        growing: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.layers = [
            LayerCache(
                batch=batch,
                n_heads=n_heads,
                d_head=d_head,
                capacity=capacity,
                growing=growing,
                device=device,
                dtype=dtype,
            )
            for _ in range(n_layers)
        ]
        self.length = 0
        """Positions held, padding included. A layer in which another module took attention's place holds none."""
        self._is_token: Bool[Tensor, "batch length"] | None = None

    @property
    def batch(self) -> int:
        """Sequences held."""
        return self.layers[0].kept.shape[1]

    def for_layers(self, n_layers: int) -> list[LayerCache]:
        """Return the caches of a model's layers.

        Raises:
            ValueError: the cache was made for another number of layers.
        """
        if len(self.layers) != n_layers:
            raise ValueError(
                f"the cache was made for {len(self.layers)} layers, and the model has {n_layers}: make one for this "
                "model, by model.new_cache(batch)"
            )
        return self.layers

    def extend_mask(
        self, padding_mask: Bool[Tensor, "batch seq"] | None, *, seq: int
    ) -> Bool[Tensor, "batch key_pos"] | None:
        """Record which of ``seq`` new positions are tokens, and return that for all positions (None: all are).

        Raises:
            ValueError: a mask of another batch size.
        """
        if padding_mask is not None and padding_mask.shape[0] != self.batch:
            raise ValueError(f"the cache was made for a batch of {self.batch}, not {padding_mask.shape[0]}")
        if padding_mask is None and self._is_token is None:
            return None
        device = self.layers[0].kept.device
        if self._is_token is None:
            self._is_token = torch.ones(self.batch, self.length, dtype=torch.bool, device=device)
        if padding_mask is None:
            padding_mask = torch.ones(self.batch, seq, dtype=torch.bool, device=device)
        self._is_token = torch.cat([self._is_token[:, : self.length], padding_mask], dim=1)
        return self._is_token

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions.

        Raises:
            ValueError: a length above the present one, or below 0.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop {self.length} cached positions to {length}")
        self.rewind(length)

    def rewind(self, length: int) -> None:
        """Go back to ``length`` positions, wherever a call that raised an error has left each block."""
        self.length = length
        for layer in self.layers:
            layer.length = min(layer.length, length)
        if self._is_token is not None:
            self._is_token = self._is_token[:, :length]

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Replace each row ``i`` by row ``rows[i]``, as beam search needs. Rows may be repeated or dropped.

        Raises:
            IndexError: a row that does not exist; the cache stays as it is.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.batch:
            raise IndexError(f"rows run from {int(rows.min())} to {int(rows.max())}, but the cache has {self.batch}")
        for layer in self.layers:
            layer.reorder(rows)
        if self._is_token is not None:
            self._is_token = self._is_token.index_select(0, rows)

    def fork(self, n: int = 1) -> "KVCache":
        """Return a cache with memory of its own that continues each sequence ``n`` times: row ``i * n + j`` from ``i``.

        So a prompt is encoded once for all its continuations; this cache stays as it is, and can be forked again.

        Raises:
            ValueError: ``n`` below 1.
        """
        if n < 1:
            raise ValueError(f"cannot continue each sequence {n} times: n is at least 1")
        rows = torch.arange(self.batch, device=self.layers[0].kept.device).repeat_interleave(n)
        twin = object.__new__(KVCache)
        twin.layers = [layer.select(rows) for layer in self.layers]
        twin.length = self.length
        twin._is_token = None if self._is_token is None else self._is_token.index_select(0, rows)
        return twin
