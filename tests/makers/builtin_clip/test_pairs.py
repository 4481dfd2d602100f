"""Pre-training pairs: functions of the seed, the epoch and the index alone, and told where pictures are missing."""

import numpy as np
import pytest
import torch
from PIL import Image

from makers.builtin_clip.pairs import CaptionedPictures, PairDataset, augment, view_offsets
from tether.errors import TetherError


def test_augmentation_is_a_function_of_its_random_stream():
    picture = Image.new("RGBA", (32, 32), (200, 0, 0, 255))
    first, again = (augment(picture, True, 48, np.random.default_rng(3)) for _ in range(2))
    other = augment(picture, True, 48, np.random.default_rng(4))
    assert first.size == (48, 48) and first.mode == "RGB"
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_pairs_depend_on_epoch_and_index_only_and_views_belong_to_their_picture(folder):
    pictures, views = CaptionedPictures(folder), {"emoji": 3, "icon": 1}
    offsets = view_offsets(pictures, views)
    features = np.repeat(np.arange(len(pictures.rows)), np.diff(offsets)).astype(np.float16)[
        :, None, None, None
    ]

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
