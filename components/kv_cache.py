"""Keys and values kept between calls, so that each token is projected once.

`LayerCache` serves one attention layer, wherever it is used; `KVCache` is one per block, and remembers which positions
are padding. Both hold inference state: what is kept carries no gradient.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class LayerCache:
    """The keys and values of one attention layer.

    Args:
        batch, n_heads, d_head: the layer's sizes.
        capacity: positions that fit. Memory for them is taken once, here.
        growing: when they are full, take twice the memory instead of raising.
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
        """The keys (a view); those from ``length`` on mean nothing."""
        return self.kept[0]

    @property
    def values(self) -> Float[Tensor, "batch n_heads capacity d_head"]:
        """The values (a view); those from ``length`` on mean nothing."""
        return self.kept[1]

    def append(
        self, k: Float[Tensor, "batch seq n_heads d_head"], v: Float[Tensor, "batch seq n_heads d_head"]
    ) -> tuple[Float[Tensor, "batch n_heads key_pos d_head"], Float[Tensor, "batch n_heads key_pos d_head"]]:
        """Keep the keys and values of new positions, and return those of all positions (views, not copies).

        Raises:
            ValueError: another batch size, or more positions than fit.
        """
        end = self._room_for(k.shape[0], k.shape[1])
        self.kept[0, :, :, self.length : end] = k.detach().transpose(1, 2)
        self.kept[1, :, :, self.length : end] = v.detach().transpose(1, 2)
        return self._up_to(end)

    def append_both(
        self, kv: Float[Tensor, "2 batch n_heads seq d_head"]
    ) -> tuple[Float[Tensor, "batch n_heads key_pos d_head"], Float[Tensor, "batch n_heads key_pos d_head"]]:
        """As `append`, of keys and values in one tensor, laid out as they are kept: one copy instead of two."""
        end = self._room_for(kv.shape[1], kv.shape[3])
        self.kept[:, :, :, self.length : end] = kv.detach()
        return self._up_to(end)

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` positions.

        Raises:
            ValueError: more than there are, or fewer than none.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop {self.length} cached positions to {length}")
        self.length = length

    def select(self, rows: Int[Tensor, "new_batch"]) -> "LayerCache":
        """A cache in memory of its own whose row ``i`` is this one's row ``rows[i]``."""
        twin = object.__new__(LayerCache)
        twin.growing, twin.length = self.growing, self.length
        _, _, *sizes = self.kept.shape
        twin.kept = self.kept.new_zeros(2, len(rows), *sizes)
        twin.kept[:, :, :, : self.length] = self.kept[:, :, :, : self.length].index_select(1, rows)
        return twin

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Make row ``i`` what row ``rows[i]`` was. Rows may be repeated or dropped: the batch size follows."""
        if len(rows) != self.kept.shape[1]:
            self.kept = self.select(rows).kept
            return
        used = self.kept[:, :, :, : self.length]
        used.copy_(used.index_select(1, rows))

    def _room_for(self, batch: int, seq: int) -> int:
        """Where new positions will end, once there is room for them."""
        _, rows, n_heads, capacity, d_head = self.kept.shape
        if batch != rows:
            raise ValueError(f"the cache was made for a batch of {rows}, not {batch}")
        needed = self.length + seq
        if needed > capacity:
            if not self.growing:
                raise ValueError(
                    f"the cache holds {capacity} positions and {needed} are needed: crop it, or make it growing"
                )
            larger = self.kept.new_zeros(2, rows, n_heads, max(needed, 2 * capacity), d_head)
            larger[:, :, :, : self.length] = self.kept[:, :, :, : self.length]
            self.kept = larger
        return needed

    def _up_to(self, end: int) -> tuple[Tensor, Tensor]:
        self.length = end
        keys, values = self.kept[:, :, :, :end].unbind(0)
        return keys, values


class KVCache:
    """The keys and values of every block, and which positions are padding.

    ``model.new_cache(batch)`` makes one of the right sizes. Calling the model with it appends; a call that raises
    leaves it as it was.

    Args:
        n_layers, batch, n_heads, d_head: the model's sizes.
        capacity: positions that fit: ``n_ctx``, or fewer where it is known how many will be needed.
        growing: take more memory as needed, instead of all of it at once.
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
        self._is_token: Bool[Tensor, "batch length"] | None = None

    @property
    def length(self) -> int:
        """Positions held, padding included."""
        return self.layers[0].length

    @property
    def batch(self) -> int:
        """Sequences held."""
        return self.layers[0].kept.shape[1]

    def extend_mask(
        self, padding_mask: Bool[Tensor, "batch seq"] | None, *, seq: int
    ) -> Bool[Tensor, "batch key_pos"] | None:
        """Remember which of ``seq`` new positions are tokens, and return that for all positions (None: all are).

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
            ValueError: more than there are, or fewer than none.
        """
        for layer in self.layers:
            layer.crop(length)
        if self._is_token is not None:
            self._is_token = self._is_token[:, :length]

    def rewind(self, length: int) -> None:
        """Go back to ``length`` positions, wherever a call that raised has left each block."""
        for layer in self.layers:
            layer.length = min(layer.length, length)
        if self._is_token is not None:
            self._is_token = self._is_token[:, :length]

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Make row ``i`` what row ``rows[i]`` was, as beam search needs. Rows may be repeated or dropped.

        Raises:
            IndexError: a row that does not exist; nothing is changed then.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.batch:
            raise IndexError(f"rows run from {int(rows.min())} to {int(rows.max())}, but the cache has {self.batch}")
        for layer in self.layers:
            layer.reorder(rows)
        if self._is_token is not None:
            self._is_token = self._is_token.index_select(0, rows)

    def fork(self, n: int = 1) -> "KVCache":
        """A cache in memory of its own that continues each sequence ``n`` times: row ``i * n + j`` from row ``i``.

        The prompt is then encoded once for all its continuations, and this cache can be forked again.

        Raises:
            ValueError: ``n`` below 1.
        """
        if n < 1:
            raise ValueError(f"cannot continue each sequence {n} times: n is at least 1")
        rows = torch.arange(self.batch, device=self.layers[0].kept.device).repeat_interleave(n)
        twin = object.__new__(KVCache)
        twin.layers = [layer.select(rows) for layer in self.layers]
        twin._is_token = None if self._is_token is None else self._is_token.index_select(0, rows)
        return twin
