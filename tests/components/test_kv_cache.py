"""Keys and values kept between calls: the same logits for any split, and rows that go where they are sent."""

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.components import HookPoint, KVCache, LayerCache
from gptladder.ladder.answers import randomize
from gptladder.sampling import pack

CONFIG = GPT2Config(d_model=10, n_layers=2, n_heads=3, d_head=4, d_mlp=14, d_vocab=17, n_ctx=12)


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "explicit"])
def model(request: pytest.FixtureRequest) -> GPT2:
    made = GPT2(CONFIG, fused=request.param, dtype=torch.float64)
    randomize(made, torch.Generator().manual_seed(0))
    return made.eval()


def tokens(batch: int, seq: int, seed: int = 0) -> Tensor:
    return torch.randint(17, (batch, seq), generator=torch.Generator().manual_seed(seed))


@given(
    batch=st.integers(1, 3),
    parts=st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda parts: sum(parts) <= 12),
    padding=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    growing=st.booleans(),
)
def test_any_split_gives_the_same_logits_left_padding_included(
    model: GPT2, batch: int, parts: list[int], padding: list[int], growing: bool
) -> None:
    seq = sum(parts)
    ids = tokens(batch, seq)
    mask = torch.arange(seq) >= torch.tensor(padding[:batch])[:, None]
    cache = model.new_cache(batch, capacity=1 if growing else seq, growing=growing)
    with torch.no_grad():
        pieces = zip(ids.split(parts, 1), mask.split(parts, 1), strict=True)
        # A piece without padding may leave the mask out: the cache remembers the earlier pieces'.
        split = [model(ids, padding_mask=None if part.all() else part, cache=cache) for ids, part in pieces]
        whole = model(ids, padding_mask=mask)
        assert cache.length == seq
        assert (torch.cat(split, 1) - whole)[mask].abs().max() < 1e-12 if mask.any() else True
        for row in range(batch):
            if mask[row].any():  # and padding makes no difference to a row
                alone = model(ids[row : row + 1, mask[row]])
                assert (whole[row, mask[row]] - alone[0]).abs().max() < 1e-12


@given(data=st.data())
def test_with_a_cache_too_a_position_is_blind_to_later_ones(model: GPT2, data: st.DataObject) -> None:
    seq = data.draw(st.integers(2, 8))
    cut = data.draw(st.integers(1, seq - 1))
    changed = data.draw(st.integers(1, seq - 1))
    ids = tokens(2, seq)
    other = ids.clone()
    other[:, changed] = (other[:, changed] + 1) % 17
    outputs = []
    for each in (ids, other):
        cache = model.new_cache(2)
        outputs.append(torch.cat([model(part, cache=cache) for part in each.split([cut, seq - cut], 1)], 1))
    assert torch.equal(outputs[0][:, :changed], outputs[1][:, :changed])
    assert not torch.equal(outputs[0][:, changed], outputs[1][:, changed])


def test_cropping_forgets(model: GPT2) -> None:
    ids = tokens(2, 9)
    cache = model.new_cache(2)
    model(tokens(2, 9, seed=5), cache=cache)
    cache.crop(0)
    model(ids[:, :6], cache=cache)
    cache.crop(4)
    assert (model(ids[:, 4:], cache=cache) - model(ids)[:, 4:]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="cannot crop 9 cached positions to 10"):
        cache.crop(10)


@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=5), padded=st.booleans())
def test_reordering_sends_rows_where_they_are_asked_to(model: GPT2, rows: list[int], padded: bool) -> None:
    ids = tokens(3, 5)
    mask = torch.arange(5) >= torch.tensor([0, 2, 1])[:, None] if padded else None
    cache = model.new_cache(3)
    model(ids, padding_mask=mask, cache=cache)
    chosen = torch.tensor(rows)
    cache.reorder(chosen)
    assert (cache.batch, cache.length) == (len(rows), 5)
    following = tokens(len(rows), 2, seed=3)
    longer = torch.cat([ids[chosen], following], 1)
    longer_mask = None if mask is None else torch.cat([mask[chosen], torch.ones(len(rows), 2, dtype=torch.bool)], 1)
    expected = model(longer, padding_mask=longer_mask)[:, -2:]
    assert (model(following, cache=cache) - expected).abs().max() < 1e-12


def test_a_row_that_does_not_exist_changes_nothing(model: GPT2) -> None:
    cache = model.new_cache(2)
    model(tokens(2, 3), cache=cache)
    before = cache.layers[0].keys.clone()
    for low, high in ((0, 2), (-1, 1)):
        with pytest.raises(IndexError, match=f"rows run from {low} to {high}, but the cache has 2"):
            cache.reorder(torch.tensor([low, high]))
    assert torch.equal(cache.layers[0].keys, before)


@pytest.mark.parametrize("n", [1, 3])
def test_a_fork_continues_each_prompt_and_leaves_the_first_alone(model: GPT2, n: int) -> None:
    ids = tokens(2, 4)
    mask = torch.tensor([[False, True, True, True], [True] * 4])
    cache = model.new_cache(2)
    model(ids, padding_mask=mask, cache=cache)
    forked = cache.fork(n)
    following = tokens(2 * n, 3, seed=7)
    got = model(following, cache=forked)
    assert (cache.length, forked.length, forked.batch) == (4, 7, 2 * n)
    repeated = torch.cat([ids.repeat_interleave(n, 0), following], 1)
    repeated_mask = torch.cat([mask.repeat_interleave(n, 0), torch.ones(2 * n, 3, dtype=torch.bool)], 1)
    assert (got - model(repeated, padding_mask=repeated_mask)[:, -3:]).abs().max() < 1e-12
    again = model(following[::n], cache=cache)
    assert (again - got[::n]).abs().max() < 1e-12


def test_a_static_cache_takes_its_memory_once_and_is_full_at_its_capacity(model: GPT2) -> None:
    cache = model.new_cache(1, capacity=5)
    where = cache.layers[0].keys.data_ptr()
    model(tokens(1, 3), cache=cache)
    model(tokens(1, 2), cache=cache)
    assert cache.layers[0].keys.data_ptr() == where
    with pytest.raises(ValueError, match="holds 5 positions and 6 are needed"):
        model(tokens(1, 1), cache=cache)
    assert cache.length == 5


def test_a_growing_cache_doubles() -> None:
    cache = LayerCache(batch=1, n_heads=1, d_head=2, capacity=2, growing=True)
    sizes = []
    for _ in range(9):
        cache.append(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
        sizes.append(cache.keys.shape[2])
    assert sizes == [2, 2, 4, 4, 8, 8, 8, 8, 16]


def test_a_layers_cache_holds_keys_and_values_and_is_full_at_its_capacity() -> None:
    cache = LayerCache(batch=2, n_heads=3, d_head=1, capacity=4)
    k, v = torch.arange(24.0).reshape(2, 2, 2, 3, 1)
    keys, values = cache.append(k, v)
    assert torch.equal(cache.keys[:, :, :2], k.transpose(1, 2))
    assert torch.equal(cache.values[:, :, :2], v.transpose(1, 2))
    assert (keys.data_ptr(), values.data_ptr()) == (cache.keys.data_ptr(), cache.values.data_ptr())  # no copies
    rows = torch.tensor([1, 0, 1])
    cache.reorder(rows)
    k, v = k[rows], v[rows]
    assert torch.equal(cache.append(k, v)[1], torch.cat([v, v], 1).transpose(1, 2))
    with pytest.raises(ValueError, match="holds 4 positions and 6 are needed"):
        cache.append(k, v)


SIZES: dict[str, Any] = {"batch": 2, "n_heads": 1, "d_head": 1, "capacity": 4}


@pytest.mark.parametrize("make", [lambda: LayerCache(**SIZES), lambda: KVCache(n_layers=1, **SIZES)])
def test_a_cache_is_cropped_to_lengths_up_to_its_own(make: Callable[[], Any]) -> None:
    cache = make()
    for layer in getattr(cache, "layers", [cache]):
        layer.append(torch.ones(2, 2, 1, 1), torch.ones(2, 2, 1, 1))
    cache.length = 2
    for length in (2, 1, 0):
        with pytest.raises(ValueError, match=f"cannot crop {cache.length} cached positions to {cache.length + 1}"):
            cache.crop(cache.length + 1)
        with pytest.raises(ValueError, match="to -1"):
            cache.crop(-1)
        cache.crop(length)
        assert cache.length == length


def test_a_cache_of_one_layer_knows_its_batch_and_padding_and_is_forked() -> None:
    cache = KVCache(n_layers=1, **SIZES)
    mask = torch.tensor([[False], [True]])
    assert cache.batch == 2
    found = cache.extend_mask(mask, seq=1)
    assert found is not None
    assert torch.equal(found, mask)
    assert cache.fork().batch == 2
    with pytest.raises(ValueError, match="holds 4 positions and 5 are needed"):
        cache.layers[0].extend(2, 5, 1, 1)


def test_a_call_that_raises_leaves_the_cache_as_it_was(model: GPT2) -> None:
    ids = tokens(2, 6)
    cache = model.new_cache(2)
    model(ids[:, :3], cache=cache)

    def fail(activation: Tensor, hook: HookPoint) -> NoReturn:
        raise RuntimeError("half-way")

    mask = torch.tensor([[False, True, True], [True, True, True]])
    with pytest.raises(RuntimeError, match="half-way"):
        model.run_with_hooks(ids[:, 3:], padding_mask=mask, cache=cache, fwd_hooks=[("blocks.1.hook_attn_out", fail)])
    assert [layer.length for layer in cache.layers] == [3, 3]
    assert (model(ids[:, 3:], cache=cache) - model(ids)[:, 3:]).abs().max() < 1e-12


def test_past_the_context_is_refused_with_the_numbers(model: GPT2) -> None:
    cache = model.new_cache(1, capacity=20)
    model(tokens(1, 11), cache=cache)
    with pytest.raises(ValueError, match="2 tokens from position 11 do not fit into n_ctx=12"):
        model(tokens(1, 2), cache=cache)
    assert cache.length == 11


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_layers": 3}, "made for 3 layers, and the model has 2"),
        ({"n_layers": 1}, "made for 1 layers, and the model has 2"),
        ({"n_heads": 6}, "made for n_heads=6, d_head=4, and the layer has n_heads=3, d_head=4"),
        ({"n_heads": 1}, "made for n_heads=1, d_head=4"),
        ({"d_head": 8}, "made for n_heads=3, d_head=8"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_cache_of_another_models_sizes_is_refused(
    changes: dict[str, int], named: str, gradients: bool, packed: bool
) -> None:
    model = GPT2(CONFIG).eval()
    reader = pack(model, "float32") if packed else model
    cache = GPT2(dataclasses.replace(CONFIG, **changes)).new_cache(1)
    with torch.set_grad_enabled(gradients):
        for seq in (1, 3):
            with pytest.raises(ValueError, match=named):
                reader(tokens(1, seq), cache=cache)
            assert cache.length == 0


@pytest.mark.parametrize("masked", [True, False])
def test_another_batch_size_is_refused(model: GPT2, masked: bool) -> None:
    mask = torch.ones(2, 3, dtype=torch.bool) if masked else None
    with pytest.raises(ValueError, match="made for a batch of 3, not 2"):
        model(tokens(2, 3), padding_mask=mask, cache=model.new_cache(3))


@pytest.mark.parametrize("wrong", [lambda: KVCache(n_layers=1, batch=1, n_heads=1, d_head=1, capacity=0)])
def test_a_cache_of_nothing_is_refused(wrong: Callable[[], KVCache]) -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        wrong()


def test_a_fork_of_none_is_refused(model: GPT2) -> None:
    with pytest.raises(ValueError, match="continue each sequence 0 times"):
        model.new_cache(1).fork(0)


def test_what_is_kept_carries_no_gradient(model: GPT2) -> None:
    cache = model.new_cache(1)
    model(tokens(1, 3), cache=cache)
    assert not cache.layers[0].keys.requires_grad


def test_a_block_with_replaced_attention_caches_nothing() -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor, **given: object) -> torch.Tensor:
            return torch.full_like(x, 0.5)

    model: Any = GPT2(CONFIG, dtype=torch.float64).eval()
    model.blocks[0].attn = Constant()
    cache, ids = model.new_cache(2), tokens(2, 6)
    split = [model(part, cache=cache) for part in ids.split([3, 1, 2], 1)]
    assert (torch.cat(split, 1) - model(ids)).abs().max() < 1e-12
    cache.crop(3)
    assert (model(ids[:, 3:], cache=cache.fork(1)) - model(ids)[:, 3:]).abs().max() < 1e-12


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_reaches_whichever_of_keys_and_values_needs_one(which: int) -> None:
    cache = LayerCache(batch=1, n_heads=1, d_head=2, capacity=4)
    new = [torch.randn(1, 2, 1, 2), torch.randn(1, 2, 1, 2)]
    new[which].requires_grad_()
    cache.append(*new)[which].sum().backward()
    assert new[which].grad is not None
    assert (new[which].grad == 1).all()


def test_a_fork_of_a_growing_cache_grows() -> None:
    cache = LayerCache(batch=1, n_heads=1, d_head=2, capacity=2, growing=True)
    new = torch.ones(1, 2, 1, 2)
    cache.append(new, new)
    twin = cache.select(torch.tensor([0]))
    assert twin.append(new, new)[0].shape[2] == 4
