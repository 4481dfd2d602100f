"""What a batch is made of, and that it depends on (seed, epoch, step) only."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import PILToTensor

from tether.data import CaptionDataset, CaptionedImage, CaptionSplit, ImageRef, collate_captions
from tether.errors import TetherError
from tether.training import FitConfig, fit
from tether.training.caption_sampler import CaptionSamplerConfig, caption_grouped
from tether.training.sampler import Batches

seeds = st.integers(0, 2**40)
captions_per_picture = st.lists(st.integers(1, 7), min_size=1, max_size=30)


def pictures_of(counts):
    return np.repeat(np.arange(len(counts)), counts)


@settings(deadline=None)
@given(captions_per_picture, st.integers(1, 6), seeds, st.integers(0, 5))
def test_every_group_is_of_one_picture_and_repeats_no_caption_without_need(counts, together, seed, epoch):
    pictures = pictures_of(counts)
    order = caption_grouped(pictures, together, seed, epoch)
    assert len(order) == len(pictures) and set(order) <= set(range(len(pictures)))
    for start in range(0, len(order) - together + 1, together):
        group = order[start : start + together]
        (picture,) = set(pictures[group])
        assert len(set(group)) == min(together, counts[picture])


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=20), st.integers(1, 4), seeds)
def test_every_caption_comes_once_where_the_groups_divide(counts, together, seed):
    pictures = pictures_of(np.array(counts) * together)
    assert sorted(caption_grouped(pictures, together, seed, 0)) == list(range(len(pictures)))


def test_every_caption_comes_about_as_often_where_they_do_not():
    pictures = pictures_of([5] * 20)
    counts = np.zeros(100)
    for epoch in range(200):
        np.add.at(counts, caption_grouped(pictures, 2, 0, epoch), 1)
    assert counts.sum() == 200 * 100
    assert counts.min() > 160 and counts.max() < 240  # 200 ± 4 standard deviations


def batches(together, *, count=60, size=16, seed=3, drop_last=False):
    pictures = pictures_of([5] * (count // 5))
    order = CaptionSamplerConfig(together=together).order(pictures, seed)
    return pictures, Batches(order, count, size, drop_last=drop_last)


@pytest.mark.parametrize("together", [2, 4])
def test_in_every_batch_every_caption_has_others_of_its_picture(together):
    pictures, some = batches(together)
    for step in range(3 * some.per_epoch):
        _, captions = some.batch(step)
        counts = Counter(pictures[captions].tolist())
        assert all(count % together == 0 for count in counts.values())
        assert len(captions) == (16 if (step + 1) % some.per_epoch else 12)


def test_a_random_batch_has_none_and_this_is_why_there_are_groups():
    positives = []
    for together in (1, 4):
        pictures = pictures_of([5] * 2000)
        some = Batches(CaptionSamplerConfig(together=together).order(pictures, 0), 10_000, 64)
        drawn = pictures[some.batch(0)[1]]
        positives.append(((drawn[:, None] == drawn).sum(1) - 1).mean())
    assert positives[0] < 0.2 and positives[1] >= 3


def test_any_step_can_be_asked_for_at_once_and_the_seed_changes_all():
    pictures, one = batches(2)
    _, other = batches(2)
    for step in range(9):
        one.batch(step)
    assert one.batch(9)[1].tolist() == other.batch(9)[1].tolist()
    assert one.batch(9)[1].tolist() != batches(2, seed=4)[1].batch(9)[1].tolist()
    groups = [
        {frozenset(order.tolist()) for order in caption_grouped(pictures, 2, 0, epoch).reshape(-1, 2)}
        for epoch in (0, 1)
    ]
    assert groups[0] != groups[1]  # divided anew


def test_it_never_changes():
    # Golden value: a change here would break the continuation of runs that others have begun.
    assert caption_grouped(pictures_of([3, 2, 4]), 2, 7, 1).tolist() == [1, 2, 2, 0, 4, 3, 8, 5, 7]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_hold_whole_groups_and_are_the_batch_together(processes):
    pictures, some = batches(4, count=80)
    CaptionSamplerConfig(together=4).check_batches(16, processes)
    shares = [some.share(4, rank, processes)[1] for rank in range(processes)]
    assert np.concatenate(shares).tolist() == some.batch(4)[1].tolist()
    for share in shares:
        assert all(count % 4 == 0 for count in Counter(pictures[share].tolist()).values())


def test_borders_that_divide_a_group_are_refused():
    config = CaptionSamplerConfig(together=3)
    config.check_batches(12, 2)
    with pytest.raises(
        TetherError, match=r"A batch of 16 captions .* groups of 3 .* a batch_size that 3 divides"
    ):
        config.check_batches(16)
    with pytest.raises(TetherError, match=r"among 4 processes\. Choose a batch_size that 12 divides"):
        config.check_batches(18, 4)
    with pytest.raises(TetherError, match="at least 1; found 0"):
        CaptionSamplerConfig(together=0)


def test_the_loop_gives_an_objective_its_positives(tmp_path):
    examples = []
    for number in range(6):
        Image.new("RGB", (4, 4), (40 * number, 0, 255)).save(tmp_path / f"{number}.png")
        captions = tuple(f"{word} {number}" for word in ("a", "the", "one", "that", "this"))
        examples.append(CaptionedImage(ImageRef(str(tmp_path), f"{number}.png"), captions))
    split = CaptionSplit("train", tuple(examples))

    class Task(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))
            self.seen = []

        def loss(self, batch, step):
            self.seen.append((batch["label"].tolist(), batch["index"].tolist()))
            assert [split.captions[index] for index in batch["index"]] == batch["text"]
            means = batch["pixels"].float().mean((2, 3))[batch["row"]]
            return (means * self.weight).sum(), {}

    task = Task()
    order = CaptionSamplerConfig(together=2).order(split.pictures, seed=0)
    config = FitConfig(epochs=2, batch_size=8)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    fit(
        task,
        CaptionDataset(split, PILToTensor()),
        optimizer,
        config,
        order=order,
        collate=collate_captions,
        show_progress=False,
    )
    assert [len(labels) for labels, _ in task.seen] == [8, 8, 8, 6] * 2
    assert all(count % 2 == 0 for labels, _ in task.seen for count in Counter(labels).values())
    assert [index for _, indices in task.seen[:4] for index in indices] == order(0).tolist()
