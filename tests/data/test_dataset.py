import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tether.data import Example, ImageDataset, ImageRef, Split, test_transform, train_transform
from tether.errors import TetherError
from tether.models.model import ImageSpec

SPEC = ImageSpec(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def split(tmp_path, class_tree):
    class_tree(tmp_path, {"a": 4, "b": 4})
    rows = [(f"{folder}/{number:03}.png", label) for label, folder in enumerate("ab") for number in range(4)]
    return Split(
        "train", "photo", tuple(Example(ImageRef(str(tmp_path), name), label) for name, label in rows)
    )


def same(first, second):
    return torch.equal(first["pixels"], second["pixels"]) and all(
        first[key] == second[key] for key in ("label", "index", "text_pick")
    )


def test_an_item_depends_on_seed_epoch_and_index_only(split):
    transform = train_transform(SPEC, scale=(0.3, 0.8), flip=True, color_jitter=0.4)
    one, two, other = (ImageDataset(split, transform, seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(0)
    expected = {place: one[place] for place in [(0, 3), (1, 3), (0, 5), (7, 0)]}
    torch.manual_seed(99)
    torch.rand(5)
    for place in reversed(expected):
        assert same(two[place], expected[place])
    assert same(two[3], expected[0, 3])
    assert not torch.equal(expected[0, 3]["pixels"], expected[1, 3]["pixels"])
    assert not torch.equal(expected[0, 3]["pixels"], other[0, 3]["pixels"])
    assert expected[0, 3]["text_pick"] != expected[1, 3]["text_pick"]
    assert (expected[0, 5]["label"], expected[0, 5]["index"]) == (1, 5)


def test_the_callers_random_stream_is_left_alone(split):
    dataset = ImageDataset(split, train_transform(SPEC), seed=1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[0, 1]
    assert torch.equal(torch.rand(3), expected)

    def failing(picture):
        torch.rand(1)
        raise RuntimeError("no")

    torch.manual_seed(0)
    with pytest.raises(RuntimeError):
        ImageDataset(split, failing)[0]
    assert torch.equal(torch.rand(3), expected)


def test_workers_change_nothing(split):
    dataset = ImageDataset(split, train_transform(SPEC, scale=(0.3, 0.8)), seed=3)
    places = [(epoch, index) for epoch in range(2) for index in (5, 0, 7, 2)]
    alone = list(DataLoader(dataset, sampler=places, batch_size=2))
    helped = list(DataLoader(dataset, sampler=places, batch_size=2, num_workers=2))
    for first, second in zip(alone, helped, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert set(alone[0]) == {"pixels", "label", "index", "text_pick"}
    assert alone[0]["pixels"].shape == (2, 3, 16, 16)


def test_text_picks_are_spread_evenly(split):
    dataset = ImageDataset(split, test_transform(SPEC), cache_bytes=2**20)
    picks = np.bincount([dataset[epoch, index]["text_pick"] % 3 for epoch in range(60) for index in range(8)])
    assert picks.sum() == 480 and picks.min() > 120


def test_cached_pictures_are_the_same_and_within_their_room(split, monkeypatch):
    reads = []
    import tether.data.dataset as module

    original = module.read_image
    monkeypatch.setattr(module, "read_image", lambda ref: reads.append(ref) or original(ref))
    one_picture = 24 * 20 * 3
    plain = ImageDataset(split, test_transform(SPEC))
    cached = ImageDataset(split, test_transform(SPEC), cache_bytes=3 * one_picture + 5)
    for _ in range(2):
        for index in range(8):
            assert torch.equal(plain[index]["pixels"], cached[index]["pixels"])
    assert len(reads) == 2 * 8 + 8 + 5


def test_an_alteration_reaches_the_pixels(split, noise):
    from dataclasses import replace

    cropped = ImageDataset(
        replace(split, alteration="crop_border:2"), test_transform(SPEC), cache_bytes=2**20
    )
    for _ in range(2):
        expected = np.asarray(noise(1))[2:-2, 2:-2]
        assert (np.asarray(cropped.picture(1)) == expected).all()
    with pytest.raises(TetherError, match="no alteration"):
        ImageDataset(replace(split, alteration="crop:2"), test_transform(SPEC))[0]


def test_an_unreadable_picture_stops_with_its_name(split, tmp_path):
    (tmp_path / "a/002.png").write_bytes(b"")
    dataset = ImageDataset(split, test_transform(SPEC))
    dataset[1]
    with pytest.raises(TetherError, match=r"a/002\.png"):
        dataset[2]


def test_a_picture_is_named_by_its_place(split, tmp_path):
    dataset = ImageDataset(split, test_transform(SPEC))
    assert [dataset.identity(index) for index in (0, 5)] == [f"{tmp_path}/a/000.png", f"{tmp_path}/b/001.png"]


def test_description(split):
    text = ImageDataset(split, test_transform(SPEC), seed=4).describe()
    for part in (
        "train: 8 pictures of 2 classes",
        "domain photo",
        split.digest,
        "seed 4",
        "CenterCrop",
        "Normalize",
    ):
        assert part in text
