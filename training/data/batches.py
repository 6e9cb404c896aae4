"""Windows of tokens for training and evaluation: inputs, and the same tokens shifted by one as targets.

The k-th window depends only on the seed and k. So the position in the data is a single number, training can resume
exactly where it stopped with any number of processes, and no other use of random numbers changes the order. The order
comes from the raw stream of NumPy's Philox generator, which NumPy guarantees not to change, unlike its ``shuffle``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

__all__ = ["BatchState", "Batches", "EvaluationBatches", "evaluation_batches", "window_count"]

Order = Literal["shuffled", "random", "documents"]
Batch = tuple[Int64[Tensor, "batch seq"], Int64[Tensor, "batch seq"]]
_WAY = 2  # version of the algorithm that computes the order from the seed
_STREAMS = 2**64
_ANYWHERE = _STREAMS - 1  # the random stream of the order "random"; each epoch of "shuffled" has its own stream

Indices = npt.NDArray[np.uint64]


class BatchState(TypedDict):
    """A position in the data, in plain values, for snapshots.

    ``position`` is the number of windows that all processes together have taken so far. The other fields describe the
    data and its order. ``order`` ends with the version of the algorithm that computes it; version 0.1.0, which used
    another algorithm, wrote no number.
    """

    position: int
    seed: int
    order: str
    seq: int
    tokens: int


class Batches:
    """An endless iterator of training batches ``(inputs, targets)``, each ``[batch_size / world_size, seq]`` int64.

    ``shuffled``: the text is divided into adjacent windows of ``seq`` inputs, and each epoch takes all of them once, in
    a different order. A batch may take its first rows from one epoch and the others from the next.
    ``random``: each window begins at any token, independently of all others.
    ``documents``: like ``shuffled``, but each document is divided separately, from its beginning, so that a window of a
    short document has all earlier tokens of the document. The last window of a document continues into the next one.

    Args:
        tokens: the shard, ``[tokens]``, memory-mapped or in memory.
        seq: number of inputs in a window. A window needs one token more, the target of the last input.
        batch_size: number of windows in a batch, over all processes.
        order: "shuffled", "random" or "documents", see above.
        eot_id: the token that ends a document, for the order ``documents`` (default: the text is one document).
        seed: seed of the order.
        rank: number of this process, which takes its slice of every batch.
        world_size: number of processes. Together they take the windows that one process alone would take.

    Raises:
        ValueError: a size is below 1, the processes cannot share a batch evenly, or there are fewer tokens than in one
            window.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.integer],
        *,
        seq: int,
        batch_size: int,
        order: Order = "shuffled",
        eot_id: int | None = None,
        seed: int = 1337,
        rank: int = 0,
        world_size: int = 1,
    ):
        if order not in get_args(Order):
            raise ValueError(f"order is {order!r}; it must be {', '.join(map(repr, get_args(Order)))}")
        self._mine = _slice(batch_size, rank, world_size)
        self._windows = _window_starts(tokens, seq, order, eot_id)
        self.windows_per_epoch = len(self._windows)
        self._tokens, self._seq, self._batch_size, self._order, self._seed = tokens, seq, batch_size, order, seed
        self._position = 0
        self._orders: dict[int, Indices] = {}  # the order of each epoch in the last batch

    @property
    def epochs(self) -> float:
        """Passes over the text so far, counted in windows."""
        return self._position / self.windows_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        numbers = np.arange(self._position, self._position + self._batch_size, dtype=np.uint64)[self._mine]
        self._position += self._batch_size
        return _windows(self._tokens, self._starts(numbers), self._seq)

    def state_dict(self) -> BatchState:
        """Return the position, equal on every process."""
        return {
            "position": self._position,
            "seed": self._seed,
            "order": f"{self._order}-{_WAY}",
            "seq": self._seq,
            "tokens": len(self._tokens),
        }

    def load_state_dict(self, state: BatchState) -> None:
        """Continue from a position. The batch size and the number of processes may have changed since it was saved.

        Raises:
            ValueError: the position belongs to other data, or to another order.
        """
        here = self.state_dict()
        if state["order"] in get_args(Order):
            raise ValueError(
                "the snapshot was written by version 0.1.0, which took the text in another order, so it cannot be "
                "resumed: begin another run from its weights with --init-from"
            )
        for name in ("seed", "order", "seq", "tokens"):
            if state[name] != here[name]:
                raise ValueError(
                    f"the position to resume from has {name} {state[name]}, and this run has {here[name]}: resume with "
                    "the same data and settings, or begin another run"
                )
        self._position = state["position"]

    def _starts(self, numbers: Indices) -> Indices:
        """Return the first token of each window, for consecutive numbers of windows."""
        if self._order == "random":
            return _random_bits(self._seed, _ANYWHERE, int(numbers[0]), len(numbers)) % np.uint64(
                len(self._tokens) - self._seq
            )
        epochs, places = np.divmod(numbers, np.uint64(self.windows_per_epoch))
        present = [int(epoch) for epoch in np.unique(epochs)]
        self._orders = {
            epoch: self._orders[epoch] if epoch in self._orders else self._shuffled(epoch) for epoch in present
        }
        for epoch in present:
            now = epochs == epoch
            places[now] = self._orders[epoch][places[now]]
        return self._windows[places]

    def _shuffled(self, epoch: int) -> Indices:
        """Return the windows in the order of an epoch: sorted by one random number per window."""
        bits = _random_bits(self._seed, epoch, 0, self.windows_per_epoch)
        return np.argsort(bits, kind="stable").astype(np.uint64)


@dataclass(frozen=True)
class EvaluationBatches:
    """Batches that can be iterated over any number of times; where their windows begin is computed once."""

    tokens: npt.NDArray[np.integer]
    starts: Indices
    seq: int
    batch_size: int
    mine: slice
    """The part of each batch that this process takes."""

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.starts), self.batch_size):
            yield _windows(self.tokens, self.starts[first : first + self.batch_size][self.mine], self.seq)


def evaluation_batches(
    tokens: npt.NDArray[np.integer],
    *,
    seq: int,
    batch_size: int,
    most: int | None = None,
    order: Order = "shuffled",
    eot_id: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> EvaluationBatches:
    """Return all windows of a shard in the order of the text, as batches for any number of evaluations.

    The last batch may be smaller, or empty on some processes.

    Args:
        tokens, seq, batch_size, eot_id, rank, world_size: as for `Batches`.
        order: ``documents`` divides each document separately; otherwise the windows are adjacent.
        most: largest number of windows, over all processes; they are spread evenly over the shard (default: all).

    Raises:
        ValueError: as for `Batches`.
    """
    mine = _slice(batch_size, rank, world_size)
    windows = _window_starts(tokens, seq, order, eot_id)
    count = len(windows)
    if most is not None and most < 1:
        raise ValueError(f"{most} windows to evaluate on; it must be at least 1")
    taken = count if most is None else min(most, count)
    places = np.arange(taken, dtype=np.uint64) * np.uint64(count) // np.uint64(taken)
    return EvaluationBatches(tokens, windows[places], seq, batch_size, mine)


def window_count(tokens: npt.NDArray[np.integer], seq: int) -> int:
    """Return the number of adjacent windows of ``seq`` inputs in a text.

    Raises:
        ValueError: the text is shorter than one window, or ``seq`` is below 1.
    """
    if seq < 1:
        raise ValueError(f"seq is {seq}; it must be at least 1")
    if len(tokens) <= seq:
        shorter = f"--seq {len(tokens) - 1} or less, or " if len(tokens) > 1 else ""
        share = {"val.bin": "larger", "train.bin": "smaller"}.get(Path(getattr(tokens, "filename", None) or "").name)
        shorter += f"a {share} --val-fraction, or " if share else ""
        raise ValueError(
            f"{getattr(tokens, 'filename', 'the text')} has {len(tokens)} tokens, fewer than the {seq + 1} of one "
            f"window ({seq} inputs, and the target of the last): give {shorter}more text"
        )
    return (len(tokens) - 1) // seq


def _window_starts(tokens: npt.NDArray[np.integer], seq: int, order: Order, eot_id: int | None) -> Indices:
    """Return where the windows of an epoch begin, in the order of the text.

    Divided by documents, they together have every token of every document, except the first, as a target.
    """
    count = window_count(tokens, seq)  # refuses a text without one
    if order != "documents":
        return np.arange(count, dtype=np.uint64) * np.uint64(seq)
    ends = np.flatnonzero(np.asarray(tokens) == eot_id) if eot_id is not None else np.zeros(0, np.int64)
    begins = np.concatenate([np.zeros(1, np.int64), ends + 1])
    targets = np.diff(np.append(begins, len(tokens))) - 1
    counts = np.maximum(1, -(-targets // seq))
    counts[begins == len(tokens)] = 0  # the text ends with an end-of-text token
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + seq * number
    return np.unique(np.minimum(starts, len(tokens) - seq - 1)).astype(np.uint64)


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


def _random_bits(seed: int, stream: int, first: int, count: int) -> Indices:
    """Return the numbers ``first`` to ``first + count`` of a random stream, each of 64 bits."""
    generator = np.random.Philox(key=seed % _STREAMS + stream * _STREAMS)
    generator.advance(first // 4)  # each of its steps makes four numbers
    return generator.random_raw(first % 4 + count)[first % 4 :]
