"""Small pictures on disk for the tests of this folder."""

import json
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


@pytest.fixture
def objectnet(tmp_path, class_tree):
    """Four classes, of which a chair (two ImageNet classes) and a mug overlap."""
    root = tmp_path / "objectnet-1.0"
    class_tree(root / "images", dict.fromkeys(["chair", "coffee_mug", "sponge", "tray"], 2))
    for picture in (root / "images").glob("*/*.png"):
        framed = Image.new("RGB", (28, 24), "red")
        framed.paste(Image.open(picture), (2, 2))
        framed.save(picture)
    (root / "mappings").mkdir()

    def write(name, value):
        (root / "mappings" / name).write_text(json.dumps(value))

    write(
        "folder_to_objectnet_label.json",
        {"chair": "Chair", "coffee_mug": "Mug", "sponge": "Sponge", "tray": "Tray"},
    )
    write(
        "objectnet_to_imagenet_1k.json",
        {"Chair": "rocking chair, rocker; folding chair", "Mug": "coffee mug"},
    )
    names = ["coffee mug", "folding chair", "rocking chair, rocker"]  # in the order of the 2012 ids
    (root / "mappings" / "imagenet_to_label_2012_v2").write_text("\n".join(names) + "\n")
    write("pytorch_to_imagenet_2012_id.json", {"504": 0, "559": 1, "765": 2})
    return root
