"""Orders are permutations with the promised structure; batches are slices of them."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import TetherError
from tether.training.config import FitConfig
from tether.training.sampler import Batches, balanced, shuffled

seeds = st.integers(0, 2**40)
label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=60)


@settings(deadline=None)
@given(st.integers(1, 200), seeds, st.integers(0, 100))
def test_shuffled_has_every_example_once(count, seed, epoch):
    assert sorted(shuffled(count, seed, epoch)) == list(range(count))


def test_shuffled_depends_on_seed_and_epoch_only():
    orders = {tuple(shuffled(50, seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9
    assert shuffled(50, 1, 2).tolist() == shuffled(50, 1, 2).tolist()


def test_shuffled_never_changes():
    # Golden value: a change here would break the continuation of runs that others have begun.
    assert shuffled(10, 7, 3).tolist() == [2, 9, 1, 7, 6, 3, 8, 4, 0, 5]


def test_shuffled_is_uniform():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), shuffled(6, seed, 0)] += 1
    # 36 cells of expectation 500: chi-squared with 25 degrees of freedom; 52.6 is its 0.999 quantile.
    assert ((counts - 500) ** 2 / 500).sum() < 52.6


@settings(deadline=None)
@given(label_lists, seeds, st.integers(0, 5))
def test_balanced_has_every_label_equally_often(labels, seed, epoch):
    order = balanced(labels, seed, epoch)
    assert len(order) == len(labels)
    counts = Counter(np.asarray(labels)[order].tolist())
    expected = [counts[label] for label in set(labels)]
    assert max(expected) - min(expected) <= 1


def test_balanced_repeats_a_rare_example_only_after_all_others_of_its_label():
    labels = [0] * 90 + [1] * 3
    picks = [index for index in balanced(labels, 0, 0) if labels[index] == 1]
    assert len(picks) in (46, 47)
    assert all(len(set(picks[i : i + 3])) == 3 for i in range(0, 45, 3))


def test_balanced_comes_to_all_examples_of_a_frequent_label_in_time():
    labels = [0] * 90 + [1] * 3
    seen = {index for epoch in range(12) for index in balanced(labels, 0, epoch)}
    assert seen == set(range(93))


def test_balanced_never_changes():
    # Golden value: a change here would break the continuation of runs that others have begun.
    assert balanced([0, 0, 0, 0, 1, 2], 7, 3).tolist() == [4, 2, 5, 0, 4, 5]


def batches(count, size, **options):
    return Batches(partial(shuffled, count, 0), count, size, **options)


def test_batches_of_an_epoch_are_the_order_in_slices_and_the_last_is_smaller():
    some = batches(10, 4)
    assert some.per_epoch == 3
    assert [len(some.batch(step)[1]) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert np.concatenate([some.batch(step)[1] for step in (3, 4, 5)]).tolist() == shuffled(10, 0, 1).tolist()
    assert [some.batch(step)[0] for step in range(6)] == [0, 0, 0, 1, 1, 1]


def test_an_incomplete_batch_can_be_left_out():
    some = batches(10, 4, drop_last=True)
    assert some.per_epoch == 2
    assert [len(some.batch(step)[1]) for step in range(4)] == [4, 4, 4, 4]
    assert some.batch(2)[0] == 1


def test_any_step_can_be_asked_for_at_once():
    one, other = batches(10, 4), batches(10, 4)
    for step in range(17):
        one.batch(step)
    assert one.batch(17)[1].tolist() == other.batch(17)[1].tolist()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_put_together_are_the_batch(processes):
    some = batches(24, 8)
    shares = [some.share(4, rank, processes)[1] for rank in range(processes)]
    assert np.concatenate(shares).tolist() == some.batch(4)[1].tolist()
    assert {len(share) for share in shares} == {8 // processes}


@pytest.mark.parametrize(
    ("count", "size", "drop_last", "processes", "odd"),
    [
        (24, 8, False, 2, None),
        (21, 8, False, 2, 5),
        (21, 8, True, 2, None),
        (24, 8, False, 3, 8),
        (3, 8, False, 2, 3),
    ],
)
def test_batches_that_cannot_be_shared_equally_are_refused(count, size, drop_last, processes, odd):
    some = batches(count, size, drop_last=drop_last)
    if odd is None:
        some.check_shares(processes)
    else:
        with pytest.raises(TetherError, match=f"A batch of {odd} examples .* by {processes} processes"):
            some.check_shares(processes)


def test_a_data_set_smaller_than_a_batch_is_one_batch_or_refused():
    assert len(batches(3, 8).batch(0)[1]) == 3
    with pytest.raises(TetherError, match="3 examples, fewer than one batch of 8"):
        batches(3, 8, drop_last=True)
    small = FitConfig(epochs=2, batch_size=8, drop_last=True)
    with pytest.raises(TetherError, match="3 examples, fewer than one batch of 8"):
        small.total_steps(3)  # what a schedule asks before there are batches
    with pytest.raises(TetherError, match="data set is empty"):
        batches(0, 8)
