"""Windows of tokens for training and evaluation: inputs, and the same tokens shifted by one as targets.

Which window is the k-th is a function of the seed and k alone, computed and not drawn. So a position in the data is one
number, a resume goes on exactly where it stopped, on any number of processes, nothing has to be shuffled in memory
however large the file, and no other use of random numbers can change the order.
"""

import math
from collections.abc import Iterator
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

__all__ = ["BatchState", "Batches", "evaluation_batches", "window_count"]

Order = Literal["shuffled", "random"]
Batch = tuple[Int64[Tensor, "batch seq"], Int64[Tensor, "batch seq"]]
Indices = npt.NDArray[np.uint64]


class BatchState(TypedDict):
    """A position in the data, in plain values: what a snapshot stores.

    ``position`` counts the windows handed out so far by all processes together; the rest says what it is a position in.
    """

    position: int
    seed: int
    order: str
    seq: int
    tokens: int


class Batches:
    """An endless iterator of training batches ``(inputs, targets)``, each ``[batch_size / world_size, seq]`` int64.

    ``shuffled``: the text is laid out in windows of ``seq`` inputs, end to end, and each epoch goes through all of them
    once, in an order of its own. A batch may take its first rows from one epoch and the others from the next.
    ``random``: every window begins anywhere, independently of all others.

    Args:
        tokens: the shard, ``[tokens]``; mapped from the disk or in memory.
        seq: inputs in a window; it takes one token more, since the last input has a target too.
        batch_size: windows in a batch, over all processes.
        order: see above.
        seed: of the order.
        rank: which process this is; it gets its slice of every batch.
        world_size: how many there are. Together they get what one process alone would get.

    Raises:
        ValueError: a size under 1, a batch that the processes cannot share evenly, or fewer tokens than one window.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.integer],
        *,
        seq: int,
        batch_size: int,
        order: Order = "shuffled",
        seed: int = 1337,
        rank: int = 0,
        world_size: int = 1,
    ):
        if order not in ("shuffled", "random"):
            raise ValueError(f"order is {order!r}; it has to be 'shuffled' or 'random'")
        self._mine = _slice(batch_size, rank, world_size)
        self.windows_per_epoch = window_count(tokens, seq)
        self._tokens, self._seq, self._batch_size, self._order, self._seed = tokens, seq, batch_size, order, seed
        self._position = 0

    @property
    def epochs(self) -> float:
        """How often the text has been gone through so far, counted in windows."""
        return self._position / self.windows_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        numbers = np.arange(self._position, self._position + self._batch_size, dtype=np.uint64)[self._mine]
        self._position += self._batch_size
        return _windows(self._tokens, self._starts(numbers), self._seq)

    def state_dict(self) -> BatchState:
        """The position, equal on every process."""
        return {
            "position": self._position,
            "seed": self._seed,
            "order": self._order,
            "seq": self._seq,
            "tokens": len(self._tokens),
        }

    def load_state_dict(self, state: BatchState) -> None:
        """Go on from a position. The batch size and the number of processes may differ from those it was saved with.

        Raises:
            ValueError: a position in other data, or in another order.
        """
        here = self.state_dict()
        for name in ("seed", "order", "seq", "tokens"):
            if state[name] != here[name]:
                raise ValueError(
                    f"the position to resume from has {name} {state[name]}, and this run has {here[name]}; "
                    "resume with the same data and settings, or start anew"
                )
        self._position = state["position"]

    def _starts(self, numbers: Indices) -> Indices:
        if self._order == "random":
            return _hash(self._seed, numbers) % np.uint64(len(self._tokens) - self._seq)
        epochs, places = np.divmod(numbers, np.uint64(self.windows_per_epoch))
        for epoch in np.unique(epochs):
            now = epochs == epoch
            key = int(_hash(self._seed, np.array([epoch]))[0])
            places[now] = _permuted(places[now], self.windows_per_epoch, key)
        return places * np.uint64(self._seq)


def evaluation_batches(
    tokens: npt.NDArray[np.integer],
    *,
    seq: int,
    batch_size: int,
    most: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """The windows of a shard in their order, each once; the last batch may be smaller, or empty on some processes.

    Args:
        tokens: as for `Batches`; so are seq, batch_size, rank and world_size.
        most: how many windows to take at most, over all processes, spread evenly over the shard; None takes all.

    Raises:
        ValueError: as for `Batches`.
    """
    mine = _slice(batch_size, rank, world_size)
    count = window_count(tokens, seq)
    if most is not None and most < 1:
        raise ValueError(f"{most} windows to evaluate on; it has to be at least 1")
    taken = count if most is None else min(most, count)
    starts = np.arange(taken, dtype=np.uint64) * np.uint64(count) // np.uint64(taken) * np.uint64(seq)
    return (_windows(tokens, starts[first : first + batch_size][mine], seq) for first in range(0, taken, batch_size))


def window_count(tokens: npt.NDArray[np.integer], seq: int) -> int:
    """How many windows of ``seq`` inputs, end to end, there are in a text.

    Raises:
        ValueError: not one, or ``seq`` is under 1.
    """
    if seq < 1:
        raise ValueError(f"seq is {seq}; it has to be at least 1")
    if len(tokens) <= seq:
        raise ValueError(
            f"{getattr(tokens, 'filename', 'the text')} has {len(tokens)} tokens, fewer than the {seq + 1} of one "
            f"window ({seq} inputs, and the target of the last); use more text, or a smaller seq"
        )
    return (len(tokens) - 1) // seq


def _slice(batch_size: int, rank: int, world_size: int) -> slice:
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}: sizes begin at 1, ranks at 0")
    if batch_size % world_size:
        raise ValueError(f"a batch of {batch_size} windows cannot be shared evenly among {world_size} processes")
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def _windows(tokens: npt.NDArray[np.integer], starts: Indices, seq: int) -> Batch:
    indices = starts.astype(np.int64)[:, None] + np.arange(seq + 1)
    windows = torch.from_numpy(tokens[indices].astype(np.int64))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _hash(key: int, values: Indices) -> Indices:
    """64 random-looking bits for each value, others for each key."""
    return _mix(values ^ _mix(np.array([key % 2**64], dtype=np.uint64)))


def _mix(bits: Indices) -> Indices:
    """One step of SplitMix64 (Steele, Lea and Flood, 2014), arithmetic modulo 2**64."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _permuted(places: Indices, size: int, key: int) -> Indices:
    """Where a permutation of ``range(size)``, one of as many as there are keys, takes each place.

    A Feistel network on pairs of numbers permutes a range hardly longer than ``size``; what falls beyond ``size`` goes
    through again until it falls inside (the generalised Feistel cipher and cycle walking of Black and Rogaway, 2002).
    """
    rows = np.uint64(math.isqrt(size - 1) + 1)
    columns = np.uint64(-(-size // int(rows)))
    keys = _hash(key, np.arange(6, dtype=np.uint64))
    result = places.copy()
    beyond = np.ones(len(places), dtype=bool)
    while beyond.any():
        row, column = np.divmod(result[beyond], columns)
        for row_key, column_key in keys.reshape(3, 2):
            row = (row + _mix(column ^ row_key) % rows) % rows
            column = (column + _mix(row ^ column_key) % columns) % columns
        result[beyond] = row * columns + column
        beyond = result >= size
    return result
