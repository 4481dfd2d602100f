"""Targets, splits and benchmarks for pixels and objects."""

import numpy as np
import pytest
from PIL import Image

from tether.data import ImageRef
from tether.data.dense import DenseBenchmark, DenseExample, DenseSplit, cut, in_role
from tether.data.targets import IGNORE, Boxes, MaskCoding, MaskFile, TargetRef, areas_of, bounds
from tether.errors import TetherError

NONE = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))


def split(name, numbers, **options):
    examples = tuple(DenseExample(ImageRef("/data", f"{number}.png"), NONE) for number in numbers)
    return DenseSplit(name, "photo", examples, **options)


def benchmark(**changes):
    options = dict(
        name="tiny",
        class_names=("cat", "dog"),
        answers=("boxes",),
        train=split("train", range(4)),
        validation=split("validation", range(4, 6)),
        tests={"photo": split("test", range(6, 9))},
        in_distribution="photo",
    )
    return DenseBenchmark(**options | changes)


def test_a_mask_is_read_by_index_by_palette_and_by_colour(tmp_path):
    values = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
    coding = MaskCoding({0: 2, 1: 0, 2: 1, 255: IGNORE})
    expected = [[2, 0, 1], [-1, 0, 2]]
    Image.fromarray(values).save(tmp_path / "grey.png")
    palette = Image.frombytes("P", (3, 2), values.tobytes())
    palette.putpalette([7, 7, 7, 1, 2, 3, 9, 9, 9] + [0] * 759)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    palette.convert("RGB").save(tmp_path / "colour.png")
    colours = MaskCoding(colours={(7, 7, 7): 2, (1, 2, 3): 0, (9, 9, 9): 1, (0, 0, 0): IGNORE})
    for name, own in (
        ("grey", coding),
        ("palette", coding),
        ("deep", coding),
        ("colour", colours),
        ("palette", colours),
    ):
        mask = MaskFile(ImageRef(str(tmp_path), f"{name}.png"), own)
        assert mask.read(2, 3).semantic.tolist() == expected, name
        assert isinstance(mask, TargetRef)
    assert coding.digest != colours.digest


def test_a_mask_that_does_not_fit_names_itself_and_what_is_wrong(tmp_path):
    Image.fromarray(np.array([[0, 9], [9, 3]], np.uint8)).save(tmp_path / "mask.png")
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "colour.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "lossy.jpg")
    (tmp_path / "bad.png").write_bytes((tmp_path / "mask.png").read_bytes()[:40])
    coding = MaskCoding({0: 0}, {(0, 0, 0): 0})
    only_indices = MaskCoding({0: 0})

    def refused(name, own, message, size=(2, 2)):
        with pytest.raises(TetherError, match=message) as error:
            MaskFile(ImageRef(str(tmp_path), name), own).read(*size)
        assert name in str(error.value)

    refused("mask.png", coding, r"value 3, 9 on 3 pixels")
    refused("mask.png", coding, r"2 × 2 pixels, and its picture 5 × 4", (4, 5))
    refused("colour.png", coding, r"colour \(1, 2, 3\) on 4 pixels")
    refused("colour.png", only_indices, "indices")
    refused("lossy.jpg", coding, "JPEG")
    refused("bad.png", coding, "damaged")
    refused("none.png", coding, "No such file")


def test_bounds_and_areas_are_of_pixels():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:6] = True
    assert bounds(mask) == (2, 1, 6, 3)
    assert areas_of(np.array([bounds(mask)], np.float32)).tolist() == [mask.sum()]


def test_the_digest_is_of_names_identities_answers_domain_and_alteration():
    one = split("train", range(3))
    assert one.digest == split("other", range(3)).digest
    box = Boxes(np.ones((1, 4), np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    others = [
        split("train", range(4)),
        split("train", range(3), alteration="simulated:hue:0"),
        DenseSplit("train", "sketch", one.examples),
        DenseSplit("train", "photo", (DenseExample(one.examples[0].image, box), *one.examples[1:])),
        DenseSplit("train", "photo", in_role(one.examples, "elsewhere")),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6


def test_a_cut_is_by_identity():
    examples = tuple(
        DenseExample(ImageRef("/data", f"{number}.png"), NONE, identity=f"street {number // 5}")
        for number in range(50)
    )
    train, validation = cut(examples, 0.2, seed=0)
    assert len(train) == 40 and len(validation) == 10
    assert not {e.identity for e in train} & {e.identity for e in validation}


def test_the_background_is_the_last_class_of_masks():
    assert benchmark().semantic_names == ("cat", "dog")
    assert benchmark(background="nothing").semantic_names == ("cat", "dog", "nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(class_names=("cat", "cat")), "same name"),
        (dict(class_names=("cat", " ")), "without a name"),
        (dict(class_names=()), "no classes"),
        (dict(background="cat"), "same name"),
        (dict(answers=("mask",)), "did you mean 'masks'"),
        (dict(answers=()), "answers"),
        (dict(in_distribution="photos"), "did you mean 'photo'"),
        (dict(tests={"photo": split("test", ())}), "without a single picture"),
        (dict(tests={"photo": split("test", [3])}), "in the split 'train' and in the split 'test'"),
        (dict(validation=split("validation", [6])), "'validation' and in the split 'test'"),
    ],
)
def test_a_benchmark_that_contradicts_itself_is_refused(changes, message, unchecked):
    with pytest.raises(TetherError, match=message):
        benchmark(**changes)


@pytest.mark.parametrize("alteration", ["crop_border:2", "simulated:background:0"])
def test_alterations_that_move_things_are_refused(alteration):
    with pytest.raises(TetherError, match="moves what is in a picture"):
        split("test", range(2), alteration=alteration)


def test_a_picture_occurs_once():
    with pytest.raises(TetherError, match=r"more than once: /data/1\.png"):
        split("test", [1, 1])
