"""Windows of tokens for training and evaluation: inputs, and the same tokens shifted by one as targets.

Which window is the k-th is a function of the seed and k alone. So a position in the data is one number, a resume goes
on exactly where it stopped, on any number of processes, and no other use of random numbers can change the order. It is
made from the raw stream of NumPy's Philox generator, which NumPy promises to keep, as it does not for its ``shuffle``.
"""

from collections.abc import Iterator
from typing import Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

__all__ = ["BatchState", "Batches", "evaluation_batches", "window_count"]

Order = Literal["shuffled", "random", "documents"]
Batch = tuple[Int64[Tensor, "batch seq"], Int64[Tensor, "batch seq"]]
_WAY = 2  # of making the order from the seed
_STREAMS = 2**64
_ANYWHERE = _STREAMS - 1  # the stream of the order "random"; the others are those of the epochs

Indices = npt.NDArray[np.uint64]


class BatchState(TypedDict):
    """A position in the data, in plain values: what a snapshot stores.

    ``position`` counts the windows handed out so far by all processes together; the rest says what it is a position in.
    ``order`` ends in the number of the way in which the order is made; version 0.1.0, with another way, had no number.
    """

    position: int
    seed: int
    order: str
    seq: int
    tokens: int


class Batches:
    """An endless iterator of training batches ``(inputs, targets)``, each ``[batch_size / world_size, seq]`` int64.

    ``shuffled``: the text is divided into windows of ``seq`` inputs, end to end, and each epoch goes through all of
    them once, in an order of its own. A batch may take its first rows from one epoch and the others from the next.
    ``random``: every window begins anywhere, independently of all others.
    ``documents``: as ``shuffled``, but with one window for each document, which begins where the document begins: no
    input lacks what its document has before it. A shorter document is followed by the next, and what a longer one has
    after the window is not trained on.

    Args:
        tokens: the shard, ``[tokens]``; mapped from the disk or in memory.
        seq: inputs in a window; it takes one token more, since the last input has a target too.
        batch_size: windows in a batch, over all processes.
        order: see above.
        eot_id: the token that ends a document, for the order ``documents``.
        seed: of the order.
        rank: number of this process; it gets its slice of every batch.
        world_size: number of processes. Together they get what one process alone would get.

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
        eot_id: int | None = None,
        seed: int = 1337,
        rank: int = 0,
        world_size: int = 1,
    ):
        if order not in get_args(Order):
            raise ValueError(f"order is {order!r}; it must be {', '.join(map(repr, get_args(Order)))}")
        self._mine = _slice(batch_size, rank, world_size)
        self._first = _document_starts(tokens, seq, eot_id) if order == "documents" else None
        self.windows_per_epoch = window_count(tokens, seq) if self._first is None else len(self._first)
        self._tokens, self._seq, self._batch_size, self._order, self._seed = tokens, seq, batch_size, order, seed
        self._position = 0
        self._orders: dict[int, Indices] = {}  # of the epochs of the last batch

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
        """Continue from a position. The batch size and the number of processes may differ from those it was saved with.

        Raises:
            ValueError: a position in other data, or in another order.
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
        """Where the windows of consecutive numbers begin."""
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
        return places * np.uint64(self._seq) if self._first is None else self._first[places]

    def _shuffled(self, epoch: int) -> Indices:
        """The windows in the order of an epoch: sorted by a random number for each."""
        bits = _random_bits(self._seed, epoch, 0, self.windows_per_epoch)
        return np.argsort(bits, kind="stable").astype(np.uint64)


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
) -> Iterator[Batch]:
    """Return the windows of a shard in the order of the text, each once.

    The last batch may be smaller, or empty on some processes.

    Args:
        tokens, seq, batch_size, eot_id, rank, world_size: as for `Batches`.
        order: ``documents`` for one window from the beginning of each document; otherwise they lie end to end.
        most: limit for the number of windows, over all processes; they are spread evenly over the shard (default: all).

    Raises:
        ValueError: as for `Batches`.
    """
    mine = _slice(batch_size, rank, world_size)
    first = _document_starts(tokens, seq, eot_id) if order == "documents" else None
    count = window_count(tokens, seq) if first is None else len(first)
    if most is not None and most < 1:
        raise ValueError(f"{most} windows to evaluate on; it must be at least 1")
    taken = count if most is None else min(most, count)
    places = np.arange(taken, dtype=np.uint64) * np.uint64(count) // np.uint64(taken)
    starts = places * np.uint64(seq) if first is None else first[places]
    return (_windows(tokens, starts[i : i + batch_size][mine], seq) for i in range(0, taken, batch_size))


def window_count(tokens: npt.NDArray[np.integer], seq: int) -> int:
    """Return how many windows of ``seq`` inputs, end to end, there are in a text.

    Raises:
        ValueError: not one, or ``seq`` is under 1.
    """
    if seq < 1:
        raise ValueError(f"seq is {seq}; it must be at least 1")
    if len(tokens) <= seq:
        shorter = f"--seq {len(tokens) - 1} or less, or " if len(tokens) > 1 else ""
        raise ValueError(
            f"{getattr(tokens, 'filename', 'the text')} has {len(tokens)} tokens, fewer than the {seq + 1} of one "
            f"window ({seq} inputs, and the target of the last): give {shorter}more text"
        )
    return (len(tokens) - 1) // seq


def _document_starts(tokens: npt.NDArray[np.integer], seq: int, eot_id: int | None) -> Indices:
    """Return where the documents begin that have a whole window of tokens behind them."""
    window_count(tokens, seq)  # refuses a text without one
    if eot_id is None:
        raise ValueError(
            "--order documents needs several documents with an end-of-text token between them, and this text has one "
            "document: give --order shuffled"
        )
    begins = np.concatenate([np.zeros(1, np.int64), 1 + np.flatnonzero(np.asarray(tokens) == eot_id)])
    return begins[begins < len(tokens) - seq].astype(np.uint64)


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
    """Numbers ``first`` to ``first + count`` of a seed's stream, each of 64 random bits, without those before."""
    generator = np.random.Philox(key=seed % _STREAMS + stream * _STREAMS)
    generator.advance(first // 4)  # each of its steps makes four numbers
    return generator.random_raw(first % 4 + count)[first % 4 :]
