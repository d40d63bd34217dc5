"""Orders: complete, reproducible anywhere, and independent of who asks."""

from collections import Counter

import pytest

from commands.pretrain.data.sample_order import MIX_BLOCK, EpochOrder, Mix, permutation


def test_a_permutation_is_one_and_never_changes() -> None:
    assert sorted(permutation(1000, "a").tolist()) == list(range(1000))
    assert permutation(8, "a", 1).tolist() != permutation(8, "a", 2).tolist()
    # Recorded: a change would break the resuming of every run there is.
    assert permutation(8, "recorded", 0, 1).tolist() == [1, 0, 3, 2, 5, 6, 4, 7]


def test_every_epoch_sees_every_row_once_in_another_order() -> None:
    order = EpochOrder([3, 0, 5, 2, 7], window=2, seed=4)
    epochs = [[order.row(epoch * 17 + i) for i in range(17)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_index_asked_alone_is_the_same_as_in_a_row() -> None:
    order = EpochOrder([5] * 7, window=3, seed=1)
    in_a_row = [order.row(i) for i in range(100)]
    backwards = [EpochOrder([5] * 7, window=3, seed=1).row(i) for i in reversed(range(100))]
    assert in_a_row == backwards[::-1]


def test_no_more_parts_than_the_window_are_mixed_at_once() -> None:
    order = EpochOrder([10] * 12, window=3, seed=2)
    for start in range(0, 120, 30):
        rows = [order.row(i) for i in range(start, start + 30)]
        assert len({row // 10 for row in rows}) == 3
        assert rows != sorted(rows)


def test_seeds_and_sources_have_orders_of_their_own() -> None:
    orders = [EpochOrder([50], 1, seed, name) for seed, name in ((0, "0"), (1, "0"), (0, "1"))]
    first, other_seed, other_source = ([order.row(i) for i in range(50)] for order in orders)
    assert first != other_seed
    assert first != other_source


def test_a_mix_keeps_its_weights_in_every_block_and_skips_no_sample() -> None:
    mix = Mix([0.7, 0.3, 0.123], seed=5)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for index in range(3 * MIX_BLOCK):
        source, within = mix.locate(index)
        seen[source].append(within)
    assert all(entries == list(range(len(entries))) for entries in seen.values())
    shares = Counter({source: len(entries) / (3 * MIX_BLOCK) for source, entries in seen.items()})
    for source, weight in enumerate((0.7, 0.3, 0.123)):
        assert shares[source] == pytest.approx(weight / 1.123, abs=1 / MIX_BLOCK)


def test_a_weight_too_small_to_be_seen_is_refused() -> None:
    with pytest.raises(ValueError, match="1 in 1000"):
        Mix([1.0, 0.0001], seed=0)
