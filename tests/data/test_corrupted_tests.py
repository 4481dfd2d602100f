"""Corrupted test domains: the same pictures everywhere, and nothing changed that was there before."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from tether.config import build
from tether.data import (
    CORRUPTIONS,
    EmojiShiftConfig,
    FolderConfig,
    ImageDataset,
    ImageNetConfig,
    ManifestConfig,
    corrupt,
    load_benchmark,
    mixed_corruptions,
    read_image,
)
from tether.data.alterations import alter
from tether.data.corrupted_tests import check_choice
from tether.data.corruptions import drawn
from tether.data.transforms import fit_shortest
from tether.errors import TetherError


@pytest.fixture
def photo(tmp_path, class_tree):
    return class_tree(tmp_path / "photo", {"cat": 10, "dog": 10})


@pytest.fixture
def sketch(tmp_path, class_tree):
    return class_tree(tmp_path / "sketch", {"cat": 2}, start=50)


def pictures(split):
    return ImageDataset(split, lambda picture: picture)


def test_nothing_is_added_unless_asked_for(photo):
    assert list(load_benchmark(FolderConfig(train=str(photo))).tests) == ["in-distribution"]
    assert ManifestConfig(path="a.csv").corruptions == ImageNetConfig(imagenet="x").corruptions == "none"


def test_a_mixture_is_one_more_domain_of_the_in_distribution_test(photo, sketch):
    options = {"train": str(photo), "shifted": {"sketch": str(sketch)}}
    plain = load_benchmark(FolderConfig(**options))
    mixed = load_benchmark(FolderConfig(**options, corruptions="mixture"))
    assert list(mixed.tests) == ["in-distribution", "sketch", "corrupted"]
    assert {name: mixed.tests[name].digest for name in plain.tests} == {
        name: split.digest for name, split in plain.tests.items()
    }
    own, corrupted = mixed.tests["in-distribution"], mixed.tests["corrupted"]
    assert corrupted.examples == own.examples and corrupted.digest != own.digest
    assert "one of 75 corruptions" in corrupted.convention and corrupted.domain == "in-distribution corrupted"
    assert (mixed.train.digest, mixed.validation.digest) == (plain.train.digest, plain.validation.digest)


def test_all_is_a_domain_for_each_corruption_and_severity(photo):
    tests = load_benchmark(FolderConfig(train=str(photo), corruptions="all")).tests
    assert list(tests)[1:] == [f"{name} {severity}" for name in CORRUPTIONS for severity in range(1, 6)]
    assert tests["snow 4"].alteration == "corruption:snow:4:0"


def test_a_picture_of_the_mixture_is_that_corruption_of_it_that_its_name_draws(photo):
    split = load_benchmark(FolderConfig(train=str(photo), corruptions="mixture")).tests["corrupted"]
    data = pictures(split)
    for index, example in enumerate(split.examples):
        name, severity = drawn(0, example.image.name)
        whole = fit_shortest(read_image(example.image), 224)
        expected = corrupt(whole, name, severity, key=example.image.name)
        assert (np.asarray(data.picture(index)) == np.asarray(expected)).all()
    few = replace(split, examples=split.examples[2:3])
    assert (np.asarray(pictures(few).picture(0)) == np.asarray(data.picture(2))).all()


def test_all_corruptions_are_equally_likely():
    counts = Counter(drawn(0, f"{number:05}.webp") for number in range(75 * 200))
    assert len(counts) == 75
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert 40 < chi_square < 120  # 74 degrees of freedom: outside once in a thousand seeds
    assert drawn(1, "a.png") != drawn(0, "a.png")


def test_another_process_corrupts_alike(photo):
    split = load_benchmark(FolderConfig(train=str(photo), corruptions="mixture")).tests["corrupted"]
    program = f"""
import hashlib
from tether.data import FolderConfig, ImageDataset, load_benchmark
split = load_benchmark(FolderConfig(train={str(photo)!r}, corruptions="mixture")).tests["corrupted"]
data = ImageDataset(split, lambda picture: picture)
print(split.digest, [hashlib.sha256(data.picture(i).tobytes()).hexdigest() for i in reversed(range(len(data)))])
"""
    data = pictures(split)
    here = [sha256(data.picture(index).tobytes()).hexdigest() for index in reversed(range(len(data)))]
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == f"{split.digest} {here}"


def test_the_built_in_data_has_the_mixture_in_every_fold_where_it_is_asked_for():
    folds = [load_benchmark(EmojiShiftConfig(fold=fold, corruptions="mixture")) for fold in range(3)]
    assert all(list(fold.tests)[-1] == "corrupted" for fold in folds)
    assert sum(len(fold.tests["corrupted"]) for fold in folds) == sum(
        len(fold.tests["twemoji"]) for fold in folds
    )
    assert "corrupted" not in load_benchmark(EmojiShiftConfig()).tests


def test_what_is_refused(photo, sketch, monkeypatch):
    for config in (EmojiShiftConfig, FolderConfig, ManifestConfig, ImageNetConfig):
        needed = {
            FolderConfig: {"train": "a"},
            ManifestConfig: {"path": "a.csv"},
            ImageNetConfig: {"imagenet": "a"},
        }
        with pytest.raises(TetherError, match="did you mean 'mixture'"):
            build(config, {**needed.get(config, {}), "corruptions": "mixtures"})
    with pytest.raises(TetherError, match="'most'; known: 'none', 'mixture', 'all'"):
        check_choice("most")
    with pytest.raises(TetherError, match="domain 'corrupted' already"):
        load_benchmark(
            FolderConfig(train=str(photo), shifted={"corrupted": str(sketch)}, corruptions="mixture")
        )
    split = load_benchmark(FolderConfig(train=str(photo))).validation
    with pytest.raises(TetherError, match="altered already"):
        mixed_corruptions(replace(split, alteration="crop_border:2"))
    with pytest.raises(TetherError, match="no alteration 'corruption:mix:0'"):
        alter(read_image(split.examples[0].image), "corruption:mix:0", "a")
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(TetherError, match="corruptions: none"):
        load_benchmark(FolderConfig(train=str(photo), corruptions="mixture"))
