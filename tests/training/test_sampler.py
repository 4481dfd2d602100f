"""Orders are permutations with the promised structure; batches are slices of them."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import TetherError
from tether.training.config import FitConfig
from tether.training.sampler import Batches, SamplerConfig, balanced, grouped, shuffled

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
@given(label_lists, st.integers(2, 5), seeds, st.integers(0, 5))
def test_grouped_has_every_example_once_in_runs_of_a_label(labels, together, seed, epoch):
    order = grouped(labels, together, seed, epoch)
    assert sorted(order) == list(range(len(labels)))
    # Cut the sequence of labels into runs as the promise says: greedily, at most `together` long.
    runs, previous = [], None
    for label in np.asarray(labels)[order]:
        if label == previous and len(runs[-1]) < together:
            runs[-1].append(label)
        else:
            runs.append([label])
        previous = label
    fewest = sum(-(-count // together) for count in Counter(labels).values())
    assert len(runs) <= fewest + sum(count % together != 0 for count in Counter(labels).values())


def test_grouped_puts_the_captions_of_a_picture_into_one_batch():
    labels = np.repeat(np.arange(40), 5)
    batches = Batches(lambda epoch: grouped(labels, 5, 0, epoch), 200, batch_size=20)
    for step in range(batches.per_epoch):
        assert sorted(Counter(labels[batches.batch(step)[1]]).values()) == [5, 5, 5, 5]


def test_grouped_mixes_labels_and_members_anew_in_every_epoch():
    labels = np.repeat(np.arange(10), 4)
    first, second = (grouped(labels, 2, 0, epoch) for epoch in (0, 1))
    assert labels[first].tolist() != labels[second].tolist()
    pairs = [{frozenset(order[i : i + 2].tolist()) for i in range(0, 40, 2)} for order in (first, second)]
    assert pairs[0] != pairs[1]


@settings(deadline=None)
@given(label_lists, st.integers(1, 4), seeds, st.integers(0, 5))
def test_balanced_has_every_label_equally_often(labels, together, seed, epoch):
    order = balanced(labels, together, seed, epoch)
    assert len(order) == len(labels)
    counts = Counter(np.asarray(labels)[order].tolist())
    expected = [counts[label] for label in set(labels)]
    assert max(expected) - min(expected) <= together


def test_balanced_repeats_a_rare_example_only_after_all_others_of_its_label():
    labels = [0] * 90 + [1] * 3
    picks = [index for index in balanced(labels, 1, 0, 0) if labels[index] == 1]
    assert len(picks) in (46, 47)
    assert all(len(set(picks[i : i + 3])) == 3 for i in range(0, 45, 3))


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


def test_the_config_chooses_the_order():
    labels = [0, 1] * 10
    assert SamplerConfig().order(labels, 5)(2).tolist() == shuffled(20, 5, 2).tolist()
    config = SamplerConfig(kind="grouped", together=2)
    assert config.order(labels, 5)(2).tolist() == grouped(labels, 2, 5, 2).tolist()
    config = SamplerConfig(kind="balanced", together=2)
    assert config.order(labels, 5)(2).tolist() == balanced(labels, 2, 5, 2).tolist()


@pytest.mark.parametrize(
    "options", [{"together": 2}, {"kind": "grouped"}, {"kind": "balanced", "together": 0}]
)
def test_a_config_that_contradicts_itself_is_refused(options):
    with pytest.raises(TetherError, match="does not fit the sampler"):
        SamplerConfig(**options)
