"""Windows of tokens: each once an epoch in an order of its own, the same after a resume and on many processes."""

import json
import math
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptladder.tokenizer import BPETokenizer
from gptladder.training.data import batches as module
from gptladder.training.data.batches import Batches, Order, evaluation_batches, window_count
from gptladder.training.data.corpus import StoryCorpus
from gptladder.training.data.shards import prepare_shards

SHUFFLED = [980, 470, 440, 600, 950, 900, 550, 920]
RANDOM = [191, 563, 852, 787, 560, 981, 231, 336]


def counting(length: int, dtype: type = np.uint32) -> np.ndarray:
    """Tokens that tell their place."""
    return np.arange(length, dtype=dtype)


def starts(batch: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    return batch[0][:, 0].tolist()


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


# Windows


@pytest.mark.parametrize("order", ["shuffled", "random"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_targets_are_the_inputs_shifted_by_one(order: Order, dtype: type) -> None:
    inputs, targets = next(Batches(counting(1000, dtype), seq=7, batch_size=5, order=order))
    assert inputs.shape == targets.shape == (5, 7)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(targets, inputs + 1)
    assert inputs.is_contiguous()
    assert targets.is_contiguous()


@pytest.mark.parametrize("order", ["shuffled", "random"])
def test_high_ids_stay_positive(order: Order) -> None:
    inputs, targets = next(Batches(np.full(10, 65_535, dtype=np.uint16), seq=3, batch_size=2, order=order))
    assert (inputs == 65_535).all()
    assert (targets == 65_535).all()


@given(length=st.integers(2, 300), seq=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.integers(-5, 2**70))
def test_an_epoch_is_every_window_once(length: int, seq: int, batch_size: int, seed: int) -> None:
    if length <= seq:
        return
    batches = Batches(counting(length), seq=seq, batch_size=batch_size, seed=seed)
    count = batches.windows_per_epoch
    assert count == window_count(counting(length), seq) == (length - 1) // seq
    drawn: list[int] = []
    while len(drawn) < 3 * count:
        drawn += starts(next(batches))
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(0, count * seq, seq))


def test_epochs_have_orders_of_their_own() -> None:
    batches = Batches(counting(1001), seq=10, batch_size=100)
    first, second, third = (starts(next(batches)) for _ in range(3))
    assert len({tuple(first), tuple(second), tuple(third), tuple(range(0, 1000, 10))}) == 4
    other = starts(next(Batches(counting(1001), seq=10, batch_size=100, seed=1338)))
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 10


def test_every_token_is_a_target_once_in_an_epoch() -> None:
    batches = Batches(counting(101), seq=10, batch_size=5)
    targets = torch.cat([targets for _, targets in islice(batches, 2)])
    assert sorted(targets.flatten().tolist()) == list(range(1, 101))


def test_random_windows_begin_anywhere() -> None:
    batches = Batches(counting(40), seq=8, batch_size=64, order="random")
    drawn = [start for batch in islice(batches, 100) for start in starts(batch)]
    assert set(drawn) == set(range(32))  # the last window: inputs 31 to 38, targets 32 to 39
    expected = len(drawn) / 32
    chi_square = sum((drawn.count(start) - expected) ** 2 / expected for start in range(32))
    assert p_value(chi_square, 31) > 1e-4


def p_value(chi_square: float, degrees: int) -> float:
    half = torch.tensor([degrees / 2, chi_square / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def in_documents(lengths: list[int], eot_id: int = 0) -> np.ndarray:
    """Documents of numbers counted from 1 in each, every one followed by the end-of-text token."""
    return np.concatenate([np.append(np.arange(1, length), eot_id) for length in lengths]).astype(np.uint16)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20), seq=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_order_documents_divides_each_by_itself(lengths: list[int], seq: int, seed: int) -> None:
    tokens = in_documents(lengths)
    if len(tokens) <= seq:
        return
    begins = np.cumsum([0, *lengths]).tolist()
    expected = {
        min(start, len(tokens) - seq - 1)
        for begin, end in pairwise(begins)
        for start in range(begin, max(begin + 1, end - 1), seq)
    }
    places = np.arange(len(tokens), dtype=np.uint32)  # each token is its own place
    judged = evaluation_batches(tokens, seq=seq, batch_size=3, order="documents", eot_id=0)
    windows = [row for inputs, _ in judged for row in inputs.tolist()]
    assert windows == [tokens[start : start + seq].tolist() for start in sorted(expected)]
    targets = {place for start in expected for place in places[start + 1 : start + seq + 1].tolist()}
    assert targets >= set(places.tolist()) - set(begins)

    batches = Batches(tokens, seq=seq, batch_size=1, order="documents", eot_id=0, seed=seed)
    assert batches.windows_per_epoch == len(expected)
    for _ in range(2):
        assert sorted(inputs[0].tolist() for inputs, _ in islice(batches, len(expected))) == sorted(windows)
    assert batches.epochs == 2


def test_a_text_without_separators_is_one_document() -> None:
    for order in ("shuffled", "documents"):
        batches = evaluation_batches(counting(101), seq=10, batch_size=2, order=order)
        assert [start for batch in batches for start in starts(batch)] == list(range(0, 100, 10))


def test_seeds_draw_windows_of_their_own() -> None:
    # Neighbours, too, which a careless mix of seed and number would make draw the same windows in another order.
    def drawn(seed: int) -> set[int]:
        return set(starts(next(Batches(counting(10**6), seq=1, batch_size=200, order="random", seed=seed))))

    sets = [drawn(seed) for seed in range(8)]
    assert all(len(a & b) < 5 for i, a in enumerate(sets) for b in sets[:i])


def test_the_shuffle_is_fair() -> None:
    size, keys = 23, 6000
    counts = np.zeros((size, size))
    neighbours = np.zeros(size)
    for seed in range(keys):
        batches = Batches(counting(size + 1), seq=1, batch_size=size, seed=seed)
        places = np.array(starts(next(batches)))
        counts[np.arange(size), places] += 1
        neighbours[(places[1] - places[0]) % size] += 1
    chi_square = ((counts - keys / size) ** 2 / (keys / size)).sum()
    assert p_value(chi_square, (size - 1) ** 2) > 1e-4
    expected = keys / (size - 1)
    assert neighbours[0] == 0
    assert p_value(((neighbours[1:] - expected) ** 2 / expected).sum(), size - 2) > 1e-4


def test_a_large_shuffle_has_no_pattern() -> None:
    size = 200_000
    places = np.array(starts(next(Batches(counting(size + 1), seq=1, batch_size=size, seed=99))), dtype=float)
    for other in (np.arange(size), np.roll(places, 1), np.roll(places, math.isqrt(size) + 1)):
        assert abs(np.corrcoef(places, other)[0, 1]) < 0.01


def test_the_orders_stay_those_of_this_version() -> None:
    """A run is resumed by a later version of NumPy too: these are the first windows of seed 1337."""
    shuffled = Batches(counting(1001), seq=10, batch_size=8)
    anywhere = Batches(counting(1001), seq=10, batch_size=8, order="random")
    assert starts(next(shuffled)) == SHUFFLED
    assert starts(next(anywhere)) == RANDOM


# Positions


@pytest.mark.parametrize("order", ["shuffled", "random", "documents"])
@pytest.mark.parametrize("stop", [0, 1, 13, 40])
def test_a_resume_goes_on_exactly_where_it_stopped(order: Order, stop: int) -> None:
    def new() -> Batches:
        return Batches(counting(500), seq=6, batch_size=8, order=order, seed=3)

    straight = list(islice(new(), 60))
    first = new()
    before = list(islice(first, stop))
    state = json.loads(json.dumps(first.state_dict()))  # plain values, whatever they are stored in
    second = new()
    next(second)  # where it was does not matter
    second.load_state_dict(state)
    after = list(islice(second, 60 - stop))
    assert all(same(a, b) for a, b in zip(straight, before + after, strict=True))
    assert second.epochs == 60 * 8 / (84 if order == "documents" else 83)


def test_a_position_is_readable_by_torch_load_at_its_default(tmp_path: Path) -> None:
    batches = Batches(counting(500), seq=6, batch_size=8)
    next(batches)
    torch.save(batches.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt") == batches.state_dict()


def test_another_batch_size_goes_on_through_the_same_windows() -> None:
    straight = [start for batch in islice(Batches(counting(500), seq=6, batch_size=4), 30) for start in starts(batch)]
    first = Batches(counting(500), seq=6, batch_size=4)
    drawn = [start for batch in islice(first, 10) for start in starts(batch)]
    second = Batches(counting(500), seq=6, batch_size=16)
    second.load_state_dict(first.state_dict())
    drawn += [start for batch in islice(second, 5) for start in starts(batch)]
    assert drawn == straight


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2}, "seed 2, and this run has 1337"),
        ({"order": "random-2"}, "order random-2, and this run has shuffled-2"),
        ({"seq": 7}, "seq 7, and this run has 6"),
        ({"tokens": 501}, "tokens 501, and this run has 500"),
    ],
)
def test_a_position_in_other_data_is_refused(change: dict[str, Any], said: str) -> None:
    batches = Batches(counting(500), seq=6, batch_size=8)
    state: Any = {**batches.state_dict(), **change}
    with pytest.raises(ValueError, match=f"the position to resume from has {said}: resume with the same data"):
        batches.load_state_dict(state)


@pytest.mark.parametrize("order", ["shuffled", "random"])
def test_a_position_of_version_0_1_0_is_refused(order: str) -> None:
    batches = Batches(counting(500), seq=6, batch_size=8)
    with pytest.raises(
        ValueError, match=r"written by version 0\.1\.0, which took the text in another order.*--init-from"
    ):
        batches.load_state_dict({**batches.state_dict(), "order": order})


def test_random_state_elsewhere_changes_nothing() -> None:
    one, other = (Batches(counting(500), seq=6, batch_size=8, order="random") for _ in range(2))
    for _ in range(5):
        torch.rand(3)
        np.random.default_rng().random(3)
        torch.manual_seed(int(next(one)[0].sum()))
    assert not same(next(one), next(other))
    assert same(next(one), list(islice(other, 6))[-1])


# Many processes


@pytest.mark.parametrize("order", ["shuffled", "random"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_processes_together_see_what_one_sees(order: Order, world_size: int) -> None:
    alone = Batches(counting(300), seq=6, batch_size=12, order=order)
    together = [
        Batches(counting(300), seq=6, batch_size=12, order=order, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(10):
        shares = [next(batches) for batches in together]
        assert all(len(inputs) == 12 // world_size for inputs, _ in shares)
        assert same(next(alone), tuple(torch.cat(parts) for parts in zip(*shares, strict=True)))
    assert {json.dumps(batches.state_dict()) for batches in together} == {json.dumps(alone.state_dict())}


def test_a_resume_may_be_on_another_number_of_processes() -> None:
    alone = Batches(counting(300), seq=6, batch_size=12)
    list(islice(alone, 7))
    halves = [Batches(counting(300), seq=6, batch_size=12, rank=rank, world_size=2) for rank in range(2)]
    for half in halves:
        half.load_state_dict(alone.state_dict())
    assert same(next(alone), tuple(torch.cat(parts) for parts in zip(*map(next, halves), strict=True)))


# Evaluation


@given(length=st.integers(2, 200), seq=st.integers(1, 20), batch_size=st.integers(1, 5), world_size=st.integers(1, 3))
def test_evaluation_sees_every_window_once(length: int, seq: int, batch_size: int, world_size: int) -> None:
    if length <= seq:
        return
    seen = [
        start
        for rank in range(world_size)
        for batch in evaluation_batches(
            counting(length), seq=seq, batch_size=batch_size * world_size, rank=rank, world_size=world_size
        )
        for start in starts(batch)
    ]
    assert sorted(seen) == list(range(0, (length - 1) // seq * seq, seq))


def test_evaluation_is_in_order_and_the_last_batch_shorter() -> None:
    batches = list(evaluation_batches(counting(75), seq=7, batch_size=4))
    assert [starts(batch) for batch in batches] == [[0, 7, 14, 21], [28, 35, 42, 49], [56, 63]]
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in batches)


def test_a_part_of_the_windows_is_spread_over_all() -> None:
    batches = evaluation_batches(counting(1001), seq=10, batch_size=2, most=5)
    assert [start for batch in batches for start in starts(batch)] == [0, 200, 400, 600, 800]
    everything = evaluation_batches(counting(1001), seq=10, batch_size=50, most=10**9)
    assert sum(len(inputs) for inputs, _ in everything) == 100


def test_an_evaluation_does_not_look_for_documents_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.array([1, 2, 0, 3, 4, 5, 0, 6, 7, 8], dtype=np.uint16)
    batches = evaluation_batches(tokens, seq=3, batch_size=2, order="documents", eot_id=0)
    monkeypatch.setattr(module, "_window_starts", None)
    first, second = list(batches), list(batches)
    assert sum(len(inputs) for inputs, _ in first) > 1
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


def test_a_process_may_have_no_share_of_the_last_batch() -> None:
    batches = list(evaluation_batches(counting(21), seq=5, batch_size=6, rank=1, world_size=2))
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(1, 5)]
    batches = list(evaluation_batches(counting(11), seq=5, batch_size=6, rank=1, world_size=2))
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(0, 5)]


# Wrong sizes


@pytest.mark.parametrize("make", [Batches, evaluation_batches])
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"seq": 100}, r"the text has 100 tokens, fewer than the 101 of one window \(100 inputs, and the target"),
        ({"seq": 0}, "seq is 0; it must be at least 1"),
        ({"seq": -3}, "seq is -3; it must be at least 1"),
        ({"batch_size": 0}, "batch_size 0, rank 0 of 1: sizes begin at 1"),
        ({"batch_size": -8}, "batch_size -8, rank 0 of 1: sizes begin at 1"),
        ({"world_size": 3}, "a batch of 8 windows cannot be shared evenly among 3 processes"),
        ({"world_size": 0}, "rank 0 of 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": -1}, "rank -1 of 1"),
    ],
)
def test_wrong_sizes_are_refused_at_once(make: Any, sizes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(counting(100), **{"seq": 5, "batch_size": 8, **sizes})


def test_the_shortest_text_is_one_window() -> None:
    assert starts(next(Batches(counting(100), seq=99, batch_size=2))) == [0, 0]
    assert starts(next(Batches(counting(100), seq=99, batch_size=2, order="random"))) == [0, 0]


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order is 'sorted'; it must be 'shuffled', 'random', 'documents'"):
        Batches(counting(100), seq=5, batch_size=8, order="sorted")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("most", [0, -1])
def test_no_windows_to_evaluate_are_refused(most: int) -> None:
    with pytest.raises(ValueError, match=f"{most} windows to evaluate on"):
        evaluation_batches(counting(100), seq=5, batch_size=8, most=most)


def test_windows_of_a_shard_stay_inside_it_and_its_name_is_told(tmp_path: Path) -> None:
    corpus = StoryCorpus(size=20_000)
    tokenizer = BPETokenizer.train(corpus.text(), 300)
    train, val = prepare_shards(corpus, tokenizer, tmp_path)
    for shard in (train, val):
        tokens = torch.from_numpy(shard.tokens.astype(np.int64))
        for inputs, targets in evaluation_batches(shard.tokens, seq=32, batch_size=16):
            for row, target in zip(inputs, targets, strict=True):
                at = (tokens.unfold(0, 33, 1) == torch.cat([row, target[-1:]])).all(1).nonzero()
                assert len(at) >= 1
    with pytest.raises(ValueError, match=r"val\.bin has \d+ tokens, fewer than the 100001 of one window"):
        Batches(val.tokens, seq=100_000, batch_size=1)
