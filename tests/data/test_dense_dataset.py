"""Pictures and answers are moved together, and an item depends on (seed, epoch, index) alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tether.data import ImageRef, load_benchmark
from tether.data.dense import DenseExample, DenseSplit
from tether.data.dense_dataset import DenseDataset, collate_dense
from tether.data.dense_transforms import (
    DenseAugmentationConfig,
    at_size,
    dense_test_transform,
    dense_train_transform,
)
from tether.data.scenes import ScenesConfig
from tether.data.targets import IGNORE, DenseTarget, Objects, bounds
from tether.errors import TetherError
from tether.models.model import ImageSpec

SPEC = ImageSpec(size=(48, 64), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
OPTIONS = dict(size=96, train_pictures=6, validation_pictures=0, test_pictures=3, shifted=["line"])


class Square:
    """A red square on black: everything about it is known."""

    key = "square"

    def __init__(self, box=(30, 20, 60, 40)):
        self.box = box

    def read(self, height, width):
        left, top, right, bottom = self.box
        mask = np.zeros((1, height, width), bool)
        mask[0, top:bottom, left:right] = True
        none = np.zeros(1, bool)
        objects = Objects(
            np.array([self.box], np.float32),
            np.array([1]),
            mask,
            none,
            none,
            mask.sum((1, 2)).astype(np.float32),
        )
        return DenseTarget(np.where(mask[0], 1, 2).astype(np.int16), objects)


@pytest.fixture
def square(tmp_path):
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[20:40, 30:60, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "square.png")
    return DenseSplit("train", "plain", (DenseExample(ImageRef(str(tmp_path), "square.png"), Square()),))


def red(item):
    return (item["pixels"][0] > 0) & (item["pixels"][1] < -1)


def test_the_answer_as_it_was_read_goes_along_where_it_is_asked_for(square):
    items = [DenseDataset(square, dense_test_transform(SPEC), keep_target=True)[0]] * 2
    batch = collate_dense(items)
    assert batch["semantic"].shape == (2, 48, 64)
    assert [one.semantic.shape for one in batch["target"]] == [(80, 120)] * 2
    assert "target" not in collate_dense([DenseDataset(square, dense_test_transform(SPEC))[0]])


def test_the_whole_picture_is_fitted_and_padded(square):
    item = DenseDataset(square, dense_test_transform(SPEC))[0]
    assert item["pixels"].shape == (3, 48, 64) and item["content"] == (43, 64) and item["size"] == (80, 120)
    assert (item["semantic"][43:] == IGNORE).all() and (item["semantic"][:43] >= 1).all()
    assert item["pixels"][:, 43:].abs().max() < 0.02
    back = item["boxes"][0] * torch.tensor([120 / 64, 80 / 43] * 2)
    assert torch.allclose(back, torch.tensor([30.0, 20, 60, 40]), atol=1e-3)
    assert item["labels"].tolist() == [1] and item["masks"].dtype == torch.bool
    assert abs(item["areas"].item() - 600 * (64 / 120) * (43 / 80)) < 1
    assert (red(item) == item["masks"][0]).float().mean() > 0.97


def test_a_model_of_square_pictures_gives_its_size_by_one_number(square):
    spec = ImageSpec(size=32, mean=SPEC.mean, std=SPEC.std)
    for transform in (dense_test_transform(spec), dense_train_transform(spec)):
        assert DenseDataset(square, transform)[0]["pixels"].shape == (3, 32, 32)


def test_a_squashed_picture_fills_the_input(square, unchecked):
    item = DenseDataset(square, dense_test_transform(SPEC, fit="squash"))[0]
    assert item["content"] == (48, 64) and (item["semantic"] >= 1).all()
    assert torch.allclose(item["boxes"], torch.tensor([[16.0, 12, 32, 24]]))
    with pytest.raises(TetherError, match="did you mean 'squash'"):
        dense_test_transform(SPEC, fit="squish")


def test_boxes_masks_and_pixels_stay_together_under_augmentation(square):
    dataset = DenseDataset(
        square, dense_train_transform(SPEC, DenseAugmentationConfig(color_jitter=0.0)), seed=3
    )
    mirrored, sizes, empty = set(), set(), 0
    for epoch in range(40):
        item = dataset[epoch, 0]
        assert item["pixels"].shape == (3, 48, 64) and item["semantic"].dtype == torch.int64
        if not len(item["labels"]):
            empty += 1
            continue
        mask, box = item["masks"][0], item["boxes"][0]
        assert (red(item) ^ mask).sum() <= 2.5 * (mask.shape[0] + mask.shape[1])
        assert (item["semantic"][mask] == 1).all() and (item["semantic"][~mask] != 1).all()
        assert (torch.tensor(bounds(mask.numpy())) - box).abs().max() <= 1.01
        assert abs(item["areas"].item() - mask.sum()) <= 0.15 * mask.sum() + 8
        assert box.min() >= 0 and box[2] <= 64 and box[3] <= 48
        mirrored.add(bool(box[0] + box[2] > 64))
        sizes.add(round(float(box[2] - box[0])))
    assert empty < 20 and mirrored == {True, False} and len(sizes) > 8


def test_an_item_depends_on_seed_epoch_and_index_alone(square):
    def of(seed, epoch):
        return DenseDataset(square, dense_train_transform(SPEC), seed=seed)[epoch, 0]["pixels"]

    torch.manual_seed(1)
    first, state = of(0, 0), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, of(0, 0))
    assert not torch.equal(first, of(0, 1)) and not torch.equal(first, of(1, 0))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_what_a_crop_leaves_too_little_of_is_dropped(square):
    strict = DenseAugmentationConfig(scale=(2.0, 2.0), kept=1.0, color_jitter=0.0)
    loose = DenseAugmentationConfig(scale=(2.0, 2.0), kept=0.0, color_jitter=0.0)
    for epoch in range(10):
        few = DenseDataset(square, dense_train_transform(SPEC, strict))[epoch, 0]
        many = DenseDataset(square, dense_train_transform(SPEC, loose))[epoch, 0]
        assert len(few["labels"]) <= len(many["labels"]) == int((many["semantic"] == 1).any())


def test_a_batch_of_scenes_from_workers_is_the_same_as_without():
    benchmark = ScenesConfig(**OPTIONS).load()
    dataset = DenseDataset(benchmark.train, dense_train_transform(SPEC))
    (alone,) = DataLoader(dataset, batch_size=6, collate_fn=collate_dense)
    (apart,) = DataLoader(dataset, batch_size=6, collate_fn=collate_dense, num_workers=1)
    assert alone["pixels"].shape == (6, 3, 48, 64) and alone["semantic"].shape == (6, 48, 64)
    assert torch.equal(alone["pixels"], apart["pixels"]) and alone["index"].tolist() == list(range(6))
    for one, other in zip(alone["objects"], apart["objects"], strict=True):
        assert one.keys() == {"boxes", "labels", "masks", "crowd", "difficult", "areas"}
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert len(one["boxes"]) == len(one["labels"]) == len(one["masks"])


def test_answers_grow_with_a_picture_that_is_corrupted_at_another_size():
    pytest.importorskip("imagecorruptions")
    split = load_benchmark(ScenesConfig(**OPTIONS, corruptions="mixture")).tests["corrupted"]
    assert split.is_corruption
    dataset = DenseDataset(split, dense_test_transform(SPEC))
    picture, target = dataset.pair(0)
    assert picture.size == (224, 224) and target.semantic.shape == (224, 224)
    plain = split.examples[0].target.read(96, 96)
    assert np.allclose(target.objects.boxes, plain.objects.boxes * 224 / 96)
    assert target.objects.masks.shape[1:] == (224, 224) and dataset[0]["size"] == (224, 224)
    for mask, box in zip(target.objects.masks, target.objects.boxes, strict=True):
        assert np.abs(np.array(bounds(mask)) - box).max() <= 1.5


def test_answers_resized_twofold_are_repeated_pixels():
    target = Square((1, 1, 3, 2)).read(4, 6)
    larger = at_size(target, (4, 6), (8, 12))
    assert (larger.semantic == np.repeat(np.repeat(target.semantic, 2, 0), 2, 1)).all()
    assert larger.objects.boxes.tolist() == [[2, 2, 6, 4]] and larger.objects.areas.tolist() == [8]
    assert at_size(target, (4, 6), (4, 6)) is target


def test_an_answer_that_cannot_be_read_names_the_picture(square):
    class Broken:
        key = "broken"

        def read(self, height, width):
            raise TetherError("it is broken.")

    broken = DenseSplit("train", "plain", (DenseExample(square.examples[0].image, Broken()),))
    with pytest.raises(TetherError, match=r"square\.png: it is broken"):
        DenseDataset(broken, dense_test_transform(SPEC))[0]


@pytest.mark.parametrize("options", [dict(scale=(0.0, 1.0)), dict(scale=(2.0, 1.0)), dict(kept=2.0)])
def test_augmentation_outside_its_range_is_refused(options):
    with pytest.raises(TetherError):
        DenseAugmentationConfig(**options)
