"""Pre-training pairs: functions of the seed, the epoch and the index alone, and told where pictures are missing."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from makers.builtin_clip.pairs import (
    CaptionedPictures,
    PairDataset,
    StemFeatures,
    _coloured_in,
    _pixelated,
    augment,
    cache_stem_features,
    view_offsets,
)
from tether.errors import TetherError


def test_augmentation_is_a_function_of_its_random_stream():
    picture = Image.new("RGBA", (32, 32), (200, 0, 0, 255))
    first, again = (augment(picture, True, 48, np.random.default_rng(3)) for _ in range(2))
    other = augment(picture, True, 48, np.random.default_rng(4))
    assert first.size == (48, 48) and first.mode == "RGB"
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_picture_of_one_colour_may_be_coloured_in_and_drawn_in_squares():
    ring = Image.new("RGBA", (32, 32))
    ImageDraw.Draw(ring).ellipse((2, 2, 29, 29), outline="black", width=3)
    random = np.random.default_rng(0)
    filled = _coloured_in(ring, random)
    assert filled.getpixel((16, 16))[3] == 255 and filled.getpixel((0, 0))[3] == 0
    assert filled.getpixel((16, 16))[:3] != filled.getpixel((16, 3))[:3]
    coarse = np.asarray(_pixelated(ring, random).getchannel("A"))
    assert set(np.unique(coarse)) == {0, 255}


def test_features_that_are_there_are_not_computed_again(folder, tmp_path, monkeypatch):
    pictures, views = CaptionedPictures(folder), {"emoji": 2, "icon": 1}
    monkeypatch.setattr(StemFeatures, "PER_FILE", 10)
    seen = []

    def stem(pixels):
        seen.append(len(pixels))
        return pixels.mean((2, 3), keepdim=True)

    options = {"size": 32, "views": views, "seed": 0}
    first = cache_stem_features(pictures, tmp_path / "features", stem, **options)
    assert seen == [10, 10, 4] and first[23].shape == (3, 1, 1)
    kept = first[9].copy()
    (tmp_path / "features" / "0001.npy").unlink()
    again = cache_stem_features(pictures, tmp_path / "features", stem, **options)
    assert seen == [10, 10, 4, 10] and np.array_equal(again[9], kept) and again[15].any()


def test_pairs_depend_on_epoch_and_index_only_and_views_belong_to_their_picture(
    folder, tmp_path, monkeypatch
):
    pictures, views = CaptionedPictures(folder), {"emoji": 3, "icon": 1}
    numbers = np.repeat(np.arange(len(pictures.rows)), np.diff(view_offsets(pictures, views)))
    monkeypatch.setattr(StemFeatures, "PER_FILE", 5)
    files = [tmp_path / f"{start}.npy" for start in range(0, len(numbers), 5)]
    for number, file in enumerate(files):
        np.save(file, numbers[5 * number : 5 * number + 5].astype(np.float16)[:, None, None, None])
    features = StemFeatures(files)

    def tokenize(texts):
        return torch.tensor([[len(text), 1] for text in texts])

    pairs = PairDataset(pictures, features, views, tokenize, often="emoji", repeats=2, seed=5)
    assert len(pairs) == 8 * 2 + 8
    for index in range(len(pairs)):
        item, again = pairs[2, index], pairs[2, index]
        assert all(torch.equal(torch.as_tensor(item[key]), torch.as_tensor(again[key])) for key in item)
        row = pictures.rows[int(item["pixels"])]
        assert item["name"] == pictures.rows.index(row)
        assert (item["general"] >= 0) == (row.captions[-1] == "an animal")


def test_a_folder_without_pictures_is_told_what_to_run(tmp_path):
    with pytest.raises(TetherError, match="make pictures"):
        CaptionedPictures(tmp_path)
