"""COCO's layout: a JSON file of images, categories and annotations."""

import copy
import json

import numpy as np
import pytest

from tether.config import build
from tether.data import load_benchmark
from tether.data.coco import CocoConfig, CocoSet
from tether.data.outlines import packed
from tether.errors import TetherError
from tether.families import DataConfig

CONTENT = {
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
    "images": [
        {"id": 7, "file_name": "a.png", "height": 10, "width": 12},
        {"id": 9, "file_name": "b.png", "height": 10, "width": 12},
    ],
    "annotations": [
        {
            "id": 1, "image_id": 9, "category_id": 18, "bbox": [2, 3, 4, 5], "area": 20.0, "iscrowd": 0,
            "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]],
        },
        {
            "id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 2, 10], "area": 20, "iscrowd": 1,
            "segmentation": {"size": [10, 12], "counts": [0, 20, 100]},
        },
        {
            "id": 3, "image_id": 9, "category_id": 3, "bbox": [11, 0, 1, 10], "area": 10, "iscrowd": 0,
            "segmentation": {"size": [10, 12], "counts": packed([110, 10])},
        },
    ],
}  # fmt: skip


@pytest.fixture
def write(tmp_path, noise):
    def make(name, content=CONTENT, start=0):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number, item in enumerate(content["images"]):
            noise(start + number, (12, 10)).save(folder / item["file_name"])
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return {"annotations": str(tmp_path / f"{name}.json"), "pictures": str(folder)}

    return make


def load(write, **changes):
    options = {name: changes.pop(name, None) or write(name) for name in ("train", "test")}
    options |= {"validation_share": 0.5} | changes
    return load_benchmark(build(DataConfig, {"method": "coco", **options}, "data"))


def test_boxes_masks_and_crowds_are_read(write):
    benchmark = load(write, masks=True)
    assert benchmark.class_names == ("cat", "dog") and benchmark.answers == ("boxes", "masks")
    assert len(benchmark.train) == 1 and len(benchmark.validation) == 1
    empty, full = (
        example.target.read(10, 12).objects for example in benchmark.tests["in-distribution"].examples
    )
    assert len(empty) == 0 and empty.masks.shape == (0, 10, 12)
    assert full.boxes.tolist() == [[2, 3, 6, 8], [0, 0, 2, 10], [11, 0, 12, 10]]
    assert full.labels.tolist() == [1, 0, 0] and full.crowd.tolist() == [False, True, False]
    assert full.areas.tolist() == [20, 20, 10] == full.masks.sum((1, 2)).tolist()
    for mask, (left, top, right, bottom) in zip(full.masks, full.boxes.astype(int), strict=True):
        assert mask[top:bottom, left:right].all()


def test_boxes_alone_need_no_outlines(write):
    content = copy.deepcopy(CONTENT)
    for item in content["annotations"]:
        del item["segmentation"], item["area"]
    benchmark = load(write, train=write("train", content), test=write("test", content), masks=False)
    objects = benchmark.tests["in-distribution"].examples[1].target.read(10, 12).objects
    assert objects.masks is None and objects.areas.tolist() == [20, 20, 10]
    assert benchmark.answers == ("boxes",)
    with pytest.raises(TetherError, match=r"annotation 1 has no outline.*data\.masks=false"):
        load(write, train=write("train", content))


def test_a_shifted_domain_has_categories_by_name(write):
    content = copy.deepcopy(CONTENT)
    content["categories"] = [{"id": 1, "name": "dog"}]
    content["annotations"] = [item | {"category_id": 1} for item in content["annotations"][:1]]
    benchmark = load(write, shifted={"clipart": write("clipart", content)})
    assert benchmark.tests["clipart"].examples[1].target.read(10, 12).objects.labels.tolist() == [1]
    content["categories"][0]["name"] = "dogs"
    with pytest.raises(TetherError, match="'dogs' that is not trained on; did you mean 'dog'"):
        load(write, shifted={"clipart": write("clipart", content)})


def test_the_digest_sees_every_number(write):
    digests = set()
    for change in (
        {},
        {"bbox": [2, 3, 4, 6]},
        {"iscrowd": 1},
        {"segmentation": [[2, 3, 6, 3, 6, 7]]},
        {"category_id": 3},
    ):
        content = copy.deepcopy(CONTENT)
        content["annotations"][0] |= change
        digests.add(load(write, test=write("test", content)).tests["in-distribution"].digest)
    assert len(digests) == 5


def test_a_picture_of_another_size_is_refused(write):
    with pytest.raises(TetherError, match="for 12 × 10 pixels, but it has 12 × 11"):
        load(write).train.examples[0].target.read(11, 12)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (("annotations", 0), {"category_id": 5}, "there is no category 5"),
        (("annotations", 0), {"image_id": 5}, "there is no image 5"),
        (("annotations", 0), {"bbox": [1, 2, 3]}, "expected bbox"),
        (("annotations", 0), {"bbox": [1, 2, 3, float("nan")]}, "expected bbox"),
        (("annotations", 0), {"segmentation": [[1, 2, 3, 4]]}, "three corners"),
        (("annotations", 1), {"segmentation": {"size": [9, 9], "counts": [81]}}, "but the image has"),
        (("annotations", 2), {"segmentation": {"size": [10, 12], "counts": "~"}}, "run-length text"),
        (("annotations", 2), {"segmentation": {"size": [10, 12], "counts": None}}, "neither"),
        (("images", 1), {"id": 7}, "id 7 to several images"),
        (("images", 1), {"id": "9"}, "whole number"),
        (("categories", 1), {"id": 18}, "several categories"),
        (("categories", 1), {"name": "dog"}, "same name"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(write, place, change, message):
    content = copy.deepcopy(CONTENT)
    content[place[0]][place[1]] |= change
    with pytest.raises(TetherError, match=message):
        load(write, train=write("train", content))


def test_missing_files_and_other_forms_are_refused(write, tmp_path):
    place = write("train")
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(TetherError, match="1 of 2 pictures are not in"):
        load(write, train=place, test=place)
    for text, message in (
        ("[1]", "expected COCO's form"),
        ("{", "Cannot read"),
        ('{"images": 3}', "no list of 'images'"),
    ):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(TetherError, match=message):
            load(write, train=place | {"annotations": str(tmp_path / "other.json")})
    content = copy.deepcopy(CONTENT)
    content["images"][0]["file_name"] = "b.png"
    place = write("train", content)
    content["images"][0]["file_name"] = "../a.png"
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(TetherError, match="lies outside"):
        load(write, train=place)


def test_the_in_distribution_name_is_taken():
    place = CocoSet(annotations="a.json", pictures="a")
    with pytest.raises(TetherError, match="in-distribution one"):
        CocoConfig(train=place, test=place, domain="photo", shifted={"photo": place})


def test_a_run_of_more_pixels_than_a_float_can_count_is_exact(tmp_path):
    from tether.data.coco import _Writer

    writer = _Writer(True)
    size = (2**13, 2**12)
    counts = [2**24 + 1, size[0] * size[1] - 2**24 - 1]
    item = {"category_id": 0, "bbox": [0, 0, 1, 1], "segmentation": {"size": list(size), "counts": counts}}
    writer.add(item, {0: 0}, size, "here")
    assert writer.store().numbers.tolist() == counts
    assert np.issubdtype(writer.store().numbers.dtype, np.float64)
