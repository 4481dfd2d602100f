"""Small pictures on disk for the tests of this folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _noise(seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def noise():
    """`noise(seed, (width, height))`: an RGB picture of random pixels."""
    return _noise


@pytest.fixture
def class_tree():
    """`class_tree(root, {folder: count})`: one folder per class with that many different pictures in each."""

    def make(root: Path, classes: dict[str, int], start: int = 0, suffix: str = ".png") -> Path:
        for folder, count in classes.items():
            (root / folder).mkdir(parents=True)
            for number in range(count):
                _noise(start + number).save(root / folder / f"{number:03}{suffix}")
        return root

    return make
