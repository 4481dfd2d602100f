import colorsys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tether.data import (
    CORRUPTIONS,
    SIMULATED_SHIFTS,
    Example,
    ImageDataset,
    ImageRef,
    Split,
    simulated_shifts,
)
from tether.data.simulated import simulate, surrounding
from tether.errors import TetherError


def drawing(size=40):
    """A red ring around a white hole, on white."""
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).ellipse((10, 10, size - 11, size - 11), outline=(200, 30, 30), width=5)
    return image


def flat(colour):
    return Image.new("RGB", (32, 32), colour)


@pytest.mark.parametrize("name", SIMULATED_SHIFTS)
def test_every_shift_changes_the_picture_and_nothing_decides_but_its_arguments(name, noise):
    for picture in (noise(size=(40, 30)), drawing()):
        found = simulate(picture, name, seed=1, key="a")
        assert found.size == picture.size and found.mode == "RGB"
        np.random.seed(3)
        again = simulate(picture, name, seed=1, key="a")
        assert (np.asarray(found) == np.asarray(again)).all()
        assert np.abs(np.asarray(found, int) - np.asarray(picture)).mean() > 0.5


@pytest.mark.parametrize("name", ["hue", "background", "texture"])
def test_chance_differs_by_picture_and_seed(name):
    found = [
        np.asarray(simulate(drawing(), name, seed=seed, key=key)).tobytes() for seed in (0, 1) for key in "ab"
    ]
    assert len(set(found)) == 4


def test_what_each_shift_does():
    pixels = {name: np.asarray(simulate(drawing(), name, key="a")).astype(int) for name in SIMULATED_SHIFTS}
    plain = np.asarray(drawing()).astype(int)
    assert (pixels["greyscale"].max(-1) == pixels["greyscale"].min(-1)).all()
    assert (pixels["inversion"] == 255 - plain).all()
    assert set(np.unique(pixels["two_tone"])) == {0, 255}
    assert set(np.unique(pixels["posterise"])) <= {0, 64, 128, 192}
    assert pixels["line_drawing"][0, 0, 0] == 255 and pixels["line_drawing"].min() < 60
    ring = plain[..., 1] == 30
    turned = [colorsys.rgb_to_hsv(*(row / 255)) for row in pixels["hue"][ring]]
    assert all(1 / 6 - 0.02 < hue < 5 / 6 + 0.02 for hue, _, _ in turned)
    assert 0 < np.abs(pixels["softening"] - plain).max() < 200


def test_the_background_changes_around_the_object_and_not_inside_it():
    found = np.asarray(simulate(drawing(), "background", key="a"))
    assert (found[20, 20] == 255).all()
    assert (found[0, 0] == found[39, 39]).all() and (found[0, 0] < 255).any()
    assert (found[20, 12] == (200, 30, 30)).all()


def test_a_picture_without_a_plain_surrounding_gets_a_frame(noise):
    found = np.asarray(simulate(noise(size=(40, 40)), "background", key="a"))
    assert (found[:5] == found[0, 0]).all() and found[10:30, 10:30].std() > 10


def test_the_surrounding_turns_corners():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[0:1] = pixels[-1:] = pixels[:, 0:1] = pixels[:, -1:] = 250
    for row, column in (
        [(5, c) for c in range(0, 12)] + [(r, 11) for r in range(5, 15)] + [(14, c) for c in range(5, 12)]
    ):
        pixels[row, column] = 250  # a winding way in
    pixels[17, 17] = 250  # an island
    found = surrounding(pixels)
    assert found[14, 5] and found[0].all() and not found[17, 17] and not found[1, 1]
    assert found.sum() == (pixels[..., 0] == 250).sum() - 1


def test_splits_are_altered_when_read(tmp_path, noise):
    noise(size=(40, 30)).save(tmp_path / "a.png")
    split = Split("validation", "photo", (Example(ImageRef(str(tmp_path), "a.png"), 0),))
    shifted = simulated_shifts(split, seed=5)
    assert tuple(shifted) == SIMULATED_SHIFTS
    assert len({split.digest, *(item.digest for item in shifted.values())}) == len(SIMULATED_SHIFTS) + 1
    for name, item in shifted.items():
        expected = simulate(noise(size=(40, 30)), name, seed=5, key="a.png")
        assert (
            np.asarray(ImageDataset(item, lambda picture: picture).picture(0)) == np.asarray(expected)
        ).all()
    with pytest.raises(TetherError, match="altered already"):
        simulated_shifts(shifted["hue"])
    with pytest.raises(TetherError, match="did you mean 'inversion'"):
        simulated_shifts(split, ["invertion"])
    with pytest.raises(TetherError, match="no simulated shift"):
        simulate(noise(), "fog")


def test_no_shift_is_a_corruption():
    assert not set(SIMULATED_SHIFTS) & set(CORRUPTIONS)
