import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tether.data import (
    CORRUPTIONS,
    Example,
    ImageDataset,
    ImageRef,
    Split,
    corrupt,
    corrupted,
    test_transform,
)
from tether.errors import TetherError
from tether.models.model import ImageSpec


@pytest.fixture(scope="module")
def smooth():
    """A picture with shapes, 48 × 40 pixels: noise would hide noise."""
    down, across = np.mgrid[0:40, 0:48] / 40
    pixels = np.stack([down, across / 1.2, (np.hypot(down - 0.5, across - 0.5) < 0.3) * 0.8], -1)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def distance(first, second):
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_a_pure_function_and_grows(smooth, name):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    mild, severe = (corrupt(smooth, name, severity, seed=2, key="a") for severity in (1, 5))
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(99)
    assert distance(corrupt(smooth, name, 5, seed=2, key="a"), severe) == 0
    assert severe.size == smooth.size and severe.mode == "RGB"
    assert 0.2 < distance(mild, smooth) < distance(severe, smooth)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "impulse_noise", "glass_blur", "frost", "elastic_transform"]
)
def test_chance_differs_by_picture_seed_and_severity(smooth, name):
    found = {corrupt(smooth, name, 3, seed=seed, key=key).tobytes() for seed in (0, 1) for key in "ab"}
    assert len(found) == 4


def test_what_is_refused(smooth, monkeypatch):
    with pytest.raises(TetherError, match="did you mean 'fog'"):
        corrupt(smooth, "frog", 1)
    with pytest.raises(TetherError, match="severity is 6"):
        corrupt(smooth, "fog", 6)
    with pytest.raises(TetherError, match="48 × 31"):
        corrupt(smooth.crop((0, 0, 48, 31)), "fog", 1)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(TetherError, match=r"\.\[corruptions\]"):
        corrupt(smooth, "fog", 1)


def test_a_split_per_corruption_and_severity(tmp_path, smooth):
    smooth.save(tmp_path / "a.png")
    split = Split("test", "photo", (Example(ImageRef(str(tmp_path), "a.png"), 0),))
    splits = corrupted(split)
    assert len(splits) == 75 and len({item.digest for item in splits.values()}) == 75
    fog = splits["fog 3"]
    assert "224" in fog.convention and fog.domain == "photo fog 3"
    picture = ImageDataset(fog, lambda picture: picture).picture(0)
    expected = corrupt(smooth.resize((269, 224), Image.Resampling.BICUBIC), "fog", 3, seed=0, key="a.png")
    assert distance(picture, expected) == 0
    spec = ImageSpec(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert ImageDataset(fog, test_transform(spec))[0]["pixels"].shape == (3, 16, 16)
    with pytest.raises(TetherError, match="altered already"):
        corrupted(fog)
    with pytest.raises(TetherError, match="no corruption fog 9"):
        corrupted(split, ["fog"], [9])
    with pytest.raises(TetherError, match="did you mean 'frost'"):
        corrupted(replace(split, name="x"), ["fros"])
