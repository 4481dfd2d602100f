"""Folders of masks beside folders of pictures, and ADE20K's."""

import numpy as np
import pytest
from PIL import Image

from tether.config import build
from tether.data import load_benchmark
from tether.data.mask_folders import class_table
from tether.data.targets import IGNORE
from tether.errors import TetherError
from tether.families import DataConfig


@pytest.fixture
def street(tmp_path, noise):
    """`street(name, count)`: a root of pictures with colour masks, whose names end in _L."""

    def make(name, count):
        root = tmp_path / name
        for number in range(count):
            for folder in ("images/a", "masks/a"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            noise(number, (6, 4)).save(root / "images" / "a" / f"{number:03}.jpg")
            mask = np.zeros((4, 6, 3), np.uint8)
            mask[:2] = (128, 64, 128)
            mask[3, 0] = (1, 2, 3)
            Image.fromarray(mask).save(root / "masks" / "a" / f"{number:03}_L.png")
        return str(root)

    return make


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "label_colors.txt"
    path.write_text("# colours\n0 0 0\tVoid\n128 64 128\t\tRoad\n64 0 128 RoadShoulder\n1 2 3\tSky_blue\n")
    return str(path)


def load(**options):
    return load_benchmark(build(DataConfig, {"method": "mask_folders", **options}, "data"))


def test_camvid_is_read_as_it_is_published(street, table):
    benchmark = load(
        train=street("CamVid", 10), classes=table, mask_suffix="_L", shifted={"night": street("night", 2)}
    )
    assert benchmark.class_names == ("Road", "RoadShoulder", "Sky blue") and benchmark.answers == (
        "semantic",
    )
    counts = [len(split) for split in (benchmark.train, benchmark.validation, *benchmark.tests.values())]
    assert counts == [7, 1, 2, 2] and sum(counts[:3]) == 10
    semantic = benchmark.train.examples[0].target.read(4, 6).semantic
    assert semantic[0, 0] == 0 and semantic[2, 0] == IGNORE and semantic[3, 0] == 2


def test_validation_and_test_may_be_given_and_a_class_the_background(street, table):
    roots = {name: street(name, 3) for name in ("train", "validation", "test")}
    benchmark = load(**roots, classes=table, mask_suffix="_L", background="Road")
    assert [len(benchmark.train), len(benchmark.validation), len(benchmark.tests["in-distribution"])] == [
        3,
        3,
        3,
    ]
    assert benchmark.semantic_names == ("RoadShoulder", "Sky blue", "Road")
    assert benchmark.train.examples[0].target.read(4, 6).semantic[0, 0] == 2


def test_lines_of_one_name_are_one_class(tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("0\tsky\n1\troad\n2\tsky\n255\tignore\n")
    names, coding = class_table(path, ("ignore",))
    assert names == ("sky", "road") and coding.indices == {0: 0, 1: 1, 2: 0, 255: IGNORE}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky\n", "line 1: expected an index or a colour"),
        ("0\tsky\n0\troad\n", "line 2: 0 stands for 'sky' already"),
        ("1 2 300\tsky\n", "0 to 255"),
        ("70000\tsky\n", "at most 65535"),
        ("0\tvoid\n", "no classes"),
        ("", "no classes"),
    ],
)
def test_a_class_table_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "table.txt").write_text(text)
    with pytest.raises(TetherError, match=message):
        class_table(tmp_path / "table.txt", ("void",))


def test_what_is_missing_is_named(street, table, tmp_path):
    root = street("CamVid", 4)
    with pytest.raises(
        TetherError, match=r"4 of 4 pictures .* have no mask .*expected 'a/000\.png'.*mask_suffix"
    ):
        load(train=root, classes=table)
    with pytest.raises(TetherError, match="no folder"):
        load(train=root, classes=table, masks="labels")
    with pytest.raises(TetherError, match="Cannot read the class table"):
        load(train=root, classes=str(tmp_path / "none.txt"))
    with pytest.raises(TetherError, match="no class 'Sea'"):
        load(train=root, classes=table, mask_suffix="_L", background="Sea")
    with pytest.raises(TetherError, match="in-distribution one"):
        load(train=root, classes=table, domain="day", shifted={"day": root})


@pytest.fixture
def ade(tmp_path, noise):
    root = tmp_path / "ADEChallengeData2016"
    heads = "Idx\tRatio\tTrain\tVal\tStuff\tName"
    names = ["wall", "building, edifice", "screen;CRT screen", "screen, projection screen"]
    lines = [f"{number}\t0.1\t1\t1\t1\t{name}" for number, name in enumerate(names, start=1)]
    for part, count in (("training", 6), ("validation", 3)):
        for number in range(count):
            for kind in ("images", "annotations"):
                (root / kind / part).mkdir(parents=True, exist_ok=True)
            noise(number, (5, 4)).save(root / "images" / part / f"ADE_{part}_{number}.jpg")
            mask = np.full((4, 5), number % 5, np.uint8)
            Image.fromarray(mask).save(root / "annotations" / part / f"ADE_{part}_{number}.png")
    (root / "objectInfo150.txt").write_text("\n".join([heads, *lines]) + "\n")
    return root


def test_ade20k_counts_classes_from_zero_and_ignores_what_is_none(ade):
    benchmark = load_benchmark(
        build(DataConfig, {"method": "ade20k", "root": str(ade), "validation_share": 0.3}, "data")
    )
    assert benchmark.class_names == ("wall", "building", "screen", "screen (2)") and not benchmark.background
    assert [len(benchmark.train), len(benchmark.validation), len(benchmark.tests["photo"])] == [4, 2, 3]
    first = [e.target.read(4, 5).semantic[0, 0] for e in benchmark.tests["photo"].examples]
    assert first == [IGNORE, 0, 1]


def test_ade20k_without_its_names_or_masks_is_refused(ade):
    (ade / "annotations" / "training" / "ADE_training_2.png").unlink()
    with pytest.raises(TetherError, match="1 of 6 pictures"):
        build(DataConfig, {"method": "ade20k", "root": str(ade)}, "data").load()
    (ade / "objectInfo150.txt").write_text("Idx\tName\n2\twall\n")
    with pytest.raises(TetherError, match="expected class 1"):
        build(DataConfig, {"method": "ade20k", "root": str(ade)}, "data").load()
    (ade / "objectInfo150.txt").unlink()
    with pytest.raises(TetherError, match=r"ADEChallengeData2016\.zip"):
        build(DataConfig, {"method": "ade20k", "root": str(ade)}, "data").load()
